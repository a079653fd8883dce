/**
 * Identity: who the device at the other end is, by the mode that `DEVICE_AUTH` sets. Between the TLS
 * handshake and admission; no line is read before it has said yes.
 *
 *   handshake complete ─┬─ none ──────────────────────────────► known (by its connection id)
 *                       ├─ mtls ── certificate ─── denylist ──┬► known
 *                       └─ hello ─ first line ──── denylist ──┴► unknown: not_identified, refused, denied
 *
 * Decides; the listener performs. Bound: a first line of `MAX_HELLO_BYTES` for each connection that has
 * not said who it is.
 */

import { identityOf, type PeerCertificate } from "./certificate-identity.ts"
import type { CloseReason } from "./close-reason.ts"
import type { Connection } from "./connection.ts"
import { Denylist } from "./denylist.ts"
import { FirstLine, verifyHello } from "./hello.ts"
import { isDeviceName } from "./ids.ts"

export type DeviceAuth = "none" | "mtls" | "hello"

export interface AuthenticatorOptions {
  readonly auth: DeviceAuth
  readonly helloSecrets: readonly string[]
  readonly nowMs: () => number
}

export type AuthResult =
  | {
      readonly kind: "accepted"
      readonly deviceId: string
      /** SHA-256 of its certificate, if it showed one. */
      readonly fingerprint: string | null
      /** Application bytes that came with its first line. */
      readonly rest: Uint8Array
    }
  /** More bytes are needed. */
  | { readonly kind: "waiting" }
  | { readonly kind: "rejected"; readonly reason: CloseReason; readonly detail: string }

/** What TLS says of the peer once the handshake is complete. */
export interface TlsPeer {
  /** The certificate was asked for, shown, and is one that our CA vouches for. */
  readonly authorized: boolean
  /** Why it is not, in OpenSSL's words. */
  readonly fault: string | null
  readonly certificate: () => PeerCertificate | undefined
  /** Until when those that vouch for it are valid, milliseconds since 1970; see `issuers.ts`. */
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

  /** "waiting" when the device has yet to say who it is: its bytes then go to `received`. */
  handshaken(connection: Connection, peer: TlsPeer): AuthResult {
    switch (this.#options.auth) {
      case "none":
        return this.#allow(connection.id, null, NOTHING)
      case "mtls":
        return this.#byCertificate(peer)
      case "hello":
        this.#firstLines.set(connection, new FirstLine())
        return WAITING
    }
  }

  /** Takes bytes of a device that has not said who it is. */
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
        return unknown("not_identified", "the first line is no HELLO")
      case "refused":
        return unknown("refused", `HELLO as ${verdict.deviceId}: ${helloFault(verdict.deviceId)}`)
    }
  }

  /** To be told when a connection ends before it was identified. */
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
