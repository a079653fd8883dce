/**
 * The held commands of one shard: their order, and against a list that is searched through, over
 * any order of calls.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import type { HeldCommand } from "../../../src/commands/hold/held-command.ts"
import { HeldIndex, type HeldState } from "../../../src/commands/hold/held-index.ts"
import { CHEAP_RUNS, check } from "../../support/property.ts"
import { heldCommand } from "./held-commands.ts"

const MAX_PER_DEVICE = 3
const ROOM = { commands: 100, bytes: 1_000 }
const NOW_MS = 1_750_000_000_000

function held(...commands: readonly HeldCommand[]): HeldIndex {
  const index = new HeldIndex(MAX_PER_DEVICE)
  for (const command of commands) {
    expect(index.offer(command, false, ROOM).kind).toBe("added")
    index.stored(command.id)
  }
  return index
}

const ids = (commands: readonly HeldCommand[]) => commands.map(({ id }) => id)

describe("the order of a device", () => {
  test("is that in which the commands were held, and the next follows the outcome of the last", () => {
    const index = held(heldCommand("a"), heldCommand("b"))
    expect(index.take("lock", NOW_MS)?.id).toBe("a")
    expect(index.take("lock", NOW_MS)).toBeNull()
    index.end("a")
    expect(index.take("lock", NOW_MS)?.id).toBe("b")
  })

  test("a command that was not written is the next again", () => {
    const index = held(heldCommand("a"), heldCommand("b"))
    index.take("lock", NOW_MS)
    index.release("a")
    expect(index.take("lock", NOW_MS)?.id).toBe("a")
  })

  test("a command that is not stored yet is not overtaken", () => {
    const index = new HeldIndex(MAX_PER_DEVICE)
    index.offer(heldCommand("a"), false, ROOM)
    index.offer(heldCommand("b"), false, ROOM)
    index.stored("b")
    expect(index.take("lock", NOW_MS)).toBeNull()
    index.stored("a")
    expect(index.take("lock", NOW_MS)?.id).toBe("a")
  })

  test("comes from the times in the log, not from the order of reading", () => {
    const index = new HeldIndex(MAX_PER_DEVICE)
    index.load(heldCommand("b", { heldAtMs: 2, number: 0 }))
    index.load(heldCommand("c", { heldAtMs: 2, number: 1 }))
    index.load(heldCommand("a", { heldAtMs: 1, number: 9 }))
    expect(index.of("lock").map(({ command }) => command.id)).toEqual(["a", "b", "c"])
  })
})

describe("supersede_key", () => {
  test("ends the older one as soon as the newer one is stored", () => {
    const index = held(heldCommand("a", { supersedeKey: "set" }), heldCommand("b"))
    index.offer(heldCommand("c", { supersedeKey: "set" }), false, ROOM)
    expect(ids(index.supersede("lock"))).toEqual([])
    index.stored("c")
    expect(ids(index.supersede("lock"))).toEqual(["a"])
    expect(index.take("lock", NOW_MS)?.id).toBe("b")
  })

  test("leaves the one that may be at its device already", () => {
    const index = held(heldCommand("a", { supersedeKey: "set" }))
    index.take("lock", NOW_MS)
    index.offer(heldCommand("b", { supersedeKey: "set" }), false, ROOM)
    index.stored("b")
    expect(ids(index.supersede("lock"))).toEqual([])
    index.release("a")
    expect(ids(index.supersede("lock"))).toEqual(["a"])
  })

  test("makes room for the newer one", () => {
    const index = held(...["a", "b", "c"].map((id) => heldCommand(id, { supersedeKey: id })))
    expect(index.offer(heldCommand("d"), false, ROOM).kind).toBe("full")
    const full = { commands: 0, bytes: 1_000 }
    expect(index.offer(heldCommand("e", { supersedeKey: "a" }), false, full).kind).toBe("added")
  })
})

describe("a command that came before", () => {
  test("is known by the gateway's id", () => {
    const index = held(heldCommand("a"))
    expect(index.offer(heldCommand("a"), false, ROOM).kind).toBe("known")
  })

  test("is a duplicate by its message id, unless its source was redelivered", () => {
    const index = held(heldCommand("a", { messageId: "m" }))
    const again = heldCommand("b", { messageId: "m" })
    expect(index.offer(again, false, ROOM).kind).toBe("duplicate")
    expect(index.offer(again, true, ROOM).kind).toBe("known")
    const other = heldCommand("c", { messageId: "m", body: Buffer.from("other") })
    expect(index.offer(other, true, ROOM).kind).toBe("duplicate")
    const elsewhere = heldCommand("d", { messageId: "m", deviceId: "door" })
    expect(index.offer(elsewhere, false, ROOM).kind).toBe("added")
  })
})

describe("bounds", () => {
  test.each([
    ["commands of a device", ROOM, "3 commands are held for this device (MAX_HELD_PER_DEVICE)"],
    ["commands of the fleet", { commands: 0, bytes: 1_000 }, "the fleet holds no more (MAX_HELD)"],
    ["bytes", { commands: 1, bytes: 3 }, "its keeper holds no more (MAX_COMMAND_BYTES)"],
  ])("%s", (what, room, detail) => {
    const commands = what === "commands of a device" ? ["a", "b", "c"] : ["a"]
    const index = held(...commands.map((id) => heldCommand(id)))
    expect(index.offer(heldCommand("d"), false, room)).toEqual({ kind: "full", detail })
  })

  test("do not apply to what the log has", () => {
    const index = new HeldIndex(MAX_PER_DEVICE)
    for (const id of ["a", "b", "c", "d"]) index.load(heldCommand(id))
    expect(index.count).toBe(4)
  })
})

describe("cancel", () => {
  test("takes one by its message id, or by the gateway's id when it has none", () => {
    const index = held(heldCommand("a", { messageId: "m" }), heldCommand("b"))
    expect(ids(index.cancel("lock", "a"))).toEqual([])
    expect(ids(index.cancel("lock", "m"))).toEqual(["a"])
    expect(ids(index.cancel("lock", "b"))).toEqual(["b"])
  })

  test("takes all but the one that may be at its device already", () => {
    const index = held(heldCommand("a"), heldCommand("b"))
    index.take("lock", NOW_MS)
    expect(ids(index.cancel("lock", null))).toEqual(["b"])
  })
})

/** What the index promises, from a list that is searched through. */
class Model {
  entries: { command: HeldCommand; state: HeldState }[] = []

