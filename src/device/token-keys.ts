/**
 * The public keys of `TOKEN_KEYS_FILE`, which verify the tokens of devices. The file contains
 * either a JWK Set (RFC 7517, section 5) or PEM public keys (`-----BEGIN PUBLIC KEY-----`, one or
 * several).
 *
 *   Ed25519 ─► EdDSA        P-256 ─► ES256        RSA, `MIN_RSA_BITS` or more ─► RS256
 *
 * The type of a key determines its one algorithm. A token cannot choose another one, so a public
 * key never serves as the secret of an HMAC (RFC 8725, section 3.1).
 *
 * A JWK Set may contain keys for other purposes: those are ignored (RFC 7517, section 5). A key
 * that is meant for tokens and cannot be used makes the whole file unusable, and so does anything
 * but public keys in PEM, because the file is then damaged or not the one that was meant. A private
 * key is refused, since it does not belong on a gateway.
 *
 * Independent of the library that verifies tokens, so that the supervisor can check the file
 * without loading it. Bounds: `MAX_KEYS`.
 */

import { createPublicKey, type KeyObject } from "node:crypto"
import * as v from "valibot"

export type TokenAlgorithm = "EdDSA" | "ES256" | "RS256"

export interface TokenKey {
  readonly algorithm: TokenAlgorithm
  /** `kid` of the JWK; null when it has none. A PEM key has none. */
  readonly id: string | null
  readonly key: KeyObject
}

/** A token without `kid` is checked against each key of its algorithm. */
export const MAX_KEYS = 32
/** RFC 7518, section 3.3. */
export const MIN_RSA_BITS = 2_048

const PEM_PUBLIC_KEY = /-----BEGIN PUBLIC KEY-----[^-]+-----END PUBLIC KEY-----/g
const PEM_BOUNDARY = "-----"

/** The keys cannot be used. The message says why and contains no text of the file. */
export class TokenKeysError extends Error {
  override readonly name = "TokenKeysError"
}

/** @throws TokenKeysError when the text contains no usable key, or a key that is faulty. */
export function parseTokenKeys(text: string): readonly TokenKey[] {
  const content = text.replace(/^\uFEFF/, "").trim()
  if (content === "") throw new TokenKeysError("the file is empty")
  const keys = content.startsWith("{") ? keysOfSet(content) : keysOfPem(content)
  if (keys.length > MAX_KEYS) throw new TokenKeysError(`more than ${MAX_KEYS} keys`)
  return keys
}

const strings = v.array(v.string())
const JWK = v.looseObject({
  kty: v.string(),
  crv: v.exactOptional(v.string()),
  alg: v.exactOptional(v.string()),
  use: v.exactOptional(v.string()),
  key_ops: v.exactOptional(strings),
  kid: v.exactOptional(v.string()),
})
const JWK_SET = v.looseObject({ keys: v.array(JWK) })

type Jwk = v.InferOutput<typeof JWK>

function keysOfSet(content: string): TokenKey[] {
  const { keys } = readSet(content)
  const found = keys.flatMap((jwk, at) => {
    const algorithm = algorithmOfJwk(jwk)
    if (algorithm === null) return []
    if ("d" in jwk) throw fault(at, "is a private key")
    const key = readKey(at, () => createPublicKey({ key: jwk, format: "jwk" }))
    return [{ algorithm: usableAlgorithm(at, key), id: jwk.kid ?? null, key }]
  })
  if (found.length === 0) {
    throw new TokenKeysError("the JWK Set contains no key for EdDSA (Ed25519), ES256 or RS256")
  }
  return found
}

function readSet(content: string): v.InferOutput<typeof JWK_SET> {
  let parsed: unknown
  try {
    parsed = JSON.parse(content)
  } catch {
    // The message of the exception may contain text of the file.
    throw new TokenKeysError("the file starts with { and is not valid JSON")
  }
  const result = v.safeParse(JWK_SET, parsed)
  if (result.success) return result.output
  const path = v.getDotPath(result.issues[0]) ?? "the file"
  throw new TokenKeysError(`the file is not a JWK Set: ${path} is missing or not valid`)
}

/** The algorithm of a key that is meant for the signatures of tokens, otherwise null. */
function algorithmOfJwk({ kty, crv, alg, use, key_ops }: Jwk): TokenAlgorithm | null {
  const algorithm = algorithmOfType(kty, crv)
  if (algorithm === null || (alg ?? algorithm) !== algorithm) return null
  if ((use ?? "sig") !== "sig" || key_ops?.includes("verify") === false) return null
  return algorithm
}

function algorithmOfType(kty: string, crv: string | undefined): TokenAlgorithm | null {
  if (kty === "RSA") return "RS256"
  if (kty === "OKP" && crv === "Ed25519") return "EdDSA"
  return kty === "EC" && crv === "P-256" ? "ES256" : null
}

function keysOfPem(content: string): TokenKey[] {
  const blocks = content.match(PEM_PUBLIC_KEY) ?? []
  if (content.replace(PEM_PUBLIC_KEY, "").includes(PEM_BOUNDARY)) {
    throw new TokenKeysError("the file contains PEM data other than complete public keys")
  }
  if (blocks.length === 0) {
    throw new TokenKeysError("the file contains neither a JWK Set nor a PEM public key")
  }
  return blocks.map((pem, at) => {
    const key = readKey(at, () => createPublicKey(pem))
    return { algorithm: usableAlgorithm(at, key), id: null, key }
  })
}

function readKey(at: number, read: () => KeyObject): KeyObject {
  try {
    return read()
  } catch {
    throw fault(at, "is not a valid public key")
  }
}

function usableAlgorithm(at: number, key: KeyObject): TokenAlgorithm {
  const { modulusLength = 0, namedCurve } = key.asymmetricKeyDetails ?? {}
  switch (key.asymmetricKeyType) {
    case "ed25519":
      return "EdDSA"
    case "rsa":
      if (modulusLength >= MIN_RSA_BITS) return "RS256"
      throw fault(at, `is an RSA key of fewer than ${MIN_RSA_BITS} bits`)
    case "ec":
      if (namedCurve === "prime256v1") return "ES256"
      throw fault(at, "is an EC key of another curve than P-256")
    default:
      throw fault(at, "is neither an Ed25519, a P-256 nor an RSA key")
  }
}

function fault(at: number, reason: string): TokenKeysError {
  return new TokenKeysError(`key ${at + 1} ${reason}`)
}
