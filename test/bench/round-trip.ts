/**
 * The round trip device → queue → back-end → queue → device, beside the same back-end answering
 * whoever publishes to its queue without a gateway, in turn (A B A B) in one run: what the gateway
 * adds.
 */

import { AMQPClient } from "@cloudamqp/amqp-client"
import { startChild } from "./child.ts"
import { type BenchResult, makeBed, median, round } from "./harness.ts"

export interface RoundTripParameters {
  readonly devices: number
  /** Lines a second of all devices. */
  readonly rate: number
  readonly seconds: number
  readonly rounds: number
}

const WAYS = ["gateway", "alone"] as const
type Way = (typeof WAYS)[number]
const FIGURES = ["p50", "p99"] as const

export async function roundTrip(parameters: RoundTripParameters): Promise<BenchResult> {
  const { devices, rate, seconds, rounds } = parameters
  const bed = await makeBed()
  const client = new AMQPClient(bed.broker.url)
  const { url } = bed.broker
  const alone = `${bed.queues.fromDevice}.alone`
  const children = []
  try {
    await bed.gateway.ready()
    await client.connect()
    const channel = await client.channel()
    await channel.queueDeclare(alone, { durable: true }, { "x-queue-type": "quorum" })
    for (const queue of [bed.queues.fromDevice, alone]) {
      const answerer = startChild("answerer.ts", { url, queue })
      children.push(answerer)
      await answerer.told("ready")
    }
    const load = { devices, rate, seconds }
    const callers = {
      gateway: startChild("callers.ts", { ...load, port: bed.gateway.devicePort }),
      alone: startChild("callers.ts", { ...load, url, queue: alone }),
    }
    for (const way of WAYS) {
      children.push(callers[way])
      await callers[way].told("ready")
    }
    const measured: Record<Way, Record<string, number>[]> = { gateway: [], alone: [] }
    for (let at = -1; at < rounds; at += 1) {
      for (const way of WAYS) {
        callers[way].say("call")
        const told = await callers[way].told("answered")
        if (told["answered"] !== told["called"]) throw new Error(JSON.stringify(told))
        if (at >= 0) measured[way].push(told)
      }
    }
    const of = (way: Way, figure: string) =>
      median(measured[way].map((told) => told[figure] ?? Number.NaN))
    const figures: Record<string, number> = {}
    for (const way of WAYS) {
      for (const figure of FIGURES) figures[`${way}: ${figure}, ms`] = round(of(way, figure))
    }
    for (const figure of FIGURES) {
      figures[`added at ${figure}, ms`] = round(of("gateway", figure) - of("alone", figure))
    }
    const late = Math.max(...WAYS.flatMap((way) => measured[way].map((told) => told["late"] ?? 0)))
    figures["calls behind their time by over 10 ms, share"] = round(late)
    await channel.queueDelete(alone)
    return { bench: "round-trip", parameters: { ...parameters }, figures }
  } finally {
    for (const child of children) await child.stop()
    client.socket?.destroy()
    await bed.stop()
  }
}
