/**
 * A file that is checked for changes periodically. Its contents are used as long as no later ones
 * can be used.
 *
 *   look ─► stat ─► read ─► stat ─┬─ differs from the first stat ────────► read again at the next look
 *                                 ├─ unreadable, or `reasonToKeep` ──────► the last contents stay in force
 *                                 └─ otherwise ──────────────────────────► the new contents are in force
 *
 * The file is checked every `LOOK_EVERY_MS`. Watching it was rejected: editors and configuration
 * tools replace files by renaming, and a watch of the old file does not report that. A file that
 * cannot be read or used is probably incomplete or damaged, so the last contents stay in force,
 * with one warning for each new problem. The contents are never logged.
 *
 * Bounds: `maxBytes`; a warning after `MAX_UNSETTLED` reads in a row during which the file has
 * changed.
 */

import type { Stats } from "node:fs"
import { stat } from "node:fs/promises"
import { errorText } from "../errors.ts"

const LOOK_EVERY_MS = 500
/** Four looks take 2 s, within which a change must take effect. */
const MAX_UNSETTLED = 4

export interface FollowedFileOptions<T> {
  /** The setting that names the file, for warnings. */
  readonly setting: string
  readonly path: string
  readonly maxBytes: number
  /**
   * Reads the file and parses it. It must stop after `maxBytes`, because the file may grow while it
   * is read. @throws an error with the reason for which the file cannot be used.
   */
  readonly read: (path: string) => Promise<T>
  /** Why contents that were read are not used, and what to do; null when they are used. */
  readonly reasonToKeep: (contents: T) => string | null
  /**
   * Puts the contents in force. The file is not checked again until it resolves. Called with the
   * first contents and after each change, possibly with equal contents.
   */
  readonly use: (contents: T) => void | Promise<void>
  /** What applies while the file cannot be used, for warnings. */
  readonly consequence: () => string
  readonly warn: (message: string) => void
}

export class FollowedFile<T> {
  readonly #options: FollowedFileOptions<T>
  #seen = ""
  #trouble = ""
  #isInForce: boolean
  /** Reads in a row during which the file has changed. */
  #unsettled = 0
  #looking: Promise<void> | null = null
  #timer: ReturnType<typeof setInterval> | null = null

  /** @param isInForce whether earlier contents are in force already. */
  constructor(options: FollowedFileOptions<T>, isInForce = false) {
    this.#options = options
    this.#isInForce = isInForce
  }

  /** Resolves when the first contents are in force, or when the file cannot be read. */
  async follow(): Promise<void> {
    this.#timer = setInterval(() => void this.look(), LOOK_EVERY_MS)
    this.#timer.unref()
    do await this.look()
    while (!this.#isInForce && this.#unsettled > 0)
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
    const { path, maxBytes, read, reasonToKeep, use } = this.#options
    try {
      const stats = await stat(path)
      const version = versionOf(stats)
      if (version === this.#seen) return
      // Opening a FIFO blocks until its other end is opened.
      if (stats.isFIFO()) throw new Error("the file is a pipe")
      if (stats.size > maxBytes) throw new TooLargeError(maxBytes)
      const contents = await read(path)
      if (version !== versionOf(await stat(path))) {
        this.#unsettled += 1
        if (this.#unsettled < MAX_UNSETTLED) return
        if (this.#isInForce) throw new UnsettledError()
      }
      this.#unsettled = 0
      this.#seen = version
      const reason = reasonToKeep(contents)
      if (reason !== null) {
        this.#warnOnce(reason)
        return
      }
      this.#trouble = ""
      this.#isInForce = true
      await use(contents)
    } catch (error) {
      this.#unsettled = 0
      if (this.#warnOnce(errorText(error))) this.#seen = ""
    }
  }

  /** Warns unless the last warning had the same reason. @returns whether it has warned. */
  #warnOnce(reason: string): boolean {
    if (reason === this.#trouble) return false
    this.#trouble = reason
    const { setting, consequence, warn } = this.#options
    warn(`${setting}: ${consequence()}: ${reason}`)
    return true
  }
}

class UnsettledError extends Error {
  constructor() {
    super(
      `the file changed each time it was read; write it under another name, then rename it into its place`,
    )
  }
}

export class TooLargeError extends Error {
  constructor(maxBytes: number) {
    super(`larger than ${maxBytes} bytes`)
  }
}

/**
 * Two writes within one tick of the file system's clock have the same times, so size and inode
 * count too.
 */
function versionOf({ ino, size, mtimeMs, ctimeMs }: Stats): string {
  return `${ino} ${size} ${mtimeMs} ${ctimeMs}`
}
