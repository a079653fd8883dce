/**
 * `bun run bench [name …] [--smoke] [--json]`: runs the benches, all or those named, one after the
 * other, and prints their figures with what they were measured on.
 */

import { parseArgs } from "node:util"
import { type AdmissionAuth, admission } from "./admission.ts"
import { commands } from "./commands.ts"
import { type BenchResult, commit, machine } from "./harness.ts"
import { lines } from "./lines.ts"
import { registry } from "./registry.ts"
import { stampede } from "./stampede.ts"

const admissionBy = (auth: AdmissionAuth) => (smoke: boolean) =>
  admission(auth, { connections: smoke ? 300 : 5_000, rounds: smoke ? 1 : 5 })

/** Smoke parameters run with the tests, so that no bench rots. */
export const BENCHES: Record<string, (smoke: boolean) => Promise<BenchResult>> = {
  lines: (smoke) =>
    lines({ connections: smoke ? 10 : 100, linesEach: smoke ? 100 : 1_000, lineBytes: 100 }, false),
  "lines-slow-broker": (smoke) =>
    lines({ connections: smoke ? 10 : 100, linesEach: smoke ? 200 : 2_000, lineBytes: 100 }, true),
  commands: (smoke) =>
    commands({ connections: smoke ? 5 : 100, commandsEach: smoke ? 50 : 200, seed: 1 }),
  "admission-none": admissionBy("none"),
  "admission-hello": admissionBy("hello"),
  "admission-mtls": admissionBy("mtls"),
  stampede: (smoke) =>
    stampede({ devices: smoke ? 200 : 20_000, crowds: 2, connected: smoke ? 5 : 50 }),
  registry: (smoke) =>
    registry({
      devices: smoke ? 200 : 20_000,
      perSecond: smoke ? 0 : 1_000,
      rounds: smoke ? 1 : 2,
    }),
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      smoke: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
    },
  })
  const names = positionals.length > 0 ? positionals : Object.keys(BENCHES)
  const unknown = names.filter((name) => !(name in BENCHES))
  if (unknown.length > 0) {
    console.error(`no bench ${unknown.join(", ")}; there are ${Object.keys(BENCHES).join(", ")}`)
    return 2
  }
  const measuredOn = { machine: machine(), commit: commit(), date: new Date().toISOString() }
  if (!values.json) console.log(`${measuredOn.machine}\ncommit ${measuredOn.commit}\n`)
  for (const name of names) {
    const result = await BENCHES[name]?.(values.smoke)
    if (result === undefined) continue
    if (values.json) console.log(JSON.stringify({ ...measuredOn, ...result }))
    else {
      console.log(`${result.bench} ${JSON.stringify(result.parameters)}`)
      for (const [figure, value] of Object.entries(result.figures)) {
        console.log(`  ${figure.padEnd(40)} ${value}`)
      }
    }
  }
  return 0
}

if (import.meta.main) process.exit(await main())
