/** The items by age, compared with an array over any order of additions and removals. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { ByAge } from "../../src/structures/by-age.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

test("is what an array is to which the newest is appended", () => {
  const step = fc.record({ add: fc.boolean(), item: fc.nat(6) })
  check(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const byAge = new ByAge<number>()
      let array: { item: number; atMs: number }[] = []
      for (const [atMs, { add, item }] of steps.entries()) {
        const wasThere = array.some((each) => each.item === item)
        array = array.filter((each) => each.item !== item)
        if (add) {
          byAge.add(item, atMs)
          array.push({ item, atMs })
        } else expect(byAge.delete(item)).toBe(wasThere)
        expect([byAge.size, byAge.items()]).toEqual([array.length, array.map((each) => each.item)])
        const { oldest } = byAge
        expect(oldest === null ? undefined : { item: oldest.item, atMs: oldest.atMs }).toEqual(
          array[0],
        )
      }
    }),
    CHEAP_RUNS,
  )
})
