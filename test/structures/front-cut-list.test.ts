/** The list, compared with a map from indices over any order of additions and removals. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { FrontCutList } from "../../src/structures/front-cut-list.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

/** Adds that many, or removes the item that is so far behind the first. */
const step = fc.oneof(
  fc.record({ add: fc.nat(1_500) }),
  fc.record({ remove: fc.nat(20), times: fc.nat(1_500) }),
)

test("keeps each item under its index until it is removed", () => {
  check(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const list = new FrontCutList<string>()
      const model = new Map<number, string>()
      let end = 0
      const first = () => Math.min(end, ...model.keys())
      for (const step of steps) {
        if ("add" in step) {
          for (let n = 0; n < step.add; n += 1) {
            list.push(`${end}`)
            model.set(end, `${end}`)
            end += 1
          }
        } else {
          for (let n = 0; n < step.times && model.size > 0; n += 1) {
            const index = list.first + step.remove
            expect(list.remove(index)).toBe(model.get(index))
            model.delete(index)
            expect(list.remove(index)).toBeUndefined()
          }
        }
        expect([list.first, list.end, list.length]).toEqual([first(), end, end - first()])
        for (const [index, item] of [...model].slice(0, 30)) expect(list.at(index)).toBe(item)
        expect([list.at(list.first - 1), list.at(end)]).toEqual([undefined, undefined])
      }
    }),
    CHEAP_RUNS / 10,
  )
})
