/**
 * What makes two messages the same command: the content from their sender, without additions on the
 * way.
 */

import { describe, expect, test } from "bun:test"
import type { MessageProperties } from "../../src/broker/broker.ts"
import { fingerprint } from "../../src/commands/fingerprint.ts"
import { forwarded } from "../../src/commands/forwarding.ts"

const BODY = Buffer.from("switch on")
const SENT: MessageProperties = {
  contentType: "text/plain",
  headers: { device_id: "lock:1", to_device_seq: 7n, nested: { list: [1, true, null] } },
  messageId: "m",
  correlationId: "c",
  replyTo: "replies",
  expiration: "1000",
  timestamp: new Date(1_750_000_000_000),
  type: "t",
  appId: "back-end",
  priority: 1,
}
const { headers: HEADERS } = SENT

describe("stays the same", () => {
  const SAME: [string, MessageProperties][] = [
    [
      "as a dead letter",
      {
        ...SENT,
        headers: {
          ...HEADERS,
          "x-death": [{ reason: "expired" }],
          "x-first-death-queue": "q",
          "x-last-death-queue": "q",
        },
      },
    ],
    [
      "delivered again by a quorum queue",
      { ...SENT, headers: { ...HEADERS, "x-delivery-count": 1, "x-acquired-count": 2 } },
    ],
    ["without its expiration", { ...SENT, expiration: "1" }],
    ["with a small integer as a number", { ...SENT, headers: { ...HEADERS, to_device_seq: 7 } }],
    [
      "with its headers in another order",
      { ...SENT, headers: Object.fromEntries(Object.entries(HEADERS ?? {}).reverse()) },
    ],
    ["made persistent", { ...SENT, deliveryMode: 2 }],
    [
      "forwarded by another worker",
      forwarded(SENT, { expiresAtMs: 1, hops: 0, redelivered: true, commandId: "id" }, 0, "key"),
    ],
  ]
  test.each(SAME)("%s", (_, properties) => {
    expect(fingerprint(BODY, properties)).toBe(fingerprint(BODY, SENT))
  })
})

describe("is another one", () => {
  const OTHER: [string, MessageProperties][] = [
    ["with another header", { ...SENT, headers: { ...HEADERS, more: 1 } }],
    ["with another value", { ...SENT, headers: { ...HEADERS, to_device_seq: 8n } }],
    [
      "with another value inside one",
      { ...SENT, headers: { ...HEADERS, nested: { list: [1, false, null] } } },
    ],
    ["for another device", { ...SENT, headers: { ...HEADERS, device_id: "lock:2" } }],
    ...(["messageId", "correlationId", "replyTo", "type", "appId", "contentType"] as const).map(
      (name): [string, MessageProperties] => [`with another ${name}`, { ...SENT, [name]: "other" }],
    ),
    ["with another time", { ...SENT, timestamp: new Date(0) }],
  ]
  test.each(OTHER)("%s", (_, properties) => {
    expect(fingerprint(BODY, properties)).not.toBe(fingerprint(BODY, SENT))
  })

  test("with another body", () => {
    expect(fingerprint(Buffer.from("switch off"), SENT)).not.toBe(fingerprint(BODY, SENT))
  })
})
