/**
 * The text of findings for a person: a column for the level, one for the check, and the message,
 * wrapped. Advice is on lines of its own. Pure.
 *
 *   ok        clock          the kernel's clock is synchronised
 *   warning   open files     the limit is 1,024: a worker accepts 512 devices
 *                            ─► set LimitNOFILE=200000 in the unit
 */

import type { Finding, Level } from "./finding.ts"

const LEVEL_WIDTH = 9
const CHECK_WIDTH = 16
const ARROW = "─► "
const MIN_TEXT_WIDTH = 30

const COLOURS: Readonly<Record<Level, number>> = { ok: 32, skipped: 90, warning: 33, failure: 31 }

export interface ReportOptions {
  /** Columns of the terminal. */
  readonly width: number
  readonly colour: boolean
}

/** Ends with a line feed. */
export function findingText(finding: Finding, { width, colour }: ReportOptions): string {
  const { check, level, message, advice } = finding
  const indent = LEVEL_WIDTH + CHECK_WIDTH
  const textWidth = Math.max(MIN_TEXT_WIDTH, width - indent)
  const paint = (code: number, text: string) => (colour ? `\u001b[${code}m${text}\u001b[0m` : text)
  const head = paint(COLOURS[level], level.padEnd(LEVEL_WIDTH))
  const [first = "", ...rest] = wrapped(message, textWidth)
  const lines = [`${head}${check.replaceAll("_", " ").padEnd(CHECK_WIDTH)}${first}`]
  for (const line of rest) lines.push(" ".repeat(indent) + line)
  if (advice !== null) {
    const [begin = "", ...others] = wrapped(advice, textWidth - ARROW.length)
    lines.push(`${" ".repeat(indent)}${ARROW}${begin}`)
    for (const line of others) lines.push(" ".repeat(indent + ARROW.length) + line)
  }
  return `${lines.join("\n")}\n`
}

/** The last line: how many findings of each level there are. Ends with a line feed. */
export function summaryText(findings: readonly Finding[]): string {
  const count = (level: Level) => findings.filter((finding) => finding.level === level).length
  const failures = counted(count("failure"), "failure")
  const warnings = counted(count("warning"), "warning")
  const skips = count("skipped")
  return `\n${failures}, ${warnings}, ${count("ok")} ok${skips === 0 ? "" : `, ${skips} not checked`}\n`
}

function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`
}

/** Breaks at spaces. A longer word, such as a command to paste, stays whole. */
function wrapped(text: string, width: number): string[] {
  const lines: string[] = []
  let line = ""
  for (const word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > width) {
      lines.push(line)
      line = word
    } else line = line === "" ? word : `${line} ${word}`
  }
  return [...lines, line]
}
