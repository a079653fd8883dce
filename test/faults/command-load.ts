/**
 * Commands under load: devices of its own on the gateway, and a back-end that publishes a command
 * for one of them every few milliseconds, each with its own body and `message_id` and with
 * `reply_to`. Afterwards every command must have one outcome, and what a device read must agree
 * with it.
 *
 * The gateway must run with `environment` of `COMMAND_LOAD`, since commands are addressed by device
 * id.
 *
 * The back-end tries the broker's URLs in turn. A command without a confirm may or may not be
 * stored by the broker: it is not published again, and may have no outcome. Receipts stay in a
 * quorum queue until the end, so that the death of a consumer loses none. Bounds: a test's worth of
 * commands; `MAX_UNCONFIRMED` unconfirmed.
 */

import { expect } from "bun:test"
import { AMQPClient, type AMQPMessage } from "@cloudamqp/amqp-client"
import * as v from "valibot"
import { helloLine } from "../../src/device/hello.ts"
import type { PrivateBroker } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until, within } from "../support/wait.ts"
import type { FaultBed } from "./bed.ts"
import type { Figures } from "./fault.ts"

const SECRET = "a-secret-of-the-fault-tests-0123456789"

/** For the gateway, and for a herd beside these devices. */
export const COMMAND_LOAD = {
  environment: { DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET },
  herdFlags: ["--auth", "hello", "--secret", SECRET],
} as const

const CONNECT_TIMEOUT_MS = 3_000
/** After this long without a confirm the back-end connects to the next URL. */
const CONFIRM_TIMEOUT_MS = 5_000
const MAX_UNCONFIRMED = 200
const SETTLE_TIMEOUT_MS = 90_000

/**
 * The messages of each queue, ready or not, as its leader counts them: `list_queues` can be 5 s
 * old.
 */
const QUORUM_QUEUES = `lists:foreach(fun(Q) ->
  {ok, {_, N}, _} = ra:leader_query(amqqueue:get_pid(Q), fun rabbit_fifo:query_messages_total/1),
  {resource, _, queue, Name} = amqqueue:get_name(Q),
  io:format("~s\\t~b~n", [Name, N])
end, [Q || Q <- rabbit_amqqueue:list(), amqqueue:get_type(Q) =:= rabbit_quorum_queue]).`

const RECEIPT = v.object({ outcome: v.string(), at: v.number(), detail: v.string() })

export interface CommandLoadOptions {
  readonly bed: FaultBed
  /** One URL for every node of the broker. */
  readonly urls: readonly string[]
  /** The node that reports the contents of queues; default: the bed's. */
  readonly broker?: PrivateBroker
  readonly devices: number
  readonly perS: number
}

interface Sent {
  readonly device: number
  confirmed: boolean
}

/** The outcome of a command in one receipt. */
interface Ending {
  readonly outcome: string
  readonly at: number
  readonly detail: string
}

/**
 * A write that fails is left to the connection's close: `basicPublish` of amqp-client 4.1.1 would
 * else reject at the write and leave its wait for the confirm behind, whose rejection nobody can
 * handle.
 */
class Publisher extends AMQPClient {
  override send(bytes: Uint8Array): Promise<void> {
    return super.send(bytes).catch(() => undefined)
  }
}

export class CommandLoad {
  readonly #options: CommandLoadOptions
  readonly #devices: TestDevice[] = []
  readonly #run = crypto.randomUUID().slice(0, 8)
  readonly #receiptQueue: string
  readonly #sent: Sent[] = []
  #stopping = false
  #publishing: Promise<void> = Promise.resolve()

  private constructor(options: CommandLoadOptions) {
    this.#options = options
    this.#receiptQueue = `${options.bed.queues.TO_DEVICE_QUEUE}.receipts`
  }

