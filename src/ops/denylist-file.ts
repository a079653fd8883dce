/**
 * The file of the denylist: read at start and followed from then on.
 *
 * It is looked at every `LOOK_EVERY_MS` rather than watched: editors and configuration tools replace
 * files by renaming, which a watch of the old file does not see. While it cannot be read the last list
 * stays in force. Never logs what stands in it. Bound: `MAX_FILE_BYTES`.
 */

import { readFileSync, type Stats, statSync } from "node:fs"
import { Denylist } from "../device/denylist.ts"

const LOOK_EVERY_MS = 500
const MAX_FILE_BYTES = 134_217_728
const SHOWN_FAULTS = 5

export class DenylistFile {
  readonly #path: string
  readonly #before: string | null
  readonly #changed: (denylist: Denylist) => void
  readonly #warn: (message: string) => void
  #seen = ""
  #trouble = ""
  #timer: ReturnType<typeof setInterval> | null = null

  /**
   * @param before the text of a list that stays in force until the file can be read, or null.
   * @param changed told of the list when it was read, and again after each change.
   * @param warn told once of each thing that is wrong with the file.
   */
  constructor(
    path: string,
    before: string | null,
    changed: (denylist: Denylist) => void,
    warn: (message: string) => void,
  ) {
    this.#path = path
    this.#before = before
    this.#changed = changed
    this.#warn = warn
  }

  follow(): void {
    if (this.#before !== null) this.#changed(Denylist.parse(this.#before).denylist)
    this.look()
    this.#timer = setInterval(() => this.look(), LOOK_EVERY_MS)
    this.#timer.unref()
  }

  stop(): void {
    if (this.#timer !== null) clearInterval(this.#timer)
  }

  /** Reads the file if it has changed since. */
  look(): void {
    try {
      const stats = statSync(this.#path)
      const version = versionOf(stats)
      if (version === this.#seen) return
      if (stats.size > MAX_FILE_BYTES) throw new Error(`larger than ${MAX_FILE_BYTES} bytes`)
      const { denylist, faultyLines } = Denylist.parse(readFileSync(this.#path, "utf8"))
      this.#seen = version
      if (denylist.size === 0 && faultyLines.length > 0)
        throw new Error("no line of it means anything")
      this.#trouble = ""
      this.#changed(denylist)
      if (faultyLines.length > 0) {
        const shown = faultyLines.slice(0, SHOWN_FAULTS).join(", ")
        const count = faultyLines.length
        this.#warn(`DENYLIST_FILE: ${count} line(s) are no id or fingerprint, first: ${shown}`)
      }
    } catch (error) {
      const trouble = error instanceof Error ? error.message : String(error)
      if (trouble === this.#trouble) return
      this.#trouble = trouble
      this.#seen = ""
      this.#warn(`DENYLIST_FILE: the last list stays in force: ${trouble}`)
    }
  }
}

/** Times alone may be alike for two writes in one tick of the file system's clock. */
function versionOf({ ino, size, mtimeMs, ctimeMs }: Stats): string {
  return `${ino} ${size} ${mtimeMs} ${ctimeMs}`
}
