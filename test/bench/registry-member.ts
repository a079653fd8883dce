/**
 * One worker of the `registry` bench: the fleet part of a gateway, with devices that have no
 * sockets, and nothing else of it.
 *
 *   stdout {"ready": 1} ─► stdin "acquainted" ─► stdout {"members": n, "shards": kept}
 *                       ─► stdin "come", "go" or "nothing" ─► stdout {"done": ms}
 *                       ─► stdin "find" ─► stdout {"p50": ms, "p99": ms, "wrong": n}
 */

import { parseArgs } from "node:util"
import { AmqpBroker } from "../../src/amqp/broker.ts"
import { FLEET_EXCHANGE, fleetQueue, PRESENCE_EXCHANGE } from "../../src/broker/topology.ts"
import { Counters } from "../../src/counters.ts"
import type { Connection } from "../../src/device/connection.ts"
import { Connections, SWEEP_EVERY_MS } from "../../src/device/connections.ts"
import { Endpoint } from "../../src/device/endpoint.ts"
import { ConnectionIds, incarnation } from "../../src/device/ids.ts"
import { WrittenIds } from "../../src/device/remembered-ids.ts"
import { Fleet } from "../../src/fleet/fleet.ts"
import type { Located } from "../../src/fleet/locator.ts"
import { FLEET_KEYS } from "../support/fleet-keys.ts"
import { NO_HELD_COMMANDS } from "../support/no-held-commands.ts"
import { noRecords } from "../support/no-records.ts"
import { NO_TAPES } from "../support/no-tapes.ts"
import { until } from "../support/wait.ts"
import { report } from "./child.ts"

const { values } = parseArgs({
  options: {
    url: { type: "string", default: "" },
    worker: { type: "string", default: "0" },
    workers: { type: "string", default: "1" },
    shards: { type: "string", default: "16" },
    devices: { type: "string", default: "0" },
    /** Devices that come, or go, in a second. */
    rate: { type: "string", default: "0" },
    /** Devices of the next worker that are looked up, and how many a second. */
    finds: { type: "string", default: "0" },
    findRate: { type: "string", default: "1" },
  },
})
const [worker, workers, devices, rate] = [
  Number(values.worker),
  Number(values.workers),
  Number(values.devices),
  Number(values.rate),
]
const steadyMs = () => performance.now()
const self = { worker: `bench.${worker}`, incarnation: incarnation(Date.now(), Math.random()) }
const connections = new Connections({
  ...{ handshakeTimeoutMs: 1e9, identifyTimeoutMs: 1e9, idleTimeoutMs: 1e9 },
})
const broker = new AmqpBroker(values.url, self.worker)
const fleet = new Fleet(broker, connections, {
  self,
  ...noRecords(),
  settings: {},
  shards: Number(values.shards),
  keeping: NO_HELD_COMMANDS,
  registrationAnswered: () => undefined,
  nowMs: Date.now,
  steadyMs,
  counters: new Counters(),
  keys: FLEET_KEYS,
  warn: () => undefined,
  admitsPerS: () => 100,
  flapping: null,
  rulesChanged: () => undefined,
  tapes: NO_TAPES,
})
const ids = new ConnectionIds(self)
const writtenIds = new WrittenIds()
const own = Array.from({ length: devices }, (_, at) => {
  const id = ids.mint()
  const deviceId = nameOf(worker, at)
  const connection = {
    ...{ id, state: "open", remoteAddress: "192.0.2.1", peer: { tlsVersion: "TLSv1.3" } },
    endpoint: new Endpoint(
      { deviceId, connectionId: id, epoch: Date.now() },
      { windowCommands: 1, gapTimeoutMs: 1 },
      writtenIds,
    ),
    close: () => undefined,
  }
  return connection as unknown as Connection
})

function nameOf(ofWorker: number, at: number): string {
  return `device-${ofWorker}-${at}`
}

function come(connection: Connection): void {
  connections.enter(connection)
  fleet.admitted(connection)
}

function go(connection: Connection): void {
  connections.leave(connection)
  fleet.closed(connection, "peer_closed")
}

/** @returns milliseconds from the last device's turn until the keepers have everything. */
async function all(act: (connection: Connection) => void): Promise<number> {
  const startedAtMs = steadyMs()
  for (let at = 0; at < own.length; ) {
    const due = Math.min(own.length, Math.floor(((steadyMs() - startedAtMs) / 1_000) * rate))
    for (; at < due; at += 1) act(own[at] as Connection)
    // Until the next device's turn: this loop's own wake-ups must not count as its cost.
    await Bun.sleep(Math.max(1, ((at + 1) / rate) * 1_000 - (steadyMs() - startedAtMs)))
  }
  const lastAtMs = steadyMs()
  await until(() => fleet.settled, { what: "the registrations", timeoutMs: 60_000 })
  return steadyMs() - lastAtMs
}

/** Looks up devices of the next worker at the rate, one after the other. */
async function find(): Promise<{ p50: number; p99: number; wrong: number }> {
  const tookMs: number[] = []
  let wrong = 0
  const startedAtMs = steadyMs()
  // Not all workers at the same moment.
  const dueMs = (n: number) => ((n + worker / workers) / Number(values.findRate)) * 1_000
  for (let n = 0; n < Number(values.finds); n += 1) {
    await Bun.sleep(Math.max(1, dueMs(n) - (steadyMs() - startedAtMs)))
    const sinceMs = steadyMs()
    const deviceId = nameOf((worker + 1) % workers, n % devices)
    const place = await new Promise<Located>((found) => fleet.locator.locate(deviceId, true, found))
    tookMs.push(steadyMs() - sinceMs)
    if (place.kind !== "worker") wrong += 1
  }
  tookMs.sort((a, b) => a - b)
  const quantile = (q: number) => tookMs[Math.floor(q * (tookMs.length - 1))] ?? 0
  return { p50: quantile(0.5), p99: quantile(0.99), wrong }
}

const queue = fleetQueue(self)
broker.start(
  {
    exchanges: [
      { name: FLEET_EXCHANGE, type: "fanout" },
      { name: PRESENCE_EXCHANGE, type: "topic" },
    ],
    queues: [
      {
        name: queue,
        boundTo: [{ exchange: FLEET_EXCHANGE, routingKey: "" }],
        durable: false,
        transient: true,
        arguments: { "x-queue-type": "classic", "x-expires": 60_000 },
      },
    ],
    subscriptions: [
      {
        queue,
        mayRepeat: true,
        prefetch: 180,
        deliver: (delivery) => {
          delivery.acknowledge()
          fleet.deliver(delivery)
        },
      },
    ],
  },
  { stateChanged: () => undefined, warning: () => undefined },
)
await until(() => broker.state.kind === "ready", { what: "the broker" })
fleet.connected()
setInterval(() => fleet.sweep(steadyMs()), SWEEP_EVERY_MS)
report({ ready: 1 })
for await (const line of console) {
  if (line === "acquainted") {
    report({ members: fleet.gauges().members, shards: fleet.gauges().keptShards })
  }
  if (line === "come") report({ done: await all(come) })
  if (line === "go") report({ done: await all(go) })
  if (line === "nothing") report({ done: await all(() => undefined) })
  if (line === "find") report(await find())
}
process.exit(0)