  of(deviceId: string) {
    const order = (a: HeldCommand) => a.heldAtMs * 1_000 + a.number
    return this.entries
      .filter(({ command }) => command.deviceId === deviceId)
      .sort((a, b) => order(a.command) - order(b.command))
  }

  end(which: (entry: { command: HeldCommand; state: HeldState }) => boolean): string[] {
    const ended = this.entries.filter((entry) => entry.state === "held" && which(entry))
    for (const entry of ended) entry.state = "ending"
    return ended.map(({ command }) => command.id).sort()
  }
}

const DEVICES = ["lock", "door"]
const step = fc.oneof(
  { weight: 4, arbitrary: fc.record({ kind: fc.constant("offer" as const), key: fc.nat(2) }) },
  ...(["stored", "release", "end", "remove"] as const).map((kind) =>
    fc.record({ kind: fc.constant(kind), which: fc.nat(1_000) }),
  ),
  ...(["take", "supersede", "cancel"] as const).map((kind) =>
    fc.record({ kind: fc.constant(kind), device: fc.nat(1) }),
  ),
  fc.record({ kind: fc.constant("expire" as const), ms: fc.nat(30) }),
)

test("does what a list that is searched through does, over any order of calls", () => {
  check(
    fc.property(fc.array(step, { maxLength: 80, size: "max" }), (steps) => {
      const index = new HeldIndex(MAX_PER_DEVICE)
      const model = new Model()
      let nowMs = 0
      for (const [number, step] of steps.entries()) {
        const chosen =
          "which" in step
            ? model.entries[step.which % Math.max(1, model.entries.length)]
            : undefined
        const deviceId = DEVICES["device" in step ? step.device : number % 2] ?? ""
        switch (step.kind) {
          case "offer": {
            const supersedeKey = step.key === 0 ? null : `key ${step.key}`
            const expiresAtMs = nowMs + 10 * (1 + (number % 3))
            const about = { deviceId, supersedeKey, heldAtMs: nowMs, number, expiresAtMs }
            const command = heldCommand(`c${number}`, about)
            const others = model.of(deviceId).filter(({ state }) => state !== "ending")
            const replaced = others.filter(
              ({ state, command }) =>
                state === "held" && supersedeKey !== null && command.supersedeKey === supersedeKey,
            )
            const isFull = others.length - replaced.length >= MAX_PER_DEVICE
            expect(index.offer(command, false, ROOM).kind).toBe(isFull ? "full" : "added")
            if (!isFull) model.entries.push({ command, state: "storing" })
            break
          }
          case "stored":
            if (chosen === undefined) break
            index.stored(chosen.command.id)
            if (chosen.state === "storing") chosen.state = "held"
            break
          case "release":
            if (chosen === undefined) break
            index.release(chosen.command.id)
            if (chosen.state === "forwarded") chosen.state = "held"
            break
          case "end":
            if (chosen === undefined) break
            expect(index.end(chosen.command.id)).toBe(chosen.state !== "ending")
            chosen.state = "ending"
            break
          case "remove":
            if (chosen === undefined) break
            index.remove(chosen.command.id)
            model.entries = model.entries.filter((entry) => entry !== chosen)
            break
          case "take": {
            const waiting = model.of(deviceId).filter(({ state }) => state !== "ending")
            const [first] = waiting
            const isReady =
              first?.state === "held" &&
              first.command.expiresAtMs > nowMs &&
              !waiting.some(({ state }) => state === "forwarded")
            expect(index.take(deviceId, nowMs)?.id).toBe(isReady ? first?.command.id : undefined)
            if (isReady && first !== undefined) first.state = "forwarded"
            break
          }
          case "supersede": {
            const live = model
              .of(deviceId)
              .filter(({ state }) => state === "held" || state === "forwarded")
            const older = model.end(
              ({ command }) =>
                command.deviceId === deviceId &&
                command.supersedeKey !== null &&
                live
                  .slice(live.findIndex((entry) => entry.command === command) + 1)
                  .some((entry) => entry.command.supersedeKey === command.supersedeKey),
            )
            expect(ids(index.supersede(deviceId)).sort()).toEqual(older)
            break
          }
          case "cancel":
            expect(ids(index.cancel(deviceId, null)).sort()).toEqual(
              model.end(({ command }) => command.deviceId === deviceId),
            )
            break
          case "expire":
            nowMs += step.ms
            expect(ids(index.expire(nowMs)).sort()).toEqual(
              model.end(({ command }) => command.expiresAtMs <= nowMs),
            )
            break
        }
        const live = model.entries.filter(({ state }) => state !== "ending")
        expect(index.count).toBe(live.length)
        expect(index.bytes).toBe(model.entries.length * 4)
        for (const device of DEVICES) {
          expect(index.of(device).map(({ command, state }) => [command.id, state])).toEqual(
            model.of(device).map(({ command, state }) => [command.id, state]),
          )
        }
      }
    }),
    CHEAP_RUNS,
  )
})
