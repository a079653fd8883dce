/** Which files of keys are used, which keys of a JWK Set are ignored, and the faults of the rest. */

import { describe, expect, test } from "bun:test"
import { generateKeyPairSync } from "node:crypto"
import fc from "fast-check"
import { MAX_KEYS, parseTokenKeys, TokenKeysError } from "../../src/device/token-keys.ts"
import { check } from "../support/property.ts"
import { issuer, jwkOf, jwksOf, pemOf } from "../support/tokens.ts"

const EDDSA = issuer("EdDSA")
const ES256 = issuer("ES256")
const RS256 = issuer("RS256")
const ALL = [EDDSA, ES256, RS256]
const WEAK = issuer("RS256", "weak", 1_024)

const algorithmsOf = (text: string) => parseTokenKeys(text).map(({ algorithm }) => algorithm)
const setOf = (...keys: unknown[]) => JSON.stringify({ keys })

function faultOf(text: string): string {
  try {
    parseTokenKeys(text)
    return "none"
  } catch (error) {
    expect(error).toBeInstanceOf(TokenKeysError)
    return error instanceof Error ? error.message : ""
  }
}

describe("a JWK Set", () => {
  test("has its keys, with the algorithm of their types and their ids", () => {
    const keys = parseTokenKeys(jwksOf(...ALL))
    expect(keys.map(({ algorithm, id }) => [algorithm, id])).toEqual(
      ALL.map(({ algorithm, id }) => [algorithm, id]),
    )
    for (const [at, { key }] of keys.entries()) {
      expect(key.equals(ALL[at]?.publicKey as typeof key)).toBe(true)
    }
  })

  test("may leave out alg, use and kid, and may start with a byte order mark", () => {
    const { kty, crv, x } = jwkOf(EDDSA)
    const [key] = parseTokenKeys(`\uFEFF ${setOf({ kty, crv, x })}`)
    expect([key?.algorithm, key?.id]).toEqual(["EdDSA", null])
  })

  test.each<[string, Record<string, unknown>]>([
    ["encryption", { ...jwkOf(RS256), use: "enc" }],
    ["another algorithm", { ...jwkOf(RS256), alg: "RSA-OAEP" }],
    ["another signature", { ...jwkOf(WEAK), alg: "PS256" }],
    ["wrapping keys", { ...jwkOf(RS256), key_ops: ["wrapKey"] }],
    ["another curve", { kty: "EC", crv: "P-384", x: "AA", y: "AA" }],
    ["key agreement", { kty: "OKP", crv: "X25519", x: "AA" }],
    ["a secret", { kty: "oct", k: "c2VjcmV0" }],
    ["a type that does not exist yet", { kty: "NEW" }],
  ])("may contain a key for %s, which is ignored", (_what, other) => {
    expect(algorithmsOf(setOf(other, jwkOf(EDDSA)))).toEqual(["EdDSA"])
    expect(faultOf(setOf(other))).toBe(
      "the JWK Set contains no key for EdDSA (Ed25519), ES256 or RS256",
    )
  })

  test.each<[string, unknown, string]>([
    ["a weak RSA key", jwkOf(WEAK), "key 2 is an RSA key of fewer than 2048 bits"],
    ["a private key", { ...jwkOf(EDDSA), d: "AA" }, "key 2 is a private key"],
    ["a short key", { ...jwkOf(EDDSA), x: "AA" }, "key 2 is not a valid public key"],
    ["a point off the curve", { ...jwkOf(ES256), y: "A".repeat(43) }, "key 2 is not a valid"],
    ["a key without its numbers", { kty: "RSA" }, "key 2 is not a valid public key"],
    ["a key without type", { kid: "a" }, "keys.1.kty is missing or not valid"],
    ["a kid that is no text", { ...jwkOf(EDDSA), kid: 1 }, "keys.1.kid is missing or not valid"],
    ["no object", "key", "keys.1 is missing or not valid"],
  ])("is not used when it contains %s", (_what, key, fault) => {
    expect(faultOf(setOf(jwkOf(RS256), key))).toContain(fault)
  })

  test.each<[string, string, string]>([
    ["nothing", setOf(), "contains no key"],
    ["no keys member", "{}", "not a JWK Set: keys is missing"],
    ["keys that are no list", `{"keys":{}}`, "not a JWK Set: keys is missing or not valid"],
    ["a bare key", JSON.stringify(jwkOf(EDDSA)), "not a JWK Set: keys is missing"],
    ["a part of it", jwksOf(...ALL).slice(0, -1), "not valid JSON"],
  ])("is not used when it is %s", (_what, text, fault) => {
    expect(faultOf(text)).toContain(fault)
  })

  test("has at most so many keys", () => {
    const keys = Array.from({ length: MAX_KEYS }, () => jwkOf(EDDSA))
    expect(parseTokenKeys(setOf(...keys)).length).toBe(MAX_KEYS)
    expect(faultOf(setOf(...keys, jwkOf(EDDSA)))).toBe(`more than ${MAX_KEYS} keys`)
  })
})

describe("PEM", () => {
  test("has one key or several, with text around them and line ends of either kind", () => {
    expect(algorithmsOf(pemOf(EDDSA))).toEqual(["EdDSA"])
    const text = `the old key\n${pemOf(RS256)}# the new keys\n${pemOf(ES256)}${pemOf(EDDSA)}\n`
    for (const form of [text, text.replaceAll("\n", "\r\n")]) {
      expect(parseTokenKeys(form).map(({ algorithm, id }) => [algorithm, id])).toEqual([
        ["RS256", null],
        ["ES256", null],
        ["EdDSA", null],
      ])
    }
  })

  test.each<[string, () => string, string]>([
    ["a weak RSA key", () => pemOf(WEAK), "key 2 is an RSA key of fewer than 2048 bits"],
    [
      "another curve",
      () => pemOf(generateKeyPairSync("ec", { namedCurve: "P-384" })),
      "key 2 is an EC key of another curve than P-256",
    ],
    [
      "X25519",
      () => pemOf(generateKeyPairSync("x25519")),
      "key 2 is neither an Ed25519, a P-256 nor an RSA key",
    ],
    [
      "no key within the block",
      () => "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
      "key 2 is not a valid public key",
    ],
    [
      "a private key",
      () => EDDSA.privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
      "PEM data other than complete public keys",
    ],
    [
      "a certificate",
      () => "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
      "PEM data other than complete public keys",
    ],
  ])("is not used when it contains %s", (_what, other, fault) => {
    expect(faultOf(pemOf(RS256) + other())).toContain(fault)
  })

  test("is not used when its last key is incomplete", () => {
    const first = pemOf(RS256)
    const last = pemOf(EDDSA).trimEnd()
    for (let length = "-----".length; length < last.length; length += 1) {
      expect(faultOf(first + last.slice(0, length))).toContain("PEM data other than complete")
    }
  })
})

test.each([
  ["", "the file is empty"],
  [" \r\n", "the file is empty"],
  ["\uFEFF", "the file is empty"],
  ["[]", "neither a JWK Set nor a PEM public key"],
  ["ssh-ed25519 AAAA", "neither a JWK Set nor a PEM public key"],
])("a file with %j is not used", (text, fault) => {
  expect(faultOf(text)).toContain(fault)
})

test("any text has keys or one fault", () => {
  const parts = [pemOf(EDDSA), jwksOf(EDDSA), "-----", "{", `{"keys":[`, "]}", "\n"]
  const text = fc.array(fc.oneof(fc.constantFrom(...parts), fc.string(), fc.json()))
  check(fc.property(text, (pieces) => void faultOf(pieces.join(""))))
})
