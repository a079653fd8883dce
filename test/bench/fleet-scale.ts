/**
 * A fleet far larger than one machine: the real fleet code of each worker, on the simulated broker
 * and clock of `fleet-network.ts`. Devices connect at a rate, are looked up, some move, and then the
 * broker restarts and everything must be known again.
 *
 *   bun test/bench/fleet-scale.ts --workers 600 --shards 1024 --devices 10000000
 *
 * What is measured: messages that the broker routes, the memory of the directory, the CPU of the
 * fleet code, and times of the simulated clock. What is not: the broker and the network, which are
 * only delays here.
 */

import { parseArgs } from "node:util"
import { FleetNetwork, type NetworkWorker } from "../support/fleet-network.ts"
import { mulberry32 } from "../support/random.ts"

const { values } = parseArgs({
  options: {
    workers: { type: "string", default: "60" },
    shards: { type: "string", default: "1024" },
    devices: { type: "string", default: "100000" },
    /** Devices that connect in a second. */
    rate: { type: "string", default: "37000" },
    delayMs: { type: "string", default: "5" },
  },
})
const workers = Number(values.workers)
const devices = Number(values.devices)
const rate = Number(values.rate)
const random = mulberry32(1)
const network = new FleetNetwork({
  ...{ shards: Number(values.shards), random, delayMs: Number(values.delayMs) },
})

const TICK_MS = 10
const MOVED = Math.min(20_000, devices >> 1)
const FOUND = 2_000

interface Measured {
  readonly simulatedMs: number
  readonly cpuSeconds: number
  readonly routed: number
  readonly sent: number
}

function measured(act: () => void): Measured {
  const before = { cpu: process.cpuUsage(), ms: network.nowMs, ...network }
  act()
  const { user, system } = process.cpuUsage(before.cpu)
  return {
    simulatedMs: network.nowMs - before.ms,
    cpuSeconds: (user + system) / 1e6,
    routed: network.routed - before.routed,
    sent: network.published - before.published,
  }
}

function passUntil(isReached: () => boolean, limitMs: number): void {
  const untilMs = network.nowMs + limitMs
  while (!isReached()) {
    if (network.nowMs > untilMs) throw new Error(`not reached within ${limitMs} ms`)
    network.pass(TICK_MS)
  }
}

function at(index: number): NetworkWorker {
  return network.workers[index] as NetworkWorker
}

const say = (name: string, figures: Record<string, number>) => {
  const shown = Object.entries(figures).map(
    ([what, value]) => `${what} ${Number(value.toPrecision(4))}`,
  )
  process.stdout.write(`${name}: ${shown.join(", ")}\n`)
}

const settled = () => network.workers.every(({ fleet }) => fleet.settled)
const gauges = () => network.workers.map(({ fleet }) => fleet.gauges())

const started = measured(() => {
  for (let n = 0; n < workers; n += 1) network.start(n)
  passUntil(() => {
    const kept = gauges().reduce((sum, { keptShards }) => sum + keptShards, 0)
    return (
      kept === network.options.shards && gauges().every(({ members }) => members === workers - 1)
    )
  }, 60_000)
})
const kept = gauges().map(({ keptShards }) => keptShards)
say("all workers start at once", {
  "ms until each shard has one keeper": started.simulatedMs,
  "messages at the broker": started.routed,
  "CPU of a worker, ms": (started.cpuSeconds / workers) * 1_000,
  "most shards of a worker": Math.max(...kept),
  "workers without a shard": kept.filter((count) => count === 0).length,
})

const idle = measured(() => network.pass(30_000))
say("nothing happens", {
  "messages a second at the broker": idle.routed / 30,
  "messages a second of a worker": idle.routed / 30 / workers,
  "CPU of a worker, cores": idle.cpuSeconds / 30 / workers,
})

