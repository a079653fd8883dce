/**
 * The members of the fleet: each state and each transition, by received messages and times. The
 * test passes the time in.
 */

import { describe, expect, test } from "bun:test"
import { FORGET_AFTER_MS, Members } from "../../src/fleet/members.ts"

const NOW_MS = 1_750_000_000_000
const SILENT_AFTER_MS = 6_000
/** Incarnations sort by their start. */
const [FIRST, SECOND] = ["mb2k3f9zaaaa", "mb2k3f9zbbbb"]
const worker = (incarnation: string, name = "gw.1") => ({ worker: name, incarnation })

function heardOf(...workers: string[]): Members {
  const members = new Members()
  for (const each of workers) members.heard(each, FIRST, NOW_MS)
  return members
}

describe("a member that has sent a message", () => {
  test("is responsive, and questions wait for its answer", () => {
    const members = heardOf("gw.1", "gw.2")
    expect(members.answers(worker(FIRST))).toBe(true)
    expect(members.known()).toEqual(["gw.1", "gw.2"])
    expect(members.count).toBe(2)
  })

  test("is one member after any number of messages", () => {
    const members = heardOf("gw.1", "gw.1", "gw.1")
    expect([members.count, members.known()]).toEqual([1, ["gw.1"]])
  })

  test("is responsive only as that process", () => {
    const members = heardOf("gw.1")
    expect(members.answers(worker(SECOND))).toBe(false)
  })

  test("does not affect others", () => {
    const members = heardOf("gw.1")
    expect(members.answers(worker(FIRST, "gw.2"))).toBe(false)
  })
})

describe("a member that is silent", () => {
  test("has sent no message for more than six seconds", () => {
    const members = heardOf("gw.1")
    members.sweep(NOW_MS + SILENT_AFTER_MS)
    expect(members.answers(worker(FIRST))).toBe(true)
    members.sweep(NOW_MS + SILENT_AFTER_MS + 1)
    expect(members.answers(worker(FIRST))).toBe(false)
  })

  test("or did not answer in time", () => {
    const members = heardOf("gw.1", "gw.2")
    members.missed("gw.1")
    expect(members.answers(worker(FIRST))).toBe(false)
    expect(members.answers(worker(FIRST, "gw.2"))).toBe(true)
  })

  test("is still waited for, because it may only be slow", () => {
    const members = heardOf("gw.1")
    members.missed("gw.1")
    expect([members.count, members.known()]).toEqual([1, ["gw.1"]])
  })

  test("is responsive again after a message", () => {
    const members = heardOf("gw.1")
    members.missed("gw.1")
    members.heard("gw.1", FIRST, NOW_MS + 1)
    expect(members.answers(worker(FIRST))).toBe(true)
  })

  test("counts its silence from its last message", () => {
    const members = heardOf("gw.1")
    members.heard("gw.1", FIRST, NOW_MS + SILENT_AFTER_MS)
    members.sweep(NOW_MS + 2 * SILENT_AFTER_MS)
    expect(members.answers(worker(FIRST))).toBe(true)
  })

  test("is no member before its first message", () => {
    const members = new Members()
    members.missed("gw.1")
    expect(members.known()).toEqual([])
  })
})

