/**
 * The queue, compared with an array and with a map of indices over any order of pushes, shifts and
 * removals.
 */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { Fifo } from "../../src/structures/fifo.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

test("is what an array is, however many have gone through it", () => {
  check(
    fc.property(fc.array(fc.boolean(), { maxLength: 300 }), fc.nat(3_000), (pushes, before) => {
      const fifo = new Fifo<number>()
      const array: number[] = []
      for (let n = 0; n < before; n += 1) fifo.push(n)
      for (let n = 0; n < before; n += 1) expect(fifo.shift()).toBe(n)
      for (const [n, push] of pushes.entries()) {
        if (push) {
          fifo.push(n)
          array.push(n)
        } else expect(fifo.shift()).toBe(array.shift() as number)
        expect(fifo.length).toBe(array.length)
      }
    }),
    CHEAP_RUNS / 10,
  )
})

test("gives undefined when it is empty", () => {
  const fifo = new Fifo<number>()
  expect([fifo.shift(), fifo.first, fifo.length]).toEqual([undefined, undefined, 0])
})

/** Adds that many, or removes the item that is so far behind the first. */
const step = fc.oneof(
  fc.record({ add: fc.nat(1_500) }),
  fc.record({ remove: fc.nat(20), times: fc.nat(1_500) }),
)

test("keeps each item under its index until it is removed, from whatever place", () => {
  check(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const fifo = new Fifo<string>()
      const model = new Map<number, string>()
      let end = 0
      const first = () => Math.min(end, ...model.keys())
      for (const step of steps) {
        if ("add" in step) {
          for (let n = 0; n < step.add; n += 1) {
            fifo.push(`${end}`)
            model.set(end, `${end}`)
            end += 1
          }
        } else {
          for (let n = 0; n < step.times && model.size > 0; n += 1) {
            const index = fifo.start + step.remove
            expect(fifo.remove(index)).toBe(model.get(index))
            model.delete(index)
            expect(fifo.remove(index)).toBeUndefined()
          }
        }
        expect([fifo.start, fifo.end, fifo.length]).toEqual([first(), end, end - first()])
        for (const [index, item] of [...model].slice(0, 30)) expect(fifo.at(index)).toBe(item)
        expect([fifo.at(fifo.start - 1), fifo.at(end)]).toEqual([undefined, undefined])
      }
    }),
    CHEAP_RUNS / 10,
  )
})
