/**
 * `FROM_DEVICE_PARTITIONS`: lines in several queues, with back-ends that share them by the rule of
 * the single active consumer. The back-ends are the example of the documentation.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { lineQueues } from "../../src/broker/topology.ts"
import { helloLine } from "../../src/device/hello.ts"
import { partitionOf } from "../../src/lines/partitions.ts"
import type { RunReport } from "../../src/simulator/report.ts"
import type { Verdict } from "../../src/simulator/verdict.ts"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { pikaBackEnd, pikaConsume } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const EXAMPLE = join(import.meta.dir, "../../docs/examples/back-ends/python/partitions.py")
const SIMULATOR = join(import.meta.dir, "../../src/simulator/main.ts")
const LIMIT_MS = 90_000
/** Of four processes of Python on a busy machine. */
const START_TIMEOUT_MS = 60_000
const SECRET = "a-secret-of-the-devices-0123456789"
const PARTITIONS = 4
const SETTINGS = {
  FROM_DEVICE_PARTITIONS: String(PARTITIONS),
  DEVICE_AUTH: "hello",
  HELLO_SECRETS: SECRET,
}

const directory = mkdtempSync(join(tmpdir(), "owsla-partitions-"))
/** The example, waiting longer for the start of the other consumers. */
const example = join(directory, "partitions.py")
const ends: (() => unknown)[] = []
let broker: PrivateBroker
let client: AMQPClient

beforeAll(async () => {
  const text = readFileSync(EXAMPLE, "utf8")
  writeFileSync(example, text.replace("STAND_BY_AFTER_S = 10", "STAND_BY_AFTER_S = 60"))
  broker = await startRabbitMq()
  client = new AMQPClient(broker.url)
  await client.connect()
}, LIMIT_MS)

afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end()
}, LIMIT_MS)

afterAll(async () => {
  await client?.close()
  await broker?.dispose()
  rmSync(directory, { recursive: true, force: true })
}, LIMIT_MS)

interface Taken {
  readonly queue: string
  readonly device_id: string
  readonly connection_id: string
  readonly seq: number
  readonly line: string
  readonly redelivered: boolean
  readonly at_ns: number
}

/** A process of the example, with the lines that it has printed. */
class Consumer {
  readonly taken: Taken[] = []
  readonly #process: ReturnType<typeof pikaBackEnd>
  readonly #read: Promise<void>

  constructor(queue: string, first: number) {
    const args = [broker.url, String(PARTITIONS), String(first), queue]
    this.#process = pikaBackEnd(example, args)
    this.#read = this.#follow()
    ends.push(() => this.kill())
  }

  pause(): void {
    this.#process.kill("SIGSTOP")
  }

  /** SIGKILL; resolves when all that it has printed is in `taken`. */
  async kill(): Promise<void> {
    this.#process.kill("SIGKILL")
    await this.#read
  }

  async #follow(): Promise<void> {
    let rest = ""
    for await (const chunk of this.#process.stdout) {
      const lines = (rest + Buffer.from(chunk).toString()).split("\n")
      rest = lines.pop() ?? ""
      for (const line of lines) this.taken.push(JSON.parse(line))
    }
  }
}

class Subject {
  readonly queues = ownQueues(uniqueNames("partitions"))
  readonly partitions = lineQueues(this.queues.FROM_DEVICE_QUEUE, PARTITIONS)
  readonly #devices = new Map<string, { readonly device: TestDevice; next: number }>()
  #gateway: TestGateway | null = null

  get gateway(): TestGateway {
    if (this.#gateway === null) throw new Error("the gateway was not started")
    return this.#gateway
  }

  async start(): Promise<this> {
    const gateway = await startGateway({ AMQP_URL: broker.url, ...this.queues, ...SETTINGS })
    this.#gateway = gateway
    ends.push(() => gateway.stop())
    await gateway.ready()
    return this
  }

  consumer(first: number): Consumer {
    return new Consumer(this.queues.FROM_DEVICE_QUEUE, first)
  }

  /** The next lines of a device, each with the number of the line. */
  async send(deviceId: string, count: number): Promise<void> {
    const state = this.#devices.get(deviceId) ?? { device: await this.#connect(deviceId), next: 0 }
    this.#devices.set(deviceId, state)
    const lines = Array.from({ length: count }, (_, n) => `${state.next + n}\n`)
    state.next += count
    await state.device.sendBytes(Buffer.from(lines.join("")))
  }

  /** One that is stable, because tests choose partitions by it. */
  deviceOf(partition: number): string {
    for (let n = 0; ; n += 1) {
      if (partitionOf(`lock-${n}`, PARTITIONS) === partition) return `lock-${n}`
    }
  }

  async #connect(deviceId: string): Promise<TestDevice> {
    const device = await connectDevice({ port: this.gateway.devicePort })
    await device.send(helloLine(deviceId, SECRET))
    ends.push(() => device.end())
    return device
  }

