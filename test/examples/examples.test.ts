/**
 * The examples of docs/examples that need no large package, against a real gateway and a real RabbitMQ. `bun run
 * examples` runs all of them.
 */

import { beforeAll, describe, expect, test } from "bun:test"
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { followReadings } from "./device-scenario.ts"
import type { Finding } from "./finding.ts"
import { withRows } from "./matrix.ts"
import { EXAMPLES, isShort } from "./programs.ts"
import { runExamples } from "./run.ts"

const LIMIT_MS = 240_000
const FOLDER = join(import.meta.dir, "../../docs/examples")
const PAGE = readFileSync(join(FOLDER, "README.md"), "utf8")

describe("an example", () => {
  const chosen = EXAMPLES.filter(isShort)
  let findings: Finding[] = []

  beforeAll(async () => {
    findings = await runExamples(chosen)
  }, LIMIT_MS)

  test.each(chosen)("in $file does what docs/examples/README.md says", (example) => {
    const finding = findings.find((each) => each.example === example)
    expect(finding?.faults).toEqual([])
  })
})

describe("docs/examples/README.md", () => {
  test.each(EXAMPLES)("has a row for $file", ({ file }) => {
    expect(existsSync(join(FOLDER, file))).toBe(true)
    expect(PAGE).toContain(`](${file}) |`)
  })

  test("keeps the rows of examples that were not run", () => {
    expect(withRows(PAGE, [])).toBe(PAGE)
  })
})

describe("the verdict about the readings of a device", () => {
  test.each<[string, string[], number, number]>([
    ["accepts repeats", ["reading 0", "reading 1", "reading 0", "reading 1", "reading 2"], 2, 0],
    ["accepts answers between them", ["reading 0", "done: a", "reading 1"], 0, 0],
    ["refuses a gap", ["reading 0", "reading 2"], 0, 1],
    ["refuses another order", ["reading 1", "reading 0"], 0, 2],
  ])("%s", (_, lines, repeated, gaps) => {
    const verdict = followReadings(lines)
    expect([verdict.repeated, verdict.gaps.length]).toEqual([repeated, gaps])
  })
})
