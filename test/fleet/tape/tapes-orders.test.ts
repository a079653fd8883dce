/**
 * A tape while its device moves between workers that are killed, paused and cut off, and while the
 * broker restarts. Its owner is not killed. On `fleet-network.ts`, which says what the real broker
 * can do and this one cannot.
 *
 *   - the lines of each connection are on the tape at most once and in order
 *   - each line that a process recorded which lives is on the tape, or is counted as dropped
 *   - nothing is on it that was not sent, and a connection of a killed process is shown as ended
 *   - in the end the device is recorded wherever it connects
 */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { processOfConnection } from "../../../src/device/ids.ts"
import { keyOf } from "../../../src/fleet/directory.ts"
import type { TapeItem } from "../../../src/fleet/tape/entry.ts"
import {
  FleetNetwork,
  type NetworkDevice,
  type NetworkWorker,
} from "../../support/fleet-network.ts"
import { check } from "../../support/property.ts"
import { mulberry32 } from "../../support/random.ts"

const SCENARIOS = 20
const STEPS = 150
const NAME = "lock:1"
const CALM_MS = 30_000

const scenario = fc.record({
  seed: fc.integer(),
  workers: fc.constantFrom(2, 3, 5),
  delayMs: fc.constantFrom(1, 50, 400),
  maxBytes: fc.constantFrom(65_536, 2_097_152),
})

type Scenario = typeof scenario extends fc.Arbitrary<infer T> ? T : never

class World {
  readonly network: FleetNetwork
  readonly random: () => number
  /** Lines by connection. */
  readonly sent = new Map<string, number>()
  /** Lines to a worker that did not know of the tape: it has just started, or was cut off. */
  readonly #unrecorded = new Map<string, number>()
  readonly #killed = new Set<string>()
  #device: NetworkDevice | null = null

  constructor({ seed, workers, delayMs, maxBytes }: Scenario) {
    this.random = mulberry32(seed)
    this.network = new FleetNetwork({ shards: 16, random: this.random, delayMs })
    for (let at = 0; at < workers; at += 1) this.network.start(at)
    this.network.pass(2_000)
    const { owner, network } = this
    let isStarted = false
    network.run(owner, () => {
      const request = { minutes: 60, payload: "hidden", maxBytes } as const
      void owner.fleet.tapes.start(NAME, request).then((started) => {
        isStarted = typeof started !== "string"
      })
    })
    network.pass(2_000)
    expect(isStarted).toBe(true)
  }

  get owner(): NetworkWorker {
    return this.network.workers[0] as NetworkWorker
  }

  step(): void {
    const { network, random } = this
    const draw = random()
    const at = Math.floor(random() * network.workers.length)
    const worker = network.workers[at] as NetworkWorker
    if (draw < 0.5) this.#send(random() < 0.03 ? 3_000 : 1 + Math.floor(random() * 5))
    else if (draw < 0.7) this.#come(worker)
    else if (draw < 0.75) this.#leave()
    else if (draw < 0.8 && at > 0) this.#kill(worker)
    else if (draw < 0.88 && worker.isDead) network.start(at)
    else if (draw < 0.92) {
      worker.pause()
      network.at(network.nowMs + 5_000 * random(), null, () => worker.resume())
    } else if (draw < 0.97) {
      worker.cut()
      worker.connectSoon()
    } else network.restartBroker(100 + 2_000 * random())
    network.pass(700 * random())
  }

  calm(): void {
    const { network } = this
    for (const [at, worker] of network.workers.entries()) {
      if (worker.isPaused) worker.resume()
      if (worker.isDead) network.start(at)
    }
    network.pass(CALM_MS)
  }

  verify(): void {
    const { network, owner, sent } = this
    const items = this.#read()
    const seen = new Map<string, number[]>()
    let dropped = 0
    const open = new Set<string>()
    for (const item of items) {
      if (item.kind === "dropped") dropped += item.count
      if (item.kind === "connected") open.add(item.connection_id)
      if (item.kind === "disconnected") open.delete(item.connection_id)
      if (item.kind !== "in") continue
      const seqs = seen.get(item.connection_id) ?? []
      seen.set(item.connection_id, [...seqs, item.seq])
    }
    let missing = 0
    for (const [id, count] of sent) {
      const seqs = seen.get(id) ?? []
      expect(seqs).toEqual([...new Set(seqs)].toSorted((a, b) => a - b))
      expect(seqs.every((seq) => seq < count)).toBe(true)
      const holder = processOfConnection(id)
      if (holder !== null && !this.#killed.has(keyOf(holder))) {
        missing += count - seqs.length - (this.#unrecorded.get(id) ?? 0)
      }
    }
    expect([...seen.keys()].filter((id) => !sent.has(id))).toEqual([])
    expect(missing).toBeLessThanOrEqual(dropped)
    const killedAndOpen = [...open].filter((id) => {
      const holder = processOfConnection(id)
      return holder !== null && this.#killed.has(keyOf(holder))
    })
    expect(killedAndOpen).toEqual([])
    for (const worker of network.workers) {
      const device = worker.come(NAME)
      network.pass(1_000)
      device.send("last")
      network.pass(3_000)
      const last = this.#read().findLast(({ kind }) => kind === "in")
      expect(last).toMatchObject({ kind: "in", connection_id: device.id, seq: 0 })
    }
    expect(owner.fleet.tapes.list()).toHaveLength(1)
  }

  #read(): TapeItem[] {
    const items: TapeItem[] = []
    const reader = this.owner.fleet.tapes.reader(NAME)
    let isCaughtUp = false
    const readOnce = async () => {
      const read = await reader?.read()
      if (read === undefined || typeof read === "string") throw new Error(`no tape: ${read}`)
      items.push(...read.items.map(({ item }) => item))
      isCaughtUp = read.isCaughtUp
    }
    while (!isCaughtUp) this.network.run(this.owner, () => void readOnce())
    return items
  }

  #send(count: number): void {
    const device = this.#device
    if (device === null || device.closedBecause !== null) return
    if (device.worker.isDead || device.worker.isPaused) return
    if (device.tape === null)
      this.#unrecorded.set(device.id, count + (this.#unrecorded.get(device.id) ?? 0))
    for (let n = 0; n < count; n += 1) device.send("x")
    this.sent.set(device.id, (this.sent.get(device.id) ?? 0) + count)
  }

  #come(worker: NetworkWorker): void {
    if (!worker.isDead && !worker.isPaused) this.#device = worker.come(NAME)
  }

  #leave(): void {
    const device = this.#device
    if (device !== null && !device.worker.isPaused && !device.worker.isDead) {
      device.worker.go(NAME)
    }
  }

  #kill(worker: NetworkWorker): void {
    if (worker.isDead) return
    this.#killed.add(keyOf(worker.self))
    worker.kill()
  }
}

test("a tape has each line once and in order, or counts it as dropped", () => {
  check(
    fc.property(scenario, (each) => {
      const world = new World(each)
      for (let step = 0; step < STEPS; step += 1) world.step()
      world.calm()
      world.verify()
    }),
    SCENARIOS,
  )
}, 600_000)
