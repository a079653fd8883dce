/**
 * The registry: what it costs that every worker can find a device, by announcements (the product's
 * way) beside a binding for each device at the broker, in turn (A B A B) in one run. One worker has
 * devices that come and go; one other takes part, as there is at least one other in a fleet.
 */

import { cpuSeconds } from "../support/gateway.ts"
import { until } from "../support/wait.ts"
import { startChild } from "./child.ts"
import { type BenchResult, benchBroker, median, round } from "./harness.ts"
import { cpuOf } from "./subject.ts"

export interface RegistryParameters {
  readonly devices: number
  /** 0: as fast as they go. */
  readonly perSecond: number
  readonly rounds: number
}

const WAYS = ["announce", "bind"] as const
type Way = (typeof WAYS)[number]

interface Costs {
  /** CPU for each device that came or went, us. */
  readonly holder: number
  readonly other: number
  readonly broker: number
  /** From the last device until the broker had everything, ms. */
  readonly behindMs: number
}

export async function registry(parameters: RegistryParameters): Promise<BenchResult> {
  const { devices, perSecond, rounds } = parameters
  const measured: Record<Way, Costs[]> = { announce: [], bind: [] }
  for (let round = 0; round < rounds; round += 1) {
    for (const way of WAYS) measured[way].push(await once(way, devices, perSecond))
  }
  const figures: Record<string, number> = {}
  for (const way of WAYS) {
    const of = (part: keyof Costs) => round(median(measured[way].map((costs) => costs[part])))
    figures[`${way}: CPU of the holder a change, us`] = of("holder")
    figures[`${way}: CPU of one other worker a change, us`] = of("other")
    figures[`${way}: CPU of the broker a change, us`] = of("broker")
    figures[`${way}: behind at the end, ms`] = of("behindMs")
  }
  return { bench: "registry", parameters: { ...parameters }, figures }
}

async function once(way: Way, devices: number, rate: number): Promise<Costs> {
  const [broker, leave] = await benchBroker()
  const holder = startChild("registry-member.ts", { url: broker.url, way, devices, rate })
  const other = startChild("registry-member.ts", { url: broker.url, way, worker: "bench.1" })
  try {
    await Promise.all([holder.told("ready"), other.told("ready")])
    const cpu = () => ({
      holder: cpuSeconds(holder.pid),
      other: cpuSeconds(other.pid),
      broker: cpuOf(broker.processIds()),
    })
    const before = cpu()
    let behindMs = 0
    for (const [word, known] of [
      ["come", devices],
      ["go", 0],
    ] as const) {
      holder.say(word)
      behindMs = Math.max(behindMs, (await holder.told("done"))["done"] ?? 0)
      const knowing = way === "announce" ? other : holder
      const isKnown = async () => {
        knowing.say("status")
        return (await knowing.told("known"))["known"] === known
      }
      await until(isKnown, { what: `${known} devices to be known`, timeoutMs: 60_000 })
    }
    const after = cpu()
    const each = (part: keyof typeof before) => ((after[part] - before[part]) / devices / 2) * 1e6
    return { holder: each("holder"), other: each("other"), broker: each("broker"), behindMs }
  } finally {
    await Promise.all([holder.stop(), other.stop()])
    await leave()
  }
}
