/**
 * The identity of a device: names in certificates, HELLO lines, the denylist, and the result in
 * each mode. `token-verifier.test.ts` has the tokens.
 */

import { describe, expect, test } from "bun:test"
import { createHmac } from "node:crypto"
import fc from "fast-check"
import {
  Authenticator,
  type AuthResult,
  type DeviceAuth,
  type TlsPeer,
} from "../../src/device/authenticator.ts"
import { identityOf, type PeerCertificate } from "../../src/device/certificate-identity.ts"
import type { Connection } from "../../src/device/connection.ts"
import { Denylist } from "../../src/device/denylist.ts"
import { MAX_EARLY_BYTES } from "../../src/device/early-bytes.ts"
import { FirstLine } from "../../src/device/first-line.ts"
import type { Framing } from "../../src/device/framing.ts"
import { helloLine, MAX_HELLO_BYTES, verifyHello } from "../../src/device/hello.ts"
import { ConnectionIds, incarnation, isDeviceName } from "../../src/device/ids.ts"
import { parseTokenKeys } from "../../src/device/token-keys.ts"
import { MAX_TOKEN_LINE_BYTES } from "../../src/device/token-line.ts"
import { TokenVerifier } from "../../src/device/token-verifier.ts"
import { check } from "../support/property.ts"
import { issuer, pemOf, token } from "../support/tokens.ts"
import { bytesOf, concat, frame, textOf } from "./framer-harness.ts"

const NOW_MS = Date.parse("2026-06-01T00:00:00Z")
const FINGERPRINT = Array.from({ length: 32 }, (_, at) => (at + 160).toString(16).toUpperCase())
const SECRETS = ["0123456789abcdef", "fedcba9876543210"]
const MINTED = new ConnectionIds({
  worker: "gw1.0",
  incarnation: incarnation(NOW_MS, 0.5),
}).mint()

function certificate(changes: Partial<PeerCertificate> = {}): PeerCertificate {
  return {
    subjectAltName: undefined,
    subject: "O=Owsla\nCN=lock-17",
    validFrom: "Jan  1 00:00:00 2026 GMT",
    validTo: "Jan  1 00:00:00 2027 GMT",
    fingerprint256: FINGERPRINT.join(":"),
    ...changes,
  }
}

function nameOf(changes: Partial<PeerCertificate>): string | null {
  const identity = identityOf(certificate(changes), NOW_MS)
  return "deviceId" in identity ? identity.deviceId : null
}

describe("a certificate", () => {
  test.each([
    ["its URI", "URI:urn:owsla:device:door-1", "CN=other", "door-1"],
    ["its URI beside other names", "DNS:a.b, URI:urn:owsla:device:door:1, email:a@b", "", "door:1"],
    ["its URI beside another URI", "URI:https://a/, URI:urn:owsla:device:door", "", "door"],
    ["its CN without names", undefined, "O=x\nCN=lock.17", "lock.17"],
    ["its CN beside names of other kinds", "DNS:a.b", "CN=lock.17", "lock.17"],
  ])("names its device by %s", (_what, subjectAltName, subject, deviceId) => {
    expect(nameOf({ subjectAltName, subject })).toBe(deviceId)
  })

  test.each([
    ["an empty id", "URI:urn:owsla:device:", "CN=fallback"],
    ["300 characters", `URI:urn:owsla:device:${"a".repeat(300)}`, "CN=fallback"],
    ["a quoted value", 'URI:"urn:owsla:device:a\\u002c b"', "CN=fallback"],
    ["an odd case of the URN", "URI:URN:Owsla:device:a b", "CN=fallback"],
    ["a wildcard", "URI:urn:owsla:device:*", "CN=fallback"],
    ["a #", "URI:urn:owsla:device:#", "CN=fallback"],
    ["a URL's dot segment", "URI:urn:owsla:device:..", "CN=fallback"],
    ["one as CN", undefined, "CN=."],
    ["two of ours", "URI:urn:owsla:device:a, URI:urn:owsla:device:b", "CN=fallback"],
    ["a connection id", `URI:urn:owsla:device:${MINTED}`, "CN=fallback"],
    ["two CNs", undefined, "CN=a\nCN=b"],
    ["a CN with an escaped line end", undefined, "CN=a\\0ACN=victim"],
    ["no CN", undefined, "O=Owsla"],
    ["an empty CN", undefined, "CN="],
    ["a DNS name that spells a URI", 'DNS:"x\\u002c URI:urn:owsla:device:victim"', "O=Owsla"],
  ])("with %s names none", (_what, subjectAltName, subject) => {
    expect(nameOf({ subjectAltName, subject })).toBeNull()
  })

  test("is refused outside of its validity period, resumed session or not", () => {
    expect(nameOf({ validTo: "May 31 23:59:59 2026 GMT" })).toBeNull()
    expect(nameOf({ validFrom: "Jun  1 00:00:01 2026 GMT" })).toBeNull()
  })
})

