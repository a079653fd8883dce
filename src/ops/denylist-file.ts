/**
 * The file of the denylist: read at start and followed from then on.
 *
 * It is looked at every `LOOK_EVERY_MS` rather than watched: editors and configuration tools replace
 * files by renaming, which a watch of the old file does not see. While it cannot be read the last list
 * stays in force. It is read a piece at a time, and the event loop goes on in between. Never logs its contents.
 * Bound: `MAX_FILE_BYTES`.
 */

import type { Stats } from "node:fs"
import { open, stat } from "node:fs/promises"
import { type Denylist, DenylistReader, MAX_LINE_CHARS } from "../device/denylist.ts"
import { asError } from "../uncaught.ts"

const LOOK_EVERY_MS = 500
const MAX_FILE_BYTES = 134_217_728
const PIECE_BYTES = 65_536

export class DenylistFile {
  readonly #path: string
  readonly #changed: (denylist: Denylist) => void | Promise<void>
  readonly #warn: (message: string) => void
  #seen = ""
  #trouble = ""
  #looking: Promise<void> | null = null
  #timer: ReturnType<typeof setInterval> | null = null

  /**
   * @param changed called with the list when it was read, and again after each change; the file is not checked again until it resolves.
   * @param warn told once of each thing that is wrong with the file.
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

  /** Resolves when the file was checked once. */
  async follow(): Promise<void> {
    this.#timer = setInterval(() => void this.look(), LOOK_EVERY_MS)
    this.#timer.unref()
    await this.look()
  }

  stop(): void {
    if (this.#timer !== null) clearInterval(this.#timer)
  }

  /** Reads the file if it has changed since; one look at a time. */
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
      const { denylist, faultyLines, firstFaultyLines } = await readDenylist(this.#path)
      this.#seen = version
      if (denylist.size === 0 && faultyLines > 0)
        throw new Error("no line is a device id or fingerprint")
      this.#trouble = ""
      await this.#changed(denylist)
      if (faultyLines > 0) {
        const shown = firstFaultyLines.join(", ")
        this.#warn(
          `DENYLIST_FILE: ${faultyLines} line(s) are not a device id or fingerprint, first: ${shown}`,
        )
      }
    } catch (error) {
      const trouble = asError(error).message
      if (trouble === this.#trouble) return
      this.#trouble = trouble
      this.#seen = ""
      this.#warn(`DENYLIST_FILE: the last list stays in force: ${trouble}`)
    }
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
        // A line that is longer than this is not valid, whatever its rest.
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

/** Times alone may be alike for two writes in one tick of the file system's clock. */
function versionOf({ ino, size, mtimeMs, ctimeMs }: Stats): string {
  return `${ino} ${size} ${mtimeMs} ${ctimeMs}`
}
