/**
 * The directory with fleets of 2 to 64 workers, while devices move and workers are killed, paused,
 * cut off, started again, and the broker restarts. On `fleet-network.ts`, which says what the real
 * broker can do and this one cannot.
 *
 *   - no device has two connections, of workers that can be reached, for longer than a second
 *   - "nowhere" is never the answer for a device that was connected, at a worker that could be reached, for
 *     the two seconds before
 *   - in the end each worker finds each device, and no device that has gone
 */

import { expect, test } from "bun:test"
import fc from "fast-check"
import type { Located } from "../../src/fleet/locator.ts"
import { FleetNetwork, type NetworkDevice, type NetworkWorker } from "../support/fleet-network.ts"
import { check } from "../support/property.ts"
import { mulberry32 } from "../support/random.ts"

const SCENARIOS = 12
const FAR_LONGER_THAN_IT_TAKES_MS = 600_000
const FOUND_WITHIN_MS = 2_000
const TWO_AT_MOST_MS = 1_000
/** Look-ups in between end within this time. */
const STEP_MS = 50
const STEPS = 300
/** Longer than a member that ended, and than a location that was looked up, is remembered. */
const CALM_MS = 65_000

const scenario = fc.record({
  seed: fc.integer(),
  workers: fc.constantFrom(2, 2, 3, 3, 4, 4, 5, 8, 8, 16, 64),
  shards: fc.constantFrom(1, 16, 128),
  devices: fc.constantFrom(5, 40),
  skewMs: fc.constantFrom(0, 0, 500, 60_000),
  delayMs: fc.constantFrom(1, 5, 50),
})

type Scenario = typeof scenario extends fc.Arbitrary<infer T> ? T : never

/** The world that the test knows: where each device is connected, whatever the fleet believes. */
class World {
  readonly network: FleetNetwork
  readonly random: () => number
  /** The last connection of each device. */
  readonly newest = new Map<string, { worker: NetworkWorker; device: NetworkDevice }>()
  /** Devices whose last two connections came in the same millisecond. */
  readonly #tied = new Set<string>()
  readonly #twoSinceMs = new Map<string, number>()
  readonly #names: readonly string[]
  readonly #isSkewed: boolean

  constructor({ seed, workers, shards, devices, skewMs, delayMs }: Scenario) {
    this.random = mulberry32(seed)
    this.#isSkewed = skewMs > 0
    const skews = Array.from({ length: workers }, () => (this.random() - 0.5) * 2 * skewMs)
    this.network = new FleetNetwork({
      ...{ shards, random: this.random, delayMs },
      skewOf: (at) => skews[at] ?? 0,
    })
    this.#names = Array.from({ length: devices }, (_, at) => `lock:${at}`)
    for (let at = 0; at < workers; at += 1) this.network.start(at)
  }

  get live(): NetworkWorker[] {
    return this.network.workers.filter((worker) => worker.isReachable())
  }

  step(): void {
    const draw = this.random()
    const worker = this.#any(this.network.workers)
    if (draw < 0.7) this.#move()
    else if (draw < 0.74) this.#leave()
    else if (draw < 0.76 && !worker.isDead) worker.kill()
    else if (draw < 0.78 && !worker.isDead) this.#pause(worker)
    else if (draw < 0.8) this.#cut(worker)
    else if (draw < 0.803) this.network.restartBroker(200 + 2_000 * this.random())
    else if (draw < 0.84 && worker.isDead) this.#startAgain(worker)
    else this.#lookUp()
    this.network.pass(STEP_MS * this.random())
    this.#watchTakeovers()
  }

  calm(): void {
    for (const worker of this.network.workers) {
      if (worker.isPaused) worker.resume()
      if (worker.isDead) this.#startAgain(worker)
    }
    this.network.pass(CALM_MS)
    this.#watchTakeovers()
  }

