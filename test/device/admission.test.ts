/** Admission: every combination of its three inputs, and the bound itself. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { refusal } from "../../src/device/admission.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const open = { connections: 0, suspended: false, draining: false }

test.each([
  [0, 1, null],
  [1, 1, "overloaded"],
  [2, 1, "overloaded"],
  [9_999, 10_000, null],
  [10_000, 10_000, "overloaded"],
  [0, 0, "overloaded"],
] as const)("%d connections of at most %d: %p", (connections, maxConnections, expected) => {
  expect(refusal({ ...open, connections }, maxConnections)).toBe(expected)
})

test("while reading is suspended nobody is admitted", () => {
  expect(refusal({ ...open, suspended: true }, 100)).toBe("overloaded")
})

test("draining is the reason whatever else is true", () => {
  check(
    fc.property(fc.nat(5), fc.nat(5), fc.boolean(), (connections, maxConnections, suspended) => {
      expect(refusal({ connections, suspended, draining: true }, maxConnections)).toBe("drained")
    }),
    CHEAP_RUNS,
  )
})
