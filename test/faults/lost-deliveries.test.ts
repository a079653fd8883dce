/**
 * One outcome for each command whose delivery is lost: a worker holds commands when its connections
 * to the broker are closed. The real program and a real RabbitMQ, commands without `message_id`
 * unless said, and a device that reads nothing for a while.
 */

import { afterAll, afterEach, beforeAll, expect } from "bun:test"
import { AMQPClient, type AMQPProperties } from "@cloudamqp/amqp-client"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"
import { type Figures, fault, sized } from "./fault.ts"

const START_LIMIT_MS = 60_000
/** Bytes. The kernel lets the send buffer of a connection grow to 4 MiB (`net.ipv4.tcp_wmem`). */
const MORE_THAN_SOCKETS_TAKE = 7_000_000
const LIMIT_MS = 90_000

let broker: PrivateBroker
const closers: (() => unknown)[] = []

beforeAll(async () => {
  broker = await startRabbitMq()
}, START_LIMIT_MS)

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close()
}, LIMIT_MS)

afterAll(() => broker?.dispose(), START_LIMIT_MS)

/** A gateway with one worker and queues of its own, and the back-end's use of them. */
class Subject {
  readonly gateway: TestGateway
  readonly queues: ReturnType<typeof ownQueues>
  readonly receiptQueue: string

  private constructor(
    gateway: TestGateway,
    queues: ReturnType<typeof ownQueues>,
    receipts: string,
  ) {
    this.gateway = gateway
    this.queues = queues
    this.receiptQueue = receipts
  }

  static async start(environment: Record<string, string> = {}): Promise<Subject> {
    const name = uniqueNames("lost")
    const queues = ownQueues(name)
    const gateway = await startGateway({
      AMQP_URL: broker.url,
      WORKERS: "1",
      ...queues,
      ...environment,
    })
    closers.push(() => gateway.stop())
    await gateway.ready()
    const subject = new Subject(gateway, queues, name("receipts"))
    await subject.#withChannel((channel) => channel.queueDeclare(subject.receiptQueue))
    return subject
  }

  /** Publishes commands, each with a receipt under its number. */
  async publish(
    bodies: readonly string[],
    properties: AMQPProperties,
    queue = this.queues.TO_DEVICE_QUEUE,
  ): Promise<void> {
    await this.#withChannel(async (channel) => {
      await channel.confirmSelect()
      const published = bodies.map((body, n) =>
        channel.basicPublish("", queue, body, {
          deliveryMode: 2,
          replyTo: this.receiptQueue,
          correlationId: String(n),
          ...properties,
        }),
      )
      await Promise.all(published)
    })
  }

  /** The id of the connection that sent the only line there is. */
  async connectionId(): Promise<string> {
    const line = await until(async () => (await this.#drain(this.queues.FROM_DEVICE_QUEUE))[0], {
      what: "a line",
    })
    return String(line.headers["connection_id"])
  }

  async loseConnections(): Promise<void> {
    const before = await this.gateway.metric("owsla_broker_connects_total")
    await broker.closeAllConnections("a test")
    await until(async () => (await this.gateway.metric("owsla_broker_connects_total")) > before, {
      what: "the gateway to be connected again",
    })
  }

  unacknowledged(): Promise<number> {
    return this.gateway.metric("owsla_commands_unacknowledged")
  }

  /** Waits until the broker and the gateway hold no command any more. */
  async calm(...others: string[]): Promise<void> {
    const queues = [this.queues.TO_DEVICE_QUEUE, "owsla.dead_letters", ...others]
    await until(
      async () => {
        const depths = await Promise.all(queues.map((queue) => broker.queueDepth(queue)))
        return [...depths, await this.unacknowledged()].every((count) => count === 0)
      },
      { what: "every command to have ended", timeoutMs: 60_000 },
    )
  }

  /** The outcome of each receipt, by the command's number. */
  async receipts(): Promise<Map<number, string[]>> {
    const byCommand = new Map<number, string[]>()
    for (const { correlationId, body } of await this.#drain(this.receiptQueue)) {
      const outcomes = byCommand.get(Number(correlationId)) ?? []
      byCommand.set(Number(correlationId), [...outcomes, JSON.parse(body).outcome])
    }
    return byCommand
  }

  async undelivered(): Promise<string[]> {
    return (await this.#drain(this.queues.UNDELIVERED_QUEUE)).map(({ body }) => body)
  }

  async #drain(queue: string) {
    return this.#withChannel(async (channel) => {
      const messages = []
      for (;;) {
        const message = await channel.basicGet(queue, { noAck: true })
        if (message === null) return messages
        const { correlationId, headers = {} } = message.properties
        messages.push({ correlationId, headers, body: message.bodyString() ?? "" })
      }
    })
  }

  async #withChannel<T>(
    act: (channel: Awaited<ReturnType<AMQPClient["channel"]>>) => Promise<T>,
  ): Promise<T> {
    const client = new AMQPClient(broker.url)
    await client.connect()
    try {
      return await act(await client.channel())
    } finally {
      await client.close()
    }
  }
}

