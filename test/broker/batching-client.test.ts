/** What is changed of the AMQP client's encoding writes and reads the same as the client itself does. */

import { describe, expect, test } from "bun:test"
import { AMQPView } from "@cloudamqp/amqp-client/amqp-view"
import "../../src/broker/batching-client.ts"

const STRINGS = [
  "",
  "a",
  "x".repeat(255),
  "x".repeat(256),
  "é",
  `${"x".repeat(254)}é`,
  "🔒 lock",
  "\u0000",
]

describe.each(STRINGS.map((text) => [text]))("the string %p", (text) => {
  const bytes = Buffer.from(text)

  test("as a long string is its UTF-8 after its length", () => {
    const view = new AMQPView(new ArrayBuffer(1_024))
    expect(view.setLongString(3, text)).toBe(bytes.length + 4)
    expect(view.getUint32(3)).toBe(bytes.length)
    expect(Buffer.from(view.buffer, 7, bytes.length).equals(bytes)).toBe(true)
    expect(view.getLongString(3)).toEqual([text, bytes.length + 4])
  })

  test("as a short string is the same, or refused when it has more than 255 bytes", () => {
    const view = new AMQPView(new ArrayBuffer(1_024))
    if (bytes.length > 255) {
      expect(() => view.setShortString(3, text)).toThrow()
      return
    }
    expect(view.setShortString(3, text)).toBe(bytes.length + 1)
    expect(view.getShortString(3)).toEqual([text, bytes.length + 1])
  })

  test("does not fit a buffer that is too small", () => {
    const view = new AMQPView(new ArrayBuffer(bytes.length + 3))
    expect(() => view.setLongString(0, text)).toThrow()
  })
})

test("an unsigned 64-bit header field is read, and bytes are copied", () => {
  const view = new AMQPView(new ArrayBuffer(64))
  view.setUint8(0, "L".charCodeAt(0))
  view.setBigUint64(1, 42n)
  expect(view.getField(0)).toEqual([42, 9])
  view.setField(0, new Uint8Array([1, 2, 3]))
  const [copy] = view.getField(0)
  view.setUint8(5, 9)
  expect(copy).toEqual(new Uint8Array([1, 2, 3]))
})
