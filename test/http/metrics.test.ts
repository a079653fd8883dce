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
import type { Histogram } from "../../src/structures/histogram.ts"
import { VERSION } from "../../src/version.ts"

const errorCodes = Object.keys(ERROR_STATUS) as ErrorCode[]

const GAUGES: Gauges = {
  connections: 5,
  connectionsLimit: 100,
  certificateNotAfterS: 1_800_000_000,
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

const HISTOGRAM_SUFFIX = /_(bucket|sum|count)$/

interface Family {
  type: string
  help: string
  /** By their labels, in histograms after the suffix of the name. */
  samples: Map<string, number>
}

const HISTOGRAMS = [
  "owsla_line_confirm_seconds",
  "owsla_command_seconds",
  "owsla_handshake_seconds",
  "owsla_event_loop_lag_seconds",
]

const typeOf = (name: string) => (name.endsWith("_total") ? "counter" : "gauge")

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
    const family = families.get(name) ?? families.get(name.replace(HISTOGRAM_SUFFIX, ""))
    if (family === undefined) throw new Error(`a sample before its TYPE: ${line}`)
    if (labels !== "") expect(labels).toMatch(/^[a-z_]+="[^"]+"(,[a-z_]+="[^"]+")*$/)
    expect({ line, value: Number(value) }).toEqual({ line, value: expect.any(Number) })
    expect(Number.isFinite(Number(value))).toBe(true)
    const suffix = family.type === "histogram" ? (HISTOGRAM_SUFFIX.exec(name)?.[0] ?? "") : ""
    const key = `${suffix}${labels}`
    expect({ line, twice: family.samples.has(key) }).toEqual({ line, twice: false })
    family.samples.set(key, Number(value))
  }
  return families
}

describe("the text", () => {
  test("is valid, of one worker, of two, and of an instance", async () => {
    const worker = await snapshot((counters) => counters.httpErrors.set("invalid", 2))
    const supervisor = throughJson(await supervisorMetrics(3, 5))
    for (const snapshots of [[worker], [worker, worker], [worker, worker, supervisor]]) {
      for (const [name, { type, help }] of parse(await summed(snapshots))) {
        expect(name).toMatch(/^(owsla|process)_/)
        expect(help.length).toBeGreaterThan(5)
        const isHistogram = HISTOGRAMS.includes(name)
        expect([name, type]).toEqual([name, isHistogram ? "histogram" : typeOf(name)])
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

const one = (name: string, text: string) => parse(text).get(name)?.samples.get("")

describe("a histogram", () => {
  const observed = (name: string, text: string) => parse(text).get(name)?.samples ?? new Map()

  test.each<[string, (counters: Counters) => Histogram]>([
    ["owsla_line_confirm_seconds", (counters) => counters.lineConfirm],
    ["owsla_handshake_seconds", (counters) => counters.handshakes],
    ["owsla_event_loop_lag_seconds", (counters) => counters.eventLoopLag],
  ])("%s has cumulative buckets, their sum and their count over the workers", async (name, of) => {
    const first = await snapshot((counters) => {
      for (const ms of [0.5, 1, 2]) of(counters).observe(ms)
    })
    const second = await snapshot((counters) => of(counters).observe(40_000))
    const samples = observed(name, await summed([first, second]))
    const { bounds } = of(new Counters())
    expect(bounds).toHaveLength(12)
    expect([...samples.keys()]).toEqual([
      ...bounds.map((le) => `_bucketle="${le}"`),
      ...['_bucketle="+Inf"', "_sum", "_count"],
    ])
    expect(samples.get('_bucketle="0.001"')).toBe(2)
    expect(samples.get('_bucketle="0.0025"')).toBe(3)
    expect(samples.get(`_bucketle="${bounds.at(-1)}"`)).toBe(3)
    expect(samples.get('_bucketle="+Inf"')).toBe(4)
    expect(samples.get("_count")).toBe(4)
    expect(samples.get("_sum")).toBeCloseTo(40.0035)
  })

  test("of commands has the outcomes that there were, and no others", async () => {
    const first = await snapshot(({ commandTimes }) => commandTimes.written.observe(3))
    const second = await snapshot(({ commandTimes }) => {
      commandTimes.written.observe(5)
      commandTimes.expired.observe(70)
    })
    const samples = observed("owsla_command_seconds", await summed([first, second]))
    expect(samples.get('_countoutcome="written"')).toBe(2)
    expect(samples.get('_bucketoutcome="written",le="0.005"')).toBe(2)
    expect(samples.get('_countoutcome="expired"')).toBe(1)
    expect([...samples.keys()].filter((key) => key.startsWith("_count"))).toHaveLength(2)
  })
})

describe("gauges that are no sum", () => {
  test("build and start are those of any process, the certificate is the earliest", async () => {
    const first = await snapshot(() => {}, { certificateNotAfterS: 1_900_000_000 })
    const second = await snapshot(() => {}, { certificateNotAfterS: 1_800_000_000 })
    const text = await summed([first, second, throughJson(await supervisorMetrics(0, 0))])
    expect(parse(text).get("owsla_build_info")?.samples).toEqual(
      new Map([[`version="${VERSION}",bun="${Bun.version}"`, 1]]),
    )
    expect(one("owsla_certificate_not_after_seconds", text)).toBe(1_800_000_000)
    expect(one("process_start_time_seconds", text)).toBeWithin(
      Date.now() / 1_000 - 3_600,
      Date.now() / 1_000 + 1,
    )
    expect(one("process_max_fds", text)).toBe(one("process_max_fds", await summed([first])) ?? 0)
  })

  test("a worker that does not listen yet has no certificate", async () => {
    const unknown = await snapshot(() => {}, { certificateNotAfterS: null })
    const known = await snapshot(() => {})
    const name = "owsla_certificate_not_after_seconds"
    expect(one(name, await summed([unknown]))).toBeUndefined()
    expect(one(name, await summed([unknown, known]))).toBe(1_800_000_000)
  })

  test("the limit of connections is that of all workers", async () => {
    const worker = await snapshot(() => {})
    expect(one("owsla_connections_limit", await summed([worker, worker]))).toBe(200)
  })
})

describe("the sum", () => {
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
