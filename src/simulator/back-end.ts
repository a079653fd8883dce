/**
 * The simulated back-end: consumes the lines of devices, writes them to the ledger, and then
 * acknowledges them. With partitions it consumes all of them. With `--command-every` it answers
 * every n-th line with a command, and measures the time until the device's answer arrives. With
 * `--hold` it also answers the first line of each connection, with a command that is newer than the
 * held ones.
 *
 *   delivery ─► read ─► batch ─► ledger ─► acknowledged, many at once
 *
 * It uses the AMQP client as it is (`broker-link.ts`). It declares no queue, since that is the
 * gateway's task. It publishes on another connection than it consumes from, because a broker in an
 * alarm stops reading from publishers. Bounds: the prefetch; batches of `MAX_BATCH` lines or
 * `FLUSH_EVERY_MS`; `MAX_COMMANDS` unanswered commands, each for `ANSWER_TIMEOUT_MS`.
 */

import type { AMQPBaseClient, AMQPChannel, AMQPMessage } from "@cloudamqp/amqp-client"
import { splitUrls } from "../amqp/url.ts"
import { BrokerLink } from "./broker-link.ts"
import { Histogram } from "./histogram.ts"
import { type LedgerFile, TakenLines } from "./ledger.ts"
import { command, readHostile, readLine } from "./line.ts"
import type { BackEndOptions } from "./options.ts"

const MAX_BATCH = 500
/** Larger batches give longer records of consecutive lines. */
const FLUSH_EVERY_MS = 100
const MAX_COMMANDS = 10_000
const ANSWER_TIMEOUT_MS = 30_000
/** The queue counts as drained this long after the last message. */
const QUIET_MS = 500
/** Long, since short commands would not fill the socket of a slow reader. */
const FILLER = "x".repeat(16_384)

export interface BackEndCounts {
  /** Messages, with repeats. */
  taken: number
  redelivered: number
  /** Lines of devices that misbehave. */
  hostile: number
  stray: number
  mislabelled: number
  /** Connections to the broker that were lost, or could not be made. */
  losses: number
  commandsSent: number
  commandsAnswered: number
  /** No answer within `ANSWER_TIMEOUT_MS`, for example because the connection had ended. */
  commandsUnanswered: number
  /** Not sent while `MAX_COMMANDS` were unanswered or the broker was not available. */
  commandsNotSent: number
}

export class BackEnd {
  readonly roundTrips = new Histogram()
  readonly counts: BackEndCounts = {
    taken: 0,
    redelivered: 0,
    hostile: 0,
    stray: 0,
    mislabelled: 0,
    losses: 0,
    commandsSent: 0,
    commandsAnswered: 0,
    commandsUnanswered: 0,
    commandsNotSent: 0,
  }
  /** The reason for which the broker is not available, for the report; null while it is. */
  awayBecause: string | null = "not connected yet"
  readonly #options: BackEndOptions
  readonly #ledger: LedgerFile | null
  readonly #lines: TakenLines | null
  /** At most half of the limit of one consumer, so that none waits for others. */
  readonly #maxBatch: number
  readonly #taken: (run: string, device: string, attempt: number, n: number) => void
  readonly #consuming: BrokerLink
  readonly #publishing: BrokerLink
  #channel: AMQPChannel | null = null
  #commands: AMQPChannel | null = null
  /** The last delivery of the batch; 0: the batch is empty. */
  #lastTag = 0
  #batched = 0
  #firstTakenMs = 0
  #lastTakenMs = 0
  #nextFlushMs = 0
  #commanding = true
  #nextCommand = 0
  /** When each unanswered command was sent, oldest first. */
  readonly #sentAtMs = new Map<number, number>()

