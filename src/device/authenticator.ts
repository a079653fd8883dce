/**
 * The authenticator: determines the device id of a connection by the mode that `DEVICE_AUTH` sets.
 * It runs after the TLS handshake and before admission. No line is read before it has accepted the
 * device.
 *
 *   handshake complete ─┬─ none ───────────────────────────── denylist ──┬► accepted; with none, the device id is the connection id
 *                       ├─ mtls ── certificate ────────────── denylist ──┤
 *                       ├─ hello ─ first line ─────────────── denylist ──┤
 *                       └─ token ─ first line ─ verifying ─── denylist ──┴► rejected: not_identified, refused, denied, overloaded
 *
 * Decides only; the listener acts on the result. Only a token is verified asynchronously. Bounds:
 * `MAX_HELLO_BYTES` or `MAX_TOKEN_LINE_BYTES` of the first line for each connection that is being
 * identified, and those of `early-bytes.ts` while a token is verified.
 */

import { identityOf, namedBy, type PeerCertificate } from "./certificate-identity.ts"
import type { CloseDetails, CloseReason } from "./close-reason.ts"
import type { Connection } from "./connection.ts"
import { Denylist } from "./denylist.ts"
import { EarlyBytes, MAX_EARLY_BYTES } from "./early-bytes.ts"
import { FirstLine, type ReadLine } from "./first-line.ts"
import type { Framing } from "./framing.ts"
import { MAX_HELLO_BYTES, verifyHello } from "./hello.ts"
import { isDeviceName } from "./ids.ts"
import { MAX_TOKEN_LINE_BYTES, tokenOf } from "./token-line.ts"
import type { TokenVerifier } from "./token-verifier.ts"

export type DeviceAuth = "none" | "mtls" | "hello" | "token"

export interface AuthenticatorOptions {
  readonly auth: DeviceAuth
  readonly framing: Framing
  readonly helloSecrets: readonly string[]
  /** Null unless `auth` is "token". */
  readonly tokenVerifier: TokenVerifier | null
  readonly nowMs: () => number
}

export type AuthResult =
  | {
      readonly kind: "accepted"
      readonly deviceId: string
      /** SHA-256 of the device's certificate; null when it presented none. */
      readonly fingerprint: string | null
      /** When the connection must end, milliseconds since 1970; infinite without a token. */
      readonly expiresAtMs: number
      /** Bytes received after the first line. */
      readonly rest: Uint8Array
    }
  /** More bytes are needed. */
  | { readonly kind: "waiting" }
  /**
   * `settled` has the result. Until then pass further bytes to `received`. The result is void when
   * the connection has ended by then.
   */
  | { readonly kind: "verifying"; readonly settled: Promise<AuthResult> }
  | ({ readonly kind: "rejected"; readonly reason: CloseReason } & CloseDetails)

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

/** What identified a device. */
interface Identified {
  readonly deviceId: string
  readonly fingerprint?: string | null
  readonly expiresAtMs?: number
  readonly rest?: Uint8Array
}

const NOTHING = new Uint8Array(0)
const WAITING: AuthResult = { kind: "waiting" }
const NEVER = Number.POSITIVE_INFINITY

export class Authenticator {
  readonly #options: AuthenticatorOptions
  readonly #firstLines = new Map<Connection, FirstLine>()
  /** Has the connections whose tokens are being verified. */
  readonly #early = new EarlyBytes<Connection>()
  denylist = Denylist.none

  constructor(options: AuthenticatorOptions) {
    this.#options = options
  }

  /**
   * The result "waiting" means that the device must send its first line: pass its bytes to
   * `received`.
   */
  handshaken(connection: Connection, peer: TlsPeer): AuthResult {
    switch (this.#options.auth) {
      case "none":
        return this.#allow({ deviceId: connection.id })
      case "mtls":
        return this.#byCertificate(peer)
      case "hello":
        this.#firstLines.set(connection, new FirstLine(this.#options.framing, MAX_HELLO_BYTES))
        return WAITING
      case "token":
        this.#firstLines.set(connection, new FirstLine(this.#options.framing, MAX_TOKEN_LINE_BYTES))
        return WAITING
    }
  }

