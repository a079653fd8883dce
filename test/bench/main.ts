/**
 * `bun run bench [name …] [--smoke] [--json] [--page]`: runs the benches, all or those named, one after the other, and
 * prints their figures with what they were measured on; with `--page` they become their tables in
 * docs/PERFORMANCE.md.
 */

import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { type AdmissionAuth, admission } from "./admission.ts"
import { commands } from "./commands.ts"
import { type BenchResult, commit, machine } from "./harness.ts"
import { lines } from "./lines.ts"
import { registry } from "./registry.ts"
import { stampede } from "./stampede.ts"

interface Bench {
  /** One sentence for the page. */
  readonly what: string
  /** Smoke parameters run with the tests, so that no bench rots. */
  readonly run: (smoke: boolean) => Promise<BenchResult>
}

const PAGE = join(import.meta.dir, "../../docs/PERFORMANCE.md")
const BEGIN = "<!-- figures: made by bun run bench --page -->"
const END = "<!-- end of figures -->"

const admissionBy = (auth: AdmissionAuth, what: string): Bench => ({
  what: `From the first byte to a device that is admitted, told of and, with a name, known to the fleet: ${what}. One worker and its supervisor, beside a bare \`Bun.listen\` TLS server that only counts, in turn.`,
  run: (smoke) => admission(auth, { connections: smoke ? 300 : 5_000, rounds: smoke ? 1 : 5 }),
})

export const BENCHES: Readonly<Record<string, Bench>> = {
  lines: {
    what: "Lines of 100 bytes from devices to a confirmed place in a quorum queue, two workers.",
    run: (smoke) =>
      lines(
        { connections: smoke ? 10 : 100, linesEach: smoke ? 100 : 1_000, lineBytes: 100 },
        false,
      ),
  },
  "lines-slow-broker": {
    what: "The same with the broker stopped every other quarter of a second.",
    run: (smoke) =>
      lines(
        { connections: smoke ? 10 : 100, linesEach: smoke ? 200 : 2_000, lineBytes: 100 },
        true,
      ),
  },
  commands: {
    what: "Numbered commands published to `to_device` in random order and written in order; about half are taken by a worker that does not hold the device and go through the broker a second time.",
    run: (smoke) =>
      commands({ connections: smoke ? 5 : 100, commandsEach: smoke ? 50 : 200, seed: 1 }),
  },
  "admission-none": admissionBy("none", "`DEVICE_AUTH=none`"),
  "admission-hello": admissionBy("hello", "`DEVICE_AUTH=hello`"),
  "admission-mtls": admissionBy(
    "mtls",
    "`DEVICE_AUTH=mtls`, the bare server asks for certificates too",
  ),
  stampede: {
    what: "All devices connect at the same instant while others are connected and send; beside it the same devices 32 at a time, which is the capacity. Two workers.",
    run: (smoke) =>
      stampede({ devices: smoke ? 200 : 20_000, crowds: 2, connected: smoke ? 5 : 50 }),
  },
  registry: {
    what: "What it costs that every worker can find a device, for each that comes or goes, at 1,000 a second: by announcements between workers, which is what the gateway does, beside a binding for each device at the broker, in turn.",
    run: (smoke) =>
      registry({
        devices: smoke ? 200 : 20_000,
        perSecond: smoke ? 0 : 1_000,
        rounds: smoke ? 1 : 2,
      }),
  },
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      smoke: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
      page: { type: "boolean", default: false },
    },
  })
  const names = positionals.length > 0 ? positionals : Object.keys(BENCHES)
  const unknown = names.filter((name) => !(name in BENCHES))
  if (unknown.length > 0) {
    console.error(`no bench ${unknown.join(", ")}; there are ${Object.keys(BENCHES).join(", ")}`)
    return 2
  }
  if (values.page && values.smoke) {
    console.error("--page is for benches in their full size")
    return 2
  }
  const measuredOn = { machine: machine(), commit: commit(), date: new Date().toISOString() }
  if (!values.json) console.log(`${measuredOn.machine}\ncommit ${measuredOn.commit}\n`)
  const results: BenchResult[] = []
  for (const name of names) {
    const result = await BENCHES[name]?.run(values.smoke)
    if (result === undefined) continue
    results.push(result)
    if (values.json) console.log(JSON.stringify({ ...measuredOn, ...result }))
    else print(result)
  }
  if (values.page) writePage(results, measuredOn)
  return 0
}

function print({ bench, parameters, figures }: BenchResult): void {
  console.log(`${bench} ${JSON.stringify(parameters)}`)
  for (const [figure, value] of Object.entries(figures)) {
    console.log(`  ${figure.padEnd(48)} ${value}`)
  }
}

/** Replaces the sections of these benches, in the order of the list. */
function writePage(
  results: readonly BenchResult[],
  { machine, commit, date }: { machine: string; commit: string; date: string },
): void {
  const page = readFileSync(PAGE, "utf8")
  const before = page.slice(0, page.indexOf(BEGIN) + BEGIN.length)
  const after = page.slice(page.indexOf(END))
  const sections = new Map<string, string>()
  for (const section of page.slice(before.length, page.indexOf(END)).split(/^(?=### )/m)) {
    const [, bench] = /^### `([^`]+)`/.exec(section) ?? []
    if (bench !== undefined) sections.set(bench, section.trim())
  }
  for (const { bench, parameters, figures } of results) {
    const with_ = Object.entries(parameters).map(([name, value]) => `${name} ${number(value)}`)
    const rows = Object.entries(figures).map(([name, value]) => `| ${name} | ${number(value)} |`)
    const title = `### \`${bench}\`: ${with_.join(", ")}`
    const measured = `On ${date.slice(0, 10)} at commit ${commit}, ${machine}, RabbitMQ with quorum queues.`
    const text = `${BENCHES[bench]?.what ?? ""} ${measured}`
    sections.set(bench, [title, "", text, "", "| | |", "|---|---|", ...rows].join("\n"))
  }
  const ordered = Object.keys(BENCHES).flatMap((bench) => sections.get(bench) ?? [])
  writeFileSync(PAGE, [before, ...ordered, after].join("\n\n"))
}

function number(value: number): string {
  return value.toLocaleString("en-US")
}

if (import.meta.main) process.exit(await main())
