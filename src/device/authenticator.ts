/**
 * The authenticator: determines the device id of a connection by the mode that `DEVICE_AUTH` sets.
 * It runs after the TLS handshake and before admission. No line is read before it has accepted the
 * device.
 *
 *   handshake complete ─┬─ none ───────────────── denylist ──┬► accepted; with none, the device id is the connection id
 *                       ├─ mtls ── certificate ── denylist ──┤
 *                       └─ hello ─ first line ─── denylist ──┴► rejected: not_identified, refused, denied
 *
 * Decides only; the listener acts on the result. Bound: `MAX_HELLO_BYTES` of the first line for
 * each connection that is being identified.
 */

import { identityOf, type PeerCertificate } from "./certificate-identity.ts"
import type { CloseReason } from "./close-reason.ts"
import type { Connection } from "./connection.ts"
import { Denylist } from "./denylist.ts"
import type { Framing } from "./framing.ts"
import { FirstLine, verifyHello } from "./hello.ts"
import { isDeviceName } from "./ids.ts"

export type DeviceAuth = "none" | "mtls" | "hello"

export interface AuthenticatorOptions {
  readonly auth: DeviceAuth
  readonly framing: Framing
  readonly helloSecrets: readonly string[]
  readonly nowMs: () => number
}

export type AuthResult =
  | {
      readonly kind: "accepted"
      readonly deviceId: string
      /** SHA-256 of the device's certificate; null when it presented none. */
      readonly fingerprint: string | null
      /** Bytes received after the HELLO line. */
      readonly rest: Uint8Array
    }
  /** More bytes are needed. */
  | { readonly kind: "waiting" }
  | { readonly kind: "rejected"; readonly reason: CloseReason; readonly detail: string }

/** The peer of a completed TLS handshake. */
export interface TlsPeer {
  /**
   * Whether a certificate was requested, the peer presented one, and a trusted CA has signed it.
   */
  readonly authorized: boolean
  /** Why it is not authorized: OpenSSL's message. */
  readonly fault: string | null
  readonly certificate: () => PeerCertificate | undefined
  /**
   * The end of validity of the certificate's issuers, milliseconds since 1970; see `issuers.ts`.
   */
  readonly issuersValidUntilMs: () => number
}

const NOTHING = new Uint8Array(0)
const WAITING: AuthResult = { kind: "waiting" }

export class Authenticator {
  readonly #options: AuthenticatorOptions
  readonly #firstLines = new Map<Connection, FirstLine>()
  denylist = Denylist.none

  constructor(options: AuthenticatorOptions) {
    this.#options = options
  }

  /**
   * The result "waiting" means that the device must send its HELLO line: pass its bytes to
   * `received`.
   */
  handshaken(connection: Connection, peer: TlsPeer): AuthResult {
    switch (this.#options.auth) {
      case "none":
        return this.#allow(connection.id, null, NOTHING)
      case "mtls":
        return this.#byCertificate(peer)
      case "hello":
        this.#firstLines.set(connection, new FirstLine(this.#options.framing))
        return WAITING
    }
  }

  /** Takes bytes from a device that is not identified yet. */
  received(connection: Connection, chunk: Uint8Array): AuthResult {
    const read = this.#firstLines.get(connection)?.push(chunk) ?? null
    if (read === null) return WAITING
    this.forget(connection)
    if (read === "too_long") return unknown("not_identified", "the first line is too long")
    const verdict = verifyHello(read.line, this.#options.helloSecrets)
    switch (verdict.kind) {
      case "proven":
        return this.#allow(verdict.deviceId, null, read.rest)
      case "malformed":
        return unknown("not_identified", "the first line is not a HELLO")
      case "refused":
        return unknown("refused", `HELLO as ${verdict.deviceId}: ${helloFault(verdict.deviceId)}`)
    }
  }

  /** Call this when a connection ends before it was identified. */
  forget(connection: Connection): void {
    this.#firstLines.delete(connection)
  }

  #byCertificate(peer: TlsPeer): AuthResult {
    const certificate = peer.certificate()
    if (!peer.authorized || certificate === undefined) {
      return unknown("refused", peer.fault ?? "no certificate")
    }
    if (this.#options.nowMs() >= peer.issuersValidUntilMs()) {
      return unknown("refused", "a CA of the certificate has expired")
    }
    const identity = identityOf(certificate, this.#options.nowMs())
    if ("fault" in identity) return unknown("refused", identity.fault)
    return this.#allow(identity.deviceId, certificate.fingerprint256, NOTHING)
  }

  #allow(deviceId: string, fingerprint: string | null, rest: Uint8Array): AuthResult {
    if (this.denylist.denies(deviceId, fingerprint)) {
      return unknown("denied", `${deviceId} is on the denylist`)
    }
    return { kind: "accepted", deviceId, fingerprint, rest }
  }
}

function unknown(reason: CloseReason, detail: string): AuthResult {
  return { kind: "rejected", reason, detail }
}

/** Why a HELLO was refused. */
function helloFault(deviceId: string): string {
  return isDeviceName(deviceId) ? "the proof is wrong" : "not a device id"
}
