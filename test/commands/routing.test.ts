/** Where a command goes, over every kind of target, holder and number of hops. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { workerQueue } from "../../src/broker/topology.ts"
import { MAX_HOPS, type Route, route } from "../../src/commands/routing.ts"
import { ConnectionIds, incarnation, workerId } from "../../src/device/ids.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const HERE = workerId("gw1", 0)
const ELSEWHERE = workerId("gw2", 3)
const INCARNATION = incarnation(1_770_000_000_000, 0.5)
const ownId = new ConnectionIds({ worker: HERE, incarnation: INCARNATION }).mint()
const foreignId = new ConnectionIds({ worker: ELSEWHERE, incarnation: INCARNATION }).mint()

function routed(
  target: { connectionId?: string; deviceId?: string },
  hops = 0,
  held: readonly string[] = [],
): Route<string> {
  const { connectionId = null, deviceId = null } = target
  const find = (id: string) => (held.includes(id) ? `connection ${id}` : undefined)
  return route({ connectionId, deviceId }, hops, HERE, find)
}

test("to a connection or device that is here, however many hops it took", () => {
  for (const hops of [0, MAX_HOPS, 1_000]) {
    const here = { kind: "here", connection: `connection ${ownId}` } as const
    expect(routed({ connectionId: ownId }, hops, [ownId])).toEqual(here)
    expect(routed({ deviceId: ownId }, hops, [ownId])).toEqual(here)
  }
  expect(routed({ deviceId: "named" }, 0, ["named"])).toMatchObject({ kind: "here" })
})

test("to the queue of the worker that a connection id names", () => {
  const there = { kind: "queue", queue: workerQueue(ELSEWHERE) } as const
  expect(routed({ connectionId: foreignId })).toEqual(there)
  expect(routed({ deviceId: foreignId })).toEqual(there)
})

test("with both ids given it is for that very connection", () => {
  const both = { connectionId: foreignId, deviceId: "named" }
  expect(routed(both, 0, ["named"])).toEqual({ kind: "queue", queue: workerQueue(ELSEWHERE) })
  expect(routed({ connectionId: ownId, deviceId: "named" }, 0, ["named"])).toMatchObject({
    kind: "nowhere",
  })
})

test("a device that is not here is looked for, unless it took too many hops", () => {
  expect(routed({ deviceId: "named" })).toEqual({ kind: "device", deviceId: "named" })
  expect(routed({ deviceId: "named" }, MAX_HOPS).kind).toBe("nowhere")
})

describe("nowhere", () => {
  test.each([
    ["an own connection that is gone", { connectionId: ownId }],
    ["a connection id that no worker can have minted", { connectionId: "gw2.3" }],
    ["no id at all", {}],
  ])("%s", (_name, target) => {
    const nowhere = routed(target)
    expect(nowhere.kind).toBe("nowhere")
    expect("detail" in nowhere && nowhere.detail).not.toBe("")
  })

  test("after the last hop, and not before it", () => {
    expect(routed({ connectionId: foreignId }, MAX_HOPS - 1).kind).toBe("queue")
    expect(routed({ connectionId: foreignId }, MAX_HOPS).kind).toBe("nowhere")
  })
})

test("no target leads to this worker's own queue, or round more than three hops", () => {
  expect(MAX_HOPS).toBe(3)
  const id = fc.oneof(
    fc.constantFrom(ownId, foreignId),
    fc.string(),
    fc.stringMatching(/^gw[12]\.[0-9]\.[a-z0-9]{10}\.[a-z0-9]$/),
  )
  check(
    fc.property(fc.option(id), fc.option(id), fc.nat(5), (connectionId, deviceId, hops) => {
      const found = route({ connectionId, deviceId }, hops, HERE, () => undefined)
      expect(found.kind).not.toBe("here")
      if (found.kind === "queue") {
        expect(found.queue).not.toBe(workerQueue(HERE))
        expect(hops).toBeLessThan(MAX_HOPS)
      }
    }),
    CHEAP_RUNS,
  )
})