/** A device with a small receive buffer that reads nothing until `read`. */
async function slowDevice(port: number) {
  const child = Bun.spawn(
    ["/usr/bin/python3", `${import.meta.dir}/../support/slow_device.py`, String(port)],
    {
      stdio: ["pipe", "pipe", "inherit"],
    },
  )
  closers.push(() => child.kill())
  let text = ""
  const decoder = new TextDecoder()
  void (async () => {
    for await (const chunk of child.stdout) text += decoder.decode(chunk, { stream: true })
  })()
  await until(() => text.startsWith("connected\n"), { what: "the slow device to connect" })
  return {
    read: () => {
      child.stdin.write("read\n")
      child.stdin.flush()
    },
    /** Whole lines that it has read. */
    lines: () => text.split("\n").slice(1, -1),
  }
}

function expectOneOutcomeEach(count: number, receipts: ReadonlyMap<number, string[]>): void {
  const several = [...receipts].filter(([, outcomes]) => outcomes.length !== 1)
  expect(several).toEqual([])
  expect([...receipts.keys()].sort((a, b) => a - b)).toEqual(
    Array.from({ length: count }, (_, n) => n),
  )
}

/**
 * Each command is either on the wire once, with the receipt `written`, or kept once, with another
 * outcome.
 */
async function expectOnePlaceEach(
  subject: Subject,
  bodies: readonly string[],
  lines: () => readonly string[],
): Promise<Map<number, string[]>> {
  const receipts = await subject.receipts()
  expectOneOutcomeEach(bodies.length, receipts)
  const isWritten = (_: string, n: number) => receipts.get(n)?.[0] === "written"
  const written = bodies.filter(isWritten)
  await until(() => lines().length >= written.length, { what: "the device to read all" })
  expect(
    lines()
      .map((line) => line.slice(0, 10))
      .sort(),
  ).toEqual(written.map((body) => body.slice(0, 10)).sort())
  const kept = (await subject.undelivered()).map((body) => body.slice(0, 10))
  expect(kept.sort()).toEqual(
    bodies
      .filter((body, n) => !isWritten(body, n))
      .map((body) => body.slice(0, 10))
      .sort(),
  )
  return receipts
}

function bodiesOf(count: number, bytes: number): string[] {
  return Array.from({ length: count }, (_, n) =>
    `command ${String(n).padStart(4, "0")} `.padEnd(bytes, "."),
  )
}

function outcomesOf(receipts: ReadonlyMap<number, string[]>): Figures {
  const figures: Record<string, number> = { commands: receipts.size }
  for (const [outcome] of receipts.values()) {
    if (outcome !== undefined) figures[outcome] = (figures[outcome] ?? 0) + 1
  }
  return figures
}

fault(
  {
    fault: "deliveries lost while a device reads nothing",
    made: "20 KB commands without message_id for a device with a receive buffer of 4 KB, close_all_connections, then it reads",
    promise: "each command has one outcome and one receipt, and is written once or kept once",
  },
  async () => {
    const subject = await Subject.start({ MAX_OUTGOING_BYTES: "16777216" })
    const device = await slowDevice(subject.gateway.devicePort)
    const headers = { connection_id: await subject.connectionId() }
    const bodies = bodiesOf(350, MORE_THAN_SOCKETS_TAKE / 350)
    await subject.publish(bodies, { headers })
    await until(async () => (await broker.queueDepth(subject.queues.TO_DEVICE_QUEUE)) === 0, {
      what: "the gateway to have taken the commands",
    })
    await until(async () => (await subject.unacknowledged()) > 0, { what: "commands to wait" })
    const losses = sized(5, 1)
    for (let n = 0; n < losses; n += 1) await subject.loseConnections()
    device.read()
    await subject.calm()
    const receipts = await expectOnePlaceEach(subject, bodies, device.lines)
    expect([...receipts.values()].flat()).toContain("written")
    return { ...outcomesOf(receipts), "connections closed": losses }
  },
  LIMIT_MS,
)