  /** Takes bytes from a device that is not identified yet. */
  received(connection: Connection, chunk: Uint8Array): AuthResult {
    if (this.#early.has(connection)) return this.#keep(connection, chunk)
    const read = this.#firstLines.get(connection)?.push(chunk) ?? null
    if (read === null) return WAITING
    this.forget(connection)
    if (read === "too_long") return unknown("not_identified", "the first line is too long")
    const { tokenVerifier } = this.#options
    return tokenVerifier === null
      ? this.#byHello(read)
      : this.#byToken(connection, read, tokenVerifier)
  }

  /** Call this when a connection ends before it was identified. */
  forget(connection: Connection): void {
    this.#firstLines.delete(connection)
    this.#early.drop(connection)
  }

  #byHello({ line, rest }: ReadLine): AuthResult {
    const verdict = verifyHello(line, this.#options.helloSecrets)
    switch (verdict.kind) {
      case "proven":
        return this.#allow({ deviceId: verdict.deviceId, rest })
      case "malformed":
        return unknown("not_identified", "the first line is not a HELLO")
      case "refused":
        return unknown(
          "refused",
          `HELLO as ${verdict.deviceId}: ${helloFault(verdict.deviceId)}`,
          verdict.deviceId,
        )
    }
  }

  #byToken(connection: Connection, { line, rest }: ReadLine, verifier: TokenVerifier): AuthResult {
    const token = tokenOf(line)
    if (token === null) return unknown("not_identified", "the first line is not a TOKEN")
    this.#early.begin(connection)
    const kept = this.#keep(connection, rest)
    if (kept.kind === "rejected") return kept
    return { kind: "verifying", settled: this.#verified(connection, token, verifier) }
  }

  async #verified(
    connection: Connection,
    token: string,
    verifier: TokenVerifier,
  ): Promise<AuthResult> {
    const verdict = await verifier.verify(token, this.#options.nowMs())
    const rest = this.#early.take(connection)
    if (verdict.kind === "refused") return unknown("refused", verdict.fault, verdict.deviceId)
    return this.#allow({ ...verdict, rest })
  }

  #keep(connection: Connection, chunk: Uint8Array): AuthResult {
    if (this.#early.keep(connection, chunk)) return WAITING
    this.forget(connection)
    const detail = `${MAX_EARLY_BYTES} bytes already wait for the verification of tokens`
    return unknown("overloaded", detail)
  }

  #byCertificate(peer: TlsPeer): AuthResult {
    const certificate = peer.certificate()
    if (certificate === undefined) return unknown("refused", peer.fault ?? "no certificate")
    const refused = (detail: string) => unknown("refused", detail, claimedId(certificate))
    if (!peer.authorized) return refused(peer.fault ?? "the certificate is not trusted")
    if (this.#options.nowMs() >= peer.issuersValidUntilMs()) {
      return refused("a CA of the certificate has expired")
    }
    const identity = identityOf(certificate, this.#options.nowMs())
    if ("fault" in identity) return refused(identity.fault)
    return this.#allow({
      deviceId: identity.deviceId,
      fingerprint: certificate.fingerprint256,
    })
  }

  #allow({
    deviceId,
    fingerprint = null,
    expiresAtMs = NEVER,
    rest = NOTHING,
  }: Identified): AuthResult {
    if (this.denylist.denies(deviceId, fingerprint)) {
      return unknown("denied", `${deviceId} is on the denylist`, deviceId)
    }
    return { kind: "accepted", deviceId, fingerprint, expiresAtMs, rest }
  }
}

function unknown(reason: CloseReason, detail: string, deviceId: string | null = null): AuthResult {
  return { kind: "rejected", reason, detail, deviceId }
}

/** The id in a certificate that may not be valid; null when it has none. */
function claimedId(certificate: PeerCertificate): string | null {
  const named = namedBy(certificate)
  return "deviceId" in named ? named.deviceId : null
}

/** Why a HELLO was refused. */
function helloFault(deviceId: string): string {
  return isDeviceName(deviceId) ? "the proof is wrong" : "not a device id"
}
