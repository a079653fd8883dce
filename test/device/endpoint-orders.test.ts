/**
 * An endpoint whose decisions are performed, in every order of offers, redeliveries, sweeps and
 * losses.
 */

import { expect, test } from "bun:test"
import fc from "fast-check"
import type { Command } from "../../src/device/command.ts"
import type { Decision, Endpoint } from "../../src/device/endpoint.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

/** One for all, as a queue's consumer is. */
import { type About, command, endpointOf } from "./endpoint-harness.ts"

/**
 * How a command ended. "withdrawn": its delivery was lost, and the next delivery decides the
 * outcome.
 */
type End = "written" | "acknowledged" | "withdrawn" | string

/**
 * Performs decisions like a connection, with a socket that accepts commands when the test says so.
 */
class Performer {
  readonly endpoint: Endpoint
  readonly ends = new Map<Command, End[]>()
  /** Decided "write" and not yet taken by the socket, in order. */
  waiting: Command[] = []
  /**
   * Every message id in the order in which it was decided "write"; null once it ended unwritten.
   */
  readonly writes: { readonly id: string; unwritten: boolean }[] = []
  readonly #writeOf = new Map<Command, { readonly id: string; unwritten: boolean }>()

  constructor(windowCommands: number) {
    this.endpoint = endpointOf(windowCommands)
  }

  offer(offered: Command, nowMs: number): void {
    this.ends.set(offered, [])
    this.#perform(this.endpoint.offer(offered, nowMs))
  }

  expire(nowMs: number): void {
    this.#perform(this.endpoint.expire(nowMs))
  }

  /** The socket accepts the first waiting command. */
  write(): void {
    const first = this.waiting.shift()
    if (first === undefined) return
    this.endpoint.written(first)
    this.#end(first, "written")
  }

  /** One that waits ends otherwise. */
  drop(which: number, outcome: string): void {
    const [dropped] = this.waiting.splice(which, 1)
    if (dropped === undefined) return
    this.endpoint.unwritten(dropped)
    const write = this.#writeOf.get(dropped)
    if (write) write.unwritten = true
    this.#end(dropped, outcome)
  }

  /**
   * Loses all deliveries so far; the socket was offered bytes of the first `offered` commands that
   * wait.
   */
  lose(offered: number): Command[] {
    for (const each of this.ends.keys()) (each as { lost?: boolean }).lost = true
    const unoffered = this.waiting.splice(offered)
    const withdrawn = [...unoffered, ...this.endpoint.withdrawLost(unoffered)]
    for (const each of withdrawn) {
      const write = this.#writeOf.get(each)
      if (write) write.unwritten = true
      this.#end(each, "withdrawn")
    }
    expect(this.endpoint.heldCommands).toBe(0)
    return withdrawn
  }

  close(): void {
    const decisions = this.endpoint.close()
    for (const decision of decisions) expect(decision).toMatchObject({ outcome: "closed" })
    while (this.waiting.length > 0) this.drop(0, "closed")
    this.#perform(decisions)
    expect(this.endpoint.heldCommands).toBe(0)
  }

  #perform(decisions: readonly Decision[]): void {
    for (const decision of decisions) {
      switch (decision.kind) {
        case "write":
          this.waiting.push(decision.command)
          this.#noteWrite(decision.command)
          break
        case "settle":
          this.endpoint.unwritten(decision.command)
          this.#end(decision.command, decision.outcome)
          break
        case "supersede": {
          const at = this.waiting.indexOf(decision.command)
          expect(at).not.toBe(-1)
          this.drop(at, "superseded")
          break
        }
        case "acknowledge":
          this.#end(decision.command, "acknowledged")
          break
      }
    }
  }

  #noteWrite({ messageId: id }: Command): void {
    if (id === null) return
    const twice = this.writes.slice(-1_024).find((write) => write.id === id && !write.unwritten)
    expect(twice).toBeUndefined()
    const write = { id, unwritten: false }
    this.writes.push(write)
    this.#writeOf.set(this.waiting.at(-1) as Command, write)
  }

  #end(ended: Command, how: End): void {
    this.ends.get(ended)?.push(how)
  }
}