  /** Each partition has so many subscribers, with those that stand by. */
  async subscribed(count: number): Promise<void> {
    const all = async () => {
      const queues = (await broker.ctl("list_consumers", "queue_name")).split("\n")
      return this.partitions.every(
        (partition) => queues.filter((queue) => queue === partition).length === count,
      )
    }
    const what = `each partition to have ${count} subscribers`
    await until(all, { what, timeoutMs: START_TIMEOUT_MS })
  }
}

describe("four consumers of four partitions", () => {
  test(
    "get each device's lines in order, and lose none when one is killed and one is added",
    async () => {
      const subject = await new Subject().start()
      const consumers = [0, 1, 2, 3].map((first) => subject.consumer(first))
      await subject.subscribed(4)
      const devices = Array.from({ length: 20 }, (_, n) => `lock-${n}`)
      let sent = 0
      const sendAll = async (each: number) => {
        sent += each
        await Promise.all(devices.map((deviceId) => subject.send(deviceId, each)))
      }
      const taken = () =>
        consumers.flatMap(({ taken }) => taken).toSorted((a, b) => a.at_ns - b.at_ns)
      const allTaken = () => new Set(taken().map(idOf)).size === devices.length * sent

      await sendAll(100)
      await until(allTaken, { what: "all lines to be taken" })
      // Each partition has another consumer.
      for (const [at, consumer] of consumers.entries()) {
        const queues = new Set(consumer.taken.map(({ queue }) => queue))
        expect([...queues]).toEqual([subject.partitions[at] ?? ""])
      }

      // Stopped, so that lines are delivered to it that it has not taken.
      const killed = consumers[1]
      killed?.pause()
      await sendAll(100)
      const before = taken().length
      await until(() => taken().length > before, { what: "others to go on" })
      const waits = async () => (await broker.queueDepth(subject.partitions[1] ?? "")) > 0
      await until(waits, { what: "more lines than the stopped one may have unacknowledged" })
      await killed?.kill()
      consumers.push(subject.consumer(1))
      await sendAll(100)
      await until(allTaken, { what: "all lines to be taken after one was killed" })
      await subject.subscribed(4)
      // The one that was added takes over everything.
      for (const at of [0, 2, 3]) await consumers[at]?.kill()
      await sendAll(50)
      await until(allTaken, { what: "all lines to be taken by the one that was added" })

      expectFollowed(taken(), devices.length, sent)
      expect(taken().some(({ redelivered }) => redelivered)).toBe(true)
      for (const { queue, device_id } of taken()) {
        expect(queue).toBe(subject.partitions[partitionOf(device_id, PARTITIONS)] ?? "")
      }
      for (const queue of subject.partitions) expect(await broker.queueDepth(queue)).toBe(0)
    },
    LIMIT_MS,
  )
})

function idOf({ connection_id, seq }: Taken): string {
  return `${connection_id}:${seq}`
}

/** By the numbers each line comes after its predecessor. Lines with smaller numbers are repeats. */
function expectFollowed(taken: readonly Taken[], devices: number, lines: number): void {
  const next = new Map<string, number>()
  for (const { device_id, seq, line, redelivered } of taken) {
    const expected = next.get(device_id) ?? 0
    expect(line).toBe(String(seq))
    if (seq < expected) {
      expect(redelivered).toBe(true)
      continue
    }
    expect([device_id, seq]).toEqual([device_id, expected])
    next.set(device_id, seq + 1)
  }
  expect(next.size).toBe(devices)
  expect(new Set(next.values())).toEqual(new Set([lines]))
}

