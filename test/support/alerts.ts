/** The alert rules of docs/prometheus/alerts.yml and the rows of docs/OPERATING.md, for their tests. */

import { readFileSync } from "node:fs"
import { join } from "node:path"
import * as v from "valibot"

const ROOT = join(import.meta.dir, "../..")
export const PROMETHEUS_FOLDER = join(ROOT, "docs/prometheus")
export const ALERTS_FILE = join(PROMETHEUS_FOLDER, "alerts.yml")
export const ALERT_CASES_FILE = join(PROMETHEUS_FOLDER, "alerts.test.yml")
const OPERATING_FILE = join(ROOT, "docs/OPERATING.md")

const rulesSchema = v.object({
  groups: v.array(
    v.object({
      name: v.string(),
      rules: v.array(
        v.strictObject({
          alert: v.string(),
          expr: v.string(),
          for: v.optional(v.string()),
          labels: v.strictObject({ severity: v.picklist(["critical", "warning", "info"]) }),
          annotations: v.strictObject({ summary: v.string(), runbook_url: v.string() }),
        }),
      ),
    }),
  ),
})
const casesSchema = v.object({ tests: v.array(v.object({ name: v.string() })) })

export type Alert = v.InferOutput<typeof rulesSchema>["groups"][number]["rules"][number]

export function alerts(): Alert[] {
  const { groups } = v.parse(rulesSchema, Bun.YAML.parse(readFileSync(ALERTS_FILE, "utf8")))
  return groups.flatMap(({ rules }) => rules)
}

/** The names of the alerts that have a case. */
export function alertCases(): string[] {
  const { tests } = v.parse(casesSchema, Bun.YAML.parse(readFileSync(ALERT_CASES_FILE, "utf8")))
  return tests.map(({ name }) => name)
}

/** A row of the table of symptoms. */
export interface Symptom {
  readonly anchor: string
  /** The last cell: names of alerts, or why there is none. */
  readonly alert: string
}

/** @throws when a row has no anchor or another number of cells. */
export function symptoms(): Symptom[] {
  const text = readFileSync(OPERATING_FILE, "utf8")
  const [, table = ""] = text.split("| symptom | metric | action | alert |\n|---|---|---|---|\n")
  const rows = table.split("\n\n")[0]?.split("\n") ?? []
  return rows.map((row) => {
    const cells = row.slice(2, -2).split(" | ")
    const anchor = /^<a id="([a-z-]+)"><\/a>/.exec(row.slice(2))?.[1]
    if (cells.length !== 4 || anchor === undefined) {
      throw new Error(`docs/OPERATING.md: a row needs an anchor and an alert: ${row}`)
    }
    return { anchor, alert: cells[3] ?? "" }
  })
}
