/**
 * The Grafana dashboard docs/grafana/owsla.json, built by `bun run docs`: a row for each stage, its
 * panels, and a link from each panel to the symptoms in docs/OPERATING.md.
 *
 * Own builder: Grafana's SDK changes with each release, and jsonnet would be another language. Its
 * variables are the data source, the instances and the address of the documents. There is none for
 * workers, because `/metrics` has the sums of an instance.
 */

export interface Query {
  /** May contain `{{label}}`. */
  readonly legend: string
  readonly expr: string
}

export interface Panel {
  readonly title: string
  /** Grafana's id of the unit; `short` for numbers. */
  readonly unit: string
  readonly queries: readonly Query[]
  /** The row of docs/OPERATING.md; null when no symptom is about it. */
  readonly symptom: string | null
}

export interface Stage {
  readonly title: string
  readonly panels: readonly Panel[]
}

const SELECTED = 'instance=~"$instance"'
const PER_ROW = 3
const WIDTH = 24 / PER_ROW
const HEIGHT = 8

const now = (metric: string, legend = "{{instance}}"): Query => ({
  legend,
  expr: `${metric}{${SELECTED}}`,
})

const perS = (metric: string, legend = "{{instance}}"): Query => ({
  legend,
  expr: `sum by (instance) (rate(${metric}{${SELECTED}}[$__rate_interval]))`,
})

/** The sum over the instances, by label. Values that do not occur are left out. */
const perSBy = (metric: string, label: string): Query => ({
  legend: `{{${label}}}`,
  expr: `sum by (${label}) (rate(${metric}{${SELECTED}}[$__rate_interval])) > 0`,
})

const quantiles = (metric: string, label: string | null = null): Query[] =>
  [0.5, 0.99].map((quantile) => ({
    legend: `p${quantile * 100}${label === null ? "" : ` {{${label}}}`}`,
    expr: `histogram_quantile(${quantile}, sum by (le${label === null ? "" : `, ${label}`}) (rate(${metric}_bucket{${SELECTED}}[$__rate_interval])))`,
  }))

const panel = (
  title: string,
  unit: string,
  symptom: string | null,
  ...queries: readonly Query[]
): Panel => ({ title, unit, symptom, queries })

export const STAGES: readonly Stage[] = [
  {
    title: "Devices",
    panels: [
      panel(
        "Connections and their limit",
        "short",
        "devices-gone",
        now("owsla_connections"),
        now("owsla_connections_limit", "{{instance}} limit"),
      ),
      panel("Admitted", "cps", "devices-not-admitted", perS("owsla_connections_admitted_total")),
      panel(
        "Closed or refused, by reason",
        "cps",
        "devices-refused",
        perSBy("owsla_connections_closed_total", "reason"),
      ),
      panel("Waiting for their handshakes", "short", "storm", now("owsla_connections_waiting")),
      panel(
        "Duration of handshakes",
        "s",
        "handshakes-fail",
        ...quantiles("owsla_handshake_seconds"),
      ),
    ],
  },
  {
    title: "Lines",
    panels: [
      panel(
        "Lines",
        "cps",
        "lines-late",
        perS("owsla_lines_in_total", "{{instance}} received"),
        perS("owsla_lines_confirmed_total", "{{instance}} confirmed"),
      ),
      panel(
        "From receipt to confirm",
        "s",
        "lines-late",
        ...quantiles("owsla_line_confirm_seconds"),
      ),
      panel("Publish window", "short", "lines-late", now("owsla_window_lines")),
      panel(
        "Devices waiting for room in the window",
        "short",
        "lines-late",
        now("owsla_waiting_for_room"),
      ),
      panel(
        "Bytes waiting",
        "bytes",
        "reading-paused",
        now("owsla_held_bytes", "{{instance}} lines"),
        now("owsla_partial_line_bytes", "{{instance}} unfinished lines"),
      ),
      panel(
        "Published again, returned, refused",
        "cps",
        "lines-repeated",
        perS("owsla_lines_republished_total", "{{instance}} published again"),
        perS("owsla_lines_returned_total", "{{instance}} returned"),
        perS("owsla_lines_nacked_total", "{{instance}} refused"),
      ),
      panel("Bytes of lines", "Bps", null, perS("owsla_line_bytes_in_total")),
      panel("Reading paused, by cause", "cps", "device-rate", {
        legend: "{{by}}",
        expr: `sum by (by) (rate(owsla_reading_paused_total{${SELECTED}}[$__rate_interval]))`,
      }),
    ],
  },
  {
    title: "Commands",
    panels: [
      panel("By outcome", "cps", "commands-not-written", perSBy("owsla_commands_total", "outcome")),
      panel(
        "From arrival to outcome",
        "s",
        "commands-wait",
        ...quantiles("owsla_command_seconds", "outcome"),
      ),
      panel("Unacknowledged", "short", "commands-wait", now("owsla_commands_unacknowledged")),
      panel(
        "Waiting for a missing number",
        "short",
        "commands-out-of-order",
        now("owsla_commands_waiting_for_number"),
      ),
      panel(
        "Gaps given up",
        "cps",
        "commands-out-of-order",
        perS("owsla_gaps_skipped_total", "{{instance}}"),
        perS("owsla_gaps_given_up_early_total", "{{instance}} early"),
      ),
      panel(
        "Ended early for others",
        "cps",
        "commands-gave-way",
        perS("owsla_commands_gave_way_total", "{{instance}}"),
      ),
      panel(
        "Possibly repeated, forwarded",
        "cps",
        "command-twice",
        perS("owsla_commands_possibly_repeated_total", "{{instance}} possibly repeated"),
        perS("owsla_commands_forwarded_total", "{{instance}} forwarded"),
      ),
    ],
  },
  {
    title: "Broker",
    panels: [
      panel(
        "Workers with a broker",
        "short",
        "broker-away",
        now("owsla_broker_ready_workers"),
        now("owsla_workers", "{{instance}} workers"),
      ),
      panel(
        "Connections established and lost",
        "cps",
        "prefetch",
        perS("owsla_broker_connects_total", "{{instance}} established"),
        perS("owsla_broker_losses_total", "{{instance}} lost"),
      ),
      panel(
        "Receipts, copies and forwards not confirmed",
        "short",
        "commands-wait",
        now("owsla_outbound_messages"),
      ),
    ],
  },
  {
    title: "Fleet and held commands",
    panels: [
      panel("Other workers known", "short", "worker-missing", now("owsla_fleet_members")),
      panel("Devices looked up", "cps", "look-ups", perS("owsla_locations_asked_total")),
      panel(
        "Directory: devices of other workers",
        "short",
        "look-ups",
        now("owsla_directory_devices"),
      ),
      panel(
        "Messages between workers",
        "cps",
        "fleet-versions",
        perS("owsla_fleet_messages_total", "{{instance}} sent"),
        perS("owsla_fleet_messages_dropped_total", "{{instance}} dropped"),
        perS("owsla_fleet_messages_unknown_total", "{{instance}} not parsed"),
        perS("owsla_fleet_messages_unverified_total", "{{instance}} not verified"),
      ),
      panel("Presence events waiting", "short", "presence-late", now("owsla_presence_waiting")),
      panel("Held commands", "short", "hold-full", now("owsla_held_commands")),
    ],
  },
  {
    title: "Process",
    panels: [
      panel("CPU time", "percentunit", "slow-worker", perS("owsla_cpu_seconds_total")),
      panel("Resident memory", "bytes", "worker-died", now("owsla_resident_bytes")),
      panel(
        "Lag of the event loop",
        "s",
        "slow-worker",
        ...quantiles("owsla_event_loop_lag_seconds"),
      ),
      panel(
        "Restarts and faults",
        "short",
        "worker-died",
        now("owsla_worker_restarts_total", "{{instance}} restarts"),
        now("owsla_faults_total", "{{instance}} faults"),
      ),
      panel(
        "HTTP errors, by code",
        "cps",
        "http-timeouts",
        perSBy("owsla_http_errors_total", "code"),
      ),
      panel("Certificate expires in", "s", "certificate", {
        legend: "{{instance}}",
        expr: `owsla_certificate_not_after_seconds{${SELECTED}} - time()`,
      }),
      panel("Log lines dropped", "cps", "log-lines-missing", perS("owsla_log_lines_dropped_total")),
      panel(
        "Build",
        "short",
        null,
        now("owsla_build_info", "{{instance}} {{version}} Bun {{bun}}"),
      ),
    ],
  },
]

