/**
 * `bun run examples [text …]`: builds and runs all examples of docs/examples, or those whose files contain one
 * of the texts, and writes what was seen into the table of docs/examples/README.md.
 *
 * Needs what `sh test/install long` installs. Exit status: 0 when every example did what it should, 1 when one
 * did not, 2 when no file contains a text. An example that failed leaves its row of the table as it was.
 */

import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { rowOf, withRows } from "./matrix.ts"
import { EXAMPLES } from "./programs.ts"
import { runExamples } from "./run.ts"

const PAGE = join(import.meta.dir, "../../docs/examples/README.md")

async function main(texts: readonly string[]): Promise<number> {
  const isChosen = (file: string) => texts.length === 0 || texts.some((text) => file.includes(text))
  const chosen = EXAMPLES.filter(({ file }) => isChosen(file))
  if (chosen.length === 0) {
    console.error(`no example ${texts.join(", ")}; there are`)
    for (const { file } of EXAMPLES) console.error(`  ${file}`)
    return 2
  }
  const findings = await runExamples(chosen)
  for (const { example, faults, seen } of findings) {
    console.log(`${faults.length === 0 ? "passed" : "FAILED"} ${example.file}: ${seen}`)
    for (const fault of faults) console.log(`  ${fault}`)
  }
  const passed = findings.filter(({ faults }) => faults.length === 0)
  writeFileSync(PAGE, withRows(readFileSync(PAGE, "utf8"), passed.map(rowOf)))
  return passed.length === findings.length ? 0 : 1
}

process.exit(await main(process.argv.slice(2)))