Bun.gc(true)
const heapBefore = process.memoryUsage().rss
let nextDevice = 0
const came = measured(() => {
  const startMs = network.nowMs
  while (nextDevice < devices) {
    const due = Math.min(devices, Math.ceil(((network.nowMs - startMs + TICK_MS) / 1_000) * rate))
    for (; nextDevice < due; nextDevice += 1) {
      at(Math.floor(random() * workers)).come(`device-${nextDevice}`)
    }
    network.pass(TICK_MS)
  }
  passUntil(settled, 60_000)
})
Bun.gc(true)
const registered = gauges().map(({ directory }) => directory)
say(`${devices} devices connect, ${rate} a second`, {
  "fleet messages routed a device": came.routed / devices,
  "messages a second to each shard":
    came.routed / network.options.shards / (came.simulatedMs / 1_000),
  "messages a second to each worker": came.routed / workers / (came.simulatedMs / 1_000),
  "CPU of the fleet code a device, us": (came.cpuSeconds / devices) * 1e6,
  "behind at the end, ms": came.simulatedMs - (devices / rate) * 1_000,
  "registrations of the largest keeper": Math.max(...registered),
  "resident bytes a device, of it and its registration":
    (process.memoryUsage().rss - heapBefore) / devices,
})

const tookMs: number[] = []
let wrong = 0
for (let n = 0; n < FOUND; n += 1) {
  const from = at(Math.floor(random() * workers))
  const sinceMs = network.nowMs
  from.locate(`device-${Math.floor(random() * devices)}`, true, (place) => {
    tookMs.push(network.nowMs - sinceMs)
    if (place.kind !== "worker") wrong += 1
  })
  network.pass(1)
}
passUntil(() => tookMs.length === FOUND, 10_000)
tookMs.sort((a, b) => a - b)
say(`${FOUND} look-ups`, {
  "p50, ms": tookMs[FOUND >> 1] ?? 0,
  "p99, ms": tookMs[Math.floor(FOUND * 0.99)] ?? 0,
  "without the device": wrong,
})

const moved = measured(() => {
  for (let n = 0; n < MOVED; n += 1) {
    at(Math.floor(random() * workers)).come(`device-${n}`)
    if (n % Math.ceil((rate * TICK_MS) / 1_000) === 0) network.pass(TICK_MS)
  }
  passUntil(settled, 60_000)
  network.pass(1_000)
})
const open = network.workers.reduce((sum, worker) => sum + worker.devices.size, 0)
say(`${MOVED} devices move`, {
  "messages routed a device": moved.routed / MOVED,
  "devices with more than one connection": open - devices,
})

const recovered = measured(() => {
  network.restartBroker(1_000)
  network.pass(1_000)
  network.pass(1_600)
  passUntil(settled, 120_000)
})
const known = gauges().reduce((sum, { directory }) => sum + directory, 0)
say("the broker restarts and loses all fleet queues; all workers are back within 0.6 s", {
  "ms from its return until all is registered again": recovered.simulatedMs - 1_000,
  "messages routed": recovered.routed,
  "CPU of a worker, ms": (recovered.cpuSeconds / workers) * 1_000,
  registrations: known,
})

const victim = network.workers.find(({ fleet }) => fleet.keepers.kept.size > 0) as NetworkWorker
const orphaned = [...victim.fleet.keepers.kept]
victim.kill()
const live = network.workers.filter((worker) => !worker.isDead)
const replaced = measured(() =>
  passUntil(() => {
    const keeping = new Set(live.flatMap(({ fleet }) => [...fleet.keepers.kept]))
    if (orphaned.some((shard) => !keeping.has(shard))) return false
    const knows = ({ fleet }: NetworkWorker, shard: number) =>
      live.some(({ self }) => self.worker === fleet.keepers.keeperOf(shard)?.worker)
    return live.every((worker) => orphaned.every((shard) => knows(worker, shard)))
  }, 300_000),
)
say("a keeper is killed and does not come back", {
  "shards of it": orphaned.length,
  "ms until others keep them and all workers know that": replaced.simulatedMs,
})
