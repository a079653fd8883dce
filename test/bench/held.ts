/**
 * Held commands: many commands for devices that are away, which then all come back at a rate. What
 * it costs to hold one and to write it, what the keepers' workers hold, and the latency of lines
 * of other devices meanwhile. Checks that each command is written once and in order for each device,
 * and counts the devices that get the newer command, which answers their first line, too early.
 *
 * `restSeconds` lets the commands wait, on a broker that closes channels with deliveries that are
 * unacknowledged for a minute (`consumer_timeout`): the keepers must take them again in time.
 */

import { residentBytes } from "../support/gateway.ts"
import { until } from "../support/wait.ts"
import { type Child, startChild } from "./child.ts"
import { BackEnd, type BenchResult, benchBroker, Meter, makeBed, round } from "./harness.ts"
import { cpuOf, processIds } from "./subject.ts"

export interface HeldParameters {
  readonly devices: number
  readonly commandsEach: number
  /** The time in which all devices come back. */
  readonly backSeconds: number
  readonly restSeconds: number
  readonly steady: number
}

const SECRET = "a-secret-of-the-benches-0123456789"
const HOLD_MS = 3_600_000
const DRIVERS = 2
const LIMIT_MS = 300_000
const CONSUMER_TIMEOUT_MS = 60_000
/** RabbitMQ's default. */
const USUAL_CONSUMER_TIMEOUT_MS = 1_800_000

/** A node that closes channels whose deliveries are unacknowledged for a minute. */
async function impatientBroker(): ReturnType<typeof benchBroker> {
  const [broker, leave] = await benchBroker()
  const allow = (ms: number) =>
    broker.ctl("eval", `application:set_env(rabbit, consumer_timeout, ${ms}).`)
  await allow(CONSUMER_TIMEOUT_MS)
  // Other benches may share the node.
  return [broker, () => allow(USUAL_CONSUMER_TIMEOUT_MS).then(leave)]
}

/** The same, after the commands have waited at a broker that allows no long wait. */
export async function heldAtImpatientBroker(parameters: HeldParameters): Promise<BenchResult> {
  return { ...(await heldCommands(parameters, impatientBroker)), bench: "held-rest" }
}

