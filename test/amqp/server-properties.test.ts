/** Product and version in the first frame of a connection, and what follows for the queues. */

import { describe, expect, test } from "bun:test"
import {
  argumentsFor,
  type BrokerServer,
  hasDeliveryLimit,
  lacksTransientQueues,
  serverOf,
} from "../../src/amqp/server-properties.ts"

const text = (name: string, value: string) => {
  const size = Buffer.alloc(4)
  size.writeUInt32BE(value.length)
  return Buffer.concat([
    Buffer.from([name.length]),
    Buffer.from(`${name}S`),
    size,
    Buffer.from(value),
  ])
}

function frame(method: string, ...entries: Buffer[]): Buffer {
  const table = Buffer.concat(entries)
  const size = Buffer.alloc(4)
  size.writeUInt32BE(table.length)
  const payload = Buffer.concat([Buffer.from(method, "hex"), size, table, Buffer.alloc(8)])
  const head = Buffer.alloc(7)
  head.writeUInt8(1)
  head.writeUInt32BE(payload.length, 3)
  return Buffer.concat([head, payload, Buffer.from([0xce])])
}

const START = "000a000a0009"

describe("the broker", () => {
  test("is what its first frame says", () => {
    const capabilities = Buffer.concat([Buffer.from("\x0ccapabilitiesF\0\0\0\x04\x01at\x01")])
    const start = frame(START, capabilities, text("product", "LavinMQ"), text("version", "2.1.0"))
    expect(serverOf(start)).toEqual({ product: "LavinMQ", version: "2.1.0" })
    expect(serverOf(frame(START))).toEqual({ product: "unknown", version: "unknown" })
  })

  test("is not told by any other frame", () => {
    expect(serverOf(frame("000a001e0000"))).toBeNull()
    expect(serverOf(Buffer.from([8, 0, 0, 0, 0, 0, 0, 0xce]))).toBeNull()
  })

  test("that does not say it well ends the connection", () => {
    const cut = frame(START, Buffer.from([255]))
    expect(() => serverOf(cut)).toThrow("ends before")
  })
})

describe("a quorum queue", () => {
  const quorum = { "x-queue-type": "quorum", "x-expires": 5 }

  test.each<[string, string, boolean]>([
    ["RabbitMQ", "3.10.8", false],
    ["RabbitMQ", "3.13.7", false],
    ["RabbitMQ", "4.0.5", true],
    ["RabbitMQ", "4.1.0-rc.1", true],
    ["RabbitMQ", "10.0.0", true],
    ["LavinMQ", "4.0.0", false],
    ["unknown", "unknown", false],
  ])(
    "of %s %s is declared without a delivery limit where it would have one",
    (product, version, limited) => {
      const server: BrokerServer = { product, version }
      expect(hasDeliveryLimit(server)).toBe(limited)
      // The versions that deprecate transient queues which several connections may use.
      expect(lacksTransientQueues(server)).toBe(limited)
      expect(argumentsFor(quorum, server)).toEqual(
        limited ? { ...quorum, "x-delivery-limit": -1 } : quorum,
      )
    },
  )

  test("alone: a classic one has no such limit", () => {
    const classic = { "x-queue-type": "classic" }
    expect(argumentsFor(classic, { product: "RabbitMQ", version: "4.0.5" })).toEqual(classic)
  })
})
