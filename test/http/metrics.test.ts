/**
 * The text of `GET /metrics`: Prometheus can parse each line, the values are sums over the
 * processes of an instance, and each member of the closed lists has its label from the start.
 */

import { describe, expect, test } from "bun:test"
import { Counters } from "../../src/counters.ts"
import { CLOSE_REASONS } from "../../src/device/close-reason.ts"
import { OUTCOMES } from "../../src/device/command.ts"
import { ERROR_STATUS, type ErrorCode } from "../../src/http/errors.ts"
import {
  type Gauges,
  type MetricsSnapshot,
  summed,
  supervisorMetrics,
  WorkerMetrics,
} from "../../src/ops/metrics.ts"

const errorCodes = Object.keys(ERROR_STATUS) as ErrorCode[]

const GAUGES: Gauges = {
  connections: 5,
  waiting: 11,
  windowLines: 1,
  windowBytes: 2,
  heldBytes: 3,
  partialLineBytes: 12,
  waitingForRoom: 4,
  unacknowledgedCommands: 5,
  heldCommands: 6,
  keptCommands: 17,
  outboundMessages: 7,
  brokerReady: true,
  locationCache: 8,
  directory: 14,
  keptShards: 16,
  lookUps: 11,
  members: 9,
  presence: 10,
}

/** As it comes over the channel between worker and supervisor: through JSON. */
async function snapshot(change: (counters: Counters) => void, gauges: Partial<Gauges> = {}) {
  const counters = new Counters()
  change(counters)
  const metrics = new WorkerMetrics(counters, () => ({ ...GAUGES, ...gauges }))
  return throughJson(await metrics.snapshot())
}

function throughJson(metrics: MetricsSnapshot): MetricsSnapshot {
  return JSON.parse(JSON.stringify(metrics))
}

interface Family {
  type: string
  help: string
  samples: Map<string, number>
}

/** Strict: https://prometheus.io/docs/instrumenting/exposition_formats/ */
function parse(text: string): Map<string, Family> {
  expect(text).toEndWith("\n")
  const families = new Map<string, Family>()
  for (const line of text.split("\n")) {
    if (line === "") continue
    const comment = /^# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$/.exec(line)
    if (comment !== null) {
      const [, kind = "", name = "", rest = ""] = comment
      const family = families.get(name) ?? { type: "", help: "", samples: new Map() }
      families.set(name, family)
      expect({ line, samplesBefore: family.samples.size }).toEqual({ line, samplesBefore: 0 })
      const field = kind === "HELP" ? "help" : "type"
      expect({ line, before: family[field] }).toEqual({ line, before: "" })
      family[field] = rest
      continue
    }
    const sample = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{([^{}]*)\})? (\S+)$/.exec(line)
    if (sample === null) throw new Error(`no Prometheus text: ${JSON.stringify(line)}`)
    const [, name = "", , labels = "", value = ""] = sample
    const family = families.get(name)
    if (family === undefined) throw new Error(`a sample before its TYPE: ${line}`)
    if (labels !== "") expect(labels).toMatch(/^[a-z_]+="[a-z_]+"$/)
    expect({ line, value: Number(value) }).toEqual({ line, value: expect.any(Number) })
    expect(Number.isFinite(Number(value))).toBe(true)
    expect({ line, twice: family.samples.has(labels) }).toEqual({ line, twice: false })
    family.samples.set(labels, Number(value))
  }
  return families
}