/** The text of docs/grafana/owsla.json. */
export function dashboardText(): string {
  return `${JSON.stringify(dashboard(), null, 2)}\n`
}

function dashboard() {
  const panels: object[] = []
  let y = 0
  for (const { title, panels: ofStage } of STAGES) {
    const id = panels.length + 1
    panels.push({ id, type: "row", title, collapsed: false, gridPos: { x: 0, y, w: 24, h: 1 } })
    y += 1
    for (const [at, each] of ofStage.entries()) {
      const [row, column] = [Math.floor(at / PER_ROW), at % PER_ROW]
      const gridPos = { x: column * WIDTH, y: y + row * HEIGHT, w: WIDTH, h: HEIGHT }
      panels.push(timeSeries(panels.length + 1, each, gridPos))
    }
    y += Math.ceil(ofStage.length / PER_ROW) * HEIGHT
  }
  return {
    uid: "owsla",
    title: "Owsla",
    description:
      "Made by bun run docs. Set the variable docs to the address of your copy of docs/.",
    tags: ["owsla"],
    schemaVersion: 39,
    editable: true,
    refresh: "30s",
    time: { from: "now-3h", to: "now" },
    templating: { list: variables() },
    panels,
  }
}

function timeSeries(id: number, { title, unit, queries, symptom }: Panel, gridPos: object) {
  return {
    id,
    type: "timeseries",
    title,
    gridPos,
    datasource: { type: "prometheus", uid: "$datasource" },
    fieldConfig: { defaults: { unit, min: 0 }, overrides: [] },
    options: { legend: { displayMode: "list", placement: "bottom" }, tooltip: { mode: "multi" } },
    targets: queries.map(({ legend, expr }, at) => ({
      refId: String.fromCharCode("A".charCodeAt(0) + at),
      expr,
      legendFormat: legend,
    })),
    links:
      symptom === null
        ? []
        : [
            {
              title: "Symptom and action",
              url: `\${docs}/OPERATING.md#${symptom}`,
              targetBlank: true,
            },
          ],
  }
}

function variables() {
  return [
    { name: "datasource", label: "Data source", type: "datasource", query: "prometheus" },
    {
      name: "instance",
      label: "Instance",
      type: "query",
      datasource: { type: "prometheus", uid: "$datasource" },
      query: { query: "label_values(owsla_build_info, instance)", refId: "instance" },
      refresh: 2,
      multi: true,
      includeAll: true,
      allValue: ".*",
      current: { text: "All", value: "$__all" },
    },
    {
      name: "docs",
      label: "Documents",
      type: "textbox",
      query: "https://docs.example.com/owsla/docs",
      current: {
        text: "https://docs.example.com/owsla/docs",
        value: "https://docs.example.com/owsla/docs",
      },
    },
  ]
}
