/**
 * One shard's held commands while their devices wait for a turn, because enough commands are on the
 * way to their worker. The log and the outcomes are scripted; other orders of events are in
 * `test/fleet/held-orders.test.ts`.
 */

import { beforeEach, describe, expect, test } from "bun:test"
import { fleetQueue } from "../../../src/broker/topology.ts"
import { HeldForwards } from "../../../src/commands/hold/held-forwards.ts"
import type { HeldLog, HeldLogHooks } from "../../../src/commands/hold/held-log.ts"
import { HeldShard } from "../../../src/commands/hold/held-shard.ts"
import type { Forward } from "../../../src/commands/router.ts"
import { Counters } from "../../../src/counters.ts"
import { ConnectionIds, incarnation, type WorkerProcess } from "../../../src/device/ids.ts"
import { heldCommand } from "./held-commands.ts"

const NEAR = { worker: "near.0", incarnation: incarnation(1, 0.1) }
const FAR = { worker: "far.0", incarnation: incarnation(2, 0.2) }

describe("a device that waits for its turn", () => {
  const ids = { near: new ConnectionIds(NEAR), far: new ConnectionIds(FAR) }
  let nowMs: number
  let isRead: boolean
  let published: Forward[]
  /** Commands and their outcomes. */
  let stored: string[]
  let done: string[]
  let looked: string[]
  let hooks: HeldLogHooks
  let forwards: HeldForwards
  let shard: HeldShard

  beforeEach(async () => {
    nowMs = 1_750_000_000_000
    isRead = true
    published = []
    stored = []
    done = []
    looked = []
    const clock = { nowMs: () => nowMs, steadyMs: () => nowMs }
    forwards = new HeldForwards(
      {
        forward: (forward) => {
          if (forward.wanted()) published.push(forward)
          else queueMicrotask(() => forward.done("withdrawn"))
        },
        forwardedProperties: (properties, { commandId }) => ({
          headers: { ...properties.headers, command_id: commandId },
        }),
      },
      {
        ...{ ...clock, mayLive: () => true, maxOnTheWay: 1, waits: () => undefined },
        ...{ replyQueue: "answers", maxLineBytes: 1_024 },
      },
    )
    const log: Pick<HeldLog, "isRead" | "open" | "close" | "sweep" | "end"> = {
      get isRead() {
        return isRead
      },
      open: () => undefined,
      close: () => undefined,
      sweep: () => undefined,
      end: (_, ended) => ended(),
    }
    shard = new HeldShard({
      ...{ ...clock, forwards, counters: new Counters(), maxPerDevice: 50 },
      makeLog: (given) => {
        hooks = given
        return log as HeldLog
      },
      exists: () => Promise.resolve(true),
      locate: (deviceId) => looked.push(deviceId),
      store: ({ id }, { outcome }, _, ended) => {
        stored.push(`${id} ${outcome}`)
        ended("stored")
      },
      foreign: () => undefined,
      done: (connectionId) => done.push(connectionId),
      room: () => ({ commands: 100, bytes: 1_000_000 }),
    })
    shard.check()
    await Promise.resolve()
    await Promise.resolve()
    hooks.entry(heldCommand("first", { deviceId: "first" }))
    hooks.entry(heldCommand("x", { deviceId: "x", expiresAtMs: nowMs + 1_000 }))
    come("first", ids.near.mint())
    // They were looked for when their commands were read.
    looked = []
  })

  function come(deviceId: string, connectionId: string): void {
    shard.registered([deviceId, connectionId, nowMs, 1], true)
  }

  function pass(ms: number): void {
    nowMs += ms
    shard.sweep(nowMs)
    forwards.sweep(nowMs)
  }

  const commandsTo = (process: WorkerProcess) =>
    published
      .filter(({ queue }) => queue === fleetQueue(process))
      .map(({ properties }) => properties.headers?.["command_id"])

  test("gets its command when the one before is slow", () => {
    come("x", ids.near.mint())
    pass(100)
    expect(commandsTo(NEAR)).toEqual(["first"])
    pass(400)
    expect(commandsTo(NEAR)).toEqual(["first", "x"])
  })

  test("does not wait any more at another worker", () => {
    come("x", ids.near.mint())
    come("x", ids.far.mint())
    expect(commandsTo(FAR)).toEqual(["x"])
    pass(400)
    expect(commandsTo(NEAR)).toEqual(["first"])
  })

  test("loses a command that is cancelled, and then waits for nothing", () => {
    const connectionId = ids.near.mint()
    come("x", connectionId)
    expect(shard.cancel("x", null)).toBe(1)
    expect([stored, done]).toEqual([["x cancelled"], [connectionId]])
    pass(400)
    expect(commandsTo(NEAR)).toEqual(["first"])
  })

  test("loses a command whose time is over", () => {
    // The one before is slow all the time, and so are the next.
    for (let n = 0; n < 8; n += 1) {
      hooks.entry(heldCommand(`slow-${n}`, { deviceId: `slow-${n}` }))
      come(`slow-${n}`, ids.near.mint())
    }
    come("x", ids.near.mint())
    for (let n = 0; n < 4; n += 1) pass(250)
    expect(stored).toEqual(["x expired"])
    for (let n = 0; n < 8; n += 1) pass(250)
    expect(commandsTo(NEAR)).not.toContain("x")
  })

  test("gets it when the log has been read again", () => {
    come("x", ids.near.mint())
    isRead = false
    pass(400)
    expect(commandsTo(NEAR)).toEqual(["first"])
    isRead = true
    hooks.read()
    expect(commandsTo(NEAR)).toEqual(["first", "x"])
    expect([stored, looked]).toEqual([[], []])
  })

  test("one that may have been written goes to no other connection while the log is read", async () => {
    isRead = false
    pass(5_000)
    await Promise.resolve()
    await Promise.resolve()
    come("first", ids.far.mint())
    isRead = true
    hooks.read()
    expect(commandsTo(FAR)).toEqual([])
    pass(250)
    expect(commandsTo(NEAR)).toEqual(["first", "first"])
  })
})
