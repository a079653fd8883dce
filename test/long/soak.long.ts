/**
 * `bun run soak`: an hour of what happens to a gateway in months, on one RabbitMQ node.
 *
 * 2,000 devices send lines and get commands; others come back for held commands; some flap; tapes
 * are recorded. Every 5 minutes the broker is cut off: its connections are closed, it is paused, or
 * it is killed and started again. Every 10 minutes the certificate is renewed. Nothing may be lost.
 * Prints how memory and open files change meanwhile; it does not judge them. Memory is looked at
 * after a collection, once a minute, so that it is what the processes keep (heap-report.ts).
 *
 * `SOAK_MINUTES` shortens it.
 */

import { expect, test } from "bun:test"
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { helloLine } from "../../src/device/hello.ts"
import { expectKept, FaultBed } from "../faults/bed.ts"
import { COMMAND_LOAD, CommandLoad } from "../faults/command-load.ts"
import { type HeapReport, heapReports, readHeapReports } from "../support/heap-report.ts"
import type { PrivateBroker } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const MINUTES = Number(process.env["SOAK_MINUTES"] ?? 60)
const HERD = { devices: 2_000, rate: 0.2, flapping: 20 }
const COMMANDED = { devices: 20, perS: 10 }
const CUT_EVERY_S = 300
const CUT_FOR_S = 15
const RENEW_EVERY_S = 600
const HOLD_EVERY_S = 15
const HELD = { devices: 10, commands: 5, awayS: 5 }
const TAPE_EVERY_S = 30
const SAMPLE_EVERY_S = 10
const HEAP_EVERY_MS = 60_000
/** Part of the samples that is left out, while caches and heaps still grow. */
const WARM_UP = 1 / 6
const [, , , SECRET] = COMMAND_LOAD.herdFlags

test(
  "nothing is lost",
  async () => {
    const directory = mkdtempSync(join(tmpdir(), "owsla-soak-"))
    makeCertificate(directory)
    const reports = join(directory, "heap")
    mkdirSync(reports)
    const bed = await FaultBed.start({
      ...COMMAND_LOAD.environment,
      DEVICE_ACK: "seq",
      // The devices that get commands send nothing.
      IDLE_TIMEOUT_MS: "86400000",
      TLS_CERT_FILE: join(directory, "server.crt"),
      TLS_KEY_FILE: join(directory, "server.key"),
      ...heapReports(reports, HEAP_EVERY_MS),
    })
    const soak = new Soak(bed, directory)
    try {
      const commands = await CommandLoad.prepare({ bed, urls: [bed.broker.url], ...COMMANDED })
      const herd = await bed.herd({
        ...HERD,
        flags: [
          ...[...COMMAND_LOAD.herdFlags, "--device-ack", "--duration", String(MINUTES * 120)],
          ...["--hostile", `flapping:${HERD.flapping}`],
        ],
      })
      await commands.start()
      const figures = await soak.run(MINUTES * 60)
      await bed.ready()
      const kept = expectKept(await herd.end(), HERD.devices, "any")
      const commanded = await commands.end()
      const memory = memoryOf(reports)
      const all = { minutes: MINUTES, ...kept, ...commanded, ...figures, ...memory }
      console.log(JSON.stringify(all, null, 2))
      expect(soak.broken).toEqual([])
    } finally {
      await bed.stop()
      rmSync(directory, { recursive: true, force: true })
    }
  },
  (MINUTES + 15) * 60_000,
)

type Cut = "closed" | "paused" | "killed"

class Soak {
  readonly broken: string[] = []
  readonly #bed: FaultBed
  readonly #directory: string
  /** Open files of all processes, one count for each sample. */
  readonly #files: number[] = []
  readonly #cuts: Record<Cut, number> = { closed: 0, paused: 0, killed: 0 }
  #renewed = 0
  #held = 0
  #heldTwice = 0
  #tapes = 0
  #nextAway = 0
  #running = true

  constructor(bed: FaultBed, directory: string) {
    this.#bed = bed
    this.#directory = directory
  }

