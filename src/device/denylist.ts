/**
 * The denylist: the devices and certificates that are refused. Pure; `ops/denylist-file.ts` reads
 * the file and follows its changes.
 *
 *   lock:9 # stolen        denies the device `lock:9`; # starts a comment anywhere, ids and fingerprints contain none
 *   <64 hex digits>        denies the certificate with this SHA-256 fingerprint, with or without colons, and the device
 *                          with this id
 *   sha256:<64 hex digits> the same with the label of common tools, also `sha256 Fingerprint=…`; denies the certificate
 *                          and the device whose id is the whole line
 *   sha256:17              denies the device `sha256:17`; a label counts only before a fingerprint
 *
 * A line with two possible meanings denies both. Lines are added and removed one at a time, so that
 * no step blocks the event loop for long. Bound: `MAX_DENIED` ids and fingerprints.
 */

import { SpreadMap } from "../structures/spread-map.ts"
import { DEVICE_ID } from "./ids.ts"

export const MAX_DENIED = 1_000_000
/** A longer line is not valid. Counts white space at both ends, but not the comment. */
export const MAX_LINE_CHARS = 4_096
const SHOWN_FAULTS = 5

const FINGERPRINT = /^[0-9a-f]{64}$/
/** The label that `bun run certs` and `openssl x509 -fingerprint` print. */
const LABEL = /^sha-?256( fingerprint)?[ =:]+/i

export class Denylist {
  static readonly none = new Denylist()
  readonly #lines = new SpreadMap()
  /** The number of lines for each fingerprint: it can be written with and without colons. */
  readonly #fingerprints = new SpreadMap()

  /** @returns the list, and the numbers of the first invalid lines, counted from 1. */
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

  /** @param line a device id or a fingerprint, without white space or comment. */
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

  /** @param fingerprint SHA-256 of the device's certificate, or null when it presented none. */
  denies(deviceId: string, fingerprint: string | null): boolean {
    if (this.has(deviceId)) return true
    if (fingerprint === null || this.#fingerprints.size === 0) return false
    return this.#fingerprints.get(normal(fingerprint)) > 0
  }
}

/** Builds a list from the lines of a file, one line at a time. */
export class DenylistReader {
  readonly denylist = new Denylist()
  /** The numbers of the first `SHOWN_FAULTS` invalid lines, counted from 1. */
  readonly firstFaultyLines: number[] = []
  faultyLines = 0
  /** Valid lines beyond `MAX_DENIED`, which were ignored. */
  surplusLines = 0
  /** Whether all lines were blank, without entry or comment. */
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

/** The ids and fingerprints in a line without its comment; none when the line is not valid. */
function entriesOf(line: string): string[] {
  const entries = DEVICE_ID.test(line) ? [line] : []
  const unlabelled = line.replace(LABEL, "")
  if (unlabelled !== line && FINGERPRINT.test(normal(unlabelled))) entries.push(unlabelled)
  return entries
}

function normal(fingerprint: string): string {
  return fingerprint.replaceAll(":", "").toLowerCase()
}
