/** The smallest of many values, beside sorting all of them. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { Smallest } from "../../src/structures/smallest.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

test("the smallest values are those at the front when all are sorted", () => {
  const values = fc.array(fc.integer({ min: 0, max: 50 }))
  check(
    fc.property(values, fc.nat({ max: 20 }), (all, max) => {
      const smallest = new Smallest<number>(max, (a, b) => a < b)
      for (const value of all) smallest.add(value)
      expect(smallest.values).toEqual([...all].sort((a, b) => a - b).slice(0, max))
    }),
    CHEAP_RUNS,
  )
})