describe("a first line", () => {
  test("is accepted with a proof made with any of the secrets, by an independent computation", () => {
    for (const secret of SECRETS) {
      const proof = createHmac("sha256", secret).update("lock-17").digest("hex")
      expect(helloLine("lock-17", secret)).toBe(`HELLO lock-17 ${proof}`)
      for (const line of [proof, proof.toUpperCase()].map((hex) => `HELLO lock-17 ${hex}`)) {
        expect(verifyHello(line, SECRETS)).toEqual({ kind: "proven", deviceId: "lock-17" })
      }
    }
  })

  test("is refused with the proof of another device or secret, or in the form of a connection id", () => {
    const proof = helloLine("lock-18", "0123456789abcdef").slice(-64)
    expect(verifyHello(`HELLO lock-17 ${proof}`, SECRETS).kind).toBe("refused")
    expect(verifyHello(helloLine("lock-17", "another-secret-16"), SECRETS).kind).toBe("refused")
    for (const id of [MINTED, ".", ".."]) {
      expect(verifyHello(helloLine(id, SECRETS[0] ?? ""), SECRETS).kind).toBe("refused")
    }
  })

  test.each(["", "HELLO", "HELLO a", "hello a b", " HELLO", "GET / HTTP/1.1", "HELLO  a b"])(
    "%j is not a HELLO",
    (line) => expect(verifyHello(line, SECRETS).kind).toBe("malformed"),
  )

  test("with one byte too many or too few is not a HELLO", () => {
    const line = helloLine("lock-17", SECRETS[0] ?? "")
    for (const bad of [`${line}0`, line.slice(0, -1), `${line} `, ` ${line}`, `${line}\r`]) {
      expect(verifyHello(bad, SECRETS).kind).toBe("malformed")
    }
  })

  const hello = helloLine("lock-17", SECRETS[0] ?? "")
  test.each([
    ["line", bytesOf(`${hello}\r\nfirst\nsecond`)],
    ["u16", concat([frame(2, hello), bytesOf("first\nsecond")])],
    ["u32", concat([frame(4, hello), bytesOf("first\nsecond")])],
  ] as const)("is assembled from any chunks: %s", (framing, sent) => {
    check(
      fc.property(fc.array(fc.nat(sent.length), { maxLength: 5 }), (cuts) => {
        const first = new FirstLine(framing, MAX_HELLO_BYTES)
        const ends = [...cuts, sent.length].sort((a, b) => a - b)
        let from = 0
        let after = ""
        let line: string | null = null
        for (const end of ends) {
          const chunk = sent.subarray(from, end)
          from = end
          if (line !== null) after += textOf(chunk)
          else {
            const read = first.push(chunk)
            if (read === null || read === "too_long") continue
            line = read.line
            after = Buffer.from(read.rest).toString()
          }
        }
        expect(verifyHello(line ?? "", SECRETS).kind).toBe("proven")
        expect(after).toBe("first\nsecond")
      }),
    )
  })

  test("holds a bounded number of bytes", () => {
    const first = new FirstLine("line", MAX_HELLO_BYTES)
    expect(first.push(Buffer.alloc(MAX_HELLO_BYTES, "a"))).toBeNull()
    expect(first.push(Buffer.from("a"))).toBe("too_long")
  })

  test.each([
    ["u16", 2],
    ["u32", 4],
  ] as const)("of a length above the bound is too long before it comes: %s", (framing, bytes) => {
    const length = (line: string) => frame(bytes, line).slice(0, bytes)
    expect(
      new FirstLine(framing, MAX_HELLO_BYTES).push(length("a".repeat(MAX_HELLO_BYTES))),
    ).toBeNull()
    expect(
      new FirstLine(framing, MAX_HELLO_BYTES).push(length("a".repeat(MAX_HELLO_BYTES + 1))),
    ).toBe("too_long")
  })
})

