/**
 * The unit file, checked by systemd's own tools: it is valid, and the service is confined. They do
 * not need systemd to run.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { read } from "../support/deployment.ts"
import { findProgram } from "../support/tools.ts"

/** Tenths of the exposure level, from 0 to 100; "OK" begins below 50. */
const MAX_EXPOSURE = 20
let directory: string
let unit: string

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "owsla-unit-"))
  unit = join(directory, "owsla.service")
  // The program must exist to be verified.
  writeFileSync(
    unit,
    read("docs/systemd/owsla.service").replaceAll("/usr/local/bin/bun", process.execPath),
  )
})

afterAll(() => rmSync(directory, { recursive: true }))

function analyze(...args: string[]): { status: number; output: string } {
  const program = findProgram("systemd-analyze", "systemd")
  const { exitCode, stdout, stderr } = Bun.spawnSync([program, ...args, unit])
  return { status: exitCode, output: `${stdout}${stderr}` }
}

test("systemd-analyze verify finds nothing", () => {
  expect(analyze("verify", "--man=no")).toEqual({ status: 0, output: "" })
})

test("systemd-analyze security finds little exposure", () => {
  const options = ["--offline=true", `--threshold=${MAX_EXPOSURE}`, "--no-pager"]
  const { status, output } = analyze("security", ...options)
  expect([status, output.trim().split("\n").at(-1)]).toEqual([0, expect.stringContaining(" OK ")])
})

test("the tools would have found faults", () => {
  writeFileSync(unit, "[Service]\nExecStart=/nowhere/bun\nNoSuchSetting=1\n")
  expect(analyze("verify", "--man=no").output).toContain("NoSuchSetting")
  expect(analyze("security", "--offline=true", `--threshold=${MAX_EXPOSURE}`).status).not.toBe(0)
})
