/**
 * Tokens: which ones prove a device id, and that each attack on JWTs is refused. The tokens are
 * made without the library that verifies them.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { ConnectionIds, incarnation } from "../../src/device/ids.ts"
import { parseTokenKeys } from "../../src/device/token-keys.ts"
import {
  NBF_TOLERANCE_S,
  TokenVerifier,
  type TokenVerifierOptions,
} from "../../src/device/token-verifier.ts"
import { checkAsync } from "../support/property.ts"
import {
  encoded,
  hmacToken,
  issuer,
  jwkOf,
  jwksOf,
  pemOf,
  signed,
  token,
  unsigned,
} from "../support/tokens.ts"

const NOW_S = 1_780_000_000
const NOW_MS = NOW_S * 1_000
const EDDSA = issuer("EdDSA")
const ES256 = issuer("ES256")
const RS256 = issuer("RS256")
const ALL = [EDDSA, ES256, RS256]
const STRANGER = issuer("EdDSA", EDDSA.id)
const CLAIMS = { sub: "lock:17", exp: NOW_S + 60 }
const UNCHECKED = { issuer: null, audience: null }
const NO_KEY = "the token names no key of TOKEN_KEYS_FILE by its alg and kid"
const NO_JWT = "the token is not a signed JWT in compact form"
const NO_MATCH = "the token has a signature that does not match"
const A_CONNECTION_ID = new ConnectionIds({
  worker: "gw1.0",
  incarnation: incarnation(NOW_MS, 0.5),
}).mint()

const verifier = (text: string, options: TokenVerifierOptions = UNCHECKED) =>
  new TokenVerifier(options, parseTokenKeys(text))

const set = verifier(jwksOf(...ALL))
const pem = verifier(ALL.map(pemOf).join(""))

/** The device id, or why the token is refused. */
async function outcome(text: string, by: TokenVerifier = set): Promise<string> {
  const verdict = await by.verify(text, NOW_MS)
  return verdict.kind === "proven" ? verdict.deviceId : verdict.fault
}

describe("a token", () => {
  test.each(ALL)("of $algorithm proves its sub until its exp", async (by) => {
    const proven = { kind: "proven", deviceId: "lock:17", expiresAtMs: NOW_MS + 60_000 } as const
    for (const each of [set, pem, verifier(pemOf(by))]) {
      expect(await each.verify(token(by, CLAIMS), NOW_MS)).toEqual(proven)
      expect(await each.verify(token(by, CLAIMS, { kid: undefined }), NOW_MS)).toEqual(proven)
    }
  })

  test("is verified by the key of its kid, or without one by each key of its algorithm", async () => {
    const later = issuer("EdDSA", "later")
    const both = verifier(jwksOf(EDDSA, later))
    for (const by of [EDDSA, later]) {
      expect(await outcome(token(by, CLAIMS), both)).toBe("lock:17")
      expect(await outcome(token(by, CLAIMS, { kid: undefined }), both)).toBe("lock:17")
    }
    expect(await outcome(token(later, CLAIMS, { kid: EDDSA.id }), both)).toBe(NO_MATCH)
  })

  test("with any kid is verified by keys without ids", async () => {
    expect(await outcome(token(EDDSA, CLAIMS, { kid: "any" }), pem)).toBe("lock:17")
  })

  test("is verified by the current keys", async () => {
    const renewed = verifier(pemOf(EDDSA))
    renewed.keys = parseTokenKeys(pemOf(ES256))
    expect(await outcome(token(EDDSA, CLAIMS), renewed)).toBe(NO_KEY)
    expect(await outcome(token(ES256, CLAIMS), renewed)).toBe("lock:17")
  })
})