  async run(seconds: number): Promise<Record<string, unknown>> {
    const loops = [
      this.#every(SAMPLE_EVERY_S, async () => this.#countFiles()),
      this.#every(CUT_EVERY_S, () => this.#cut()),
      this.#every(RENEW_EVERY_S, () => this.#renew()),
      this.#every(HOLD_EVERY_S, () => this.#hold()),
      this.#every(TAPE_EVERY_S, () => this.#tape()),
    ]
    await Bun.sleep(seconds * 1_000)
    this.#running = false
    await Promise.all(loops)
    return {
      "broker cut off": this.#cuts,
      "certificate renewed": this.#renewed,
      "held commands written": this.#held,
      "of them twice": this.#heldTwice,
      "tapes recorded": this.#tapes,
      "open files after the warm-up and at the end": [warm(this.#files)[0], this.#files.at(-1)],
    }
  }

  /** One at a time; an exception is a broken promise. */
  async #every(seconds: number, act: () => Promise<void>): Promise<void> {
    while (this.#running) {
      for (let waited = 0; waited < seconds && this.#running; waited += 1) await Bun.sleep(1_000)
      if (!this.#running) return
      try {
        await act()
      } catch (error) {
        this.broken.push(String(error))
      }
    }
  }

  #countFiles(): void {
    const { gateway } = this.#bed
    const pids = [gateway.pid, ...gateway.workers().values()]
    this.#files.push(pids.reduce((sum, pid) => sum + readdirSync(`/proc/${pid}/fd`).length, 0))
  }

  async #cut(): Promise<void> {
    const { broker } = this.#bed
    const kind = fewest(this.#cuts)
    await CUTS[kind](broker)
    this.#cuts[kind] += 1
    await this.#bed.ready()
    await this.#bed.flowsAgain()
  }

  async #renew(): Promise<void> {
    const { gateway } = this.#bed
    makeCertificate(this.#directory)
    const before = gateway.log.length
    gateway.signal("SIGHUP")
    const reloaded = () => gateway.log.slice(before).some(({ msg }) => /reload/.test(msg))
    await until(reloaded, { what: "the reload", timeoutMs: 30_000 })
    this.#renewed += 1
  }

  /** Commands are held for devices that are away; then these come and must read them in order. */
  async #hold(): Promise<void> {
    const from = this.#nextAway
    this.#nextAway += HELD.devices
    const ids = Array.from({ length: HELD.devices }, (_, at) => `away-${from + at}`)
    const lines = new Map<string, string[]>()
    for (const id of ids) {
      const held: string[] = []
      lines.set(id, held)
      for (let number = 0; number < HELD.commands; number += 1) {
        const line = `${id} ${number}`
        const response = await this.#bed.gateway
          .fetch(`/devices/${id}/send`, {
            method: "POST",
            body: JSON.stringify({ line, hold_ms: 600_000 }),
            headers: { "content-type": "application/json" },
          })
          .catch(() => null)
        if (response?.status === 202) held.push(line)
      }
    }
    await Bun.sleep(HELD.awayS * 1_000)
    for (const id of ids) await this.#fetchHeld(id, lines.get(id) ?? [])
  }

  async #fetchHeld(id: string, held: readonly string[]): Promise<void> {
    const device = await connectDevice({ port: this.#bed.gateway.devicePort })
    await device.send(helloLine(id, SECRET))
    const own = () => device.lines.filter((line) => line.startsWith(`${id} `))
    try {
      await until(() => held.every((line) => own().includes(line)), {
        what: `${held.length} held commands of ${id}`,
        timeoutMs: 120_000,
      })
      const first = [...new Set(own())].filter((line) => held.includes(line))
      expect(first).toEqual([...held])
      this.#held += held.length
      this.#heldTwice += own().length - new Set(own()).size
    } finally {
      device.end()
    }
  }

  async #tape(): Promise<void> {
    const path = `/devices/sim-${this.#tapes % HERD.devices}/tape`
    const { gateway } = this.#bed
    const started = await gateway.fetch(path, {
      method: "PUT",
      body: JSON.stringify({ minutes: 1, payload: "text", max_bytes: 100_000 }),
      headers: { "content-type": "application/json" },
    })
    // The broker is cut off.
    if (started.status >= 500) return
    expect(started.status).toBe(201)
    const records = async () => {
      const response = await gateway.fetch(`${path}.jsonl`)
      return response.ok && (await response.text()).includes('"kind":"in"')
    }
    await until(records, { what: `a line on ${path}`, timeoutMs: 60_000 })
    await gateway.fetch(path, { method: "DELETE" })
    this.#tapes += 1
  }
}

const CUTS: Readonly<Record<Cut, (broker: PrivateBroker) => Promise<void>>> = {
  closed: (broker) => broker.closeAllConnections("soak"),
  paused: async (broker) => {
    broker.pause()
    await Bun.sleep(CUT_FOR_S * 1_000)
    broker.resume()
  },
  killed: async (broker) => {
    await broker.kill()
    await Bun.sleep(CUT_FOR_S * 1_000)
    await broker.start()
  },
}

/** The kind of which there were the fewest. */
function fewest(cuts: Readonly<Record<Cut, number>>): Cut {
  const kinds: readonly Cut[] = ["closed", "paused", "killed"]
  return kinds.reduce((least, kind) => (cuts[kind] < cuts[least] ? kind : least))
}

/** Makes one, or replaces the one that is there by one of the same CA. */
function makeCertificate(directory: string): void {
  const command = join(import.meta.dir, "../../src/ops/certs-command.ts")
  const isNew = !readdirSync(directory).includes("server.crt")
  const words = isNew ? [] : ["server"]
  const made = Bun.spawnSync([process.execPath, command, ...words, "--dir", directory])
  if (!made.success) throw new Error(`no certificate: ${made.stderr}`)
}

/** The samples after the warm-up. */
function warm<T>(samples: readonly T[]): readonly T[] {
  return samples.slice(Math.floor(samples.length * WARM_UP))
}

/** What each process keeps after a collection, and the kinds of objects that became more. */
function memoryOf(directory: string): Record<string, unknown> {
  return Object.fromEntries(
    [...readHeapReports(directory)].map(([name, all]) => {
      const reports = warm(all)
      return [
        `process ${name}`,
        {
          "resident, MB": slopeOf(reports, (report) => report.residentBytes / 1e6),
          "heap, MB": slopeOf(reports, (report) => report.heapBytes / 1e6),
          "more objects at the end": moreObjects(reports),
        },
      ]
    }),
  )
}

/** Mean and, by least squares, the slope per hour with its standard error. */
function slopeOf(
  reports: readonly HeapReport[],
  figure: (report: HeapReport) => number,
): Record<string, number> {
  const n = reports.length
  const points = reports.map((report) => ({ x: report.atMs / 3_600_000, y: figure(report) }))
  const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / n
  const [meanX, meanY] = [mean(points.map(({ x }) => x)), mean(points.map(({ y }) => y))]
  const spread = points.reduce((sum, { x }) => sum + (x - meanX) ** 2, 0)
  const slope = points.reduce((sum, { x, y }) => sum + (x - meanX) * (y - meanY), 0) / spread
  const residual = points.reduce((sum, { x, y }) => sum + (y - meanY - slope * (x - meanX)) ** 2, 0)
  const error = Math.sqrt(residual / (n - 2) / spread)
  return { mean: round(meanY), "slope an hour": round(slope), error: round(error), samples: n }
}

/** Means of the first and of the last quarter, of the kinds that grew by the most objects. */
function moreObjects(reports: readonly HeapReport[]): Record<string, [number, number]> {
  const quarter = Math.ceil(reports.length / 4)
  const meanOf = (part: readonly HeapReport[], kind: string) =>
    Math.round(part.reduce((sum, { objects }) => sum + (objects[kind] ?? 0), 0) / part.length)
  const kinds = new Set(reports.flatMap(({ objects }) => Object.keys(objects)))
  const grown = [...kinds].map((kind): [string, [number, number]] => [
    kind,
    [meanOf(reports.slice(0, quarter), kind), meanOf(reports.slice(-quarter), kind)],
  ])
  const growth = ([, [before, after]]: [string, [number, number]]) => after - before
  return Object.fromEntries(
    grown
      .filter((each) => growth(each) > 0)
      .sort((one, other) => growth(other) - growth(one))
      .slice(0, 8),
  )
}

function round(value: number): number {
  return Math.round(value * 100) / 100
}
