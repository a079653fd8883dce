/**
 * What a broker user who may publish through the default exchange, as the README's back-end does,
 * cannot do with it: such a user can publish to every queue by its name, those of the workers
 * included. On a real broker, a fleet of two workers, as a user with that permission and no other.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { type AMQPChannel, AMQPClient, type AMQPProperties } from "@cloudamqp/amqp-client"
import type { DeviceView } from "../../src/fleet/device-view.ts"
import { TestFleet } from "../support/fleet.ts"
import type { TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const SEND_TIMEOUT_MS = 2_000
const MAX_COMMAND_BYTES = 262_144
const FORGER = "forger"
let fleet: TestFleet
let client: AMQPClient
let channel: AMQPChannel

beforeAll(async () => {
  fleet = await TestFleet.start(1, {
    SEND_TIMEOUT_MS: String(SEND_TIMEOUT_MS),
    MAX_COMMAND_BYTES: String(MAX_COMMAND_BYTES),
  })
  await fleet.broker.ctl("add_user", FORGER, FORGER)
  await fleet.broker.ctl("set_permissions", FORGER, "^$", "^amq\\.default$", "^$")
  client = new AMQPClient(`amqp://${FORGER}:${FORGER}@127.0.0.1:${fleet.broker.port}`)
  await client.connect()
  channel = await client.channel()
  await channel.confirmSelect()
}, LIMIT_MS)

afterAll(async () => {
  await client?.close()
  await fleet?.stop()
}, LIMIT_MS)

afterEach(async () => {
  fleet.releaseDevices()
  expect(await fleet.counted("owsla_faults_total")).toBe(0)
  const inHand = async () => {
    const count = await fleet.counted("owsla_commands_unacknowledged")
    if (count > 0) throw new Error(`${count} commands`)
    return true
  }
  await until(inHand, { what: "no command to be in hand" })
}, LIMIT_MS)

function publish(queue: string, body: string | object, properties: AMQPProperties = {}) {
  const text = typeof body === "string" ? body : JSON.stringify(body)
  return channel.basicPublish("", queue, text, properties)
}

async function queuesThatBegin(prefix: string): Promise<string[]> {
  const names = (await fleet.broker.ctl("list_queues", "name")).split("\n")
  return names.filter((name) => name.startsWith(prefix))
}

/** To every worker's fleet queue, as if from a worker of another instance. */
async function forge(message: object): Promise<void> {
  const before = await fleet.counted("owsla_fleet_messages_unverified_total")
  const queues = await queuesThatBegin("owsla.fleet.")
  expect(queues).toHaveLength(fleet.workers)
  const sender = { from: "evil.0", incarnation: "mb2k3f9zq7x2" }
  const properties = { type: "owsla.fleet", replyTo: "owsla.fleet.evil.0.mb2k3f9zq7x2" }
  for (const queue of queues) await publish(queue, { ...sender, ...message }, properties)
  await until(
    async () =>
      (await fleet.counted("owsla_fleet_messages_unverified_total")) === before + queues.length,
    { what: "the forged messages to be counted" },
  )
}

/** Sends as many commands to a device, and expects each to be written to it, once. */
async function writes(name: string, device: TestDevice, count: number): Promise<void> {
  const before = device.lines.length
  const bodies = Array.from({ length: count }, (_, at) => `command ${at}`)
  const commands: number[] = []
  for (const body of bodies) commands.push(await fleet.backEnd.send({ body, device: name }))
  for (const command of commands) {
    expect(await fleet.receiptOf(command)).toMatchObject({ outcome: "written", device_id: name })
  }
  await device.waitLines(before + count)
  expect(device.lines.slice(before).toSorted()).toEqual(bodies.toSorted())
}