describe("the denylist", () => {
  test.each(["sha256 Fingerprint=", "SHA256 Fingerprint=", "SHA-256 ", "sha-256: "])(
    "accepts a fingerprint with the label of tools: %p",
    (label) => {
      const { denylist, faultyLines } = Denylist.parse(label + FINGERPRINT.join(":"))
      expect([faultyLines, denylist.denies("other", FINGERPRINT.join(":"))]).toEqual([[], true])
    },
  )

  const HEX = FINGERPRINT.join("").toLowerCase()
  test.each([
    ["sha256:17", ["sha256:17"], ["17"]],
    ["SHA-256:lock", ["SHA-256:lock"], ["lock", "sha-256:lock"]],
    [`sha256:${HEX}`, [`sha256:${HEX}`], []],
    [`sha256:${HEX}0`, [`sha256:${HEX}0`], [`${HEX}0`]],
    [HEX, [HEX], []],
  ])("a label counts only before a fingerprint: %s", (line, denied, admitted) => {
    const { denylist, faultyLines } = Denylist.parse(line)
    expect(faultyLines).toEqual([])
    for (const id of denied) expect([id, denylist.denies(id, null)]).toEqual([id, true])
    for (const id of admitted) expect([id, denylist.denies(id, null)]).toEqual([id, false])
    const isFingerprint = line.endsWith(HEX)
    expect(denylist.denies("other", FINGERPRINT.join(":"))).toBe(isFingerprint)
  })

  test.each(["sha256 Fingerprint=17", "SHA-256 lock:9", `sha256 ${HEX.slice(1)}`])(
    "a label before anything else makes a line faulty: %s",
    (line) => {
      const { denylist, faultyLines } = Denylist.parse(line)
      expect([denylist.size, faultyLines]).toEqual([0, [1]])
    },
  )

  test.each([
    "lock:9 # stolen",
    "lock:9# stolen",
    "  lock:9\t#",
    "lock:9 # stolen # twice",
    `lock:9 # ${"x".repeat(10_000)}`,
  ])("takes an id with a comment behind it: %j", (line) => {
    const { denylist, faultyLines } = Denylist.parse(line)
    expect([denylist.denies("lock:9", null), denylist.size, faultyLines]).toEqual([true, 1, []])
  })

  test("accepts a fingerprint followed by a comment", () => {
    const { denylist } = Denylist.parse(`sha256 Fingerprint=${FINGERPRINT.join(":")} # stolen`)
    expect(denylist.denies("other", FINGERPRINT.join(":"))).toBe(true)
  })

  test("no id contains #", () => {
    expect(isDeviceName("lock#9")).toBe(false)
    expect(isDeviceName("#")).toBe(false)
  })

  test.each([`${" ".repeat(5_000)}lock:9`, "x".repeat(5_000), `${"x".repeat(5_000)} # y`])(
    "a line that is too long is faulty",
    (line) => {
      const { denylist, faultyLines } = Denylist.parse(line)
      expect([denylist.size, faultyLines]).toEqual([0, [1]])
    },
  )

  test("reads ids, fingerprints in both forms and comments, and reports other lines", () => {
    const plain = FINGERPRINT.join("").toLowerCase()
    const text = `\uFEFF# kept out\r\nlock-17\r\n\n  door:1  \n${FINGERPRINT.join(":")}\nno id!\n`
    const { denylist, faultyLines } = Denylist.parse(text)
    expect(faultyLines).toEqual([6])
    expect(denylist.denies("lock-17", null)).toBe(true)
    expect(denylist.denies("door:1", null)).toBe(true)
    expect(denylist.denies("lock-18", null)).toBe(false)
    expect(denylist.denies("lock-18", FINGERPRINT.join(":"))).toBe(true)
    expect(Denylist.parse(plain).denylist.denies("x", FINGERPRINT.join(":"))).toBe(true)
    expect(Denylist.none.denies("lock-17", FINGERPRINT.join(":"))).toBe(false)
  })
})