  /** @param taken called for each line of a simulated device, with repeats. */
  constructor(
    options: BackEndOptions,
    ledger: LedgerFile | null,
    taken: (run: string, device: string, attempt: number, n: number) => void,
  ) {
    this.#options = options
    this.#ledger = ledger
    this.#lines = ledger === null ? null : new TakenLines(ledger)
    this.#taken = taken
    const { prefetch, fromDevice } = options
    this.#maxBatch = Math.min(MAX_BATCH, Math.ceil(prefetch / fromDevice.length / 2))
    const urls = splitUrls(options.amqpUrl)
    this.#consuming = new BrokerLink(urls, "owsla simulator consume", {
      setUp: (client) => this.#consume(client),
      // When the broker confirms the close of the channel, it has read all acknowledgements.
      tearDown: () => this.#channel?.close() ?? Promise.resolve(),
      up: () => {
        this.awayBecause = null
      },
      lost: (reason) => {
        this.counts.losses += 1
        this.awayBecause = reason
        this.#channel = null
        // Unacknowledged lines are redelivered. They are in the ledger too.
        this.flush()
      },
    })
    this.#publishing = new BrokerLink(urls, "owsla simulator publish", {
      setUp: async (client) => {
        const channel = await client.channel()
        channel.onerror = (reason) => this.#publishing.reset(reason)
        this.#commands = channel
      },
      tearDown: () => this.#commands?.close() ?? Promise.resolve(),
      lost: () => {
        this.#commands = null
      },
    })
  }

  /** Messages a second, from the first to the last. */
  get takenPerS(): number {
    const timeMs = this.#lastTakenMs - this.#firstTakenMs
    return timeMs === 0 ? 0 : Math.round((this.counts.taken / timeMs) * 1000)
  }

  start(): void {
    this.#consuming.start()
    const { commandEvery, hold } = this.#options
    if (commandEvery > 0 || hold !== null) this.#publishing.start()
  }

  sweep(nowMs: number): void {
    if (nowMs >= this.#nextFlushMs) {
      this.#nextFlushMs = nowMs + FLUSH_EVERY_MS
      this.flush()
    }
    for (const [number, sentAtMs] of this.#sentAtMs) {
      if (nowMs - sentAtMs < ANSWER_TIMEOUT_MS) break
      this.#sentAtMs.delete(number)
      this.counts.commandsUnanswered += 1
    }
  }

  /** Writes the batch to the ledger and acknowledges it. */
  flush(): void {
    this.#lines?.flush()
    const tag = this.#lastTag
    this.#lastTag = 0
    this.#batched = 0
    if (tag === 0 || this.#channel === null || this.#channel.closed) return
    this.#channel.basicAck(tag, true).catch(() => undefined)
  }

  stopCommanding(): void {
    this.#commanding = false
  }

  /** No message for `QUIET_MS`, no outstanding answer, and empty queues. */
  async drained(): Promise<boolean> {
    const quiet = () => performance.now() - this.#lastTakenMs >= QUIET_MS
    return quiet() && this.#sentAtMs.size === 0 && (await this.left()) === 0 && quiet()
  }

  /** Ready messages in the queues, or null when the broker does not answer. */
  async left(): Promise<number | null> {
    const channel = this.#channel
    if (channel === null) return null
    try {
      let left = 0
      for (const queue of this.#options.fromDevice) {
        left += (await channel.queueDeclare(queue, { passive: true })).messageCount
      }
      return left
    } catch {
      // The queue does not exist, which closes the channel. The connection opens it again.
      return null
    }
  }

  async stop(): Promise<void> {
    this.flush()
    const left = await this.left()
    if (left !== null) this.#ledger?.append("left", left)
    await Promise.all([this.#consuming.close(), this.#publishing.close()])
    this.counts.commandsUnanswered += this.#sentAtMs.size
    this.#lines?.flush()
  }

  async #consume(client: AMQPBaseClient): Promise<void> {
    const channel = await client.channel()
    const failed = (reason: string) => this.#consuming.reset(reason)
    channel.onerror = failed
    const { fromDevice, prefetch } = this.#options
    // The limit of each consumer: quorum queues have none for a channel.
    await channel.basicQos(Math.ceil(prefetch / fromDevice.length))
    this.#channel = channel
    for (const queue of fromDevice) {
      const consumer = await channel.basicConsume(queue, { noAck: false }, (message) =>
        this.#take(message, channel),
      )
      consumer.wait().catch((error: unknown) => failed(String(error)))
    }
  }

  #take(message: AMQPMessage, channel: AMQPChannel): void {
    // An earlier connection may still deliver.
    if (channel !== this.#channel) return
    const nowMs = performance.now()
    this.#lastTag = message.deliveryTag
    if (this.counts.taken === 0) this.#firstTakenMs = nowMs
    this.#lastTakenMs = nowMs
    this.#batched += 1
    this.counts.taken += 1
    if (message.redelivered) this.counts.redelivered += 1
    this.#read(message, nowMs)
    if (this.#batched >= this.#maxBatch) this.flush()
  }

  #read(message: AMQPMessage, nowMs: number): void {
    const { headers = {}, messageId } = message.properties
    const connectionId = String(headers["connection_id"])
    const seq = Number(headers["from_device_seq"])
    const text = Buffer.from(message.body ?? []).toString("latin1")
    const hostile = readHostile(text)
    if (hostile !== null) {
      this.counts.hostile += 1
      if (hostile === "slow-reader") this.#fill(connectionId)
      return
    }
    const line = readLine(text)
    if (line === null || !/^[A-Za-z0-9._-]{1,64}$/.test(connectionId) || !(seq >= 0)) {
      this.counts.stray += 1
      this.#ledger?.append("stray", encodeURIComponent(connectionId), seq)
      return
    }
    const { run, device, attempt, n, answers } = line
    const deviceId = headers["device_id"]
    const known = deviceId === device || deviceId === connectionId
    if (!known || messageId !== `${connectionId}:${seq}`) {
      this.counts.mislabelled += 1
      this.#ledger?.append("mislabelled", connectionId, seq)
    }
    this.#lines?.take({
      ...{ connectionId, run, device, attempt, n, seq },
      redelivered: message.redelivered,
    })
    this.#taken(run, device, attempt, n)
    if (answers !== null) this.#answered(answers, nowMs)
    const { commandEvery, hold } = this.#options
    const isDue = commandEvery > 0 && this.counts.taken % commandEvery === 0
    if (isDue || (hold !== null && n === 0)) this.#send(connectionId, nowMs)
  }

  #send(connectionId: string, nowMs: number): void {
    if (!this.#commanding) return
    if (this.#commands === null || this.#sentAtMs.size >= MAX_COMMANDS) {
      this.counts.commandsNotSent += 1
      return
    }
    const number = this.#nextCommand
    this.#nextCommand += 1
    this.counts.commandsSent += 1
    this.#sentAtMs.set(number, nowMs)
    this.#publish(connectionId, command(number))
  }

  #answered(number: number, nowMs: number): void {
    const sentAtMs = this.#sentAtMs.get(number)
    if (sentAtMs === undefined) return
    this.#sentAtMs.delete(number)
    this.counts.commandsAnswered += 1
    this.roundTrips.record(nowMs - sentAtMs)
  }

  #fill(connectionId: string): void {
    if (this.#commanding && this.#commands !== null) this.#publish(connectionId, FILLER)
  }

  #publish(connectionId: string, body: string): void {
    const properties = { headers: { connection_id: connectionId }, deliveryMode: 2 } as const
    this.#commands
      ?.basicPublish("", this.#options.toDevice, body, properties)
      .catch(() => undefined)
  }
}