export async function heldCommands(
  parameters: HeldParameters,
  brokerOf = benchBroker,
): Promise<BenchResult> {
  const { devices, commandsEach, backSeconds, restSeconds, steady } = parameters
  const commands = devices * commandsEach
  const bed = await makeBed(
    {
      ...{ WORKERS: "2", DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET, DEVICE_ACK: "seq" },
      // The steady devices are silent while the commands wait.
      IDLE_TIMEOUT_MS: String(HOLD_MS),
      ...{ MAX_HELD: String(commands), MAX_HELD_PER_DEVICE: String(commandsEach) },
    },
    brokerOf,
  )
  const { gateway, queues } = bed
  const backEnd = await BackEnd.connect(bed.broker.url)
  const port = gateway.devicePort
  const identity = { port, auth: "hello", secret: SECRET }
  const crowd = startChild("crowd.ts", { ...identity, connections: steady })
  const coming = { port, secret: SECRET, from: 0, devices, each: commandsEach, backSeconds }
  const drivers = startHeldDevices(coming)
  const resident = () => {
    const bytes = [...gateway.workers().values()].map((pid) => residentBytes(pid) / 1e6)
    return { all: bytes.reduce((sum, each) => sum + each, 0), largest: Math.max(...bytes) }
  }
  try {
    await Promise.all([...drivers, crowd].map((child) => child.told("ready")))
    crowd.say(`connect ${steady}`)
    await crowd.told("connected")
    const quietMs = await steadyP99(crowd, steady, Math.min(5, backSeconds))

    const publish = await backEnd.publisher()
    await backEnd.consume(queues.fromDevice, (message) => {
      const { headers = {}, replyTo = "" } = message.properties
      if (!String(headers["device_id"]).startsWith("away-")) return
      publish(replyTo, "newer", { connection_id: String(headers["connection_id"]) })
    })
    const before = resident()
    const pids = processIds(gateway)
    const holding = new Meter(pids)
    const brokerBefore = cpuOf(bed.broker.processIds())
    for (let number = 0; number < commandsEach; number += 1) {
      const messages = Array.from({ length: devices }, (_, at) => ({
        body: `held ${number}`,
        headers: { device_id: `away-${at}`, hold_ms: String(HOLD_MS) },
      }))
      await backEnd.publishAll(queues.toDevice, messages)
    }
    await until(async () => (await gateway.metric("owsla_held_commands")) === commands, {
      what: "all commands to be held",
      timeoutMs: LIMIT_MS,
    })
    holding.stop()
    const held = { cpuUs: (holding.cpu / commands) * 1e6, perSecond: commands / holding.seconds }
    const brokerHeld = cpuOf(bed.broker.processIds())
    const after = resident()
    await Bun.sleep(restSeconds * 1_000)
    if ((await gateway.metric("owsla_held_commands")) !== commands) {
      throw new Error("commands are gone before their devices have come")
    }

    const writing = new Meter(pids)
    const brokerRested = cpuOf(bed.broker.processIds())
    for (const driver of drivers) driver.say("come")
    const beside = steadyP99(crowd, steady, backSeconds)
    await Promise.all(drivers.map((driver) => driver.told("came")))
    const cameAtMs = performance.now()
    const status = async () => {
      for (const driver of drivers) driver.say("status")
      const told = await Promise.all(drivers.map((driver) => driver.told("whole")))
      const sum = (name: string) => told.reduce((total, each) => total + (each[name] ?? 0), 0)
      const [disorder, repeated, early] = [sum("disorder"), sum("repeated"), sum("early")]
      return { whole: sum("whole"), disorder, repeated, early }
    }
    await until(async () => (await status()).whole === devices, {
      what: "each device to have all its commands",
      timeoutMs: LIMIT_MS,
    })
    const behindMs = performance.now() - cameAtMs
    await until(async () => (await gateway.metric("owsla_held_commands")) === 0, {
      what: "no command to be held any more",
      timeoutMs: LIMIT_MS,
    })
    writing.stop()
    const writtenUs = (writing.cpu / commands) * 1e6
    const brokerWritten = cpuOf(bed.broker.processIds())
    const { disorder, repeated, early } = await status()
    if (disorder + repeated > 0) {
      throw new Error(`${disorder} commands out of order, ${repeated} twice`)
    }
    return {
      bench: "held",
      parameters: { ...parameters },
      figures: {
        "CPU to hold a command, us": round(held.cpuUs),
        "CPU of the broker for it, us": round(((brokerHeld - brokerBefore) / commands) * 1e6),
        "held a second": round(held.perSecond),
        "CPU to write a held command, its part of the admission included, us": round(writtenUs),
        "CPU of the broker for that, us": round(((brokerWritten - brokerRested) / commands) * 1e6),
        "devices that got a newer command before their held ones": early,
        "all devices have all their commands after the last one came, ms": round(behindMs),
        "broker connections that were lost": await gateway.metric("owsla_broker_losses_total"),
        "resident memory of both workers before, MB": round(before.all),
        "resident memory of both workers with all held, MB": round(after.all),
        "resident memory of the larger worker with all held, MB": round(after.largest),
        "p99 of the lines of other devices, quiet, ms": quietMs,
        "p99 of the lines of other devices while all come back, ms": await beside,
      },
    }
  } finally {
    await Promise.all([...drivers, crowd].map((child) => child.stop()))
    backEnd.close()
    await bed.stop()
  }
}

/** Drivers of the devices `away-<from>` and so on, which come within `backSeconds`. */
export function startHeldDevices(about: {
  readonly port: number
  readonly secret: string
  readonly from: number
  readonly devices: number
  /** Held commands of each device. */
  readonly each: number
  readonly backSeconds: number
}): Child[] {
  const { port, secret, from, devices, each, backSeconds } = about
  const share = Math.ceil(devices / DRIVERS)
  return Array.from({ length: DRIVERS }, (_, at) =>
    startChild("held-devices.ts", {
      ...{ port, secret, each, from: from + at * share },
      devices: Math.min(share, devices - at * share),
      rate: Math.max(1, devices / DRIVERS / backSeconds),
    }),
  )
}

/** The p99 of lines of the steady devices that are acknowledged, one each a second. */
async function steadyP99(
  crowd: ReturnType<typeof startChild>,
  steady: number,
  seconds: number,
): Promise<number> {
  crowd.say(`send ${steady} ${seconds}`)
  const told = await crowd.told("acknowledged")
  if (told["acknowledged"] !== told["sent"]) throw new Error("lines were not acknowledged")
  return round(told["p99"] ?? Number.NaN)
}
