/**
 * What the benches share: a gateway with its broker, a herd of devices in a process of its own, and
 * the figures of the gateway's processes.
 *
 * CPU is user and system time of all processes of the gateway, the supervisor included, over a unit
 * of work: the figure that holds on a machine that does other things too. Counts are checked; a
 * bench whose counts are wrong has no figures.
 */

import { cpus } from "node:os"
import { AMQPClient, type AMQPMessage } from "@cloudamqp/amqp-client"
import { cpuSeconds, residentBytes, startGateway, type TestGateway } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { until } from "../support/wait.ts"
import { startChild } from "./child.ts"
import { cpuOf } from "./subject.ts"

export interface BenchResult {
  readonly bench: string
  readonly parameters: Readonly<Record<string, number>>
  /** Measured; the unit is the last word of the name. */
  readonly figures: Readonly<Record<string, number>>
}

export interface Bed {
  readonly broker: PrivateBroker
  readonly gateway: TestGateway
  readonly queues: { readonly fromDevice: string; readonly toDevice: string }
  readonly stop: () => Promise<void>
}

let shared: PrivateBroker | null = null

/** Lets all benches use one broker from now on, for the smoke ones that run with the tests. */
export function shareBroker(broker: PrivateBroker): void {
  shared = broker
}

/** A node of the bench's own, unless one is shared; and how to leave it. */
export async function benchBroker(): Promise<[PrivateBroker, () => Promise<void>]> {
  if (shared !== null) return [shared, () => Promise.resolve()]
  const own = await startRabbitMq()
  return [own, () => own.dispose()]
}

/** @param brokerOf the node that the gateway uses, and how to leave it. */
export async function makeBed(
  environment: Record<string, string> = {},
  brokerOf = benchBroker,
): Promise<Bed> {
  const name = uniqueNames("bench")
  const queues = { fromDevice: name("from_device"), toDevice: name("to_device") }
  const [broker, leave] = await brokerOf()
  const gateway = await startGateway({
    AMQP_URL: broker.url,
    FROM_DEVICE_QUEUE: queues.fromDevice,
    TO_DEVICE_QUEUE: queues.toDevice,
    ...environment,
  })
  return {
    broker,
    gateway,
    queues,
    stop: async () => {
      await gateway.stop()
      await leave()
    },
  }
}

export interface BedWithBackEnd extends Bed {
  readonly backEnd: BackEnd
  /** Every line that the back-end took. */
  readonly ledger: LineLedger
}

/** A bed whose gateway is ready, and a back-end that takes its lines. */
export async function makeBedWithBackEnd(
  environment: Record<string, string> = {},
  brokerOf = benchBroker,
): Promise<BedWithBackEnd> {
  const bed = await makeBed(environment, brokerOf)
  try {
    const backEnd = await BackEnd.connect(bed.broker.url)
    const ledger = new LineLedger()
    await bed.gateway.ready()
    await backEnd.consume(bed.queues.fromDevice, (message) => ledger.take(message))
    const stop = async () => {
      backEnd.close()
      await bed.stop()
    }
    return { ...bed, backEnd, ledger, stop }
  } catch (error) {
    await bed.stop()
    throw error
  }
}

/** A herd whose devices have each sent one line, so that the ledger knows them all. */
export async function startKnownHerd(bed: BedWithBackEnd, connections: number): Promise<Herd> {
  const port = bed.gateway.devicePort
  const herd = await startHerd({ port, connections, linesEach: 1, lineBytes: 20 })
  herd.go()
  await until(() => bed.ledger.count === connections, { what: "every device to be known" })
  return herd
}

export interface Herd {
  readonly pid: number
  readonly go: () => void
  /** Resolves when sockets have taken its last line. */
  readonly sent: () => Promise<unknown>
  /** What it has received: the number of lines, and of those that were not the next. */
  readonly status: () => Promise<{ received: number; disorder: number; failed: number }>
  readonly stop: () => void
}

/** Starts a herd and resolves when all its devices are connected. */
export async function startHerd(options: {
  readonly port: number
  readonly connections: number
  readonly linesEach: number
  readonly lineBytes: number
}): Promise<Herd> {
  const { port, connections, linesEach: lines, lineBytes: bytes } = options
  const child = startChild("herd.ts", { port, connections, lines, bytes })
  const { connected } = await child.told("connected")
  if (connected !== connections) throw new Error(`${connected} devices connected`)
  return {
    pid: child.pid,
    go: () => child.say("go"),
    sent: () => child.told("sent"),
    status: async () => {
      child.say("status")
      const { received = 0, disorder = 0, failed = 0 } = await child.told("received")
      return { received, disorder, failed }
    },
    stop: () => void child.stop(),
  }
}

/** A back-end of one connection; acknowledges every 500. */
export class BackEnd {
  readonly #client: AMQPClient
  #unacknowledged = 0

  private constructor(client: AMQPClient) {
    this.#client = client
  }

