/** The table of docs/examples/README.md: a row for each example, between two markers. */

import type { Finding } from "./finding.ts"
import { EXAMPLES, versionsOf } from "./programs.ts"

const BEGIN = "<!-- examples: made by bun run examples -->"
const END = "<!-- end of examples -->"
const HEAD = ["| example | language | library | what was seen |", "|---|---|---|---|"]

/** The row of an example that did all that it should. */
export function rowOf({ example, seen }: Finding): string {
  const { language, library } = versionsOf(example)
  return `| [${example.name}](${example.file}) | ${language} | ${library} | ${seen} |`
}

/**
 * The page with these rows in the place of those of the same examples, in the order of `EXAMPLES`. Other rows stay.
 *
 * @throws unless each marker occurs exactly once, in order.
 */
export function withRows(page: string, rows: readonly string[]): string {
  const [before, between, more] = page.split(BEGIN)
  const [old, after, evenMore] = between?.split(END) ?? []
  if (after === undefined || more !== undefined || evenMore !== undefined) {
    throw new Error(`docs/examples/README.md must hold once each, in order: ${BEGIN} ${END}`)
  }
  const known = [...rows, ...(old ?? "").split("\n")]
  const chosen = EXAMPLES.flatMap(
    ({ file }) => known.find((row) => row.includes(`](${file})`)) ?? [],
  )
  return `${before}${BEGIN}\n\n${[...HEAD, ...chosen].join("\n")}\n\n${END}${after}`
}