type Step =
  | { readonly kind: "offer"; readonly about: About }
  | { readonly kind: "redeliver"; readonly which: number }
  | { readonly kind: "write" }
  | { readonly kind: "drop"; readonly which: number }
  | { readonly kind: "wait"; readonly ms: number }
  | { readonly kind: "lose"; readonly offered: number }
  | { readonly kind: "close" }

function stepsWith(about: fc.Arbitrary<About>): fc.Arbitrary<Step[]> {
  const which = fc.nat(12)
  const step: fc.Arbitrary<Step> = fc.oneof(
    { weight: 8, arbitrary: fc.record({ kind: fc.constant("offer" as const), about }) },
    { weight: 4, arbitrary: fc.record({ kind: fc.constant("redeliver" as const), which }) },
    { weight: 4, arbitrary: fc.record({ kind: fc.constant("write" as const) }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant("drop" as const), which }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant("wait" as const), ms: fc.nat(12) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("lose" as const), offered: fc.nat(3) }) },
  )
  const withClose = fc.tuple(
    fc.array(step, { maxLength: 60, size: "max" }),
    fc.array(step, { maxLength: 5, size: "max" }),
  )
  return withClose.map(([before, after]): Step[] => [...before, { kind: "close" }, ...after])
}

/** Runs the steps and expects one end for each command. */
function expectOneEnd(steps: readonly Step[], windowCommands: number): void {
  const performer = new Performer(windowCommands)
  const offered: Command[] = []
  let nowMs = 1_000
  let isClosed = false
  const offer = (each: Command) => {
    offered.push(each)
    performer.offer(each, nowMs)
    if (isClosed) expect(performer.ends.get(each)).toEqual(["closed"])
  }
  for (const step of steps) {
    switch (step.kind) {
      case "offer":
        offer(command(step.about))
        break
      case "redeliver": {
        const before = offered[step.which]
        if (before) offer({ ...before, redelivered: true, lost: false })
        break
      }
      case "write":
        performer.write()
        break
      case "drop":
        performer.drop(step.which, "expired")
        break
      case "wait":
        nowMs += step.ms
        performer.expire(nowMs)
        break
      case "lose":
        // The broker delivers again what the endpoint has given back.
        for (const each of performer.lose(step.offered)) {
          offer({ ...each, redelivered: true, lost: false })
        }
        break
      case "close":
        performer.close()
        isClosed = true
    }
    expect(performer.endpoint.heldCommands).toBeLessThanOrEqual(windowCommands)
    // Each command so far has ended or is somewhere where it will.
    const ended = [...performer.ends.values()].filter((ends) => ends.length > 0).length
    const left = performer.waiting.length + performer.endpoint.heldCommands
    expect(ended + left).toBe(offered.length)
  }
  expect(performer.waiting).toEqual([])
  for (const each of offered) expect(performer.ends.get(each)).toHaveLength(1)
}

const window = fc.integer({ min: 1, max: 5 })

test("numbers and ids used once, redelivered at any time: each command has one outcome", () => {
  // What belongs to n is always the same: a number and an id, one of them, or neither.
  const about = fc.nat(9).map((n): About => {
    const kind = n % 4
    const supersedeKey = n % 3 === 0 ? "k" : null
    return { seq: kind < 2 ? n : null, messageId: kind % 2 === 0 ? `id-${n}` : null, supersedeKey }
  })
  check(
    fc.property(stepsWith(about), window, (steps, window) => expectOneEnd(steps, window)),
    CHEAP_RUNS,
  )
})

test("numbers and ids used twice for different commands: each command has one outcome", () => {
  const about = fc.record({
    seq: fc.option(fc.nat(6)),
    messageId: fc.option(fc.constantFrom("a", "b", "c")),
    supersedeKey: fc.option(fc.constantFrom("k", "l")),
  })
  check(
    fc.property(stepsWith(about), window, (steps, window) => expectOneEnd(steps, window)),
    CHEAP_RUNS,
  )
})

test("the same with any of them marked redelivered, as after a crash of another worker", () => {
  const about = fc.record({
    seq: fc.option(fc.nat(6)),
    messageId: fc.option(fc.constantFrom("a", "b", "c")),
    supersedeKey: fc.option(fc.constantFrom("k", "l")),
    redelivered: fc.boolean(),
  })
  check(
    fc.property(stepsWith(about), window, (steps, window) => expectOneEnd(steps, window)),
    CHEAP_RUNS,
  )
})