  static async connect(url: string): Promise<BackEnd> {
    // Frames as large as RabbitMQ's, so that the back-end is not what is measured.
    const client = new AMQPClient(`${url}?frameMax=131072`)
    await client.connect()
    return new BackEnd(client)
  }

  async consume(queue: string, each: (message: AMQPMessage) => void): Promise<void> {
    const channel = await this.#client.channel()
    await channel.basicQos(2_000)
    await channel.basicConsume(queue, { noAck: false }, (message) => {
      each(message)
      this.#unacknowledged += 1
      if (this.#unacknowledged < 500) return
      this.#unacknowledged = 0
      void message.ack(true)
    })
  }

  async declareQuorumQueue(
    queue: string,
    { exchange, routingKey }: { readonly exchange: string; readonly routingKey: string },
  ): Promise<void> {
    const channel = await this.#client.channel()
    await channel.queueDeclare(queue, { durable: true }, { "x-queue-type": "quorum" })
    await channel.queueBind(queue, exchange, routingKey)
    await channel.close()
  }

  async publishAll(
    queue: string,
    messages: readonly {
      body: string
      headers: Record<string, string | bigint>
      messageId?: string
    }[],
  ): Promise<void> {
    const channel = await this.#client.channel()
    await channel.confirmSelect()
    const window = 500
    for (let from = 0; from < messages.length; from += window) {
      await Promise.all(
        messages
          .slice(from, from + window)
          .map(({ body, headers, messageId }) =>
            channel.basicPublish(
              "",
              queue,
              body,
              messageId === undefined ? { headers } : { headers, messageId },
              true,
            ),
          ),
      )
    }
  }

  /** A function that publishes to a queue, on a channel of its own, without confirms. */
  async publisher(): Promise<
    (queue: string, body: string, headers: Record<string, string>) => void
  > {
    const channel = await this.#client.channel()
    return (queue, body, headers) => void channel.basicPublish("", queue, body, { headers })
  }

  close(): void {
    this.#client.socket?.destroy()
  }
}

/**
 * CPU and memory of a server's processes, and how busy those are that drive it, from its making on.
 */
export class Meter {
  readonly #pids: readonly number[]
  readonly #drivers: readonly number[]
  readonly #cpuBefore: number
  readonly #driversBefore: readonly number[]
  readonly #startedAtMs = performance.now()
  readonly before: number
  peak = 0
  peakOfOne = 0
  readonly #timer: ReturnType<typeof setInterval>

  /** @param drivers processes that make the load, one core each at most. */
  constructor(pids: readonly number[], drivers: readonly number[] = []) {
    this.#pids = pids
    this.#drivers = drivers
    this.before = this.resident()
    this.#cpuBefore = cpuOf(pids)
    this.#driversBefore = drivers.map(cpuSeconds)
    this.#timer = setInterval(() => this.resident(), 50)
  }

  /** CPU so far, s. */
  get cpu(): number {
    return cpuOf(this.#pids) - this.#cpuBefore
  }

  get seconds(): number {
    return (performance.now() - this.#startedAtMs) / 1000
  }

  /** What the busiest driver used of a core; at 1 it is the driver that is measured. */
  get driver(): number {
    const each = this.#drivers.map((pid, at) => cpuSeconds(pid) - (this.#driversBefore[at] ?? 0))
    return Math.max(0, ...each) / this.seconds
  }

  /** Bytes of all processes, now. */
  resident(): number {
    const each = this.#pids.map(residentBytes)
    const sum = each.reduce((a, b) => a + b, 0)
    this.peakOfOne = Math.max(this.peakOfOne, ...each)
    this.peak = Math.max(this.peak, sum)
    return sum
  }

  stop(): void {
    clearInterval(this.#timer)
  }
}

/** Checks lines as they come: each connection's numbers, once each and in order. */
export class LineLedger {
  readonly #next = new Map<string, number>()
  count = 0
  disorder = 0

  take(message: AMQPMessage): void {
    const connectionId = String(message.properties.headers?.["connection_id"])
    const seq = Number(message.properties.headers?.["from_device_seq"])
    const next = this.#next.get(connectionId) ?? 0
    if (seq !== next) this.disorder += 1
    this.#next.set(connectionId, seq + 1)
    this.count += 1
  }

  get connectionIds(): string[] {
    return [...this.#next.keys()]
  }
}

export function machine(): string {
  const model = cpus()[0]?.model ?? "unknown"
  return `${cpus().length} × ${model}, Bun ${Bun.version}, ${process.platform}`
}

export function commit(): string {
  const { stdout } = Bun.spawnSync(["git", "describe", "--always", "--dirty"], {
    cwd: import.meta.dir,
  })
  return stdout.toString().trim()
}

/** The middle one of an odd number, the lower of the two in the middle of an even one. */
export function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) / 2)] ?? Number.NaN
}

export function round(value: number): number {
  return Math.round(value * 100) / 100
}

/**
 * A figure, or none where there was too little work to measure the divisor: CPU counts in steps of
 * 10 ms.
 */
export function ratio(figure: string, of: number, to: number): Record<string, number> {
  return to > 0 ? { [figure]: round(of / to) } : {}
}
