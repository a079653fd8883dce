/**
 * The file of the denylist: read at start and followed from then on.
 *
 *   look ─► stat ─► read ─► stat ─┬─ differs from the first ──────────────────────► read again at the next look
 *                                 ├─ empty, or more faulty lines than in force ──► the last list stays in force
 *                                 └─ otherwise ──────────────────────────────────► in force
 *
 * It is looked at every `LOOK_EVERY_MS` rather than watched: editors and configuration tools replace
 * files by renaming, which a watch of the old file does not see. A file that cannot be read, is empty or has become faulty is more
 * likely half-written or damaged than meant, and taking it would let denied devices in, so the last list stays in force. At the start
 * there is no last list, and the valid lines are taken. The file is read a piece at a time, and the event loop goes on in between.
 * Never logs its contents. Bounds: `MAX_FILE_BYTES`, `MAX_UNSETTLED` reads in a row that are not taken without a warning.
 */

import type { Stats } from "node:fs"
import { open, stat } from "node:fs/promises"
import { type Denylist, DenylistReader, MAX_DENIED, MAX_LINE_CHARS } from "../device/denylist.ts"
import { asError } from "../errors.ts"

const LOOK_EVERY_MS = 500
const MAX_FILE_BYTES = 134_217_728
const PIECE_BYTES = 65_536
/** As many as fit into the 2 s within which a change takes effect. */
const MAX_UNSETTLED = 4

export class DenylistFile {
  readonly #path: string
  readonly #changed: (denylist: Denylist) => void | Promise<void>
  readonly #warn: (message: string) => void
  #seen = ""
  #trouble = ""
  /** Faulty lines of the file in force; null: none was taken yet. */
  #faultyInForce: number | null = null
  /** How many times in a row the file changed while it was read. */
  #unsettled = 0
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

  /** Resolves when the first list was taken, or the file cannot be read. */
  async follow(): Promise<void> {
    this.#timer = setInterval(() => void this.look(), LOOK_EVERY_MS)
    this.#timer.unref()
    do await this.look()
    while (this.#faultyInForce === null && this.#unsettled > 0)
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
        this.#warn(`DENYLIST_FILE: ${read.surplusLines} line(s) beyond ${MAX_DENIED} are left out`)
      }
    } catch (error) {
      this.#unsettled = 0
      if (this.#warnOfLast(asError(error).message)) this.#seen = ""
    }
  }

  /** @returns whether this is a new reason. */
  #warnOfLast(reason: string): boolean {
    if (reason === this.#trouble) return false
    this.#trouble = reason
    const consequence =
      this.#faultyInForce === null ? "nobody is denied" : "the last list stays in force"
    this.#warn(`DENYLIST_FILE: ${consequence}: ${reason}`)
    return true
  }
}

/** Why this file is not taken, and what to do; null when it is. @param faultyInForce null: there is no last list. */
function reasonToKeep(read: DenylistReader, faultyInForce: number | null): string | null {
  if (read.denylist.size === 0 && read.faultyLines > 0) {
    return `no line is a device id or fingerprint: ${faultsOf(read)}; ${CORRECTION}`
  }
  if (faultyInForce === null) return null
  if (read.isEmpty) return `the file is empty; to deny nobody, write a comment line: # nobody`
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
