/**
 * How the run is going, for a person: one line that is written over on a terminal, a new line every
 * `PLAIN_EVERY_MS` elsewhere, nothing with `--json`. Goes to standard error, so that the report alone is
 * on standard output.
 */

const TERMINAL_EVERY_MS = 200
const PLAIN_EVERY_MS = 5_000
const CLEAR_LINE = "\r\u001b[2K"

export interface Progress {
  /** Shows the line when its time has come. */
  show(line: () => string, nowMs: number): void
  /** Takes the line away, so that the report begins at the left. */
  clear(): void
}

/** The part of `process.stderr` that is used. */
export interface ProgressStream {
  readonly isTTY?: boolean
  readonly columns?: number
  write(text: string): unknown
}

const SILENT: Progress = { show: () => undefined, clear: () => undefined }

export function progress(stream: ProgressStream, silent: boolean): Progress {
  if (silent) return SILENT
  const terminal = stream.isTTY === true
  let nextMs = 0
  return {
    show(line, nowMs) {
      if (nowMs < nextMs) return
      nextMs = nowMs + (terminal ? TERMINAL_EVERY_MS : PLAIN_EVERY_MS)
      // A line that wraps could not be taken back.
      const width = stream.columns === undefined ? 120 : Math.max(20, stream.columns - 1)
      stream.write(terminal ? CLEAR_LINE + line().slice(0, width) : `${line()}\n`)
    },
    clear() {
      if (terminal) stream.write(CLEAR_LINE)
    },
  }
}
