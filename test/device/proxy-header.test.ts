/** The header of the PROXY protocol: both versions, whole, in pieces, damaged, and any bytes. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { normalAddress } from "../../src/device/address.ts"
import { MAX_HEADER_BYTES, parseProxyHeader } from "../../src/device/proxy-header.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const SIGNATURE = Buffer.from("\r\n\r\n\0\r\nQUIT\n", "latin1")
const REST = Buffer.from([0x16, 3, 1, 0, 0xff])

function v2(versionAndCommand: number, family: number, body: Uint8Array): Buffer {
  const head = Buffer.from([versionAndCommand, family, body.length >> 8, body.length & 255])
  return Buffer.concat([SIGNATURE, head, body])
}

function tlv(type: number, bytes: number): Buffer {
  return Buffer.concat([Buffer.from([type, bytes >> 8, bytes & 255]), Buffer.alloc(bytes, 0xaa)])
}

const TCP4 = Buffer.from([192, 0, 2, 1, 198, 51, 100, 7, 0xa0, 0x28, 0x01, 0xbb])
const TCP6 = Buffer.concat([
  Buffer.from("20010db8000000000000000000000001", "hex"),
  Buffer.from("20010db8000000000000000000000002", "hex"),
  Buffer.from([0xa0, 0x28, 0x01, 0xbb]),
])

const VALID: readonly [string, Buffer, string | null, boolean][] = [
  ["TCP4", Buffer.from("PROXY TCP4 192.0.2.1 198.51.100.7 41000 443\r\n"), "192.0.2.1", false],
  ["TCP6", Buffer.from("PROXY TCP6 2001:DB8::1 2001:db8::2 1 65535\r\n"), "2001:db8::1", false],
  ["TCP6 with IPv4", Buffer.from("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"), "192.0.2.1", false],
  ["UNKNOWN", Buffer.from("PROXY UNKNOWN\r\n"), null, false],
  ["UNKNOWN with text", Buffer.from("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"), null, false],
  ["binary, IPv4", v2(0x21, 0x11, TCP4), "192.0.2.1", false],
  ["binary, IPv6", v2(0x21, 0x21, TCP6), "2001:db8::1", false],
  [
    "binary, with TLVs",
    v2(0x21, 0x11, Buffer.concat([TCP4, tlv(0xea, 30), tlv(3, 4)])),
    "192.0.2.1",
    false,
  ],
  [
    "binary, as large as allowed",
    v2(0x21, 0x11, Buffer.concat([TCP4, tlv(4, 4_081)])),
    "192.0.2.1",
    false,
  ],
  ["binary, unspecified", v2(0x21, 0x00, Buffer.alloc(0)), null, false],
  ["binary, Unix socket", v2(0x21, 0x31, Buffer.alloc(216)), null, false],
  ["LOCAL", v2(0x20, 0x00, Buffer.alloc(0)), null, true],
  ["LOCAL with an address", v2(0x20, 0x11, TCP4), null, true],
  ["LOCAL of an unknown family", v2(0x20, 0x77, Buffer.alloc(5)), null, true],
]

describe.each(VALID)("%s", (_name, header, address, isLocal) => {
  test("is read, and no byte after it", () => {
    const expected = { kind: "header", bytes: header.length, isLocal, address } as const
    expect(parseProxyHeader(header)).toEqual(expected)
    expect(parseProxyHeader(Buffer.concat([header, REST]))).toEqual(expected)
  })

  test("is incomplete at each shorter length", () => {
    for (let bytes = 0; bytes < header.length; bytes += 1) {
      expect(parseProxyHeader(header.subarray(0, bytes))).toEqual({ kind: "incomplete" })
    }
  })
})

const INVALID: readonly [string, Buffer, string][] = [
  ["TLS at once", REST, "does not start with"],
  ["HTTP", Buffer.from("GET / HTTP/1.1\r\n"), "does not start with"],
  ["a lower-case word", Buffer.from("proxy TCP4"), "does not start with"],
  [
    "a version 1 header that never ends",
    Buffer.from(`PROXY TCP4 ${"1".repeat(200)}`),
    "without CRLF",
  ],
  ["LF only, until the bound", Buffer.from(`PROXY UNKNOWN\n${"x".repeat(100)}`), "without CRLF"],
  ["another protocol", Buffer.from("PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n"), "TCP4, TCP6"],
  ["no protocol", Buffer.from("PROXY \r\n"), "TCP4, TCP6"],
  ["IPv6 as TCP4", Buffer.from("PROXY TCP4 ::1 ::1 1 2\r\n"), "not TCP4"],
  ["IPv4 as TCP6", Buffer.from("PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n"), "not TCP6"],
  ["a zone", Buffer.from("PROXY TCP6 fe80::1%a ::1 1 2\r\n"), "not TCP6"],
  ["half an address", Buffer.from("PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n"), "not TCP4"],
  ["two spaces", Buffer.from("PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n"), "not TCP4"],
  ["no ports", Buffer.from("PROXY TCP4 1.2.3.4 1.2.3.4\r\n"), "ports"],
  ["one port", Buffer.from("PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n"), "ports"],
  ["a port too large", Buffer.from("PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n"), "ports"],
  ["a port with a zero in front", Buffer.from("PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n"), "ports"],
  ["a word too many", Buffer.from("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n"), "ports"],
  ["version 1 in binary", v2(0x11, 0x11, TCP4), "version 1"],
  ["version 3 in binary", v2(0x31, 0x11, TCP4), "version 3"],
  ["an unknown command", v2(0x22, 0x11, TCP4), "command 2"],
  ["UDP", v2(0x21, 0x12, TCP4), "family and transport 18"],
  ["an unknown family", v2(0x21, 0x41, TCP4), "family and transport 65"],
  ["a body without ports", v2(0x21, 0x11, TCP4.subarray(0, 8)), "too short"],
  ["IPv6 with a body for IPv4", v2(0x21, 0x21, TCP4), "too short"],
  ["a body that is too long", v2(0x21, 0x11, Buffer.alloc(4_097)), "4097 bytes"],
]

test.each(INVALID)("%s is invalid", (_name, header, detail) => {
  const parsed = parseProxyHeader(header)
  expect(parsed).toEqual({ kind: "invalid", detail: expect.stringContaining(detail) })
})

test("a bad length is seen before the body", () => {
  const header = v2(0x21, 0x11, Buffer.alloc(65_535)).subarray(0, 16)
  expect(parseProxyHeader(header).kind).toBe("invalid")
})

const anyBytes = fc.uint8Array({ maxLength: 150 })
const nearlyValid = fc
  .tuple(fc.constantFrom(...VALID.map(([, header]) => header)), fc.nat(250), fc.nat(255))
  .map(([header, at, byte]) => {
    const bytes = Buffer.from(header)
    bytes[at % bytes.length] = byte
    return bytes
  })

test("any bytes have an end: what is incomplete is short, and a header lies within its bytes", () => {
  check(
    fc.property(fc.oneof(anyBytes, nearlyValid), (bytes) => {
      const parsed = parseProxyHeader(bytes)
      if (parsed.kind === "incomplete") expect(bytes.length).toBeLessThan(MAX_HEADER_BYTES)
      if (parsed.kind !== "header") return
      expect(parsed.bytes).toBeGreaterThan(0)
      expect(parsed.bytes).toBeLessThanOrEqual(bytes.length)
      if (parsed.address !== null) expect(normalAddress(parsed.address)).toBe(parsed.address)
    }),
    CHEAP_RUNS,
  )
})

test("more bytes never change what was found", () => {
  check(
    fc.property(fc.oneof(anyBytes, nearlyValid), fc.nat(150), (bytes, length) => {
      const early = parseProxyHeader(bytes.subarray(0, length))
      if (early.kind === "header") expect(parseProxyHeader(bytes)).toEqual(early)
      if (early.kind === "invalid") expect(parseProxyHeader(bytes).kind).toBe("invalid")
    }),
    CHEAP_RUNS,
  )
})