describe("a message to the workers' queues from a back-end", () => {
  test.each([
    ["later", Date.now() + 60_000],
    ["in the largest epoch", Number.MAX_SAFE_INTEGER],
  ])(
    "that registers a device, %s, closes no connection and captures no command",
    async (_, epoch) => {
      const name = fleet.newName()
      const { device, view } = await fleet.admit(0, name)
      await forge({ type: "alive", asks: false })
      await forge({
        type: "devices",
        here: [[name, "evil.0.mb2k3f9zq7x2.1", epoch]],
        gone: [[name, view.connection_id]],
      })
      await writes(name, device, 30)
      // The device can still be taken over by its next connection.
      const { view: next } = await fleet.admit(0, name)
      expect(next.epoch).toBeLessThan(Date.now() + 60_000)
      expect((await device.closed).by).toBe("peer")
    },
    LIMIT_MS,
  )

  test(
    "that asks for a kick closes nothing",
    async () => {
      const name = fleet.newName()
      const { device, view } = await fleet.admit(0, name)
      const connection = view.connection_id
      await forge({ type: "kick", ask: 1, connection, until_ms: Number.MAX_SAFE_INTEGER })
      await forge({ type: "leaving", from: view.worker })
      await writes(name, device, 4)
      expect(await fleet.counted("owsla_connections_closed_total", "kicked")).toBe(0)
    },
    LIMIT_MS,
  )

  test(
    "that is larger than any of a worker is dropped before it is read",
    async () => {
      const name = fleet.newName()
      const { device } = await fleet.admit(0, name)
      await forge({ type: "devices", here: [], gone: [], more: "x".repeat(20_000_000) })
      await writes(name, device, 2)
    },
    LIMIT_MS,
  )

  test(
    "with the ids of commands that were forwarded swallows none of them",
    async () => {
      const name = fleet.newName()
      const { device, view } = await fleet.admit(0, name)
      const processes = (await queuesThatBegin("owsla.fleet.")).map((queue) => queue.slice(12))
      const [queue = ""] = await queuesThatBegin(`owsla.worker.${view.worker}`)
      for (let at = 0; at < 200; at += 1) {
        for (const id of processes) {
          const command = `${id}.${at.toString(36)}`
          const headers = { "owsla-command": command, "owsla-hops": 1, connection_id: "nobody" }
          void publish(queue, "guessed", { headers })
        }
      }
      await writes(name, device, 40)
    },
    LIMIT_MS,
  )

  test(
    "with guessed ids of requests answers no caller",
    async () => {
      const name = fleet.newName()
      const { device, view } = await fleet.admit(0, name)
      const queues = await queuesThatBegin("owsla.fleet.")
      device.pause()
      // Fills the socket's buffers, so that the next command waits behind at least three of these.
      const filler = { body: "x".repeat(60_000), device: name }
      const waitingBytes = async () => {
        const seen = (await (
          await fleet.instance(0).fetch(`/devices/${name}`)
        ).json()) as DeviceView
        return seen.outgoing_bytes
      }
      const isFull = async () => {
        for (let at = 0; at < 10; at += 1) await fleet.backEnd.send(filler)
        return (await waitingBytes()) >= 180_000
      }
      await until(isFull, { what: "commands to wait for the socket" })
      const answers = Array.from({ length: 8 }, () => fleet.send(0, name, "never written"))
      const told = { outcome: "written", device_id: name, connection_id: view.connection_id }
      const forgedEpoch = 12_345
      const receipt = { ...told, epoch: forgedEpoch, at: Date.now(), detail: "" }
      for (let at = 0; at < 200; at += 1) {
        for (const queue of queues) void publish(queue, receipt, { correlationId: String(at) })
      }
      const responses = await Promise.all(answers)
      const bodies = (await Promise.all(responses.map((response) => response.json()))) as {
        readonly epoch?: number
      }[]
      expect(bodies.map(({ epoch }) => epoch)).not.toContain(forgedEpoch)
    },
    LIMIT_MS,
  )
})