  verify(): void {
    const wrong: string[] = []
    for (const name of this.#names) {
      const holders = this.network.workers.filter(({ devices }) => devices.has(name))
      const newest = this.newest.get(name)
      // The clocks decide between connections that come within two seconds, and connection ids
      // between those of the same millisecond.
      const isTied = this.#tied.has(name)
      const isNewest = this.#isSkewed || isTied || newest?.device.closedBecause !== "taken_over"
      expect([holders.length < 2, isNewest]).toEqual([true, true])
      const expected = holders[0]?.self.worker ?? "nowhere"
      for (const worker of this.network.workers) {
        worker.locate(name, true, (place) => {
          const found = place.kind === "worker" ? place.worker : "nowhere"
          if (found !== expected)
            wrong.push(`${worker.self.worker}: ${name} at ${found}, not ${expected}`)
        })
      }
    }
    this.network.pass(2_000)
    expect(wrong).toEqual([])
    for (const { fleet } of this.network.workers) {
      expect([fleet.settled, fleet.locator.pendingCount]).toEqual([true, 0])
    }
  }

  #any<T>(values: readonly T[]): T {
    return values[Math.floor(this.random() * values.length)] as T
  }

  /** A device connects to some worker; its connection before stays, as if it were half-open. */
  #move(): void {
    const { live } = this
    if (live.length === 0) return
    const name = this.#any(this.#names)
    const worker = this.#any(live)
    const before = this.newest.get(name)
    const device = worker.come(name)
    if (before?.device.recipient.epoch === device.recipient.epoch) this.#tied.add(name)
    else this.#tied.delete(name)
    this.newest.set(name, { worker, device })
  }

  #leave(): void {
    const name = this.#any(this.#names)
    const newest = this.newest.get(name)
    // A paused worker does not notice it.
    if (newest === undefined || newest.worker.isPaused) return
    newest.worker.go(name)
  }

  #pause(worker: NetworkWorker): void {
    worker.pause()
    this.network.at(this.network.nowMs + 8_000 * this.random(), null, () => worker.resume())
  }

  #cut(worker: NetworkWorker): void {
    worker.cut()
    worker.connectSoon()
  }

  #startAgain(worker: NetworkWorker): void {
    this.network.start(this.network.workers.indexOf(worker))
  }

  #lookUp(): void {
    const { live, network } = this
    if (live.length === 0) return
    const name = this.#any(this.#names)
    const from = this.#any(live)
    const answered = (place: Located) => {
      const newest = this.newest.get(name)
      // Whoever looks a device up looks among its own again.
      if (place.kind === "worker" || from.devices.has(name)) return
      if (newest === undefined || newest.device.closedBecause !== null) return
      const { worker, device } = newest
      if (!worker.isReachable() || !from.isReachable()) return
      const sinceMs = Math.max(device.connectedAtMs, worker.reachableSinceMs, from.reachableSinceMs)
      if (network.nowMs - sinceMs <= FOUND_WITHIN_MS) return
      throw new Error(
        `${name} is at ${worker.self.worker} for ${network.nowMs - sinceMs} ms, and ${from.self.worker} says nowhere`,
      )
    }
    from.locate(name, true, answered)
  }

  #watchTakeovers(): void {
    const { nowMs } = this.network
    for (const name of this.#names) {
      const holders = this.live.filter(({ devices }) => devices.has(name))
      if (holders.length < 2) {
        this.#twoSinceMs.delete(name)
        continue
      }
      const sinceMs = Math.max(
        ...holders.map(({ devices, reachableSinceMs }) =>
          Math.max(devices.get(name)?.connectedAtMs ?? 0, reachableSinceMs),
        ),
        this.#twoSinceMs.get(name) ?? nowMs,
      )
      this.#twoSinceMs.set(name, sinceMs)
      if (nowMs - sinceMs <= TWO_AT_MOST_MS) continue
      const told = holders.map(({ self }) => self.worker).join(" and ")
      throw new Error(`${name} is connected to ${told} for ${nowMs - sinceMs} ms, at ${nowMs}`)
    }
  }
}

test(
  "every device is found where it is, in every order",
  () => {
    check(
      fc.property(scenario, (each) => {
        const world = new World(each)
        world.network.pass(2_000)
        for (let step = 0; step < STEPS; step += 1) world.step()
        world.calm()
        world.verify()
      }),
      SCENARIOS,
    )
  },
  FAR_LONGER_THAN_IT_TAKES_MS,
)
