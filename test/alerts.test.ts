/**
 * The alert rules and the dashboard against the documents and the metrics: each alert leads to its
 * row of docs/OPERATING.md and back, each has a case, and each expression is about metrics that
 * exist. `bun run observe` evaluates them with Prometheus.
 */

import { describe, expect, test } from "bun:test"
import { Counters } from "../src/counters.ts"
import { type MetricsSnapshot, supervisorMetrics, WorkerMetrics } from "../src/ops/metrics.ts"
import { alertCases, alerts, symptoms } from "./support/alerts.ts"
import { STAGES } from "./support/dashboard.ts"
import { NO_GAUGES } from "./support/gauges.ts"

const all = alerts()
const rows = symptoms()
const anchors = rows.map(({ anchor }) => anchor)
const panels = STAGES.flatMap(({ panels }) => panels)

/** `none: <why>` may name alerts of other rows, in code too. */
const namedIn = (alert: string) =>
  alert.startsWith("none: ") ? [] : [...alert.matchAll(/`(\w+)`/g)].map(([, name = ""]) => name)

describe("alerts", () => {
  test("have different names, which begin with Owsla", () => {
    const names = all.map(({ alert }) => alert)
    expect(names.filter((name) => !/^Owsla[A-Z]\w+$/.test(name))).toEqual([])
    expect(new Set(names).size).toBe(names.length)
  })

  test.each(all.map((each) => [each.alert, each] as const))(
    "%s leads to a row that names it",
    (name, { annotations }) => {
      const anchor = /^docs\/OPERATING\.md#(.+)$/.exec(annotations.runbook_url)?.[1]
      const row = rows.find((each) => each.anchor === anchor)
      expect(namedIn(row?.alert ?? "")).toContain(name)
    },
  )

  test("have a case each, and no case is without an alert", () => {
    expect(alertCases().sort()).toEqual(all.map(({ alert }) => alert).sort())
  })
})

describe("rows of symptoms", () => {
  test("have anchors that differ", () => {
    expect(new Set(anchors).size).toBe(anchors.length)
    expect(anchors).toContain("broker-away")
  })

  test.each(rows.map(({ anchor, alert }) => [anchor, alert] as const))(
    "%s has its alerts, or says why it has none: %s",
    (anchor, alert) => {
      const own = all.filter(({ annotations }) => annotations.runbook_url.endsWith(`#${anchor}`))
      expect(namedIn(alert).sort()).toEqual(own.map(({ alert }) => alert).sort())
      if (own.length === 0) expect(alert).toMatch(/^none: \S/)
      const mentioned = [...alert.matchAll(/`(Owsla\w+)`/g)].map(([, name]) => name)
      expect(mentioned.filter((name) => !all.some((each) => each.alert === name))).toEqual([])
    },
  )
})

describe("the dashboard", () => {
  test("has a link to a symptom in each row, and no dead one", () => {
    const linked = panels.flatMap(({ symptom }) => symptom ?? [])
    expect(linked.filter((anchor) => !anchors.includes(anchor))).toEqual([])
    for (const { panels } of STAGES) {
      expect(panels.some(({ symptom }) => symptom !== null)).toBe(true)
    }
  })
})

test("each expression is about metrics that exist", async () => {
  const worker = await new WorkerMetrics(new Counters(), () => NO_GAUGES).snapshot()
  const snapshots: MetricsSnapshot[] = [worker, await supervisorMetrics(0, 0)]
  const known = new Set(snapshots.flat().map(({ name }) => name))
  const expressions = [
    ...all.map(({ expr }) => expr),
    ...panels.flatMap(({ queries }) => queries.map(({ expr }) => expr)),
  ]
  const names = expressions.flatMap((expr) => expr.match(/\b(owsla|process)_\w+/g) ?? [])
  const missing = names.filter((name) => !known.has(name.replace(/_bucket$/, "")))
  expect(names.length).toBeGreaterThan(expressions.length)
  expect([...new Set(missing)]).toEqual([])
})
