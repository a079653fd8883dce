/** The ended connections of devices, and their bounds. */

import { expect, test } from "bun:test"
import {
  ConnectionHistory,
  type EndedConnection,
  MAX_ENDED,
  MAX_PER_DEVICE,
} from "../../src/device/connection-history.ts"

function ended(deviceId: string, n: number): EndedConnection {
  return {
    deviceId,
    connectionId: `gw.0.x.${n}`,
    address: "192.0.2.1",
    connectedAt: n,
    endedAt: n + 1,
    reason: "peer_closed",
  }
}

test("has the latest of a device, the one that ended last first", () => {
  const history = new ConnectionHistory()
  const all = Array.from({ length: MAX_PER_DEVICE + 5 }, (_, n) => ended("lock:1", n))
  for (const each of all) history.add(each)
  expect(history.of("lock:1")).toEqual(all.toReversed().slice(0, MAX_PER_DEVICE))
  expect(history.of("lock:2")).toEqual([])
})

test("keeps a bounded number in all, of the latest devices", () => {
  const history = new ConnectionHistory()
  for (let n = 0; n < MAX_ENDED + 10; n += 1) history.add(ended(`lock:${n}`, n))
  expect(history.count).toBe(MAX_ENDED)
  expect(history.of("lock:9")).toEqual([])
  expect(history.of("lock:10").length).toBe(1)
})

test("a device that comes and goes takes the place of its own connections only", () => {
  const history = new ConnectionHistory()
  history.add(ended("bell:1", 0))
  for (let n = 0; n < 2 * MAX_ENDED; n += 1) history.add(ended("lock:1", n))
  expect(history.of("bell:1").length).toBe(1)
  expect(history.count).toBe(1 + MAX_PER_DEVICE)
})
