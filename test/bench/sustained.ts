/**
 * Sustained lines: how many a second the gateway brings from devices to a confirmed place in a
 * quorum queue, beside what a lone AMQP client publishes and has confirmed of the same messages on
 * the same machine, in turn (A B A B) in one run. Nobody consumes meanwhile; the queues are emptied
 * in between.
 */

import { AMQPClient } from "@cloudamqp/amqp-client"
import { startChild } from "./child.ts"
import { type BenchResult, Meter, makeBed, median, round, startHerd } from "./harness.ts"
import { cpuOf, processIds } from "./subject.ts"

export interface SustainedParameters {
  readonly connections: number
  readonly linesEach: number
  readonly lineBytes: number
  /** Unconfirmed messages of the lone publisher. */
  readonly window: number
  readonly rounds: number
}

const LIMIT_MS = 120_000
/** Asking costs CPU that is then missing. */
const ASK_EVERY_MS = 100

export async function sustained(parameters: SustainedParameters): Promise<BenchResult> {
  const { connections, linesEach, lineBytes, window, rounds } = parameters
  const total = connections * linesEach
  const bed = await makeBed()
  const client = new AMQPClient(bed.broker.url)
  try {
    await bed.gateway.ready()
    await client.connect()
    const channel = await client.channel()
    const alone = `${bed.queues.fromDevice}.alone`
    await channel.queueDeclare(alone, { durable: true }, { "x-queue-type": "quorum" })
    const publisher = startChild("publisher.ts", {
      ...{ url: bed.broker.url, queue: alone, messages: total, bytes: lineBytes, window },
    })
    await publisher.told("ready")
    const rates: number[] = []
    const aloneRates: number[] = []
    const drivers: number[] = []
    const brokerUs: number[] = []
    for (let at = -1; at < rounds; at += 1) {
      const port = bed.gateway.devicePort
      const herd = await startHerd({ port, connections, linesEach, lineBytes })
      const meter = new Meter(processIds(bed.gateway), [herd.pid])
      const confirmed = () => bed.gateway.metric("owsla_lines_confirmed_total")
      const brokerBefore = cpuOf(bed.broker.processIds())
      herd.go()
      const deadlineMs = performance.now() + LIMIT_MS
      while ((await confirmed()) < total * (at + 2)) {
        if (performance.now() > deadlineMs)
          throw new Error(`waited ${LIMIT_MS} ms for ${total} lines`)
        await Bun.sleep(ASK_EVERY_MS)
      }
      const rate = total / meter.seconds
      const brokerCpu = cpuOf(bed.broker.processIds()) - brokerBefore
      if (at >= 0) drivers.push(meter.driver)
      if (at >= 0) brokerUs.push((brokerCpu / total) * 1e6)
      meter.stop()
      herd.stop()
      const { messageCount } = await channel.queuePurge(bed.queues.fromDevice)
      if (messageCount !== total) throw new Error(`${messageCount} of ${total} lines in the queue`)
      publisher.say("publish")
      const { published, ms = Number.NaN } = await publisher.told("published")
      if (published !== total) throw new Error(`${published} of ${total} published`)
      await channel.queuePurge(alone)
      if (at < 0) continue
      rates.push(rate)
      aloneRates.push((total / ms) * 1000)
    }
    await publisher.stop()
    await channel.queueDelete(alone)
    return {
      bench: "sustained",
      parameters: { ...parameters },
      figures: {
        "gateway, lines a second": Math.round(median(rates)),
        "lone publisher, messages a second": Math.round(median(aloneRates)),
        "ratio to the lone publisher": round(median(rates) / median(aloneRates)),
        "CPU of the broker a line, us": round(median(brokerUs)),
        "busiest driver, share of a core": round(median(drivers)),
      },
    }
  } finally {
    client.socket?.destroy()
    await bed.stop()
  }
}
