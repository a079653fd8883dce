/**
 * The denylist: which devices and certificates are kept out. Pure; `ops/denylist-file.ts` reads the file
 * and follows its changes.
 *
 * A line is a device id or the SHA-256 fingerprint of a certificate (64 hexadecimal digits, with or
 * without colons, and as tools label it: `sha256 Fingerprint=…`). Both have the alphabet of ids, so a line that fits both denies both. Empty lines and
 * those that begin with # mean nothing. Bound: `MAX_DENIED` lines.
 *
 * A list grows and shrinks line by line, so that no step of the event loop is long.
 */

import { SpreadMap } from "../spread-map.ts"
import { DEVICE_ID } from "./ids.ts"

const MAX_DENIED = 1_000_000
/** Longer than any valid line, white space at its ends included. */
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
  #number = 0

  read(raw: string): void {
    this.#number += 1
    const line = raw.slice(0, MAX_LINE_CHARS).trim().replace(LABEL, "")
    if (line === "" || line.startsWith("#")) return
    const { denylist } = this
    if (denylist.size < MAX_DENIED && raw.length <= MAX_LINE_CHARS && DEVICE_ID.test(line)) {
      denylist.add(line)
      return
    }
    this.faultyLines += 1
    if (this.faultyLines <= SHOWN_FAULTS) this.firstFaultyLines.push(this.#number)
  }
}

function normal(fingerprint: string): string {
  return fingerprint.replaceAll(":", "").toLowerCase()
}
