/** docs/METRICS.md, made by `bun run docs` from the metrics of a worker and of the supervisor. */

import { Counters } from "../../src/counters.ts"
import { type Metric, supervisorMetrics, WorkerMetrics } from "../../src/ops/metrics.ts"
import { NO_GAUGES } from "./gauges.ts"

const HEADING = `# Metrics

<!-- made by bun run docs -->

\`GET /metrics\` has these metrics, summed over the processes of the instance unless the meaning says otherwise. Counters and histograms
never decrease while the instance runs. Labels have values from closed lists only, and no label contains a device id.
[OPERATING.md](OPERATING.md#what-to-watch) tells which symptom each of the important ones shows, and [HTTP.md](HTTP.md#metrics-without-a-token)
how to get them without a token.

A histogram \`x\` has the series \`x_bucket{le}\`, \`x_sum\` and \`x_count\`.

| metric | type | labels | meaning |
|---|---|---|---|
`

export async function metricsDocument(): Promise<string> {
  const counters = new Counters()
  // So that metrics whose labels appear with their first value have one.
  counters.httpErrors.set("invalid", 1)
  counters.commandTimes.written.observe(1)
  const worker = await new WorkerMetrics(counters, () => NO_GAUGES).snapshot()
  const all = [...worker, ...(await supervisorMetrics(0, 0))]
  const byName = new Map(all.map((metric) => [metric.name, metric]))
  const rows = [...byName.values()].sort((a, b) => (a.name < b.name ? -1 : 1)).map(row)
  return `${HEADING}${rows.join("\n")}\n`
}

function row({ name, type, help, values }: Metric): string {
  const labels = Object.keys(values[0]?.labels ?? {}).filter((label) => label !== "le")
  const cells = labels.map((label) => `\`${label}\``).join(", ")
  return `| \`${name}\` | ${type} | ${cells} | ${help.replaceAll("|", "\\|")} |`
}