fault(
  {
    fault: "expired in the queue after its delivery was lost",
    made: "a command with to_device_seq 1 and expiration 1000 waits for number 0, close_all_connections after its time",
    promise: "it ends once, as expired, and is kept once",
  },
  async () => {
    const subject = await Subject.start({ SEQ_GAP_TIMEOUT_MS: "4000" })
    const device = await connectDevice({ port: subject.gateway.devicePort })
    closers.push(() => device.terminate())
    await device.send("hello")
    const connection_id = await subject.connectionId()
    const numbered = (seq: bigint) => ({ headers: { connection_id, to_device_seq: seq } })
    const publishedAtMs = performance.now()
    await subject.publish(["numbered"], { ...numbered(1n), expiration: "1000" })
    await until(
      async () => (await subject.gateway.metric("owsla_commands_waiting_for_number")) === 1,
      {
        what: "the command to wait for a number",
      },
    )
    await until(() => performance.now() - publishedAtMs > 1_100, { what: "its time to be over" })
    await subject.loseConnections()
    await subject.calm()
    const receipts = await subject.receipts()
    expect(receipts).toEqual(new Map([[0, ["expired"]]]))
    // Once this gap is given up, that of the first command would have been too.
    await subject.publish(["later"], numbered(2n))
    await device.waitLines(1)
    await subject.calm()
    expect(await subject.receipts()).toEqual(new Map([[0, ["written"]]]))
    expect(await subject.undelivered()).toEqual(["numbered"])
    expect(device.lines).toEqual(["later"])
    return outcomesOf(receipts)
  },
  LIMIT_MS,
)

fault(
  {
    fault: "given up by a delivery limit while a device takes it",
    made: "50 KB commands for a device that reads nothing, policy delivery-limit 1, close_all_connections three times",
    promise: "each command has one outcome and one receipt, and is written once or kept once",
  },
  async () => {
    const subject = await Subject.start({ MAX_OUTGOING_BYTES: "16777216" })
    const { TO_DEVICE_QUEUE } = subject.queues
    await setPolicy("limit", TO_DEVICE_QUEUE, { "delivery-limit": 1 })
    const device = await slowDevice(subject.gateway.devicePort)
    const headers = { connection_id: await subject.connectionId() }
    const bodies = bodiesOf(140, MORE_THAN_SOCKETS_TAKE / 140)
    await subject.publish(bodies, { headers })
    await until(async () => (await subject.unacknowledged()) > 0, { what: "commands to wait" })
    for (let n = 0; n < 3; n += 1) await subject.loseConnections()
    device.read()
    await subject.calm()
    const receipts = await expectOnePlaceEach(subject, bodies, device.lines)
    expect([...receipts.values()].flat()).toContain("closed")
    return outcomesOf(receipts)
  },
  LIMIT_MS,
)

fault(
  {
    fault: "deliveries from a worker's queue lost after the queue's time",
    made: "50 KB commands to reply_to for a device that reads nothing, close_all_connections after the queue's message TTL (by policy 500 ms)",
    promise: "each command is written once and has one receipt",
  },
  async () => {
    const subject = await Subject.start({ MAX_OUTGOING_BYTES: "16777216" })
    const device = await slowDevice(subject.gateway.devicePort)
    const connectionId = await subject.connectionId()
    const queue = `owsla.worker.${connectionId.split(".").slice(0, 2).join(".")}`
    await setPolicy("ttl", queue, { "message-ttl": 500 })
    const bodies = bodiesOf(140, MORE_THAN_SOCKETS_TAKE / 140)
    const publishedAtMs = performance.now()
    await subject.publish(bodies, { headers: { connection_id: connectionId } }, queue)
    await until(async () => (await subject.unacknowledged()) > bodies.length / 2, {
      what: "the commands to wait",
    })
    await until(() => performance.now() - publishedAtMs > 1_000, { what: "their time to be over" })
    await subject.loseConnections()
    device.read()
    await subject.calm(queue)
    const receipts = await expectOnePlaceEach(subject, bodies, device.lines)
    expect([...new Set([...receipts.values()].flat())]).toEqual(["written"])
    return outcomesOf(receipts)
  },
  LIMIT_MS,
)

async function setPolicy(name: string, queue: string, policy: object): Promise<void> {
  const pattern = `^${queue.replaceAll(".", "\\.")}$`
  await broker.ctl("set_policy", name, pattern, JSON.stringify(policy), "--apply-to", "queues")
}
