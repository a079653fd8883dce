/** Texts read from frames: always what stands there, whatever was read before at the same slot. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { StringCache } from "../../src/amqp/string-cache.ts"
import { check } from "../support/property.ts"

/** As it stands in a frame: not at its beginning, and not alone. */
function read(texts: StringCache, text: string): string {
  const frame = Buffer.concat([Buffer.from("before"), Buffer.from(text), Buffer.from("after")])
  return texts.read(frame.subarray(3), 3, Buffer.byteLength(text))
}

describe("a text", () => {
  test.each(["", "connection_id", "\0", "ä", "日本", "a".repeat(64), "ä".repeat(300)])(
    "%j comes out as it went in, the second time too",
    (text) => {
      const texts = new StringCache()
      expect([read(texts, text), read(texts, text)]).toEqual([text, text])
    },
  )

  test("that is not UTF-8 has an escape for each byte that is none, one with U+FFFD has that", () => {
    const frame = Uint8Array.of(0xff, 0x61)
    const texts = new StringCache()
    expect([texts.read(frame, 0, 2), texts.read(frame, 0, 2)]).toEqual(["\udcffa", "\udcffa"])
    expect(texts.read(Uint8Array.of(0xef, 0xbf, 0xbd), 0, 3)).toBe("\ufffd")
  })

  test("is not taken for the bytes that its codes would be", () => {
    const texts = new StringCache()
    for (const frame of [Buffer.from("\u00e4"), Uint8Array.of(0xe4)]) {
      texts.beginMessage()
      const text = texts.read(frame, 0, frame.length)
      expect(text).toBe(frame.length === 2 ? "\u00e4" : "\udce4")
    }
  })

  test("is not taken for another of its length", () => {
    const texts = new StringCache()
    for (let n = 0; n < 20_000; n += 1) {
      const text = String(n).padStart(5, "0")
      expect(read(texts, text)).toBe(text)
    }
  })

  test("is right in any order of texts", () => {
    const texts = new StringCache()
    check(
      fc.property(fc.array(fc.string({ unit: "binary", maxLength: 70 })), (several) => {
        for (const text of [...several, ...several]) expect(read(texts, text)).toBe(text)
        // At the same positions as before, and each at the position of another one.
        for (const message of [several, several, several.toReversed()]) {
          texts.beginMessage()
          for (const text of message) expect(read(texts, text)).toBe(text)
        }
      }),
    )
  })
})
