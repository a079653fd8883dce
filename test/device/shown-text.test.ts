/** Text of peers on one line, bounded. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { shownText } from "../../src/device/shown-text.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

test.each([
  ["", ""],
  ["no certificate", "no certificate"],
  ["a\r\nb\u0000\u007f\u001b[2J", "a\\u000d\\u000ab\\u0000\\u007f\\u001b[2J"],
  ["ü\u202e\ud800😀", "\\u00fc\\u202e\\ud800\\ud83d\\ude00"],
])("%j is shown as %j", (text, shown) => {
  expect(shownText(text, 100)).toBe(shown)
})

test("a long text is cut", () => {
  expect(shownText("x".repeat(10), 10)).toBe("x".repeat(10))
  expect(shownText("x".repeat(11), 10)).toBe(`${"x".repeat(9)}…`)
  expect(shownText("\n".repeat(3), 10)).toBe("\\u000a\\u0…")
})

test("any text is printable, and within the bound", () => {
  check(
    fc.property(fc.string({ unit: "binary" }), fc.integer({ min: 1, max: 40 }), (text, max) => {
      const shown = shownText(text, max)
      expect(shown.length).toBeLessThanOrEqual(max)
      expect(shown).toMatch(/^[\x20-\x7e]*…?$/)
    }),
    CHEAP_RUNS,
  )
})