describe("identity", () => {
  const connection = { id: MINTED } as Connection
  const peer = (changes: Partial<TlsPeer> = {}): TlsPeer => ({
    authorized: true,
    fault: null,
    certificate: () => certificate(),
    issuersValidUntilMs: () => Number.POSITIVE_INFINITY,
    ...changes,
  })
  const identity = (auth: DeviceAuth) =>
    new Authenticator({
      auth,
      framing: "line",
      helloSecrets: SECRETS,
      tokenVerifier: null,
      nowMs: () => NOW_MS,
    })

  test("none: the connection id", () => {
    const verdict = identity("none").handshaken(connection, peer())
    expect(verdict).toMatchObject({ kind: "accepted", deviceId: MINTED, fingerprint: null })
  })

  test("mtls: by a certificate that TLS trusts only", () => {
    const mtls = identity("mtls")
    const verdict = mtls.handshaken(connection, peer())
    expect(verdict).toMatchObject({ kind: "accepted", deviceId: "lock-17" })
    for (const untrusted of [
      { authorized: false },
      { certificate: () => undefined },
      { issuersValidUntilMs: () => NOW_MS },
    ]) {
      const refused = mtls.handshaken(connection, peer(untrusted))
      expect(refused).toMatchObject({ kind: "rejected", reason: "refused" })
    }
    mtls.denylist = Denylist.parse(FINGERPRINT.join(":")).denylist
    expect(mtls.handshaken(connection, peer())).toMatchObject({ reason: "denied" })
  })

  test("hello: waits for the first line, and passes on the bytes after it", () => {
    const hello = identity("hello")
    const line = Buffer.from(`${helloLine("lock-17", SECRETS[1] ?? "")}\nnext`)
    expect(hello.handshaken(connection, peer()).kind).toBe("waiting")
    expect(hello.received(connection, line.subarray(0, 9)).kind).toBe("waiting")
    const verdict = hello.received(connection, line.subarray(9))
    expect(verdict).toMatchObject({ kind: "accepted", deviceId: "lock-17", fingerprint: null })
    expect(verdict.kind === "accepted" && Buffer.from(verdict.rest).toString()).toBe("next")
  })

  test("hello: distinguishes not_identified, refused and denied", () => {
    const hello = identity("hello")
    hello.denylist = Denylist.parse("lock-17").denylist
    const reasonOf = (text: string) => {
      hello.handshaken(connection, peer())
      const verdict = hello.received(connection, Buffer.from(text))
      return verdict.kind === "rejected" ? verdict.reason : verdict.kind
    }
    expect(reasonOf("what\n")).toBe("not_identified")
    expect(reasonOf("a".repeat(MAX_HELLO_BYTES + 1))).toBe("not_identified")
    expect(reasonOf(`HELLO lock-18 ${"0".repeat(64)}\n`)).toBe("refused")
    expect(reasonOf(`${helloLine("lock-17", SECRETS[0] ?? "")}\n`)).toBe("denied")
  })

  describe("token", () => {
    const signer = issuer("EdDSA")
    const exp = NOW_MS / 1_000 + 60
    const good = `TOKEN ${token(signer, { sub: "lock-17", exp })}`
    const byToken = (framing: Framing = "line") => {
      const options = { issuer: null, audience: null }
      return new Authenticator({
        auth: "token",
        framing,
        helloSecrets: [],
        tokenVerifier: new TokenVerifier(options, parseTokenKeys(pemOf(signer))),
        nowMs: () => NOW_MS,
      })
    }
    const bytes = bytesOf

    /** Sends the text in one chunk. @returns the result, after the verification if there is one. */
    async function resultOf(text: string, subject = byToken()): Promise<AuthResult> {
      expect(subject.handshaken(connection, peer()).kind).toBe("waiting")
      const result = subject.received(connection, bytes(text))
      return result.kind === "verifying" ? await result.settled : result
    }

    test("waits for the first line, in any pieces, and has the end of the token", async () => {
      const subject = byToken()
      subject.handshaken(connection, peer())
      expect(subject.received(connection, bytes(good.slice(0, 9))).kind).toBe("waiting")
      const result = subject.received(connection, bytes(`${good.slice(9)}\r\n`))
      expect(result.kind === "verifying" && (await result.settled)).toMatchObject({
        kind: "accepted",
        deviceId: "lock-17",
        fingerprint: null,
        expiresAtMs: exp * 1_000,
        rest: new Uint8Array(0),
      })
    })

    test.each([
      ["u16", 2],
      ["u32", 4],
    ] as const)("takes the token as the first message of %s", async (framing, length) => {
      const subject = byToken(framing)
      subject.handshaken(connection, peer())
      const sent = concat([frame(length, good), bytes("rest")])
      const result = subject.received(connection, sent)
      const settled = result.kind === "verifying" ? await result.settled : result
      expect(settled.kind === "accepted" && textOf(settled.rest)).toBe("rest")
    })

    test("keeps the bytes that arrive during the verification, in order", async () => {
      const subject = byToken()
      subject.handshaken(connection, peer())
      const result = subject.received(connection, bytes(`${good}\none\ntw`))
      for (const chunk of ["o\nthr", "", "ee\n"]) {
        expect(subject.received(connection, bytes(chunk)).kind).toBe("waiting")
      }
      const settled = result.kind === "verifying" ? await result.settled : result
      expect(settled.kind === "accepted" && Buffer.from(settled.rest).toString()).toBe(
        "one\ntwo\nthree\n",
      )
    })

    test("keeps no more bytes than the bound, of all connections together", async () => {
      const subject = byToken()
      const other = { id: "other" } as Connection
      for (const each of [connection, other]) subject.handshaken(each, peer())
      const first = subject.received(connection, bytes(`${good}\n`))
      const second = subject.received(other, bytes(`${good}\n`))
      expect(subject.received(connection, new Uint8Array(MAX_EARLY_BYTES)).kind).toBe("waiting")
      expect(subject.received(other, bytes("x"))).toMatchObject({
        kind: "rejected",
        reason: "overloaded",
      })
      for (const result of [first, second]) {
        if (result.kind === "verifying") await result.settled
      }
      subject.handshaken(other, peer())
      const again = subject.received(other, bytes(`${good}\n`))
      expect(subject.received(other, new Uint8Array(MAX_EARLY_BYTES)).kind).toBe("waiting")
      subject.forget(other)
      const settled = again.kind === "verifying" ? await again.settled : again
      expect(settled).toMatchObject({ kind: "accepted", rest: new Uint8Array(0) })
    })

    test("distinguishes not_identified, refused and denied", async () => {
      const denying = byToken()
      denying.denylist = Denylist.parse("lock-17").denylist
      const reasonOf = async (text: string, subject = byToken()) => {
        const result = await resultOf(text, subject)
        return result.kind === "rejected" ? result.reason : result.kind
      }
      for (const line of [
        "what",
        "TOKEN",
        "TOKEN ",
        `TOKEN  ${good}`,
        `token ${good}`,
        `${good} `,
      ]) {
        expect([line, await reasonOf(`${line}\n`)]).toEqual([line, "not_identified"])
      }
      expect(await reasonOf("a".repeat(MAX_TOKEN_LINE_BYTES + 1))).toBe("not_identified")
      expect(await reasonOf("TOKEN a.b.c\n")).toBe("refused")
      expect(await reasonOf(`TOKEN ${"a".repeat(MAX_TOKEN_LINE_BYTES - 6)}\n`)).toBe("refused")
      expect(await reasonOf(`TOKEN ${token(signer, { sub: "lock-17", exp: 1 })}\n`)).toBe("refused")
      expect(await reasonOf(`${good}\n`, denying)).toBe("denied")
      expect(await reasonOf(`${good}\n`)).toBe("accepted")
    })

    test("applies the denylist that is in force after the verification", async () => {
      const subject = byToken()
      subject.handshaken(connection, peer())
      const result = subject.received(connection, bytes(`${good}\n`))
      subject.denylist = Denylist.parse("lock-17").denylist
      expect(result.kind === "verifying" && (await result.settled)).toMatchObject({
        reason: "denied",
      })
    })
  })
})
