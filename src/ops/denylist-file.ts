/**
 * The file of the denylist: read at start and checked for changes periodically.
 *
 *   look ─► stat ─► read ─► stat ─┬─ differs from the first stat ────────────────► read again at the next look
 *                                 ├─ empty, or more invalid lines than before ───► the last list stays in force
 *                                 └─ otherwise ──────────────────────────────────► the new list is in force
 *
 * The file is checked every `LOOK_EVERY_MS`. Watching it was rejected: editors and configuration
 * tools replace files by renaming, and a watch of the old file does not report that. A file that
 * cannot be read, is empty or has more invalid lines than before is probably incomplete or damaged.
 * Using it would admit denied devices, so the last list stays in force. At start there is no last
 * list, and the valid lines are used. The file is read in pieces, so that the event loop is not
 * blocked. Its contents are never logged.
 *
 * Bounds: `MAX_FILE_BYTES`; a warning after `MAX_UNSETTLED` reads in a row during which the file
 * has changed.
 */

import type { Stats } from "node:fs"
import { open, stat } from "node:fs/promises"
import { type Denylist, DenylistReader, MAX_DENIED, MAX_LINE_CHARS } from "../device/denylist.ts"
import { errorText } from "../errors.ts"

const LOOK_EVERY_MS = 500
const MAX_FILE_BYTES = 134_217_728
const PIECE_BYTES = 65_536
/** Four looks take 2 s, within which a change must take effect. */
const MAX_UNSETTLED = 4

export class DenylistFile {
  readonly #path: string
  readonly #changed: (denylist: Denylist) => void | Promise<void>
  readonly #warn: (message: string) => void
  #seen = ""
  #trouble = ""
  /** The number of invalid lines in the file in force; null when no file was used yet. */
  #faultyInForce: number | null = null
  /** Reads in a row during which the file has changed. */
  #unsettled = 0
  #looking: Promise<void> | null = null
  #timer: ReturnType<typeof setInterval> | null = null

  /**
   * @param changed called with the first list and after each change. The file is not checked again
   * until it resolves.
   * @param warn called once for each new problem with the file.
   */
  constructor(
    path: string,
    changed: (denylist: Denylist) => void | Promise<void>,
    warn: (message: string) => void,
  ) {
    this.#path = path
    this.#changed = changed
    this.#warn = warn
  }

  /** Resolves when the first list is in force, or when the file cannot be read. */
  async follow(): Promise<void> {
    this.#timer = setInterval(() => void this.look(), LOOK_EVERY_MS)
    this.#timer.unref()
    do await this.look()
    while (this.#faultyInForce === null && this.#unsettled > 0)
  }

  stop(): void {
    if (this.#timer !== null) clearInterval(this.#timer)
  }

  /** Reads the file if it has changed. Calls during a look share its result. */
  look(): Promise<void> {
    this.#looking ??= this.#look().finally(() => {
      this.#looking = null
    })
    return this.#looking
  }

  async #look(): Promise<void> {
    try {
      const stats = await stat(this.#path)
      const version = versionOf(stats)
      if (version === this.#seen) return
      // Opening a FIFO blocks until its other end is opened.
      if (stats.isFIFO()) throw new Error("the file is a pipe")
      if (stats.size > MAX_FILE_BYTES) throw new TooLargeError()
      const read = await readDenylist(this.#path)
      if (version !== versionOf(await stat(this.#path))) {
        this.#unsettled += 1
        if (this.#unsettled < MAX_UNSETTLED) return
        if (this.#faultyInForce !== null) throw new UnsettledError()
      }
      this.#unsettled = 0
      this.#seen = version
      const reason = reasonToKeep(read, this.#faultyInForce)
      if (reason !== null) {
        this.#warnOfLast(reason)
        return
      }
      this.#trouble = ""
      this.#faultyInForce = read.faultyLines
      await this.#changed(read.denylist)
      if (read.faultyLines > 0) this.#warn(`DENYLIST_FILE: ${faultsOf(read)}`)
      if (read.surplusLines > 0) {
        this.#warn(
          `DENYLIST_FILE: ${read.surplusLines} line(s) beyond the limit of ${MAX_DENIED} are ignored`,
        )
      }
    } catch (error) {
      this.#unsettled = 0
      if (this.#warnOfLast(errorText(error))) this.#seen = ""
    }
  }

  /** Warns unless the last warning had the same reason. @returns whether it has warned. */
  #warnOfLast(reason: string): boolean {
    if (reason === this.#trouble) return false
    this.#trouble = reason
    const consequence =
      this.#faultyInForce === null ? "no device is denied" : "the last list stays in force"
    this.#warn(`DENYLIST_FILE: ${consequence}: ${reason}`)
    return true
  }
}

/**
 * Why this file is not used, and what to do; null when it is used.
 * @param faultyInForce null when there is no last list.
 */
function reasonToKeep(read: DenylistReader, faultyInForce: number | null): string | null {
  if (read.denylist.size === 0 && read.faultyLines > 0) {
    return `no line is a device id or fingerprint: ${faultsOf(read)}; ${CORRECTION}`
  }
  if (faultyInForce === null) return null
  if (read.isEmpty) return `the file is empty; to deny no device, write a comment line: # none`
  if (read.faultyLines <= faultyInForce) return null
  return `${faultsOf(read)}, more than in the last list (${faultyInForce}); ${CORRECTION}`
}

const CORRECTION = "correct these lines, or write # before them"

function faultsOf({ faultyLines, firstFaultyLines }: DenylistReader): string {
  return `${faultyLines} line(s) are not a device id or fingerprint, first: ${firstFaultyLines.join(", ")}`
}

class UnsettledError extends Error {
  constructor() {
    super(
      `the file changed each time it was read; write it under another name, then rename it into its place`,
    )
  }
}

class TooLargeError extends Error {
  constructor() {
    super(`larger than ${MAX_FILE_BYTES} bytes`)
  }
}

async function readDenylist(path: string): Promise<DenylistReader> {
  const reader = new DenylistReader()
  const file = await open(path)
  try {
    const buffer = new Uint8Array(PIECE_BYTES)
    // The decoder removes a byte order mark.
    const decoder = new TextDecoder()
    let rest = ""
    for (let total = 0; ; ) {
      const { bytesRead } = await file.read(buffer)
      if (bytesRead === 0) break
      total += bytesRead
      // The file may grow while it is read.
      if (total > MAX_FILE_BYTES) throw new TooLargeError()
      const lines = decoder.decode(buffer.subarray(0, bytesRead), { stream: true }).split("\n")
      const last = lines.pop() ?? ""
      if (lines.length === 0) {
        // A line with more characters is not valid, so the rest of it is not needed.
        rest = (rest + last).slice(0, MAX_LINE_CHARS + 1)
        continue
      }
      reader.read(rest + lines[0])
      for (let at = 1; at < lines.length; at += 1) reader.read(lines[at] ?? "")
      rest = last
    }
    reader.read(rest + decoder.decode())
    return reader
  } finally {
    await file.close()
  }
}

/**
 * Two writes within one tick of the file system's clock have the same times, so size and inode
 * count too.
 */
function versionOf({ ino, size, mtimeMs, ctimeMs }: Stats): string {
  return `${ino} ${size} ${mtimeMs} ${ctimeMs}`
}
