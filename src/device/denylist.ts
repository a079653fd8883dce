/**
 * The denylist: which devices and certificates are kept out. Pure; `ops/denylist-file.ts` reads the file
 * and follows its changes.
 *
 *   lock:9 # stolen        the device `lock:9`: # begins a comment anywhere, since no id and no fingerprint contains one
 *   <64 hex digits>        the certificate with this SHA-256 fingerprint, with or without colons, and the device of this id
 *   sha256:<64 hex digits> the same, labelled as tools do, also `sha256 Fingerprint=…`, and the device whose id is the whole line
 *   sha256:17              the device `sha256:17`: a label counts only before a fingerprint
 *
 * So a line that can be read in two ways denies both. Bound: `MAX_DENIED` ids and fingerprints.
 *
 * A list grows and shrinks line by line, so that no step of the event loop is long.
 */

import { SpreadMap } from "../structures/spread-map.ts"
import { DEVICE_ID } from "./ids.ts"

export const MAX_DENIED = 1_000_000
/** Longer than any valid line, white space at its ends included and its comment excluded. */
export const MAX_LINE_CHARS = 4_096
const SHOWN_FAULTS = 5

const FINGERPRINT = /^[0-9a-f]{64}$/
/** As `bun run certs` and `openssl x509 -fingerprint` put it. */
const LABEL = /^sha-?256( fingerprint)?[ =:]+/i

export class Denylist {
  static readonly none = new Denylist()
  readonly #lines = new SpreadMap()
  /** How many lines name each fingerprint: it can be written with and without colons. */
  readonly #fingerprints = new SpreadMap()

  /** @returns the list, and the numbers, from 1, of the first lines that are not valid. */
  static parse(text: string): { denylist: Denylist; faultyLines: readonly number[] } {
    const reader = new DenylistReader()
    for (const line of text.replace(/^\uFEFF/, "").split("\n")) reader.read(line)
    return { denylist: reader.denylist, faultyLines: reader.firstFaultyLines }
  }

  get size(): number {
    return this.#lines.size
  }

  has(line: string): boolean {
    return this.#lines.get(line) > 0
  }

  lines(): Iterable<string> {
    return this.#lines.keys()
  }

  /** @param line a device id or a fingerprint, and nothing around it. */
  add(line: string): void {
    if (this.has(line)) return
    this.#lines.add(line, 1)
    const fingerprint = normal(line)
    if (FINGERPRINT.test(fingerprint)) this.#fingerprints.add(fingerprint, 1)
  }

  remove(line: string): void {
    if (!this.has(line)) return
    this.#lines.add(line, -1)
    const fingerprint = normal(line)
    if (FINGERPRINT.test(fingerprint)) this.#fingerprints.add(fingerprint, -1)
  }

  /** @param fingerprint SHA-256 of the device's certificate, or null when it showed none. */
  denies(deviceId: string, fingerprint: string | null): boolean {
    if (this.has(deviceId)) return true
    if (fingerprint === null || this.#fingerprints.size === 0) return false
    return this.#fingerprints.get(normal(fingerprint)) > 0
  }
}

/** Makes a list of the lines of a file, one after the other. */
export class DenylistReader {
  readonly denylist = new Denylist()
  /** The numbers, from 1, of the first `SHOWN_FAULTS` lines that are not valid. */
  readonly firstFaultyLines: number[] = []
  faultyLines = 0
  /** Valid lines beyond `MAX_DENIED`, which are left out. */
  surplusLines = 0
  /** Whether every line was blank: not even a comment was read. */
  isEmpty = true
  #number = 0

  read(raw: string): void {
    this.#number += 1
    const comment = raw.slice(0, MAX_LINE_CHARS).indexOf("#")
    const isWhole = comment !== -1 || raw.length <= MAX_LINE_CHARS
    const line = (comment === -1 ? raw : raw.slice(0, comment)).trim()
    if (line === "" && comment === -1 && isWhole) return
    this.isEmpty = false
    if (line === "" && isWhole) return
    const entries = isWhole ? entriesOf(line) : []
    if (entries.length === 0) {
      this.faultyLines += 1
      if (this.faultyLines <= SHOWN_FAULTS) this.firstFaultyLines.push(this.#number)
    } else if (this.denylist.size + entries.length > MAX_DENIED) this.surplusLines += 1
    else for (const entry of entries) this.denylist.add(entry)
  }
}

/** The ids and fingerprints that a line without its comment means; none when it is not valid. */
function entriesOf(line: string): string[] {
  const entries = DEVICE_ID.test(line) ? [line] : []
  const unlabelled = line.replace(LABEL, "")
  if (unlabelled !== line && FINGERPRINT.test(normal(unlabelled))) entries.push(unlabelled)
  return entries
}

function normal(fingerprint: string): string {
  return fingerprint.replaceAll(":", "").toLowerCase()
}