describe("the text", () => {
  test("is valid, of one worker, of two, and of an instance", async () => {
    const worker = await snapshot((counters) => counters.httpErrors.set("invalid", 2))
    const supervisor = throughJson(await supervisorMetrics(3, 5))
    for (const snapshots of [[worker], [worker, worker], [worker, worker, supervisor]]) {
      for (const [name, { type, help }] of parse(await summed(snapshots))) {
        expect(name).toStartWith("owsla_")
        expect(help.length).toBeGreaterThan(5)
        expect(type).toBe(name.endsWith("_total") ? "counter" : "gauge")
      }
    }
  })

  test("of no worker is valid", async () => {
    expect((await summed([])).trim()).toBe("")
  })

  test("has exactly the close reasons and outcomes of the lists, at 0 from the start", async () => {
    const families = parse(await summed([await snapshot(() => {})]))
    const zeroes = (label: string, values: readonly string[]) =>
      new Map(values.map((value) => [`${label}="${value}"`, 0]))
    expect(families.get("owsla_connections_closed_total")?.samples).toEqual(
      zeroes("reason", CLOSE_REASONS),
    )
    expect(families.get("owsla_commands_total")?.samples).toEqual(zeroes("outcome", OUTCOMES))
  })

  test("has every error code that was counted", async () => {
    const worker = await snapshot((counters) => {
      for (const [at, code] of errorCodes.entries()) counters.httpErrors.set(code, at + 1)
    })
    expect(parse(await summed([worker])).get("owsla_http_errors_total")?.samples).toEqual(
      new Map(errorCodes.map((code, at) => [`code="${code}"`, at + 1])),
    )
  })

  test("shows every counter and every gauge", async () => {
    const counters = new Counters() as unknown as Record<string, unknown>
    const names = Object.keys(counters).filter((name) => typeof counters[name] === "number")
    let next = 1_001
    const worker = await snapshot((of) => {
      const settable = of as unknown as Record<string, number>
      for (const name of names) {
        settable[name] = next
        next += 1
      }
    })
    const shown = [...parse(await summed([worker])).values()].flatMap(({ samples }) => [
      ...samples.values(),
    ])
    for (let value = 1_001; value < next; value += 1) {
      expect({ counter: names[value - 1_001], shown: shown.includes(value) }).toEqual({
        counter: names[value - 1_001],
        shown: true,
      })
    }
  })
})

describe("the sum", () => {
  const one = (name: string, text: string) => parse(text).get(name)?.samples.get("")

  test("is over counters, labels and gauges alike", async () => {
    const first = await snapshot(
      (counters) => {
        counters.linesIn = 3
        counters.connectionsClosed.idle = 10
        counters.commandsSettled.written = 1
        counters.httpErrors.set("invalid", 1)
      },
      { connections: 5, brokerReady: true },
    )
    const second = await snapshot(
      (counters) => {
        counters.linesIn = 4
        counters.connectionsClosed.idle = 20
        counters.connectionsClosed.fault = 1
        counters.httpErrors.set("invalid", 2)
        counters.httpErrors.set("busy", 5)
      },
      { connections: 7, brokerReady: false },
    )
    const text = await summed([first, second])
    expect(one("owsla_lines_in_total", text)).toBe(7)
    expect(one("owsla_connections", text)).toBe(12)
    expect(one("owsla_broker_ready_workers", text)).toBe(1)
    const families = parse(text)
    const closed = families.get("owsla_connections_closed_total")?.samples
    expect(closed?.get('reason="idle"')).toBe(30)
    expect(closed?.get('reason="fault"')).toBe(1)
    expect(families.get("owsla_http_errors_total")?.samples).toEqual(
      new Map([
        ['code="invalid"', 3],
        ['code="busy"', 5],
      ]),
    )
  })

  test("includes the supervisor's memory and restarts", async () => {
    const worker = await snapshot(() => {})
    const supervisor = throughJson(await supervisorMetrics(3, 5))
    const text = await summed([worker, supervisor])
    expect(one("owsla_worker_restarts_total", text)).toBe(3)
    const alone = one("owsla_resident_bytes", await summed([worker])) ?? 0
    expect(one("owsla_resident_bytes", text)).toBeGreaterThan(alone)
  })

  test("does not change its input: a second call has the same result", async () => {
    const snapshots = [
      await snapshot((counters) => {
        counters.linesIn = 2
      }),
      await snapshot((counters) => {
        counters.linesIn = 3
      }),
    ]
    expect(await summed(snapshots)).toBe(await summed(snapshots))
  })

  test("reads counters again each time and does not accumulate them", async () => {
    const counters = new Counters()
    const metrics = new WorkerMetrics(counters, () => GAUGES)
    counters.linesIn = 2
    counters.commandsSettled.late = 1
    await metrics.snapshot()
    counters.linesIn = 5
    const text = await summed([await metrics.snapshot()])
    expect(one("owsla_lines_in_total", text)).toBe(5)
    expect(parse(text).get("owsla_commands_total")?.samples.get('outcome="late"')).toBe(1)
  })
})
