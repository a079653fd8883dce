/**
 * The registry: what it costs, over the whole fleet, that each worker can find each device. Fleets
 * of several sizes in turn in one run; the same devices come and go in each, at the same rate, so
 * the figures of two sizes show what a further worker costs. The workers are the fleet part of a
 * gateway, with presence and without sockets.
 */

import { cpuSeconds } from "../support/gateway.ts"
import { until } from "../support/wait.ts"
import { type Child, startChild } from "./child.ts"
import { type BenchResult, benchBroker, median, round } from "./harness.ts"
import { cpuOf } from "./subject.ts"

export interface RegistryParameters {
  /** The largest fleet; the others have a half, a quarter … of it, down to 2. */
  readonly workers: number
  /** Of the whole fleet. */
  readonly devices: number
  readonly perSecond: number
  /** Devices that the whole fleet looks up, and how many a second. */
  readonly finds: number
  readonly findsPerSecond: number
  readonly rounds: number
  /** How long it is measured what the workers need when nothing happens. */
  readonly idleMs: number
}

interface Costs {
  /**
   * CPU of all workers for each device that came or went, us. Without what they need when idle and
   * for the wake-ups of this bench: in a gateway, the device's socket has woken the worker.
   */
  readonly workers: number
  /** CPU of those wake-ups for each device, us. */
  readonly wakes: number
  /** CPU of all workers when nothing happens, cores. */
  readonly idle: number
  readonly broker: number
  /** From the last device until the keepers had everything, ms. */
  readonly behindMs: number
  readonly findP99Ms: number
  readonly wrong: number
}

export async function registry(parameters: RegistryParameters): Promise<BenchResult> {
  const sizes: number[] = []
  for (let size = 2; size <= parameters.workers; size *= 2) sizes.push(size)
  const measured = new Map<number, Costs[]>(sizes.map((size) => [size, []]))
  for (let n = 0; n < parameters.rounds; n += 1) {
    for (const size of sizes) measured.get(size)?.push(await once(size, parameters))
  }
  const figures: Record<string, number> = {}
  for (const [size, costs] of measured) {
    const of = (part: keyof Costs, digits = 1) =>
      round(median(costs.map((each) => each[part])) * digits) / digits
    figures[`${size} workers: CPU of all workers a change, us`] = of("workers")
    figures[`${size} workers: CPU of the bench's own wake-ups a change, us`] = of("wakes")
    figures[`${size} workers: CPU of all workers when idle, cores`] = of("idle", 1_000)
    figures[`${size} workers: CPU of the broker a change, us`] = of("broker")
    figures[`${size} workers: behind at the end, ms`] = of("behindMs")
    figures[`${size} workers: look-up elsewhere p99 of the slowest worker, ms`] = of(
      "findP99Ms",
      10,
    )
    figures[`${size} workers: look-ups without the device`] = of("wrong")
  }
  return { bench: "registry", parameters: { ...parameters }, figures }
}

async function once(size: number, parameters: RegistryParameters): Promise<Costs> {
  const { devices, perSecond, finds, findsPerSecond, idleMs } = parameters
  const [broker, leave] = await benchBroker()
  const shares = {
    devices: Math.floor(devices / size),
    rate: perSecond / size,
    finds: Math.ceil(finds / size),
    findRate: findsPerSecond / size,
  }
  const members = Array.from({ length: size }, (_, worker) =>
    startChild("registry-member.ts", { url: broker.url, worker, workers: size, ...shares }),
  )
  try {
    await Promise.all(members.map((member) => member.told("ready")))
    await until(() => acquainted(members, size), { what: "the fleet", timeoutMs: 60_000 })
    const cpu = () => ({
      workers: members.reduce((sum, { pid }) => sum + cpuSeconds(pid), 0),
      broker: cpuOf(broker.processIds()),
      atMs: performance.now(),
    })
    const quiet = cpu()
    await Bun.sleep(idleMs)
    const before = cpu()
    const idle = (before.workers - quiet.workers) / ((before.atMs - quiet.atMs) / 1_000)
    const idleBroker = (before.broker - quiet.broker) / ((before.atMs - quiet.atMs) / 1_000)
    const done = async (word: string) => {
      for (const member of members) member.say(word)
      const told = await Promise.all(members.map((member) => member.told("done")))
      return Math.max(...told.map(({ done: ms }) => ms ?? 0))
    }
    await done("nothing")
    const paced = cpu()
    const cameMs = await done("come")
    const came = cpu()
    for (const member of members) member.say("find")
    const found = await Promise.all(members.map((member) => member.told("p99")))
    const finished = cpu()
    const wentMs = await done("go")
    const after = cpu()
    const changes = 2 * shares.devices * size
    const seconds = (came.atMs - paced.atMs + after.atMs - finished.atMs) / 1_000
    const each = (part: "workers" | "broker", idleCores: number) => {
      const spent = came[part] - paced[part] + after[part] - finished[part]
      return ((spent - idleCores * seconds) / changes) * 1e6
    }
    const pacedSeconds = (paced.atMs - before.atMs) / 1_000
    const wakes = ((paced.workers - before.workers - idle * pacedSeconds) / (changes / 2)) * 1e6
    return {
      workers: each("workers", idle) - wakes,
      wakes,
      idle,
      broker: each("broker", idleBroker),
      behindMs: Math.max(cameMs, wentMs),
      findP99Ms: Math.max(...found.map(({ p99 }) => p99 ?? 0)),
      wrong: found.reduce((sum, { wrong }) => sum + (wrong ?? 0), 0),
    }
  } finally {
    await Promise.all(members.map((member) => member.stop()))
    await leave()
  }
}

/** Whether all workers know each other, and each shard has one keeper. */
async function acquainted(members: readonly Child[], size: number): Promise<boolean> {
  for (const member of members) member.say("acquainted")
  const told = await Promise.all(members.map((member) => member.told("members")))
  const shards = told.reduce((sum, each) => sum + (each["shards"] ?? 0), 0)
  return shards === 16 && told.every((each) => each["members"] === size - 1)
}