  /**
   * Declares the queue for receipts. To be called some seconds before a node is killed: RabbitMQ
   * 4.0.5 forgets a quorum queue that was declared just before ("configured member of queue … was
   * not found on this node"), which then has no leader.
   */
  static async prepare(options: CommandLoadOptions): Promise<CommandLoad> {
    const load = new CommandLoad(options)
    options.bed.alsoEnd(() => load.#stop())
    await load.#declare()
    return load
  }

  /** Resolves when the devices are connected and the first command was written. */
  async start(): Promise<void> {
    for (let at = 0; at < this.#options.devices; at += 1) await this.#connectDevice(at)
    this.#publishing = this.#publish()
    const arrives = () => this.#devices.some(({ lines }) => lines.length > 0)
    await until(arrives, { what: "a first command to be read", timeoutMs: SETTLE_TIMEOUT_MS })
  }

  /** Ends publishing, waits until every command has ended, and judges. */
  async end(): Promise<Figures> {
    await this.#stopPublishing()
    await this.#allEnded()
    const endings = await this.#collectReceipts()
    const kept = await this.#collectUndelivered()
    const written = [...endings.values()].flat().filter(({ outcome }) => outcome === "written")
    const read = () => this.#devices.reduce((sum, { lines }) => sum + lines.length, 0)
    await until(() => read() >= written.length, { what: "devices to read what was written" })
    return this.#judge(endings, kept)
  }

  #judge(
    endings: ReadonlyMap<number, readonly Ending[]>,
    kept: ReadonlyMap<number, readonly string[]>,
  ): Figures {
    const reads = new Map<number, number[]>()
    for (const [device, { lines }] of this.#devices.entries()) {
      for (const line of lines) {
        const command = Number(/^command (\d+)$/.exec(line)?.[1])
        reads.set(command, [...(reads.get(command) ?? []), device])
      }
    }
    const broken: string[] = []
    const outcomes: Record<string, number> = {}
    let unknown = 0
    for (const [command, { device, confirmed }] of this.#sent.entries()) {
      const ends = endings.get(command) ?? []
      const by = reads.get(command) ?? []
      const copies = kept.get(command) ?? []
      const is = JSON.stringify({ command, confirmed, ends, by, copies })
      if (!confirmed && ends.length === 0) unknown += 1
      if (ends.length > 1 || (confirmed && ends.length === 0)) broken.push(`outcomes: ${is}`)
      if (by.length > 1 || by.some((other) => other !== device)) broken.push(`read twice: ${is}`)
      for (const { outcome } of ends) {
        outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
        const wasWritten = outcome === "written"
        if (by.length > 0 !== wasWritten) broken.push(`read or not: ${is}`)
        if (copies.length > 0 === wasWritten) broken.push(`kept or not: ${is}`)
      }
    }
    expect({ broken: broken.length, examples: broken.slice(0, 10) }).toEqual({
      broken: 0,
      examples: [],
    })
    return {
      commands: this.#sent.length,
      ...outcomes,
      ...(unknown === 0 ? {} : { "commands that the broker never confirmed": unknown }),
    }
  }

  /**
   * Receipts that differ in outcome or time are different endings; equal receipts are one that was
   * delivered again.
   */
  async #collectReceipts(): Promise<Map<number, Ending[]>> {
    const endings = new Map<number, Ending[]>()
    await this.#drain(this.#receiptQueue, (message) => {
      const command = Number(message.properties.correlationId)
      const { outcome, at, detail } = v.parse(RECEIPT, JSON.parse(message.bodyString() ?? ""))
      const known = endings.get(command) ?? []
      const again = known.some((ending) => ending.outcome === outcome && ending.at === at)
      if (!again) endings.set(command, [...known, { outcome, at, detail }])
    })
    return endings
  }

  /** Outcomes of the copies in the undelivered queue, by command. */
  async #collectUndelivered(): Promise<Map<number, string[]>> {
    const kept = new Map<number, string[]>()
    await this.#drain(this.#options.bed.queues.UNDELIVERED_QUEUE, (message) => {
      const command = Number(message.properties.correlationId)
      const outcome = String(message.properties.headers?.["owsla-outcome"])
      kept.set(command, [...(kept.get(command) ?? []), outcome])
    })
    return kept
  }

  async #drain(queue: string, take: (message: AMQPMessage) => void): Promise<void> {
    const client = await this.#connectBroker()
    try {
      const channel = await client.channel()
      for (;;) {
        const message = await channel.basicGet(queue, { noAck: true })
        if (message === null) return
        take(message)
      }
    } finally {
      await client.close()
    }
  }

  /** Waits until every confirmed command has a receipt, and no queue on its way holds a command. */
  async #allEnded(): Promise<void> {
    const confirmed = this.#sent.filter((sent) => sent.confirmed).length
    const { bed, broker = bed.broker } = this.#options
    const passes = (name: string) =>
      name === bed.queues.TO_DEVICE_QUEUE || /^owsla\.(worker|dead)/.test(name)
    const ended = async () => {
      const rows = (await broker.ctl("eval", QUORUM_QUEUES)).split("\n")
      const held = new Map(rows.map((row) => row.split("\t") as [string, string]))
      const receipts = Number(held.get(this.#receiptQueue))
      if (!(receipts >= confirmed)) throw new Error(`${receipts} receipts of ${confirmed}`)
      const full = [...held].filter(([name, messages]) => passes(name) && messages !== "0")
      if (full.length > 0) throw new Error(full.map((row) => row.join(" ")).join(", "))
      return true
    }
    await until(ended, { what: "every command to end", timeoutMs: SETTLE_TIMEOUT_MS })
  }

  async #declare(): Promise<void> {
    const client = await this.#connectBroker()
    const channel = await client.channel()
    const quorum = { "x-queue-type": "quorum" }
    await channel.queueDeclare(this.#receiptQueue, { durable: true }, quorum)
    await client.close()
  }

  async #connectDevice(at: number): Promise<void> {
    const { gateway } = this.#options.bed
    const device = await connectDevice({ port: gateway.devicePort, host: gateway.host })
    this.#devices.push(device)
    await device.send(helloLine(this.#deviceId(at), SECRET))
    const known = async () => (await gateway.fetch(`/devices/${this.#deviceId(at)}`)).ok
    await until(known, { what: "the gateway to know the device" })
  }

  #deviceId(at: number): string {
    return `commanded-${this.#run}-${at}`
  }

  /** Publishes until it is told to stop, on one connection after the other. */
  async #publish(): Promise<void> {
    for (let attempt = 0; !this.#stopping; attempt += 1) {
      try {
        const client = await this.#connectBroker(attempt)
        try {
          await this.#publishOn(client)
        } finally {
          client.socket?.destroy()
        }
      } catch {
        // This node is down: the next one is tried.
        await Bun.sleep(100)
      }
    }
  }

  /** Resolves or rejects when the connection can no longer be used. */
  async #publishOn(client: AMQPClient): Promise<void> {
    const channel = await client.channel()
    channel.onerror = () => undefined
    await channel.confirmSelect()
    /** When each was published; the oldest is first. */
    const unconfirmed = new Map<number, number>()
    while (!(this.#stopping && unconfirmed.size === 0)) {
      if (client.closed || channel.closed) return
      const [oldestMs = performance.now()] = unconfirmed.values()
      if (performance.now() - oldestMs > CONFIRM_TIMEOUT_MS) return
      if (!this.#stopping && unconfirmed.size < MAX_UNCONFIRMED) {
        const number = this.#sent.length
        const device = number % this.#devices.length
        const sent: Sent = { device, confirmed: false }
        this.#sent.push(sent)
        unconfirmed.set(number, performance.now())
        channel
          .basicPublish("", this.#options.bed.queues.TO_DEVICE_QUEUE, `command ${number}`, {
            headers: { device_id: this.#deviceId(device) },
            messageId: `${this.#run}-${number}`,
            correlationId: String(number),
            replyTo: this.#receiptQueue,
            deliveryMode: 2,
          })
          .then(() => {
            sent.confirmed = true
            unconfirmed.delete(number)
          })
          // Unconfirmed for ever: the connection is lost.
          .catch(() => undefined)
      }
      // The pace of the load.
      await Bun.sleep(1_000 / this.#options.perS)
    }
  }

  /** @param first which of the URLs to try first. */
  async #connectBroker(first = 0): Promise<AMQPClient> {
    const { urls } = this.#options
    let failure: unknown = new Error("no URL was given")
    for (let at = 0; at < urls.length; at += 1) {
      const client = new Publisher(urls[(first + at) % urls.length] ?? "")
      client.onerror = () => undefined
      try {
        const limit = { what: "a back-end to connect", timeoutMs: CONNECT_TIMEOUT_MS }
        await within(client.connect(), limit)
        return client
      } catch (error) {
        client.socket?.destroy()
        failure = error
      }
    }
    throw failure
  }

  async #stopPublishing(): Promise<void> {
    this.#stopping = true
    await this.#publishing
  }

  async #stop(): Promise<void> {
    await this.#stopPublishing()
    for (const device of this.#devices) device.terminate()
  }
}
