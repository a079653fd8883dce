/**
 * The denylist: which devices and certificates are kept out. Pure; `ops/denylist-file.ts` reads the file
 * and follows its changes.
 *
 * A line is a device id or the SHA-256 fingerprint of a certificate (64 hexadecimal digits, with or
 * without colons, and as tools label it: `sha256 Fingerprint=…`). Both have the alphabet of ids, so a line that fits both denies both. Empty lines and
 * those that begin with # mean nothing. Bound: `MAX_DENIED` lines.
 */

import { DEVICE_ID } from "./ids.ts"

const MAX_DENIED = 1_000_000

const FINGERPRINT = /^[0-9a-f]{64}$/
/** As `bun run certs` and `openssl x509 -fingerprint` put it. */
const LABEL = /^sha-?256( fingerprint)?[ =:]+/i

export class Denylist {
  static readonly none = new Denylist(new Set(), new Set())
  readonly #deviceIds: ReadonlySet<string>
  readonly #fingerprints: ReadonlySet<string>

  private constructor(deviceIds: ReadonlySet<string>, fingerprints: ReadonlySet<string>) {
    this.#deviceIds = deviceIds
    this.#fingerprints = fingerprints
  }

  /** @returns the list and the numbers, from 1, of lines that say nothing it understands. */
  static parse(text: string): { denylist: Denylist; faultyLines: number[] } {
    const deviceIds = new Set<string>()
    const fingerprints = new Set<string>()
    const faultyLines: number[] = []
    let number = 0
    for (const raw of text.replace(/^\uFEFF/, "").split("\n")) {
      number += 1
      const line = raw.trim().replace(LABEL, "")
      if (line === "" || line.startsWith("#")) continue
      const fingerprint = normal(line)
      if (FINGERPRINT.test(fingerprint)) fingerprints.add(fingerprint)
      if (deviceIds.size < MAX_DENIED && DEVICE_ID.test(line)) deviceIds.add(line)
      else faultyLines.push(number)
    }
    return { denylist: new Denylist(deviceIds, fingerprints), faultyLines }
  }

  get size(): number {
    return this.#deviceIds.size
  }

  /** @param fingerprint SHA-256 of the device's certificate, or null when it showed none. */
  denies(deviceId: string, fingerprint: string | null): boolean {
    if (this.#deviceIds.has(deviceId)) return true
    if (fingerprint === null || this.#fingerprints.size === 0) return false
    return this.#fingerprints.has(normal(fingerprint))
  }
}

function normal(fingerprint: string): string {
  return fingerprint.replaceAll(":", "").toLowerCase()
}
