/** Which lines answer a command, compared with the same question about texts. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { matches, type ReplyCondition } from "../../src/device/reply-request.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"
import { bytesOf } from "./connection-harness.ts"

const token = (text: string): ReplyCondition => ({ kind: "token", token: bytesOf(text) })
const prefix = (text: string): ReplyCondition => ({ kind: "prefix", prefix: bytesOf(text) })

describe("a token", () => {
  test.each(["r1", "r1 ", "r1 on", "r1\ton", "r1  on"])("is the first word of %j", (line) => {
    expect(matches(token("r1"), bytesOf(line))).toBe(true)
  })

  test.each(["", "r", "r10", "r1,on", " r1", "on r1", "R1", "r1\0"])(
    "is not the first word of %j",
    (line) => {
      expect(matches(token("r1"), bytesOf(line))).toBe(false)
    },
  )
})

test("the next line is any line", () => {
  expect(matches({ kind: "next" }, bytesOf("anything"))).toBe(true)
})

test("any token and any prefix, as with texts", () => {
  const text = fc
    .array(fc.constantFrom("a", "b", " ", "\t", "\xff"), { maxLength: 5 })
    .map((parts) => parts.join(""))
  check(
    fc.property(text, text, (wanted, line) => {
      expect(matches(prefix(wanted), bytesOf(line))).toBe(line.startsWith(wanted))
      if (/[ \t]/.test(wanted)) return
      expect(matches(token(wanted), bytesOf(line))).toBe(line.split(/[ \t]/)[0] === wanted)
    }),
    CHEAP_RUNS,
  )
})
