/**
 * Which HTTP connections may stay open: at the bound, at each deadline, and in any order of events.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { HttpConnections, WAITING_MS } from "../../src/http/http-connections.ts"
import { check } from "../support/property.ts"

const ANSWER_MS = 15_000
const RECEIVING_MS = 30_000
const subject = (max: number) => new HttpConnections<string>({ max, answerMs: ANSWER_MS })

describe("at the bound", () => {
  test("a new connection replaces the one that has waited longest", () => {
    const connections = subject(2)
    expect(connections.opened("a", 0)).toBeNull()
    expect(connections.opened("b", 1)).toBeNull()
    expect(connections.opened("c", 2)).toEqual({ connection: "a", reason: "made_room" })
    expect(connections.all()).toEqual(["b", "c"])
  })

  test("one that has just been answered waits from then on", () => {
    const connections = subject(2)
    connections.opened("a", 0)
    connections.opened("b", 1)
    connections.asked("a", 2)
    connections.received("a", 2)
    connections.answered("a", 3)
    expect(connections.opened("c", 4)?.connection).toBe("b")
  })

  test("waiting connections are replaced before receiving ones", () => {
    const connections = subject(2)
    connections.opened("a", 0)
    connections.asked("a", 0)
    connections.opened("b", 1)
    expect(connections.opened("c", 2)?.connection).toBe("b")
    connections.asked("c", 3)
    expect(connections.opened("d", 4)?.connection).toBe("a")
  })

  test("the new one is refused when all are being answered", () => {
    const connections = subject(1)
    connections.opened("a", 0)
    connections.asked("a", 0)
    connections.received("a", 0)
    expect(connections.opened("b", 1)).toEqual({ connection: "b", reason: "refused" })
    connections.closed("a")
    expect(connections.opened("b", 2)).toBeNull()
  })
})

describe("a deadline", () => {
  test("for the first headers", () => {
    const connections = subject(9)
    connections.opened("a", 100)
    expect(connections.overdue(100 + WAITING_MS - 1)).toEqual([])
    expect(connections.overdue(100 + WAITING_MS)).toEqual([
      { connection: "a", reason: "header_timeout" },
    ])
  })

  test("for the next headers", () => {
    const connections = subject(9)
    connections.opened("a", 0)
    connections.asked("a", 1_000)
    connections.received("a", 1_000)
    connections.answered("a", 2_000)
    expect(connections.overdue(2_000 + WAITING_MS - 1)).toEqual([])
    expect(connections.overdue(2_000 + WAITING_MS)).toEqual([{ connection: "a", reason: "idle" }])
  })

  test("for a body", () => {
    const connections = subject(9)
    connections.opened("a", 0)
    connections.asked("a", 1)
    expect(connections.overdue(RECEIVING_MS)).toEqual([])
    expect(connections.overdue(RECEIVING_MS + 1)).toEqual([
      { connection: "a", reason: "body_timeout" },
    ])
  })

  test("for a response, extended by each part that the client reads", () => {
    const connections = subject(9)
    connections.opened("a", 0)
    connections.asked("a", 0)
    connections.received("a", 0)
    connections.progressed("a", 10_000)
    expect(connections.overdue(10_000 + ANSWER_MS - 1)).toEqual([])
    expect(connections.overdue(10_000 + ANSWER_MS)).toEqual([
      { connection: "a", reason: "answer_timeout" },
    ])
  })
})

test("a connection has at most 100 unanswered requests", () => {
  const connections = subject(1)
  connections.opened("a", 0)
  for (let n = 0; n < 100; n += 1) expect(connections.asked("a", 0)).toBe(true)
  expect(connections.asked("a", 0)).toBe(false)
  for (let n = 0; n < 99; n += 1) connections.answered("a", 1)
  expect(connections.busyCount).toBe(1)
  connections.answered("a", 1)
  expect(connections.busyCount).toBe(0)
})

test("any order of events: at most `max` connections, and none that is being answered is replaced", () => {
  const names = fc.constantFrom("a", "b", "c", "d", "e", "f")
  const acts = fc.constantFrom("open", "asked", "received", "progressed", "answered", "closed")
  check(
    fc.property(fc.integer({ min: 1, max: 4 }), fc.array(fc.tuple(acts, names)), (max, steps) => {
      const connections = subject(max)
      const answering = new Set<string>()
      const open = new Set<string>()
      const unanswered = new Map<string, number>()
      const remove = (name: string) => {
        open.delete(name)
        answering.delete(name)
        unanswered.delete(name)
      }
      steps.forEach(([act, name], nowMs) => {
        if (act === "open") {
          if (open.has(name)) return
          const leaving = connections.opened(name, nowMs)
          if (leaving !== null) {
            expect(answering.has(leaving.connection)).toBe(false)
            remove(leaving.connection)
          }
          if (leaving?.connection !== name) open.add(name)
        } else if (!open.has(name)) return
        else if (act === "asked" && connections.asked(name, nowMs)) {
          unanswered.set(name, (unanswered.get(name) ?? 0) + 1)
          answering.delete(name)
        } else if (act === "received" && (unanswered.get(name) ?? 0) > 0) {
          connections.received(name, nowMs)
          answering.add(name)
        } else if (act === "progressed") connections.progressed(name, nowMs)
        else if (act === "answered" && (unanswered.get(name) ?? 0) > 0) {
          connections.answered(name, nowMs)
          unanswered.set(name, (unanswered.get(name) ?? 0) - 1)
          if (unanswered.get(name) === 0) answering.delete(name)
        } else if (act === "closed") {
          connections.closed(name)
          remove(name)
        }
        expect(connections.count).toBeLessThanOrEqual(max)
        expect(connections.all().sort()).toEqual([...open].sort())
      })
    }),
  )
})
