/**
 * The unfinished lines of a worker compared with a model that keeps a list of them: which
 * connections are closed, in which order, and that the bytes never exceed the bound while there is
 * a line that may be closed.
 */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { type LineOwner, UnfinishedLines } from "../../src/device/unfinished-lines.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const LIMITS = { maxPartialBytes: 100, lineTimeoutMs: 10_000 }

/** A device whose connection lets go of its bytes when it is ended. */
class Owner implements LineOwner {
  readonly name: number
  bytes = 0
  beganAtMs: number | null = null
  ended = false
  readonly #lines: UnfinishedLines
  readonly #log: number[]

  constructor(name: number, lines: UnfinishedLines, log: number[]) {
    this.name = name
    this.#lines = lines
    this.#log = log
  }

  grow(bytes: number, nowMs: number): void {
    if (this.bytes === 0) this.begin(nowMs)
    this.bytes += bytes
    this.#lines.hold(bytes)
  }

  begin(nowMs: number): void {
    this.beganAtMs = nowMs
    this.#lines.began(this, nowMs)
  }

  stop(): void {
    this.beganAtMs = null
    this.#lines.stopped(this)
  }

  finish(): void {
    this.stop()
    const { bytes } = this
    this.bytes = 0
    this.#lines.hold(-bytes)
  }

  closeUnfinished(): void {
    this.ended = true
    this.#log.push(this.name)
    this.finish()
  }
}

type Step =
  | { readonly kind: "grow"; readonly who: number; readonly bytes: number }
  | { readonly kind: "finish" | "stop" | "begin"; readonly who: number }
  | { readonly kind: "wait"; readonly ms: number; readonly stopped: boolean }

const who = fc.nat(5)
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("grow" as const),
      who,
      bytes: fc.integer({ min: 1, max: 60 }),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constantFrom("finish", "stop", "begin"), who }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant("wait" as const),
      ms: fc.nat(9_000),
      stopped: fc.boolean(),
    }),
  },
) as fc.Arbitrary<Step>

test("any order: only the oldest line that is read is closed, at its time-out or beyond the bound", () => {
  check(
    fc.property(fc.array(step, { maxLength: 60, size: "max" }), (steps) => {
      const lines = new UnfinishedLines(LIMITS)
      const log: number[] = []
      const owners = Array.from({ length: 6 }, (_, name) => new Owner(name, lines, log))
      let nowMs = 0
      let order: Owner[] = []
      const last = (owner: Owner) => {
        order = [...order.filter((each) => each !== owner), owner]
      }
      for (const each of steps) {
        const expected: number[] = []
        if (each.kind === "wait") {
          nowMs += each.ms
          if (each.stopped) for (const owner of order) owner.beganAtMs = nowMs
          const due = (owner: Owner) => nowMs - (owner.beganAtMs ?? nowMs) >= LIMITS.lineTimeoutMs
          expected.push(...order.filter(due).map(({ name }) => name))
          lines.sweep(nowMs, each.stopped)
        } else {
          const owner = owners[each.who] as Owner
          if (owner.ended) continue
          if (each.kind === "grow") {
            // A device that is not read cannot send.
            if (owner.bytes > 0 && owner.beganAtMs === null) continue
            if (owner.bytes === 0) last(owner)
            let over = lines.bytes + each.bytes - LIMITS.maxPartialBytes
            for (const oldest of order) {
              if (over <= 0) break
              expected.push(oldest.name)
              over -= oldest.bytes + (oldest === owner ? each.bytes : 0)
            }
            owner.grow(each.bytes, nowMs)
            if (order.some(({ ended }) => !ended)) {
              expect(lines.bytes).toBeLessThanOrEqual(LIMITS.maxPartialBytes)
            }
          } else if (each.kind === "finish") owner.finish()
          else if (each.kind === "stop") owner.stop()
          else if (owner.bytes > 0) {
            owner.begin(nowMs)
            last(owner)
          }
        }
        expect(log.splice(0)).toEqual(expected)
        order = order.filter((owner) => owner.beganAtMs !== null)
        expect(lines.bytes).toBe(owners.reduce((sum, { bytes }) => sum + bytes, 0))
        expect(lines.timedCount).toBe(order.length)
      }
    }),
    CHEAP_RUNS,
  )
})

test("after the process was stopped each line has its full time again", () => {
  const lines = new UnfinishedLines(LIMITS)
  const log: number[] = []
  new Owner(0, lines, log).grow(1, 0)
  lines.sweep(LIMITS.lineTimeoutMs, true)
  lines.sweep(2 * LIMITS.lineTimeoutMs - 1, false)
  expect(log).toEqual([])
  lines.sweep(2 * LIMITS.lineTimeoutMs, false)
  expect(log).toEqual([0])
})

test("a line that is larger than the bound closes its own connection", () => {
  const lines = new UnfinishedLines(LIMITS)
  const log: number[] = []
  new Owner(0, lines, log).grow(101, 0)
  expect([log, lines.bytes, lines.timedCount]).toEqual([[0], 0, 0])
})

test("bytes below zero are a fault", () => {
  expect(() => new UnfinishedLines(LIMITS).hold(-1)).toThrow("-1 bytes")
})
