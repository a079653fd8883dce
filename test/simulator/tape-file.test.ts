/** A recorded tape, read for a replay. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { type Payload, shownLine } from "../../src/fleet/tape/entry.ts"
import { parseTape, readTapeFile, TapeFileError } from "../../src/simulator/tape-file.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const ABOUT = { connection_id: "gw1.0.mb2k3f9zq7x2.1", bytes: 1, seq: 0 }

function entry(at: number, about: object = { line: "x" }): string {
  return JSON.stringify({ at, kind: "in", ...ABOUT, ...about })
}

function errorOf(text: string): string {
  try {
    parseTape(text, "tape.jsonl")
  } catch (error) {
    if (error instanceof TapeFileError) return error.message
    throw error
  }
  return ""
}

test("has the lines of the device with the time since the first, and nothing else", () => {
  const others = [
    { at: 1, kind: "connected", connection_id: ABOUT.connection_id },
    { at: 2, kind: "out", ...ABOUT, outcome: "written" },
    { kind: "dropped", count: 3 },
  ].map((other) => JSON.stringify(other))
  const text = [others[0], entry(1_000), others[1], entry(1_250, { hex: "00" }), others[2], ""]
  const { lines, dropped } = parseTape(text.join("\n"), "t")
  expect(lines.map(({ afterMs, body }) => [afterMs, ...body])).toEqual([
    [0, 120],
    [250, 0],
  ])
  expect(dropped).toBe(3)
})

test("the clock of another worker may be behind: no line goes before the one before it", () => {
  const { lines } = parseTape([entry(100), entry(300), entry(50), entry(400)].join("\n"), "t")
  expect(lines.map(({ afterMs }) => afterMs)).toEqual([0, 200, 200, 300])
})

describe("an error names the line of the file", () => {
  test.each<[string, string]>([
    [
      `${entry(1)}\n${entry(2, {})}`,
      'tape.jsonl:2: the line is hidden: record the tape with payload "text" or "hex"',
    ],
    [`${entry(1)}\n\n{"kind":`, "tape.jsonl:3: not an entry of a tape"],
    [`{"kind":"in"}`, "tape.jsonl:1: not an entry of a tape"],
    [entry(1, { line: "two" }), "tape.jsonl:1: the line does not have 1 bytes"],
    [
      entry(1, { hex: "0a" }),
      "tape.jsonl:1: the line contains LF or ends with CR, and cannot be sent with an LF",
    ],
    ["", "tape.jsonl: no lines from the device"],
  ])("%j", (text, message) => {
    expect(errorOf(text)).toBe(message)
  })

  test("a file that does not exist", () => {
    expect(() => readTapeFile("/nowhere/tape.jsonl")).toThrow("/nowhere/tape.jsonl cannot be read")
  })
})

test("what a tape shows of a line is that line again", () => {
  const bytes = fc
    .uint8Array({ maxLength: 40 })
    .filter((line) => !line.includes(10) && line.at(-1) !== 13)
  const line = fc.oneof(
    bytes,
    fc
      .string({ unit: "binary", maxLength: 20 })
      .map((text) => Buffer.from(text.replace(/[\r\n]/g, ""))),
  )
  check(
    fc.property(
      fc.array(line, { minLength: 1, maxLength: 5 }),
      fc.constantFrom<Payload>("text", "hex"),
      (all, payload) => {
        const text = all.map((body) =>
          entry(1, { ...shownLine(body, payload), bytes: body.length }),
        )
        const { lines } = parseTape(text.join("\n"), "t")
        expect(lines.map(({ body }) => [...body])).toEqual(all.map((body) => [...body]))
      },
    ),
    CHEAP_RUNS,
  )
})