describe("claims", () => {
  const withClaims = (claims: Record<string, unknown>) =>
    outcome(token(EDDSA, { ...CLAIMS, ...claims }))

  test.each<[string, Record<string, unknown>, string]>([
    ["no exp", { exp: undefined }, "the token of lock:17 has no exp claim"],
    ["exp as text", { exp: String(CLAIMS.exp) }, "the token of lock:17 has an invalid exp claim"],
    ["exp null", { exp: null }, "the token of lock:17 has an invalid exp claim"],
    ["exp now", { exp: NOW_S }, "the token of lock:17 has expired"],
    ["exp in the past", { exp: NOW_S - 1 }, "the token of lock:17 has expired"],
    ["exp long ago", { exp: -1 }, "the token of lock:17 has expired"],
    [
      "nbf in the future",
      { nbf: NOW_S + NBF_TOLERANCE_S + 1 },
      "the token of lock:17 is not valid yet (nbf)",
    ],
    ["nbf as text", { nbf: "0" }, "the token of lock:17 has an invalid nbf claim"],
    ["no sub", { sub: undefined }, "the token has no sub claim"],
  ])("with %s are refused", async (_what, claims, fault) => {
    expect(await withClaims(claims)).toBe(fault)
  })

  test.each<[string, unknown]>([
    ["empty", ""],
    ["null", null],
    ["a number", 17],
    ["a list", ["lock:17"]],
    ["with a space", "lock 17"],
    ["with a line end", "lock\n17"],
    ["a dot segment", ".."],
    ["a connection id", A_CONNECTION_ID],
    ["too long", "x".repeat(129)],
    ["a look-alike", "l\u043ecok:17"],
  ])("with a sub that is %s are refused", async (_what, sub) => {
    expect(await withClaims({ sub })).toBe("the token has a sub claim that is not a device id")
  })

  test("with the longest sub, a fraction of a second and nbf within the tolerance are accepted", async () => {
    const sub = "x".repeat(128)
    const claims = { sub, exp: NOW_S + 0.25, nbf: NOW_S + NBF_TOLERANCE_S }
    expect(await set.verify(token(EDDSA, claims), NOW_MS)).toEqual({
      kind: "proven",
      deviceId: sub,
      expiresAtMs: NOW_MS + 250,
    })
  })

  describe("of the configured issuer and audience", () => {
    const strict = verifier(jwksOf(EDDSA), { issuer: "https://issuer/", audience: "owsla" })
    const named = { iss: "https://issuer/", aud: "owsla" }
    const no = "the token of lock:17 has no"

    test.each<[string, Record<string, unknown>, string]>([
      ["both", {}, "lock:17"],
      ["the audience among others", { aud: ["other", "owsla"] }, "lock:17"],
      ["another audience", { aud: "other" }, "an aud claim without TOKEN_AUDIENCE"],
      ["other audiences", { aud: ["owsla2", "ows"] }, "an aud claim without TOKEN_AUDIENCE"],
      ["an audience of the wrong type", { aud: { owsla: 1 } }, "an aud claim without"],
      ["no audience", { aud: undefined }, `${no} aud claim`],
      ["another issuer", { iss: "https://issuer" }, "an iss claim that is not TOKEN_ISSUER"],
      ["an issuer of the wrong type", { iss: ["https://issuer/"] }, "an iss claim that is not"],
      ["no issuer", { iss: undefined }, `${no} iss claim`],
    ])("%s", async (_what, claims, expected) => {
      const text = token(EDDSA, { ...CLAIMS, ...named, ...claims })
      expect(await outcome(text, strict)).toContain(expected)
      expect(await outcome(text)).toBe("lock:17")
    })
  })
})

