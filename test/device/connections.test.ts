/**
 * The epoch of a new connection makes it the newest one of its device, wherever the device was
 * connected before.
 */

import { expect, test } from "bun:test"
import type { Connection } from "../../src/device/connection.ts"
import { Connections } from "../../src/device/connections.ts"

const NOW_MS = 1_750_000_000_000
const DEADLINES = { handshakeTimeoutMs: 1, identifyTimeoutMs: 1, idleTimeoutMs: 1 }

function holding(epoch: number | null): Connections {
  const connections = new Connections(DEADLINES)
  if (epoch === null) return connections
  const recipient = { deviceId: "lock:1", connectionId: "c1", epoch }
  const connection = { id: "c1", state: "open", endpoint: { recipient } } as unknown as Connection
  connections.add(connection)
  connections.enter(connection)
  return connections
}

test.each([
  ["no other is known", null, undefined, NOW_MS],
  ["the one here is older", NOW_MS - 5, undefined, NOW_MS],
  ["the one here came in the same millisecond", NOW_MS, undefined, NOW_MS + 1],
  ["the one elsewhere is older", null, NOW_MS - 5, NOW_MS],
  ["the clock elsewhere is ahead", null, NOW_MS + 5_000, NOW_MS + 5_001],
  ["both clocks are ahead", NOW_MS + 7_000, NOW_MS + 5_000, NOW_MS + 7_001],
] as const)("is the newest when %s", (_what, here, elsewhere, expected) => {
  expect(holding(here).nextEpoch("lock:1", NOW_MS, elsewhere)).toBe(expected)
})

test("of another device is the time", () => {
  expect(holding(NOW_MS + 7_000).nextEpoch("lock:2", NOW_MS, undefined)).toBe(NOW_MS)
})