describe("a partition that accepts nothing", () => {
  test(
    "does not hold up the others while the window has room, and keeps its own order",
    async () => {
      const subject = new Subject()
      const [full = "", other = ""] = [subject.partitions[1], subject.partitions[2]]
      const channel = await client.channel()
      const bounded = { "x-max-length": 5, "x-overflow": "reject-publish" }
      await channel.queueDeclare(full, { durable: true }, bounded)
      await channel.close()
      await subject.start()
      expect(subject.gateway.log.map(({ msg }) => msg).join()).toContain(`queue ${full} exists`)

      await subject.send(subject.deviceOf(1), 20)
      const refused = async () => (await subject.gateway.metric("owsla_lines_nacked_total")) > 0
      await until(refused, { what: "a line to be refused" })
      await subject.send(subject.deviceOf(2), 50)
      const bodies = (messages: { body: Buffer }[]) => messages.map(({ body }) => Number(body))
      const others = await pikaConsume({ url: broker.url, queue: other, count: 50 })
      expect(bodies(others)).toEqual(Array.from({ length: 50 }, (_, n) => n))

      const numbers: number[] = []
      const consuming = await client.channel()
      await consuming.basicConsume(full, { noAck: true }, (message) => {
        numbers.push(Number(message.bodyString()))
      })
      await until(() => numbers.includes(19), { what: "all lines of the full partition" })
      await consuming.close()
      // Repeats apart, each line comes after its predecessor.
      const firsts = numbers.filter((number, at) => numbers.indexOf(number) === at)
      expect(firsts).toEqual(Array.from({ length: 20 }, (_, n) => n))
    },
    LIMIT_MS,
  )
})

test(
  "a partition that was deleted is declared again, and gets the lines that were returned",
  async () => {
    const subject = await new Subject().start()
    const [queue = ""] = subject.partitions
    const channel = await client.channel()
    await channel.queueDelete(queue)
    await channel.close()
    await subject.send(subject.deviceOf(0), 10)
    const messages = await until(() => pikaConsume({ url: broker.url, queue, count: 10 }), {
      what: "the lines",
    })
    expect(messages.map(({ body }) => body.toString())).toEqual(
      Array.from({ length: 10 }, (_, n) => String(n)),
    )
    expect(await subject.gateway.metric("owsla_lines_returned_total")).toBeGreaterThan(0)
  },
  LIMIT_MS,
)

test(
  "the simulator consumes all partitions and accounts for every line",
  async () => {
    const subject = await new Subject().start()
    const ledger = join(directory, "ledger")
    const simulate = async <T>(...args: string[]): Promise<T> => {
      const child = Bun.spawn([process.execPath, SIMULATOR, ...args, "--ledger", ledger, "--json"])
      const output = await child.stdout.text()
      expect(await child.exited).toBe(0)
      return JSON.parse(output)
    }
    const { lines } = await simulate<RunReport>(
      ...["--port", String(subject.gateway.devicePort), "--auth", "hello", "--secret", SECRET],
      ...["--devices", "30", "--ramp", "0", "--rate", "0", "--lines", "20"],
      ...["--backend", "--amqp-url", broker.url, "--prefetch", "50"],
      ...["--from-device", subject.queues.FROM_DEVICE_QUEUE],
      ...["--partitions", String(PARTITIONS)],
      ...["--to-device", subject.queues.TO_DEVICE_QUEUE],
    )
    expect(lines.sent).toBe(600)
    const verdict = await simulate<Verdict>("verify", "--no-repeats")
    expect(verdict).toMatchObject({ kept: true, sent: 600, taken: 600, lost: 0, left: 0 })
  },
  LIMIT_MS,
)

test(
  "the embedded broker shows the lines of all partitions",
  async () => {
    const gateway = await startGateway(SETTINGS)
    ends.push(() => gateway.stop())
    const following = new AbortController()
    const response = await gateway.fetch("/messages", { signal: following.signal })
    let events = ""
    const reading = (async () => {
      for await (const chunk of response.body ?? []) events += Buffer.from(chunk).toString()
    })().catch(() => undefined)
    await until(() => events.length > 0, { what: "the stream to begin" })
    const deviceIds = Array.from({ length: 20 }, (_, n) => `lock-${n}`)
    expect(new Set(deviceIds.map((id) => partitionOf(id, PARTITIONS))).size).toBe(PARTITIONS)
    for (const deviceId of deviceIds) {
      const device = await connectDevice({ port: gateway.devicePort })
      await device.sendBytes(Buffer.from(`${helloLine(deviceId, SECRET)}\nhello\n`))
      ends.push(() => device.end())
    }
    const shown = () => [...events.matchAll(/^data: .*"device_id":"([^"]+)"/gm)].map(([, id]) => id)
    await until(() => shown().length === deviceIds.length, { what: "the lines of all devices" })
    expect(shown().sort()).toEqual(deviceIds.sort())
    following.abort()
    await reading
  },
  LIMIT_MS,
)
