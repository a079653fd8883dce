/**
 * What a command carries from worker to worker, so that it means the same on the way and its copies
 * can be told; read back by the one that takes it.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import type { MessageProperties } from "../../src/broker/broker.ts"
import { type CommandMessage, readCommand } from "../../src/commands/command-message.ts"
import { CommandIds, forwarded } from "../../src/commands/forwarding.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const NOW_MS = 1_750_000_000_123
const SELF = { worker: "gw.0", incarnation: "mb2k3f9zq7x2" }
const MAX_EXPIRATION_MS = 2 ** 32 - 1
const FRESH = {
  expiresAtMs: Number.POSITIVE_INFINITY,
  hops: 0,
  redelivered: false,
  commandId: "gw.0.mb2k3f9zq7x2.0",
}

function carried(
  properties: MessageProperties,
  message: Partial<typeof FRESH> = {},
): MessageProperties {
  return forwarded(properties, { ...FRESH, ...message }, NOW_MS, "key")
}

/** What the next worker reads of it, on its arrival that much later. */
function readAfter(properties: MessageProperties, laterMs: number): CommandMessage {
  const { headers, ...others } = properties
  const body = Buffer.from("on")
  const read = readCommand(
    body,
    { ...others, headers: { device_id: "lock:1", ...headers } },
    NOW_MS + laterMs,
    { framing: "line", maxLineBytes: 100, maxReplyMs: 60_000, maxHoldMs: 1_000 },
  )
  if ("outcome" in read) throw new Error(read.detail)
  return read
}

describe("command ids", () => {
  test("begin with the process that minted them, and have a part that nobody can guess", () => {
    expect(new CommandIds(SELF, "r4nd0m").mint()).toBe("gw.0.mb2k3f9zq7x2.r4nd0m.0")
  })

  test("are all different", () => {
    const ids = new CommandIds(SELF, "r4nd0m")
    const minted = Array.from({ length: 1_000 }, () => ids.mint())
    expect(new Set(minted).size).toBe(1_000)
  })

  test("differ from those of the process before", () => {
    const before = new CommandIds({ ...SELF, incarnation: "mb2k3f9zaaaa" }, "r4nd0m")
    expect(new CommandIds(SELF, "r4nd0m").mint()).not.toBe(before.mint())
  })
})

describe("a forwarded command", () => {
  test("keeps what it came with", () => {
    const properties: MessageProperties = {
      contentType: "text/plain",
      messageId: "m",
      correlationId: "c",
      replyTo: "replies",
      priority: 2,
      timestamp: new Date(1_750_000_000_000),
      headers: { device_id: "lock:1", own: "x" },
    }
    const { headers, ...others } = carried(properties)
    const { headers: _, ...sent } = properties
    expect(others).toEqual(sent)
    expect(headers).toMatchObject({ device_id: "lock:1", own: "x" })
  })

  test("carries its id and one hop more", () => {
    const { headers } = carried({ headers: { "owsla-hops": 1 } }, { hops: 1, commandId: "id" })
    expect(headers).toEqual({
      "owsla-hops": 2,
      "owsla-command": "id",
      "owsla-member": "key",
    })
  })

  test("says that it was handed out before, if it was", () => {
    expect(carried({}).headers).not.toHaveProperty("owsla-redelivered")
    expect(carried({}, { redelivered: true }).headers).toMatchObject({ "owsla-redelivered": true })
  })

  test("does not take along what would route it elsewhere, or how it died before", () => {
    const { userId, headers } = carried({
      userId: "back-end",
      headers: { CC: ["to_device"], "x-death": [{}], "x-delivery-count": 3 },
    })
    expect(userId).toBeUndefined()
    expect(Object.keys(headers ?? {})).not.toContainAnyValues(["CC", "x-death", "x-delivery-count"])
  })

  test("leaves what it came with as it was", () => {
    const properties: MessageProperties = { expiration: "5", headers: { device_id: "lock:1" } }
    const before = structuredClone(properties)
    carried(properties, { expiresAtMs: NOW_MS + 5 })
    expect(properties).toEqual(before)
  })
})

describe("the expiration", () => {
  test("of a command without one is none", () => {
    const { expiration, headers } = carried({})
    expect(expiration).toBeUndefined()
    expect(headers).not.toHaveProperty("owsla-expires-at")
  })

  test("is what is left of it, and goes along as a time as well", () => {
    const { expiration, headers } = carried(
      { expiration: "10000" },
      { expiresAtMs: NOW_MS + 8_000 },
    )
    expect(expiration).toBe("8000")
    expect(headers).toMatchObject({ "owsla-expires-at": NOW_MS + 8_000 })
  })

  test("is nothing when it is over", () => {
    expect(carried({ expiration: "1" }, { expiresAtMs: NOW_MS - 1 }).expiration).toBe("0")
  })

  test("is no more than RabbitMQ takes", () => {
    const year = carried({}, { expiresAtMs: NOW_MS + 366 * 86_400_000 })
    expect(year.expiration).toBe(String(MAX_EXPIRATION_MS))
    expect(readAfter(year, 0).expiresAtMs).toBe(NOW_MS + 366 * 86_400_000)
  })

  test("is whole milliseconds", () => {
    const { expiration } = forwarded({}, { ...FRESH, expiresAtMs: NOW_MS + 5 }, NOW_MS + 0.4, "key")
    expect(expiration).toBe("4")
  })
})

test("the next worker reads what this one knew, however late it comes", () => {
  const message = fc.record({
    expiresAtMs: fc.oneof(
      fc.constant(Number.POSITIVE_INFINITY),
      fc.integer({ min: 0, max: 2 * NOW_MS }),
    ),
    hops: fc.nat(10),
    redelivered: fc.boolean(),
    commandId: fc.string({ minLength: 1 }),
  })
  const came = fc.record(
    { expiration: fc.nat().map(String), timestamp: fc.date({ noInvalidDate: true }) },
    { requiredKeys: [] },
  )
  check(
    fc.property(came, message, fc.nat(100_000), (properties, known, laterMs) => {
      const { expiresAtMs, hops, redelivered, commandId } = readAfter(
        carried(properties, known),
        laterMs,
      )
      expect({ expiresAtMs, hops, redelivered, commandId }).toEqual({
        ...known,
        hops: known.hops + 1,
      })
    }),
    CHEAP_RUNS,
  )
})
