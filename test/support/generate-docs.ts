/**
 * `bun run docs`: writes what the documentation says of the settings, `.env.example` and the table in
 * README.md, from the declarations in `src/config/settings.ts`, so that neither can say anything else.
 *
 * The same on every machine: what a default depends on is told in words. Touches nothing of README.md
 * but what stands between its two markers. `test/docs.test.ts` compares the files with this.
 */

import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { ConfigurationError, loadConfig } from "../../src/config/config.ts"
import { SETTINGS } from "../../src/config/settings.ts"

export const ROOT = join(import.meta.dir, "../..")
export const README_FILE = join(ROOT, "README.md")
export const ENVIRONMENT_FILE = join(ROOT, ".env.example")

const TABLE_BEGINS = "<!-- settings: made by bun run docs -->"
const TABLE_ENDS = "<!-- end of settings -->"
const NO_DEFAULT = "not set"
const WIDTH = 100

type Setting = (typeof SETTINGS)[number]

if (import.meta.main) {
  writeFileSync(README_FILE, withSettings(readFileSync(README_FILE, "utf8")))
  writeFileSync(ENVIRONMENT_FILE, environmentExample())
}

/** `.env.example`: nothing set, and what each variable would be if it were. */
export function environmentExample(): string {
  const heading =
    "Every setting with its default. Copy this file to .env, which Bun reads by itself, and take the # away from what is to differ. Made by bun run docs from src/settings.ts."
  return `${[comment(heading), ...SETTINGS.map(example)].join("\n\n")}\n`
}

function example(setting: Setting): string {
  const { name, text, range, secret } = setting
  const value = isValue(setting) ? setting.default : ""
  const file = secret ? ` A secret: ${name}_FILE may name a file that holds it instead.` : ""
  const bounds = `Range: ${range}. Default: ${setting.default || NO_DEFAULT}.${file}`
  return `${comment(text)}\n${comment(bounds)}\n# ${name}=${value}`
}

/** The README with a new table. @throws when its two markers are not there, once, in order. */
export function withSettings(readme: string): string {
  const [before, between, more] = readme.split(TABLE_BEGINS)
  const [, after, evenMore] = between?.split(TABLE_ENDS) ?? []
  if (after === undefined || more !== undefined || evenMore !== undefined) {
    throw new Error(`README.md must hold once each, in order: ${TABLE_BEGINS} ${TABLE_ENDS}`)
  }
  return `${before}${TABLE_BEGINS}\n\n${table()}\n\n${TABLE_ENDS}${after}`
}

function table(): string {
  const rows = SETTINGS.map((setting) => {
    const { name, text, range, secret } = setting
    const byDefault = isValue(setting) ? `\`${setting.default}\`` : setting.default || NO_DEFAULT
    const file = secret ? ` Secret: also as \`${name}_FILE\`.` : ""
    return [`\`${name}\``, byDefault, range, `${text}${file}`]
  })
  return [["Variable", "Default", "Range", "Meaning"], ["---", "---", "---", "---"], ...rows]
    .map((cells) => `| ${cells.map(cell).join(" | ")} |`)
    .join("\n")
}

/** A pipe would end the cell, even within code. */
function cell(text: string): string {
  return text.replaceAll("|", "\\|")
}

/** Whether the default can be written into the environment, or tells what it depends on. */
function isValue({ name, default: value }: Setting): boolean {
  if (value === "") return false
  try {
    // With a broker, since only then is the number of workers free.
    loadConfig({ AMQP_URL: "amqp://localhost", [name]: value }, () => null)
    return true
  } catch (error) {
    if (!(error instanceof ConfigurationError)) throw error
    return !error.faults.some((fault) => fault.startsWith(`${name}:`))
  }
}

/** The text as comment lines no longer than the files of this project are wide. */
function comment(text: string): string {
  const lines: string[] = []
  let line = "#"
  for (const word of text.split(" ")) {
    if (line.length + 1 + word.length > WIDTH) {
      lines.push(line)
      line = "#"
    }
    line += ` ${word}`
  }
  return [...lines, line].join("\n")
}
