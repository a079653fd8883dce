/**
 * Verifies the tokens of devices, with `DEVICE_AUTH=token`. A token is a JWT (RFC 7519) that is
 * signed (JWS compact form) and has the claims `sub`, the device id, and `exp`.
 *
 *   header ─► keys of its `alg` and `kid` ─► signature ─► exp, nbf, iss, aud ─► sub ─► proven
 *      └───────────┴──────────────────────────┴──────────────┴──────────────────┴───► refused
 *
 * The library `jose` parses the token, and verifies signature and claims. The header never selects
 * the algorithm of a key: the algorithm belongs to the key. Keys in the header (`jwk`, `jku`,
 * `x5c`, `x5u`) are ignored, and nothing is fetched. A token with an unknown critical header
 * (`crit`) is refused. A key without `kid` verifies tokens with any `kid`, because a PEM file has
 * no ids.
 *
 * `jose` verifies signatures with WebCrypto, which is asynchronous. Verifying them with the
 * synchronous functions of `node:crypto` was rejected, because it needs own code for all checks of
 * header and claims. Only this file imports `jose`. A worker loads it only when tokens are used,
 * which saves about 2 MB.
 */

import type { JWTPayload } from "jose"
import { decodeProtectedHeader, type ProtectedHeaderParameters } from "jose/decode/protected_header"
import {
  JOSEError,
  JWSSignatureVerificationFailed,
  JWTClaimValidationFailed,
  JWTExpired,
} from "jose/errors"
import { type JWTVerifyOptions, jwtVerify } from "jose/jwt/verify"
import { isDeviceName } from "./ids.ts"
import type { TokenKey } from "./token-keys.ts"

/**
 * A token is accepted this long before its `nbf`, because the clock of its issuer may be ahead.
 * `exp` has no tolerance, because the connection is closed at that time.
 */
export const NBF_TOLERANCE_S = 5

export type TokenVerdict =
  | {
      readonly kind: "proven"
      readonly deviceId: string
      /** `exp`, milliseconds since 1970. */
      readonly expiresAtMs: number
    }
  /**
   * `fault` says what is wrong. It contains no part of the token except a verified `sub`, which is
   * also `deviceId`.
   */
  | { readonly kind: "refused"; readonly fault: string; readonly deviceId: string | null }

export interface TokenVerifierOptions {
  /** The required `iss`; null when it is not checked. */
  readonly issuer: string | null
  /** The value that `aud` must be or contain; null when it is not checked. */
  readonly audience: string | null
}

export class TokenVerifier {
  readonly #claims: JWTVerifyOptions
  /** The keys for tokens that arrive from now on. */
  keys: readonly TokenKey[]

  constructor({ issuer, audience }: TokenVerifierOptions, keys: readonly TokenKey[]) {
    this.#claims = {
      requiredClaims: ["sub", "exp"],
      clockTolerance: NBF_TOLERANCE_S,
      ...(issuer === null ? {} : { issuer }),
      ...(audience === null ? {} : { audience }),
    }
    this.keys = keys
  }

  /** @param nowMs milliseconds since 1970. */
  async verify(token: string, nowMs: number): Promise<TokenVerdict> {
    const header = headerOf(token)
    if (header === null) return refused(NOT_A_JWT)
    const keys = this.keys.filter(
      ({ algorithm, id }) =>
        algorithm === header.alg && (id === null || header.kid === undefined || id === header.kid),
    )
    if (keys.length === 0) return refused("names no key of TOKEN_KEYS_FILE by its alg and kid")
    for (const { algorithm, key } of keys) {
      const options = { ...this.#claims, algorithms: [algorithm], currentDate: new Date(nowMs) }
      try {
        const { payload } = await jwtVerify(token, key, options)
        return verdictOf(payload, nowMs)
      } catch (error) {
        if (!(error instanceof JOSEError)) throw error
        if (!(error instanceof JWSSignatureVerificationFailed)) return refusedBy(error)
      }
    }
    return refused("has a signature that does not match")
  }
}

/** Null when the token is not a JWT. */
function headerOf(token: string): ProtectedHeaderParameters | null {
  try {
    return decodeProtectedHeader(token)
  } catch {
    return null
  }
}

/** @param payload of a token with a valid signature and valid claims. */
function verdictOf({ sub, exp = 0 }: JWTPayload, nowMs: number): TokenVerdict {
  if (typeof sub !== "string" || !isDeviceName(sub)) {
    return refused("has a sub claim that is not a device id")
  }
  const expiresAtMs = exp * 1_000
  // The library applies the tolerance for `nbf` to `exp` too.
  if (nowMs >= expiresAtMs) return refused(EXPIRED, { sub })
  return { kind: "proven", deviceId: sub, expiresAtMs }
}

const EXPIRED = "has expired"
const NOT_A_JWT = "is not a signed JWT in compact form"

/** The library verifies the signature before the claims, so the claims are the issuer's. */
function refusedBy(error: JOSEError): TokenVerdict {
  if (error instanceof JWTExpired) return refused(EXPIRED, error.payload)
  if (error instanceof JWTClaimValidationFailed) return refused(claimFault(error), error.payload)
  switch (error.code) {
    case "ERR_JWS_INVALID":
    case "ERR_JWT_INVALID":
      return refused(NOT_A_JWT)
    case "ERR_JOSE_NOT_SUPPORTED":
      return refused("has a crit header that the gateway does not support")
    default:
      return refused(`is not valid (${error.code})`)
  }
}

function claimFault({ claim, reason }: JWTClaimValidationFailed): string {
  if (reason === "missing") return `has no ${claim} claim`
  if (reason === "invalid") return `has an invalid ${claim} claim`
  switch (claim) {
    case "nbf":
      return "is not valid yet (nbf)"
    case "iss":
      return "has an iss claim that is not TOKEN_ISSUER"
    default:
      return "has an aud claim without TOKEN_AUDIENCE"
  }
}

function refused(fault: string, { sub }: JWTPayload = {}): TokenVerdict {
  const deviceId = typeof sub === "string" && isDeviceName(sub) ? sub : null
  const owner = deviceId === null ? "" : ` of ${deviceId}`
  return { kind: "refused", fault: `the token${owner} ${fault}`, deviceId }
}
