/**
 * Remembered ids: the information about an id in each state, which ids are forgotten, and a bound
 * that counts commands and not deliveries.
 */

import { describe, expect, test } from "bun:test"
import type { Command } from "../../src/device/command.ts"
import {
  REMEMBERED_COMMANDS,
  REMEMBERED_OF_WORKER,
  RememberedIds,
  WrittenIds,
} from "../../src/device/remembered-ids.ts"
import { testCommand } from "../support/commands.ts"

function command(messageId: string): Command {
  return testCommand({ messageId })
}

/** Remembers as many others, named `other-0` and so on, and returns their commands. */
function fill(ids: RememberedIds, count: number): Command[] {
  return Array.from({ length: count }, (_, i) => {
    const other = command(`other-${i}`)
    ids.waiting(`other-${i}`, other)
    return other
  })
}

test("the contract's bound is 1,024 commands", () => {
  expect(REMEMBERED_COMMANDS).toBe(1_024)
})

test("an id is unknown, then waits, then is written for good", () => {
  const ids = new RememberedIds(new WrittenIds())
  const waiting = command("a")
  expect(ids.find("a")).toBeUndefined()
  ids.waiting("a", waiting)
  expect(ids.find("a")).toBe(waiting)
  expect(ids.find("b")).toBeUndefined()
  ids.written("a", waiting)
  expect(ids.find("a")).toBe("written")
})

test("a redelivered command takes the place of the one that waits", () => {
  const ids = new RememberedIds(new WrittenIds())
  const again = command("a")
  ids.waiting("a", command("a"))
  ids.waiting("a", again)
  expect(ids.find("a")).toBe(again)
})

test("an id whose command ended unwritten is unknown again", () => {
  const ids = new RememberedIds(new WrittenIds())
  const waiting = command("a")
  ids.waiting("a", waiting)
  ids.forget("a", waiting)
  expect(ids.find("a")).toBeUndefined()
  ids.forget("never seen", command("never seen"))
})

test("how another command with the id ended changes nothing", () => {
  const ids = new RememberedIds(new WrittenIds())
  const waiting = command("a")
  ids.waiting("a", waiting)
  ids.written("a", command("a"))
  ids.forget("a", command("a"))
  expect(ids.find("a")).toBe(waiting)
  ids.written("a", waiting)
  ids.forget("a", command("a"))
  ids.forget("a", waiting)
  expect(ids.find("a")).toBe("written")
})

test("what was never remembered is not remembered as written", () => {
  const ids = new RememberedIds(new WrittenIds())
  ids.written("a", command("a"))
  expect(ids.find("a")).toBeUndefined()
})

test.each(["", "__proto__", "constructor", "é\0\n", "x".repeat(255)])(
  "%j is an id like any other",
  (id) => {
    const ids = new RememberedIds(new WrittenIds())
    const waiting = command(id)
    expect(ids.find(id)).toBeUndefined()
    ids.waiting(id, waiting)
    ids.written(id, waiting)
    expect(ids.find(id)).toBe("written")
  },
)

test("1,024 commands are remembered; with one more the oldest is forgotten, and no other", () => {
  const ids = new RememberedIds(new WrittenIds())
  const first = command("first")
  ids.waiting("first", first)
  ids.written("first", first)
  ids.waiting("second", command("second"))
  fill(ids, REMEMBERED_COMMANDS - 2)
  expect(ids.find("first")).toBe("written")
  fill(ids, REMEMBERED_COMMANDS - 2)
  expect(ids.find("first")).toBe("written")
  ids.waiting("one more", command("one more"))
  expect(ids.find("first")).toBeUndefined()
  expect(ids.find("second")).toBeDefined()
  expect(ids.find("one more")).toBeDefined()
})

test("changes of state do not make room for more", () => {
  const ids = new RememberedIds(new WrittenIds())
  for (const other of fill(ids, REMEMBERED_COMMANDS)) ids.written(String(other.messageId), other)
  for (let i = 0; i < 2_000; i += 1) ids.waiting(`more-${i}`, command(`more-${i}`))
  const remembered = Array.from({ length: 2_000 }, (_, i) => ids.find(`more-${i}`))
  expect(remembered.filter((found) => found !== undefined)).toHaveLength(REMEMBERED_COMMANDS)
  expect(remembered.slice(-REMEMBERED_COMMANDS)).not.toContain(undefined)
})

describe("the ids of all connections of a worker", () => {
  const write = (ids: RememberedIds, id: string) => {
    const written = command(id)
    ids.waiting(id, written)
    ids.written(id, written)
  }

  test("are 200,000 written ones", () => {
    expect(REMEMBERED_OF_WORKER).toBe(200_000)
  })

  test("with one more the oldest is forgotten, on whichever connection", () => {
    const ofWorker = new WrittenIds(3)
    const [quiet, busy] = [new RememberedIds(ofWorker), new RememberedIds(ofWorker)]
    write(quiet, "a")
    write(busy, "a")
    write(busy, "b")
    expect(quiet.find("a")).toBe("written")
    write(busy, "c")
    expect(quiet.find("a")).toBeUndefined()
    expect(["a", "b", "c"].map((id) => busy.find(id))).toEqual(["written", "written", "written"])
    write(quiet, "d")
    expect(busy.find("a")).toBeUndefined()
    expect(busy.find("b")).toBe("written")
  })

  test("a command that waits is not forgotten", () => {
    const ofWorker = new WrittenIds(2)
    const ids = new RememberedIds(ofWorker)
    const waits = command("a")
    ids.waiting("a", waits)
    write(ids, "b")
    for (const id of ["c", "d", "e"]) write(ids, id)
    expect(ids.find("a")).toBe(waits)
    expect(ids.find("b")).toBeUndefined()
  })

  test("a forward that came before its command counts once", () => {
    const ofWorker = new WrittenIds(2)
    const ids = new RememberedIds(ofWorker)
    for (let times = 0; times < 3; times += 1) ids.forwardCame("a")
    write(ids, "b")
    expect([ids.find("a"), ids.find("b")]).toEqual(["written", "written"])
    write(ids, "c")
    expect([ids.find("a"), ids.find("b")]).toEqual([undefined, "written"])
  })

  test("those of an ended connection are forgotten at once", () => {
    const ids = new RememberedIds(new WrittenIds())
    write(ids, "a")
    ids.clear()
    expect(ids.find("a")).toBeUndefined()
  })
})
