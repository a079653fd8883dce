/** The queue, compared with an array over any order of pushes and shifts. */

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
