/**
 * The histograms of one worker, as prom-client's JSON format has them, for `metrics.ts`.
 *
 * Classic histograms: prom-client has no native ones. Pure. Bound: 15 samples for each histogram,
 * and one histogram for each outcome. An outcome appears with its first command, because a worker
 * sends all samples to its supervisor every second.
 */

import type { Counters } from "../counters.ts"
import type { Histogram } from "../structures/histogram.ts"
import type { Metric, MetricSample, MetricsSnapshot } from "./metrics.ts"

type Labels = Readonly<Record<string, string>>
/** A histogram of a metric, and its labels. */
type Series = readonly [Labels, Histogram]

export function histogramMetrics(counters: Counters): MetricsSnapshot {
  const { lineConfirm, commandTimes, handshakes, eventLoopLag } = counters
  const commands = Object.entries(commandTimes)
    .filter(([, { counts }]) => counts.some((count) => count > 0))
    .map(([outcome, histogram]): Series => [{ outcome }, histogram])
  return [
    metric(
      "owsla_line_confirm_seconds",
      "Seconds from the receipt of a line from a device until the broker confirmed it. The wait for room in the publish window is included, the wait of a device for its own rate is not",
      [[{}, lineConfirm]],
    ),
    metric(
      "owsla_command_seconds",
      "Seconds from the arrival of a command at the worker that gave it its outcome until the outcome was final, by outcome. Commands that were held (hold_ms) and lines of broadcasts are not included",
      commands,
    ),
    metric(
      "owsla_handshake_seconds",
      "Seconds from the start of a TLS handshake until it was complete. The wait for its start and failed handshakes are not included",
      [[{}, handshakes]],
    ),
    metric(
      "owsla_event_loop_lag_seconds",
      "Seconds by which the periodic work of a worker started late, four observations a second in each worker",
      [[{}, eventLoopLag]],
    ),
  ]
}

function metric(name: string, help: string, series: readonly Series[]): Metric {
  const values = series.flatMap((each) => samples(name, each))
  return { name, help, type: "histogram", aggregator: "sum", values }
}

/** The buckets of Prometheus are cumulative. */
function samples(name: string, [labels, { bounds, counts, sum }]: Series): MetricSample[] {
  let count = 0
  const buckets = [...counts].map((inBucket, at): MetricSample => {
    count += inBucket
    const le = bounds[at] ?? "+Inf"
    return { metricName: `${name}_bucket`, labels: { ...labels, le }, value: count }
  })
  return [
    ...buckets,
    { metricName: `${name}_sum`, labels, value: sum },
    { metricName: `${name}_count`, labels, value: count },
  ]
}
