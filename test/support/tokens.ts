/**
 * Keys and tokens for tests: an issuer with one key pair of each algorithm, and tokens with any
 * header and claims. The tokens are made with `node:crypto`, independent of the library that
 * verifies them.
 */

import { constants, createHmac, generateKeyPairSync, type KeyObject, sign } from "node:crypto"
import type { TokenAlgorithm } from "../../src/device/token-keys.ts"

export interface Issuer {
  readonly algorithm: TokenAlgorithm
  readonly id: string
  readonly publicKey: KeyObject
  readonly privateKey: KeyObject
}

/** @param bits for RS256. */
export function issuer(algorithm: TokenAlgorithm, id: string = algorithm, bits = 2_048): Issuer {
  return { algorithm, id, ...keyPair(algorithm, bits) }
}

function keyPair(algorithm: TokenAlgorithm, modulusLength: number) {
  switch (algorithm) {
    case "EdDSA":
      return generateKeyPairSync("ed25519")
    case "ES256":
      return generateKeyPairSync("ec", { namedCurve: "P-256" })
    case "RS256":
      return generateKeyPairSync("rsa", { modulusLength })
  }
}

export function pemOf({ publicKey }: Pick<Issuer, "publicKey">): string {
  return publicKey.export({ type: "spki", format: "pem" }).toString()
}

export function jwkOf({ publicKey, id, algorithm }: Issuer): Record<string, unknown> {
  return { ...publicKey.export({ format: "jwk" }), kid: id, alg: algorithm, use: "sig" }
}

export function jwksOf(...issuers: Issuer[]): string {
  return JSON.stringify({ keys: issuers.map(jwkOf) })
}

type Claims = Readonly<Record<string, unknown>>

/** A token that the issuer has signed. Undefined members are left out. */
export function token(by: Issuer, claims: Claims, header: Claims = {}): string {
  return signed(by, JSON.stringify(claims), header)
}

/** The same with any text in place of the claims. */
export function signed(by: Issuer, payload: string, header: Claims = {}): string {
  const parts = [JSON.stringify({ alg: by.algorithm, kid: by.id, ...header }), payload]
  const input = parts.map(encoded).join(".")
  return `${input}.${signature(by, input).toString("base64url")}`
}

/** A token that is signed with HMAC-SHA256. */
export function hmacToken(secret: string, claims: Claims, header: Claims = {}): string {
  const input = unsigned({ alg: "HS256", ...header }, claims)
  return `${input}.${createHmac("sha256", secret).update(input).digest("base64url")}`
}

/** Header and claims, without signature. */
export function unsigned(header: Claims, claims: Claims): string {
  return [header, claims].map((part) => encoded(JSON.stringify(part))).join(".")
}

export function encoded(text: string): string {
  return Buffer.from(text).toString("base64url")
}

function signature({ algorithm, privateKey }: Issuer, input: string): Buffer {
  const data = Buffer.from(input)
  switch (algorithm) {
    case "EdDSA":
      return sign(null, data, privateKey)
    case "ES256":
      return sign("sha256", data, { key: privateKey, dsaEncoding: "ieee-p1363" })
    case "RS256":
      return sign("sha256", data, { key: privateKey, padding: constants.RSA_PKCS1_PADDING })
  }
}
