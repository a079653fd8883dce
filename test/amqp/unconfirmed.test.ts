/**
 * Unsettled publishes against a model that knows each by its tag: whatever the broker settles, each
 * is handed back once and in order.
 */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { Unconfirmed } from "../../src/amqp/unconfirmed.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

/** More than are cut off at a time. */
const MANY = 1_500

/** With `count` publishes, which are their own tags. */
function publishes(count: number): Unconfirmed<number> {
  const unconfirmed = new Unconfirmed<number>()
  for (let tag = 1; tag <= count; tag += 1) unconfirmed.add(tag)
  return unconfirmed
}

function settled<T>(unconfirmed: Unconfirmed<T>, tag: number, multiple = false): T[] {
  const items: T[] = []
  unconfirmed.settle(tag, multiple, (item) => items.push(item))
  return items
}

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from + 1 }, (_, i) => from + i)
}

test("one is handed back once", () => {
  const unconfirmed = publishes(3)
  expect([settled(unconfirmed, 2), settled(unconfirmed, 2)]).toEqual([[2], []])
  expect([settled(unconfirmed, 1), settled(unconfirmed, 1)]).toEqual([[1], []])
  expect(unconfirmed.clear()).toEqual([3])
})

test("multiple hands back all up to the tag, in order, but none that was settled", () => {
  const unconfirmed = publishes(6)
  settled(unconfirmed, 3)
  expect(settled(unconfirmed, 4, true)).toEqual([1, 2, 4])
  expect(settled(unconfirmed, 4, true)).toEqual([])
  expect(settled(unconfirmed, 6, true)).toEqual([5, 6])
})

test("out of order each is found", () => {
  const unconfirmed = publishes(5)
  const each = [5, 1, 3, 2, 4].map((tag) => settled(unconfirmed, tag))
  expect(each).toEqual([[5], [1], [3], [2], [4]])
  unconfirmed.add(6)
  expect(settled(unconfirmed, 6)).toEqual([6])
})

test("beyond what was published there is nothing", () => {
  const unconfirmed = publishes(2)
  expect(settled(unconfirmed, 3)).toEqual([])
  expect(settled(unconfirmed, 0)).toEqual([])
  expect(settled(unconfirmed, 0, true)).toEqual([])
  expect(settled(unconfirmed, Number.MAX_SAFE_INTEGER, true)).toEqual([1, 2])
  expect(settled(unconfirmed, Number.MAX_SAFE_INTEGER)).toEqual([])
  unconfirmed.add(3)
  expect(settled(unconfirmed, 3)).toEqual([3])
})

test("tags go on where settled ones were cut off, one by one", () => {
  const unconfirmed = publishes(2 * MANY)
  for (const tag of range(1, MANY)) expect(settled(unconfirmed, tag)).toEqual([tag])
  expect(settled(unconfirmed, 1)).toEqual([])
  expect(settled(unconfirmed, MANY + 10, true)).toEqual(range(MANY + 1, MANY + 10))
  unconfirmed.add(2 * MANY + 1)
  expect(settled(unconfirmed, 2 * MANY + 1)).toEqual([2 * MANY + 1])
  expect(unconfirmed.clear()).toEqual(range(MANY + 11, 2 * MANY))
})

test("tags go on where the first was settled last", () => {
  const unconfirmed = publishes(MANY + 2)
  for (const tag of range(2, MANY)) settled(unconfirmed, tag)
  expect(settled(unconfirmed, 1)).toEqual([1])
  expect(settled(unconfirmed, MANY + 2)).toEqual([MANY + 2])
  expect(unconfirmed.clear()).toEqual([MANY + 1])
})

test("tags go on where none was left", () => {
  const unconfirmed = publishes(3)
  settled(unconfirmed, 3, true)
  unconfirmed.add(4)
  unconfirmed.add(5)
  expect(settled(unconfirmed, 5)).toEqual([5])
  expect(settled(unconfirmed, 9, true)).toEqual([4])
})

test("what is published while others are handed back waits for its own confirm", () => {
  const unconfirmed = publishes(2)
  const items: number[] = []
  unconfirmed.settle(9, true, (tag) => {
    items.push(tag)
    unconfirmed.add(tag + 2)
  })
  expect(items).toEqual([1, 2])
  expect(settled(unconfirmed, 4)).toEqual([4])
  expect(settled(unconfirmed, 3)).toEqual([3])
})

test("what is cleared and published anew by whoever was told of one waits for its own confirm", () => {
  const unconfirmed = publishes(3)
  const told: number[] = []
  unconfirmed.settle(3, true, (tag) => {
    told.push(tag)
    unconfirmed.clear()
    for (const again of [11, 12, 13]) unconfirmed.add(again)
  })
  expect(told).toEqual([1])
  expect(settled(unconfirmed, 3, true)).toEqual([11, 12, 13])
})

test.each([3, MANY])("clear takes out all that are left of %d, and tags begin anew", (count) => {
  const unconfirmed = publishes(count)
  settled(unconfirmed, 2)
  settled(unconfirmed, count - 1, true)
  expect(unconfirmed.clear()).toEqual([count])
  expect(unconfirmed.clear()).toEqual([])
  expect(settled(unconfirmed, count)).toEqual([])
  unconfirmed.add(-1)
  expect(settled(unconfirmed, 1)).toEqual([-1])
})

type Step =
  | { readonly kind: "add"; readonly count: number }
  | { readonly kind: "settle"; readonly tag: number; readonly multiple: boolean }
  /** One by one, backwards. */
  | { readonly kind: "settle some"; readonly tag: number; readonly count: number }
  | { readonly kind: "clear" }

/** Reduced to the tags that there are, and a few more. */
const tag = fc.nat(1_000_000)
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("add" as const),
      count: fc.oneof(fc.nat(5), fc.nat(900)),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({ kind: fc.constant("settle" as const), tag, multiple: fc.boolean() }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ kind: fc.constant("settle some" as const), tag, count: fc.nat(900) }),
  },
  { weight: 1, arbitrary: fc.constant({ kind: "clear" } as const) },
)

test("any order: each is handed back once, as the model says", () => {
  check(
    fc.property(fc.array(step, { maxLength: 30, size: "max" }), (steps) => {
      const unconfirmed = new Unconfirmed<number>()
      const model = new Map<number, number>()
      let added = 0
      let last = 0

      function settle(upTo: number, multiple: boolean): void {
        const tags = multiple ? [...model.keys()].filter((each) => each <= upTo) : [upTo]
        const expected = tags.flatMap((each) => model.get(each) ?? [])
        for (const each of tags) model.delete(each)
        expect(settled(unconfirmed, upTo, multiple)).toEqual(expected)
      }

      for (const each of steps) {
        switch (each.kind) {
          case "add":
            for (let i = 0; i < each.count; i += 1) {
              added += 1
              last += 1
              unconfirmed.add(added)
              model.set(last, added)
            }
            break
          case "settle":
            settle(each.tag % (last + 3), each.multiple)
            break
          case "settle some": {
            const from = each.tag % (last + 3)
            for (let i = 0; i < each.count && i < from; i += 1) settle(from - i, false)
            break
          }
          case "clear":
            expect(unconfirmed.clear()).toEqual([...model.values()])
            model.clear()
            last = 0
        }
      }
      expect(unconfirmed.clear()).toEqual([...model.values()])
    }),
    CHEAP_RUNS,
  )
})