describe("a member is removed", () => {
  test("when it has sent no message for more than twenty seconds", () => {
    const members = heardOf("gw.1")
    members.sweep(NOW_MS + FORGET_AFTER_MS)
    expect(members.known()).toEqual(["gw.1"])
    members.sweep(NOW_MS + FORGET_AFTER_MS + 1)
    expect([members.count, members.known()]).toEqual([0, []])
  })

  test("without those that have sent messages since", () => {
    const members = heardOf("gw.1", "gw.2")
    members.heard("gw.2", FIRST, NOW_MS + FORGET_AFTER_MS)
    members.sweep(NOW_MS + FORGET_AFTER_MS + 1)
    expect(members.known()).toEqual(["gw.2"])
    expect(members.answers(worker(FIRST, "gw.2"))).toBe(true)
  })

  test("when it leaves", () => {
    const members = heardOf("gw.1", "gw.2")
    members.left("gw.1", FIRST)
    expect(members.known()).toEqual(["gw.2"])
    expect(members.answers(worker(FIRST))).toBe(false)
  })

  test("permanently, although it still announces the devices that it closes while it drains", () => {
    const members = heardOf("gw.1")
    members.left("gw.1", FIRST)
    members.heard("gw.1", FIRST, NOW_MS + 1)
    expect([members.count, members.known()]).toEqual([0, []])
    expect(members.answers(worker(FIRST))).toBe(false)
  })

  test("and its successor is a member at once", () => {
    const members = heardOf("gw.1")
    members.left("gw.1", FIRST)
    members.heard("gw.1", SECOND, NOW_MS + 1)
    expect(members.answers(worker(SECOND))).toBe(true)
    expect([members.count, members.known()]).toEqual([1, ["gw.1"]])
  })

  test("and is a member again after a new message", () => {
    const members = heardOf("gw.1")
    members.sweep(NOW_MS + FORGET_AFTER_MS + 1)
    members.heard("gw.1", FIRST, NOW_MS + FORGET_AFTER_MS + 2)
    expect(members.answers(worker(FIRST))).toBe(true)
  })
})

describe("a process that replaced another", () => {
  test("is the member from its first message on", () => {
    const members = heardOf("gw.1")
    members.heard("gw.1", SECOND, NOW_MS + 1)
    expect(members.answers(worker(SECOND))).toBe(true)
    expect(members.answers(worker(FIRST))).toBe(false)
    expect(members.count).toBe(1)
  })

  test("stays the member when a message of its predecessor is late", () => {
    const members = heardOf("gw.1")
    members.heard("gw.1", SECOND, NOW_MS + 1)
    members.heard("gw.1", FIRST, NOW_MS + 2)
    expect(members.answers(worker(SECOND))).toBe(true)
    expect(members.answers(worker(FIRST))).toBe(false)
  })

  test("is not kept alive by a late message of its predecessor", () => {
    const members = new Members()
    members.heard("gw.1", SECOND, NOW_MS)
    members.heard("gw.1", FIRST, NOW_MS + SILENT_AFTER_MS)
    members.sweep(NOW_MS + SILENT_AFTER_MS + 1)
    expect(members.answers(worker(SECOND))).toBe(false)
  })

  test("stays when the `leaving` of its predecessor is late", () => {
    const members = heardOf("gw.1")
    members.heard("gw.1", SECOND, NOW_MS + 1)
    members.left("gw.1", FIRST)
    expect(members.answers(worker(SECOND))).toBe(true)
  })

  test("is not silent because its predecessor did not answer", () => {
    const members = heardOf("gw.1")
    members.missed("gw.1")
    members.heard("gw.1", SECOND, NOW_MS + 1)
    expect(members.answers(worker(SECOND))).toBe(true)
  })
})

describe("while the broker connection is lost", () => {
  test("no member is removed, and each is expected to send a message", () => {
    const members = heardOf("gw.1", "gw.2", "gw.3")
    members.left("gw.3", FIRST)
    const backAtMs = NOW_MS + 10 * FORGET_AFTER_MS
    members.resumed(backAtMs)
    members.sweep(backAtMs + 1)
    expect(members.known()).toEqual(["gw.1", "gw.2"])
    expect(members.someUnheard).toBe(true)
    members.heard("gw.1", FIRST, backAtMs + 2)
    expect(members.someUnheard).toBe(true)
    members.heard("gw.2", SECOND, backAtMs + 3)
    expect(members.someUnheard).toBe(false)
  })

  test("one that sends no message is removed after its time, and not expected any more", () => {
    const members = heardOf("gw.1", "gw.2")
    members.resumed(NOW_MS)
    members.left("gw.2", FIRST)
    members.sweep(NOW_MS + FORGET_AFTER_MS)
    expect([members.known(), members.someUnheard]).toEqual([["gw.1"], true])
    members.sweep(NOW_MS + FORGET_AFTER_MS + 1)
    expect([members.known(), members.someUnheard]).toEqual([[], false])
  })
})
