/**
 * `bun run soak`: an hour of what happens to a gateway in months, on one RabbitMQ node.
 *
 * 2,000 devices send lines and get commands; others come back for held commands; some flap; tapes
 * are recorded. Every 5 minutes the broker is cut off: its connections are closed, it is paused, or
 * it is killed and started again. Every 10 minutes the certificate is renewed. Nothing may be lost.
 * Prints how resident memory and open files change meanwhile; it does not judge them.
 *
 * `SOAK_MINUTES` shortens it.
 */

import { expect, test } from "bun:test"
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { helloLine } from "../../src/device/hello.ts"
import { expectKept, FaultBed } from "../faults/bed.ts"
import { COMMAND_LOAD, CommandLoad } from "../faults/command-load.ts"
import { residentBytes } from "../support/gateway.ts"
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
/** Part of the samples that is left out, while caches and heaps still grow. */
const WARM_UP = 1 / 6
const [, , , SECRET] = COMMAND_LOAD.herdFlags

test(
  "nothing is lost",
  async () => {
    const directory = mkdtempSync(join(tmpdir(), "owsla-soak-"))
    makeCertificate(directory)
    const bed = await FaultBed.start({
      ...COMMAND_LOAD.environment,
      DEVICE_ACK: "seq",
      // The devices that get commands send nothing.
      IDLE_TIMEOUT_MS: "86400000",
      TLS_CERT_FILE: join(directory, "server.crt"),
      TLS_KEY_FILE: join(directory, "server.key"),
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
      console.log(JSON.stringify({ minutes: MINUTES, ...kept, ...commanded, ...figures }, null, 2))
      expect(soak.broken).toEqual([])
    } finally {
      await bed.stop()
      rmSync(directory, { recursive: true, force: true })
    }
  },
  (MINUTES + 15) * 60_000,
)

type Cut = "closed" | "paused" | "killed"

interface Sample {
  readonly hours: number
  readonly megabytes: number
  readonly files: number
}

class Soak {
  readonly broken: string[] = []
  readonly #bed: FaultBed
  readonly #directory: string
  readonly #samples: Sample[] = []
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
    const startedAtMs = performance.now()
    const loops = [
      this.#every(SAMPLE_EVERY_S, async () => this.#sample(startedAtMs)),
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
      ...this.#memory(),
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

  #sample(startedAtMs: number): void {
    const { gateway } = this.#bed
    const pids = [gateway.pid, ...gateway.workers().values()]
    this.#samples.push({
      hours: (performance.now() - startedAtMs) / 3_600_000,
      megabytes: pids.reduce((sum, pid) => sum + residentBytes(pid) / 1e6, 0),
      files: pids.reduce((sum, pid) => sum + readdirSync(`/proc/${pid}/fd`).length, 0),
    })
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

  /** Least squares over the samples after the warm-up. */
  #memory(): Record<string, unknown> {
    const samples = this.#samples.slice(Math.floor(this.#samples.length * WARM_UP))
    const n = samples.length
    const mean = (of: (sample: Sample) => number) =>
      samples.reduce((sum, sample) => sum + of(sample), 0) / n
    const [hours, megabytes] = [mean((each) => each.hours), mean((each) => each.megabytes)]
    const spread = samples.reduce((sum, each) => sum + (each.hours - hours) ** 2, 0)
    const slope =
      samples.reduce((sum, each) => sum + (each.hours - hours) * (each.megabytes - megabytes), 0) /
      spread
    const residual = samples.reduce(
      (sum, each) => sum + (each.megabytes - megabytes - slope * (each.hours - hours)) ** 2,
      0,
    )
    return {
      "resident memory of all processes, mean, MB": Math.round(megabytes),
      "its slope, MB an hour": round(slope),
      "standard error of the slope": round(Math.sqrt(residual / (n - 2) / spread)),
      "open files after the warm-up and at the end": [samples[0]?.files, samples.at(-1)?.files],
      samples: n,
    }
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

function round(value: number): number {
  return Math.round(value * 100) / 100
}
