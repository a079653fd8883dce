/**
 * One worker of the `registry` bench: the part of a gateway that makes its devices known to the
 * others, in one of two ways, and nothing else of it.
 *
 *   announce   the product's: devices that come and go are told on `owsla.fleet`, many a message
 *   bind       a binding for each device in a direct exchange, to this worker's queue
 *
 *   stdout {"ready": 1} ─► stdin "come" or "go" ─► stdout {"done": ms}
 *                       ─► stdin "status" ─► stdout {"known": n}
 */

import { parseArgs } from "node:util"
import type { AMQPChannel } from "@cloudamqp/amqp-client"
import { AmqpBroker } from "../../src/amqp/broker.ts"
import { BatchingClient } from "../../src/amqp/client.ts"
import { EXCHANGES, FLEET_EXCHANGE, fleetQueue } from "../../src/broker/topology.ts"
import { Counters } from "../../src/counters.ts"
import type { Connection } from "../../src/device/connection.ts"
import { Connections } from "../../src/device/connections.ts"
import { ConnectionIds, incarnation } from "../../src/device/ids.ts"
import { Announcer } from "../../src/fleet/announcer.ts"
import { Channel } from "../../src/fleet/channel.ts"
import { LocationCache } from "../../src/fleet/location-cache.ts"
import { FLEET_KEYS } from "../support/fleet-keys.ts"
import { until } from "../support/wait.ts"
import { report } from "./child.ts"

const { values } = parseArgs({
  options: {
    url: { type: "string", default: "" },
    way: { type: "string", default: "announce" },
    worker: { type: "string", default: "bench.0" },
    devices: { type: "string", default: "0" },
    /** Devices that come, or go, in a second; 0: as fast as they go. */
    rate: { type: "string", default: "0" },
  },
})
const rate = Number(values.rate)
/** Devices of one turn of the event loop, when no rate is set. */
const MAX_A_TURN = 20
/** Bind requests that the broker has not answered; the AMQP client pins a buffer for each. */
const MAX_UNANSWERED = 500
const BINDINGS = "bench.devices"

interface Way {
  readonly come: (at: number) => void
  readonly gone: (at: number) => void
  /** True when the broker has everything. */
  readonly settled: () => boolean
  readonly hasRoom: () => boolean
  readonly known: () => number
}

const self = { worker: values.worker, incarnation: incarnation(Date.now(), Math.random()) }
const ids = new ConnectionIds(self)
const connections = Array.from({ length: Number(values.devices) }, (_, at) => {
  const recipient = { deviceId: `device-${at}`, connectionId: ids.mint(), epoch: Date.now() }
  // All that an announcer asks of a connection.
  return { endpoint: { recipient }, id: recipient.connectionId } as Connection
})
const recipientOf = (at: number) => {
  const recipient = connections[at]?.endpoint?.recipient
  if (recipient === undefined) throw new Error(`no device ${at}`)
  return recipient
}

async function announcing(): Promise<Way> {
  const counters = new Counters()
  const broker = new AmqpBroker(values.url, values.worker)
  const locationCache = new LocationCache()
  const channel = new Channel(broker, () => undefined, {
    self,
    steadyMs: () => performance.now(),
    nowMs: Date.now,
    counters,
    keys: FLEET_KEYS,
  })
  const deadlines = { handshakeTimeoutMs: 1e4, identifyTimeoutMs: 1e4, idleTimeoutMs: 1e4 }
  const announcer = new Announcer(channel, new Connections(deadlines), locationCache)
  const queue = fleetQueue(self)
  const args = { "x-queue-type": "classic", "x-expires": 60_000 }
  broker.start(
    {
      exchanges: EXCHANGES,
      queues: [
        {
          name: queue,
          boundTo: [{ exchange: FLEET_EXCHANGE, routingKey: "" }],
          durable: true,
          arguments: args,
        },
      ],
      subscriptions: [
        {
          queue,
          prefetch: 1_000,
          deliver: (delivery) => {
            delivery.acknowledge()
            const message = channel.read(delivery)
            if (message?.type === "devices") announcer.heard(message)
          },
        },
      ],
    },
    { stateChanged: () => undefined, warning: () => undefined },
  )
  await until(() => broker.state.kind === "ready", { what: "the broker" })
  return {
    come: (at) => announcer.come(connections[at] as Connection),
    gone: (at) => announcer.gone(recipientOf(at).deviceId, recipientOf(at).connectionId),
    settled: () => announcer.pendingCount === 0,
    hasRoom: () => true,
    known: () => locationCache.count,
  }
}

async function binding(): Promise<Way> {
  const client = new BatchingClient(values.url)
  await client.connect()
  const channel: AMQPChannel = await client.channel()
  const queue = `bench.queue.${values.worker}`
  await channel.exchangeDeclare(BINDINGS, "direct", { durable: true })
  await channel.queueDeclare(queue, { durable: true })
  let unanswered = 0
  let bound = 0
  const ask = (request: Promise<unknown>, change: number) => {
    unanswered += 1
    void request.then(() => {
      unanswered -= 1
      bound += change
    })
  }
  return {
    come: (at) => ask(channel.queueBind(queue, BINDINGS, recipientOf(at).deviceId), 1),
    gone: (at) => ask(channel.queueUnbind(queue, BINDINGS, recipientOf(at).deviceId), -1),
    settled: () => unanswered === 0,
    hasRoom: () => unanswered < MAX_UNANSWERED,
    known: () => bound,
  }
}

/** @returns milliseconds from the last device's turn until the broker had everything. */
async function all(way: Way, act: (at: number) => void): Promise<number> {
  const startedAtMs = performance.now()
  for (let at = 0; at < connections.length; ) {
    const passedMs = performance.now() - startedAtMs
    const due = rate === 0 ? at + MAX_A_TURN : Math.floor((passedMs / 1000) * rate)
    while (at < Math.min(due, connections.length) && way.hasRoom()) {
      act(at)
      at += 1
    }
    await (rate === 0 ? new Promise(setImmediate) : Bun.sleep(1))
  }
  const lastAtMs = performance.now()
  await until(way.settled, { what: "the broker to have everything", timeoutMs: 60_000 })
  return performance.now() - lastAtMs
}

const way = await (values.way === "bind" ? binding() : announcing())
report({ ready: 1 })
for await (const line of console) {
  if (line === "come") report({ done: await all(way, way.come) })
  if (line === "go") report({ done: await all(way, way.gone) })
  if (line === "status") report({ known: way.known() })
}
process.exit(0)
