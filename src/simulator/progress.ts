/**
 * The progress of a run: on a terminal one line that is overwritten, elsewhere a new line every
 * `PLAIN_EVERY_MS`, nothing with `--json`. It goes to standard error, so that standard output has
 * only the report.
 */

const TERMINAL_EVERY_MS = 200
const PLAIN_EVERY_MS = 5_000
const CLEAR_LINE = "\r\u001b[2K"

export interface Progress {
  /** Shows the line when it is due. */
  show(line: () => string, nowMs: number): void
  /** Removes the line before the report. */
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
      // A wrapped line could not be removed.
      const width = stream.columns === undefined ? 120 : Math.max(20, stream.columns - 1)
      stream.write(terminal ? CLEAR_LINE + line().slice(0, width) : `${line()}\n`)
    },
    clear() {
      if (terminal) stream.write(CLEAR_LINE)
    },
  }
}
