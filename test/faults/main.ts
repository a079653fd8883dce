/**
 * `bun run faults [--quick] [--only text] [name …]`: makes every fault in its long size, or the
 * faults of the named files, and writes the measurements into the table of docs/RELIABILITY.md.
 * `broker` also names `broker-cluster` and every other file whose name begins with `broker-`.
 * `--only` makes only faults whose name contains the text.
 *
 * Files `*.long.ts` need what `sh test/install long` installs. `bun test` does not find them, and
 * `--quick` makes their faults only when they are named.
 *
 * Exit status: 0 when every promise was kept, 1 when one was not, 2 for faults that do not exist. A
 * fault whose promise was not kept leaves its row of the table as it was, with its date.
 */

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { commit, machine } from "../bench/harness.ts"
import { runTests } from "../tiers.ts"
import type { FaultResult } from "./fault.ts"

const PAGE = join(import.meta.dir, "../../docs/RELIABILITY.md")
const BEGIN = "<!-- faults: made by bun run faults -->"
const END = "<!-- end of faults -->"
const SUFFIX = ".test.ts"
const LONG_SUFFIX = ".long.ts"

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { quick: { type: "boolean", default: false }, only: { type: "string" } },
  })
  const files = readdirSync(import.meta.dir).filter((file) => nameOf(file) !== null)
  const isNamed = (file: string, name: string) =>
    nameOf(file) === name || nameOf(file)?.startsWith(`${name}-`) === true
  const unknown = positionals.filter((name) => !files.some((file) => isNamed(file, name)))
  if (unknown.length > 0) {
    console.error(`no faults ${unknown.join(", ")}; there are ${files.map(nameOf).join(", ")}`)
    return 2
  }
  const named = files.filter((file) => positionals.some((name) => isNamed(file, name)))
  const everyOne = values.quick ? files.filter((file) => file.endsWith(SUFFIX)) : files
  const chosen = positionals.length > 0 ? named : everyOne
  const directory = mkdtempSync(join(tmpdir(), "owsla-faults-"))
  const results = join(directory, "results")
  writeFileSync(results, "")
  try {
    const environment = {
      FAULTS: values.quick ? "quick" : "long",
      FAULTS_RESULTS: results,
    }
    let status = 0
    for (const file of chosen) {
      const run = await runTests([`test/faults/${file}`], environment, {
        show: true,
        only: values.only,
      })
      if (run.status !== 0) status = 1
    }
    const kept = readFileSync(results, "utf8")
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => JSON.parse(line) as FaultResult)
    if (!values.quick) writePage(kept)
    return status
  } finally {
    rmSync(directory, { recursive: true })
  }
}

/** Null for a name that makes no faults. */
function nameOf(file: string): string | null {
  const suffix = [SUFFIX, LONG_SUFFIX].find((each) => file.endsWith(each))
  return suffix === undefined ? null : file.slice(0, -suffix.length)
}

/** Replaces the rows of these faults, and adds those that are new. */
function writePage(results: readonly FaultResult[]): void {
  const page = readFileSync(PAGE, "utf8")
  const before = page.slice(0, page.indexOf(BEGIN) + BEGIN.length)
  const after = page.slice(page.indexOf(END))
  const rows = new Map<string, string>()
  for (const line of page.slice(before.length, page.indexOf(END)).split("\n")) {
    const [, fault] = /^\| (.+?) \|/.exec(line) ?? []
    if (fault !== undefined && fault !== "fault") rows.set(fault, line)
  }
  const date = new Date().toISOString().slice(0, 10)
  for (const result of results) rows.set(result.fault, row(result, `${date}, ${commit()}`))
  const head = ["| fault | how it is made | promise | measured | when |", "|---|---|---|---|---|"]
  const table = [...head, ...rows.values()].join("\n")
  writeFileSync(PAGE, `${before}\n\nOn ${machine()}.\n\n${table}\n\n${after}`)
}

function row({ fault, made, promise, figures }: FaultResult, when: string): string {
  const measured = Object.entries(figures).map(([name, value]) => `${name}: ${format(value)}`)
  const cells = [fault, made, promise, measured.join("; "), when]
  return `| ${cells.map((cell) => cell.replaceAll("|", "/")).join(" | ")} |`
}

function format(value: number | string): string {
  return typeof value === "number" ? value.toLocaleString("en-US") : value
}

if (import.meta.main) process.exit(await main())