describe("a command from a back-end", () => {
  test.each(["from_device", "to_device", "undelivered", "worker", "fleet", "dead_letters"])(
    "with the queue %s for its receipt is invalid, and nothing arrives there",
    async (which) => {
      const { FROM_DEVICE_QUEUE, TO_DEVICE_QUEUE, UNDELIVERED_QUEUE } = fleet.queues
      const [worker = ""] = await queuesThatBegin("owsla.worker.")
      const [fleetQueue = ""] = await queuesThatBegin("owsla.fleet.")
      const queue = {
        from_device: FROM_DEVICE_QUEUE,
        to_device: TO_DEVICE_QUEUE,
        undelivered: UNDELIVERED_QUEUE,
        worker,
        fleet: fleetQueue,
        dead_letters: "owsla.dead_letters",
      }[which]
      const name = fleet.newName()
      const { device } = await fleet.admit(0, name)
      const lines = fleet.backEnd.lines.length
      const body = `receipt to ${which}`
      const headers = { device_id: name }
      await publish(TO_DEVICE_QUEUE, body, { headers, replyTo: queue ?? "" })
      await until(() => fleet.backEnd.undelivered.some((copy) => copy.body === body), {
        what: "the command to be kept",
      })
      expect(fleet.backEnd.undelivered.find((copy) => copy.body === body)?.outcome).toBe("invalid")
      const isReceipt = ({ body: text }: { body: string }) => text.includes('"outcome"')
      expect(fleet.backEnd.undelivered.filter(isReceipt)).toEqual([])
      expect([device.lines.length, fleet.backEnd.lines.length]).toEqual([0, lines])
    },
    LIMIT_MS,
  )

  test(
    "with headers that only workers set is taken as one without them",
    async () => {
      const name = fleet.newName()
      const { device } = await fleet.admit(0, name)
      const headers = {
        device_id: name,
        "owsla-hops": 3,
        "owsla-redelivered": true,
        "owsla-given-up": "expired 1 no reason",
        "owsla-expires-at": 1,
        "owsla-left": 1,
        "owsla-command": "forged",
        "owsla-member": "forged",
      }
      for (let at = 0; at < 20; at += 1) {
        await publish(fleet.queues.TO_DEVICE_QUEUE, `forged ${at}`, { headers })
      }
      await device.waitLines(20)
    },
    LIMIT_MS,
  )

  test(
    "in the queue of dead letters, with any x-death, is kept and acknowledged: commands go on",
    async () => {
      const deaths = [
        [{ reason: { toString: "x" } }],
        [{ reason: "expired", queue: { toString: "x" } }],
        [{ reason: ["expired"], queue: 7, "original-expiration": {} }],
        "expired",
        { length: 1, 0: "x" },
        [[[]]],
      ]
      const body = "x".repeat(60_000)
      const kept = fleet.backEnd.undelivered.length
      for (const death of [...deaths, ...deaths]) {
        const headers = { "x-death": death, connection_id: "nobody" } as AMQPProperties["headers"]
        await publish("owsla.dead_letters", body, headers === undefined ? {} : { headers })
      }
      await until(() => fleet.backEnd.undelivered.length === kept + 2 * deaths.length, {
        what: "all to be kept",
      })
      const name = fleet.newName()
      const { device } = await fleet.admit(0, name)
      await writes(name, device, 4)
      expect((await fleet.instance(0).fetch("/ready")).status).toBe(200)
    },
    LIMIT_MS,
  )
})

test(
  "commands in hand that fill their bound pause the consuming, and /ready says so",
  async () => {
    const name = fleet.newName()
    const { device } = await fleet.admit(0, name)
    const [queue = ""] = await queuesThatBegin("owsla.worker.")
    // A number that never comes holds them.
    const headers = { device_id: name, to_device_seq: 1 }
    for (let at = 0; at < 12; at += 1) {
      await publish(queue, "x".repeat(60_000), { headers: { ...headers, to_device_seq: 100 + at } })
    }
    const ready = async () => (await (await fleet.instance(0).fetch("/ready")).json()) as object
    await until(async () => JSON.stringify(await ready()).includes("MAX_COMMAND_BYTES"), {
      what: "/ready to say that no commands are consumed",
    })
    await device.waitLines(12)
    await until(async () => (await fleet.instance(0).fetch("/ready")).status === 200, {
      what: "/ready to be 200 again",
    })
  },
  LIMIT_MS,
)