describe("an attack", () => {
  const good = token(EDDSA, CLAIMS)
  const [head = "", body = "", proof = ""] = good.split(".")
  const none = unsigned({ alg: "none" }, CLAIMS)
  const jwk = jwkOf(STRANGER)

  test.each<[string, string, string]>([
    ["alg none without a signature", `${none}.`, NO_KEY],
    ["alg none with a signature", `${none}.${proof}`, NO_KEY],
    ["alg None", `${unsigned({ alg: "None", kid: EDDSA.id }, CLAIMS)}.${proof}`, NO_KEY],
    ["no alg", token(EDDSA, CLAIMS, { alg: undefined }), NO_KEY],
    ["alg of the wrong type", token(EDDSA, CLAIMS, { alg: ["EdDSA"] }), NO_KEY],
    ["HMAC with the public key", hmacToken(pemOf(RS256), CLAIMS), NO_KEY],
    ["HMAC with it trimmed", hmacToken(pemOf(RS256).trim(), CLAIMS, { kid: RS256.id }), NO_KEY],
    ["HMAC with the JWK", hmacToken(JSON.stringify(jwkOf(RS256)), CLAIMS), NO_KEY],
    ["RS256 with the kid of an EC key", token(RS256, CLAIMS, { kid: ES256.id }), NO_KEY],
    ["ES256 named for a signature of EdDSA", token(EDDSA, CLAIMS, { alg: "ES256" }), NO_KEY],
    ["PS256 with an RSA key", token(RS256, CLAIMS, { alg: "PS256" }), NO_KEY],
    ["RS512 with an RSA key", token(RS256, CLAIMS, { alg: "RS512" }), NO_KEY],
    ["an unknown kid", token(EDDSA, CLAIMS, { kid: "unknown" }), NO_KEY],
    ["a kid that is a path", token(EDDSA, CLAIMS, { kid: "../../dev/null" }), NO_KEY],
    ["a kid of the wrong type", token(EDDSA, CLAIMS, { kid: 1 }), NO_KEY],
    ["a kid that is a member of objects", token(EDDSA, CLAIMS, { kid: "__proto__" }), NO_KEY],
    ["a key of another issuer", token(STRANGER, CLAIMS), NO_MATCH],
    ["its key in the header", token(STRANGER, CLAIMS, { jwk }), NO_MATCH],
    [
      "its key by reference",
      token(STRANGER, CLAIMS, { jku: "https://127.0.0.1:1/", x5u: "https://127.0.0.1:1/" }),
      NO_MATCH,
    ],
    ["its certificate in the header", token(STRANGER, CLAIMS, { x5c: ["AAAA"] }), NO_MATCH],
    [
      "an unknown critical header",
      token(EDDSA, CLAIMS, { crit: ["owsla"], owsla: 1 }),
      "the token has a crit header that the gateway does not support",
    ],
    ["an empty list of critical headers", token(EDDSA, CLAIMS, { crit: [] }), NO_JWT],
    ["a payload that is not encoded", token(EDDSA, CLAIMS, { crit: ["b64"], b64: false }), NO_JWT],
    ["other claims", `${head}.${encoded('{"sub":"victim","exp":9e9}')}.${proof}`, NO_MATCH],
    ["no signature", `${head}.${body}.`, NO_MATCH],
    ["no claims", `${head}..${proof}`, NO_MATCH],
    ["no header", `.${body}.${proof}`, NO_JWT],
    ["only dots", "..", NO_JWT],
    ["three dots", `${good}.`, NO_JWT],
    ["four dots", `${good}..`, NO_JWT],
    ["one dot", `${head}.${body}`, NO_JWT],
    ["no dot", "abc", NO_JWT],
    ["a header that is not JSON", `${encoded("{")}.${body}.${proof}`, NO_JWT],
    ["a header that is no object", `${encoded("[]")}.${body}.${proof}`, NO_JWT],
    ["characters that are not base64url", `${head}.${body}.=${proof}`, NO_JWT],
  ])("by %s is refused", async (_what, text, fault) => {
    expect(await outcome(text)).toBe(fault)
  })

  test("by claims that are not JSON, or no object, is refused", async () => {
    for (const claims of ["", "{", "[]", "null", '"text"', "1", "{}{}"]) {
      expect(await outcome(signed(EDDSA, claims))).toBe(NO_JWT)
    }
  })

  test.each(ALL)("by any changed bit of a token of $algorithm is refused", async (by) => {
    const text = token(by, CLAIMS)
    const parts = text.split(".").map((part) => Buffer.from(part, "base64url"))
    const flip = fc.record({ part: fc.nat(2), at: fc.nat(2_000), bit: fc.nat(7) })
    await checkAsync(
      fc.asyncProperty(flip, async ({ part, at, bit }) => {
        const changed = parts.map((bytes) => Buffer.from(bytes))
        const bytes = changed[part] ?? Buffer.alloc(1)
        bytes[at % bytes.length] = (bytes[at % bytes.length] ?? 0) ^ (1 << bit)
        const forged = changed.map((each) => each.toString("base64url")).join(".")
        for (const each of [set, pem]) {
          expect(await outcome(forged, each)).toStartWith("the token ")
        }
      }),
    )
  })

  test("by any text is refused, and fails no other way", async () => {
    const characters = fc.constantFrom(..."abcABC019_-.")
    const pieces = fc.oneof(fc.constantFrom(head, body, proof, ".", "..", none), fc.json())
    const text = fc.oneof(
      fc.string({ unit: characters }),
      fc.array(pieces.map((piece) => piece.replace(/[^A-Za-z0-9_.-]/g, ""))).map((p) => p.join("")),
      fc.tuple(fc.json(), fc.json()).map(([a, b]) => `${encoded(a)}.${encoded(b)}.${proof}`),
    )
    await checkAsync(
      fc.asyncProperty(text, async (forged) => {
        if (forged !== good) expect(await outcome(forged)).toStartWith("the token ")
      }),
    )
  })
})

test("no fault contains a part of the token", async () => {
  for (const text of [
    token(EDDSA, { ...CLAIMS, exp: 1, secret: "s3cret" }),
    token(STRANGER, CLAIMS, { kid: "s3cret" }),
    token(EDDSA, { ...CLAIMS, sub: "s3 cret" }),
    token(EDDSA, { ...CLAIMS, nbf: "s3cret" }),
  ]) {
    const fault = await outcome(text)
    expect(fault).not.toContain("s3")
    for (const part of text.split(".")) expect(fault).not.toContain(part)
  }
})
