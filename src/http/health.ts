/**
 * `GET /health`: the state of the process. `GET /ready`: whether this worker accepts devices, lines
 * and commands now.
 *
 * Neither route needs a token. When tokens are set, a request without one gets only codes from
 * closed lists, and does not query other workers. Process ids, names, counts and error texts of the
 * broker or the client library need a token, because they may contain addresses and user names.
 */

import { type Context, Hono } from "hono"
import * as v from "valibot"
import { CLOSE_REASONS } from "../device/close-reason.ts"
import type { GateState } from "../fleet/gate.ts"
import type { WorkerReport } from "../process/control.ts"
import type { Access } from "./authorization.ts"
import type { HttpEnvironment } from "./errors.ts"
import type { RouteDescription } from "./route-description.ts"
import { shownGate, shownGateSchema } from "./rules.ts"

export interface HealthDependencies {
  readonly gate: () => GateState
  readonly version: string
  readonly startedAtMs: number
  readonly nowMs: () => number
  /** This worker's own report. */
  readonly report: () => WorkerReport
  /** The reports of all workers of the instance that answered in time. */
  readonly reports: () => Promise<readonly WorkerReport[]>
}

/** Why a worker is not ready. */
const REASON_CODES = [
  "draining",
  "broker_unavailable",
  "broker_blocked",
  "consuming_paused",
  ...CLOSE_REASONS,
] as const
type ReasonCode = (typeof REASON_CODES)[number]

interface Unready {
  readonly code: ReasonCode
  /** For requests that have a token or need none. */
  readonly text: string
}

const count = v.pipe(v.number(), v.integer(), v.minValue(0))
const brokerState = v.picklist(["away", "blocked", "ready", "closed"])
const status = v.picklist(["ok", "draining", "drained"])
const drain = v.nullable(v.object({ closed: count, left: count, ends_at: count }))
const workerReport = v.object({
  worker: v.string(),
  pid: count,
  state: v.picklist(["serving", "draining", "drained"]),
  broker: v.object({ kind: brokerState, reason: v.exactOptional(v.string()) }),
  connections: count,
  admission: v.object({
    waiting: count,
    handshakes_in_progress: count,
    handshake_limit: v.number(),
    handshakes_per_s: v.number(),
    estimated_wait_ms: v.nullable(v.number()),
  }),
  drain,
  consuming_paused: v.boolean(),
  refusing: v.nullable(v.picklist(CLOSE_REASONS)),
}) satisfies v.GenericSchema<unknown, WorkerReport>
const details = v.pipe(
  v.object({
    status,
    version: v.string(),
    uptime_s: count,
    broker: brokerState,
    connections: count,
    waiting: count,
    estimated_wait_ms: v.nullable(v.number()),
    gate: shownGateSchema,
    draining: drain,
    workers: v.array(workerReport),
  }),
  v.description("With a token, or when no tokens are set."),
)
const codes = v.pipe(
  v.object({ status, broker: brokerState, reason: v.nullable(v.picklist(REASON_CODES)) }),
  v.description("Without a token."),
)

export const HEALTH_ROUTES: readonly RouteDescription[] = [
  {
    method: "get",
    path: "/health",
    name: "getHealth",
    summary: "The state of the instance",
    text: "Without a token it has the codes of the worker that answers only.",
    isPublic: true,
    answers: [{ status: 200, text: "The process serves.", schema: v.union([details, codes]) }],
    errors: [],
  },
  {
    method: "get",
    path: "/ready",
    name: "getReady",
    summary: "Whether the worker that answers accepts devices, lines and commands",
    isPublic: true,
    answers: [
      { status: 200, text: "It does.", schema: v.object({ ready: v.literal(true) }) },
      {
        status: 503,
        text: "It does not. Without a token the reason is a code.",
        schema: v.object({ ready: v.literal(false), reason: v.string() }),
      },
    ],
    errors: [],
  },
]

type AccessOf = (c: Context<HttpEnvironment>) => Access

export function health(
  { version, startedAtMs, nowMs, report, reports, gate }: HealthDependencies,
  accessOf: AccessOf,
): Hono<HttpEnvironment> {
  const routes = readiness(report, accessOf)

  routes.get("/health", async (c) => {
    const own = report()
    const status = own.state === "serving" ? "ok" : own.state
    if (accessOf(c) === "none") {
      return c.json({ status, broker: own.broker.kind, reason: unready(own)?.code ?? null })
    }
    const workers = await reports()
    return c.json({
      status,
      version,
      uptime_s: Math.floor((nowMs() - startedAtMs) / 1000),
      broker: own.broker.kind,
      connections: sum(workers, ({ connections }) => connections),
      waiting: sum(workers, ({ admission }) => admission.waiting),
      estimated_wait_ms: allInMs(workers),
      gate: shownGate(gate()),
      draining: drainingOf(workers),
      workers,
    })
  })

  return routes
}

/** `GET /ready`. */
export function readiness(report: () => WorkerReport, accessOf: AccessOf): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  routes.get("/ready", (c) => {
    const why = unready(report())
    if (why === null) return c.json({ ready: true })
    const isStranger = accessOf(c) === "none"
    const reason = isStranger ? why.code : why.text
    return c.json({ ready: false, reason }, 503)
  })
  return routes
}

/** Null when the worker takes devices and commands and the broker takes messages. */
function unready(report: WorkerReport): Unready | null {
  const { state, broker, consuming_paused: consumingPaused, refusing } = report
  if (state !== "serving") return { code: state, text: state }
  if (broker.kind !== "ready") {
    const code = broker.kind === "blocked" ? "broker_blocked" : "broker_unavailable"
    const reason = broker.reason === undefined ? "" : `: ${broker.reason}`
    return { code, text: `broker ${broker.kind}${reason}` }
  }
  if (consumingPaused) {
    const text =
      "consuming commands is paused: unacknowledged commands have reached MAX_COMMAND_BYTES"
    return { code: "consuming_paused", text }
  }
  if (refusing !== null) return { code: refusing, text: `devices are refused: ${refusing}` }
  return null
}

/** How far the drain of the instance is; null while there is none. */
function drainingOf(workers: readonly WorkerReport[]) {
  const drains = workers.flatMap(({ drain }) => drain ?? [])
  if (drains.length === 0) return null
  return {
    closed: drains.reduce((sum, { closed }) => sum + closed, 0),
    left: drains.reduce((sum, { left }) => sum + left, 0),
    ends_at: Math.max(...drains.map(({ ends_at }) => ends_at)),
  }
}

function sum(workers: readonly WorkerReport[], of: (worker: WorkerReport) => number): number {
  return workers.reduce((sum, worker) => sum + of(worker), 0)
}

/**
 * Estimated time until the last waiting device has completed its handshake; null when unknown for
 * some worker.
 */
function allInMs(workers: readonly WorkerReport[]): number | null {
  const each = workers.map(({ admission }) => admission.estimated_wait_ms ?? 0)
  const unknown = workers.some(({ admission }) => admission.estimated_wait_ms === null)
  return unknown ? null : Math.max(0, ...each)
}
