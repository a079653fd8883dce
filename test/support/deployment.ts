/**
 * Reads the files that deploy the gateway, for the tests that compare them with the code: which
 * variables a gateway would get, and which of those exist.
 */

import { readFileSync } from "node:fs"
import { join } from "node:path"
import { SETTINGS } from "../../src/config/settings.ts"

export const ROOT = join(import.meta.dir, "../..")
export const read = (path: string) => readFileSync(join(ROOT, path), "utf8")

export type Variables = Readonly<Record<string, string>>

const secrets = [...SETTINGS.filter(({ secret }) => secret).map((s) => s.name), "CLOUDAMQP_URL"]

/** All variables that the configuration reads. */
export const VARIABLES: ReadonlySet<string> = new Set([
  ...SETTINGS.map(({ name }) => name),
  ...secrets.map((name) => `${name}_FILE`),
  "CLOUDAMQP_URL",
])

/** A section of a unit file: the values of each name, in order. */
export type Section = ReadonlyMap<string, readonly string[]>

/** The sections of a unit of systemd. Lines do not continue. */
export function parseUnit(text: string): ReadonlyMap<string, Section> {
  const sections = new Map<string, Map<string, string[]>>()
  let section = new Map<string, string[]>()
  for (const line of text.split("\n")) {
    const [, header] = /^\[(\w+)\]$/.exec(line) ?? []
    if (header !== undefined) {
      section = new Map()
      sections.set(header, section)
    } else if (line !== "" && !line.startsWith("#")) {
      const [, name = line, value = ""] = /^([^=]+)=(.*)$/.exec(line) ?? []
      section.set(name, [...(section.get(name) ?? []), value])
    }
  }
  return sections
}

/** "120s", "75" or 75, in milliseconds. */
export function seconds(text: string | number | undefined): number {
  const [, number] = /^(\d+)s?$/.exec(String(text)) ?? []
  if (number === undefined) throw new Error(`not a time in seconds: ${text}`)
  return Number(number) * 1_000
}
