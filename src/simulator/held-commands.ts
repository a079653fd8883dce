/**
 * The held commands of the simulated back-end: with `--hold` it sends commands with `hold_ms` to
 * each device before the device connects, and takes the receipts.
 *
 *   published ──confirmed──► waiting ──receipt──► over
 *        └─────not confirmed─────► unconfirmed: never published again
 *
 * Commands are sent in rounds, one command to each device. A round begins a pause after the broker
 * has confirmed the round before it: commands without numbers may take different ways through the
 * fleet, so that those of a device must not follow each other at once if their order is judged.
 *
 * Receipts are written to the ledger before they are acknowledged. Their queue is durable, since
 * receipts must survive a lost connection. It is deleted at the end, and expires otherwise. One
 * connection publishes and consumes, as all commands are sent before most receipts come.
 *
 * Bounds: `MAX_IN_FLIGHT` unconfirmed commands, `PREFETCH` unacknowledged receipts, and one number
 * in memory for each command without a receipt.
 */

import type { AMQPBaseClient, AMQPChannel, AMQPMessage } from "@cloudamqp/amqp-client"
import * as v from "valibot"
import { splitUrls } from "../amqp/url.ts"
import { BrokerLink } from "./broker-link.ts"
import type { LedgerFile } from "./ledger.ts"
import { deviceName, heldCommand, readHeldCommand } from "./line.ts"
import type { BackEndOptions, HoldOptions } from "./options.ts"

const MAX_IN_FLIGHT = 500
const PREFETCH = 1_000
const FLUSH_EVERY_MS = 100
/** Longer than any run lasts after its devices have come, so that no command expires in it. */
const EXTRA_HOLD_MS = 3_600_000

const RECEIPT = v.pipe(
  v.string(),
  v.parseJson(),
  v.object({ outcome: v.pipe(v.string(), v.regex(/^[a-z_]{1,32}$/)) }),
)

export interface HeldCounts {
  /** Published commands. */
  sent: number
  /** Of these, not confirmed by the broker. */
  unconfirmed: number
  /** By outcome, without those that the broker delivered again. */
  readonly receipts: Record<string, number>
}

export class HeldCommands {
  readonly counts: HeldCounts = { sent: 0, unconfirmed: 0, receipts: {} }
  readonly #of: HeldCommandsOf
  readonly #total: number
  readonly #pauseMs: number
  readonly #holdMs: number
  readonly #queue: string
  readonly #link: BrokerLink
  #channel: AMQPChannel | null = null
  /** The next command; command `index` is the one of round `index / devices`. */
  #next = 0
  #nextRoundMs = 0
  #nextFlushMs = 0
  /** The last unacknowledged receipt; 0: none. */
  #lastTag = 0
  readonly #inFlight = new Set<number>()
  readonly #withoutReceipt = new Set<number>()

  constructor(of: HeldCommandsOf) {
    this.#of = of
    const { hold, backEnd, devices, run } = of
    this.#total = hold.commands * devices
    this.#pauseMs = hold.awayMs / hold.commands
    this.#holdMs = hold.awayMs + EXTRA_HOLD_MS
    this.#queue = `simulator.receipts.${run}`
    this.#link = new BrokerLink(splitUrls(backEnd.amqpUrl), "owsla simulator hold", {
      setUp: (client) => this.#setUp(client),
      tearDown: async () => {
        await this.#channel?.queueDelete(this.#queue)
        await this.#channel?.close()
      },
      lost: () => {
        this.#channel = null
        this.#lastTag = 0
      },
    })
  }

  /** Confirmed commands without a receipt. */
  get withoutReceipt(): number {
    return this.#withoutReceipt.size
  }

  start(): void {
    this.#link.start()
  }

  /** Publishes what is due, and writes and acknowledges the receipts. */
  sweep(nowMs: number): void {
    if (nowMs >= this.#nextFlushMs) {
      this.#nextFlushMs = nowMs + FLUSH_EVERY_MS
      this.#flush()
    }
    while (this.#next < this.#total && this.#inFlight.size < MAX_IN_FLIGHT) {
      if (this.#channel === null) return
      const isRoundOver = this.#next % this.#of.devices === 0
      if (isRoundOver && (this.#inFlight.size > 0 || nowMs < this.#nextRoundMs)) return
      void this.#publish(this.#channel, this.#next)
      this.#next += 1
    }
  }

  /** All rounds, with the pause after the last one, are over. */
  isSent(nowMs: number): boolean {
    return this.#next === this.#total && this.#inFlight.size === 0 && nowMs >= this.#nextRoundMs
  }

  /** Publishes no further command; the number of those that were not published. */
  stopSending(): number {
    const left = this.#total - this.#next
    this.#next = this.#total
    return left
  }

  async stop(): Promise<void> {
    this.#flush()
    await this.#link.close()
    for (const index of this.#inFlight) this.#unconfirmed(index)
    this.#of.ledger?.flush()
  }

  async #setUp(client: AMQPBaseClient): Promise<void> {
    const channel = await client.channel()
    const failed = (reason: string) => this.#link.reset(reason)
    channel.onerror = failed
    await channel.confirmSelect()
    const lifetime = { "x-expires": this.#holdMs }
    await channel.queueDeclare(this.#queue, { durable: true, autoDelete: false }, lifetime)
    await channel.basicQos(PREFETCH)
    this.#channel = channel
    const consumer = await channel.basicConsume(this.#queue, { noAck: false }, (message) =>
      this.#take(message, channel),
    )
    consumer.wait().catch((error: unknown) => failed(String(error)))
  }

  async #publish(channel: AMQPChannel, index: number): Promise<void> {
    const { run, backEnd, ledger } = this.#of
    const { device, n } = this.#addressOf(index)
    this.#inFlight.add(index)
    this.#withoutReceipt.add(index)
    this.counts.sent += 1
    ledger?.append("held", device, n)
    const body = heldCommand({ run, device, n })
    try {
      await channel.basicPublish("", backEnd.toDevice, body, {
        headers: { device_id: device, hold_ms: this.#holdMs },
        deliveryMode: 2,
        messageId: `${run}:${device}:${n}`,
        replyTo: this.#queue,
        correlationId: body,
      })
      this.#inFlight.delete(index)
    } catch {
      if (this.#inFlight.has(index)) this.#unconfirmed(index)
    }
    if (this.#inFlight.size === 0) this.#nextRoundMs = performance.now() + this.#pauseMs
  }

  /** It may have reached its queue all the same: a second publish could have a second receipt. */
  #unconfirmed(index: number): void {
    const { device, n } = this.#addressOf(index)
    this.#inFlight.delete(index)
    this.#withoutReceipt.delete(index)
    this.counts.unconfirmed += 1
    this.#of.ledger?.append("unconfirmed", device, n)
  }

  #addressOf(index: number): { readonly device: string; readonly n: number } {
    const { name, devices } = this.#of
    return { device: deviceName(name, index % devices), n: Math.floor(index / devices) }
  }

  #take(message: AMQPMessage, channel: AMQPChannel): void {
    // An earlier connection may still deliver.
    if (channel !== this.#channel) return
    this.#lastTag = message.deliveryTag
    const { run, devices, ledger } = this.#of
    const command = readHeldCommand(message.properties.correlationId ?? "")
    const receipt = v.safeParse(RECEIPT, Buffer.from(message.body ?? []).toString())
    // A command whose receipt cannot be read has none.
    if (command?.run !== run || !receipt.success) return
    const { device, n } = command
    const { outcome } = receipt.output
    this.#withoutReceipt.delete(n * devices + Number(device.slice(device.lastIndexOf("-") + 1)))
    const again = message.redelivered ? ["again"] : []
    ledger?.append("receipt", device, n, outcome, ...again)
    if (message.redelivered) return
    const { receipts } = this.counts
    receipts[outcome] = (receipts[outcome] ?? 0) + 1
  }

  #flush(): void {
    this.#of.ledger?.flush()
    const tag = this.#lastTag
    this.#lastTag = 0
    if (tag === 0 || this.#channel === null || this.#channel.closed) return
    this.#channel.basicAck(tag, true).catch(() => undefined)
  }
}

export interface HeldCommandsOf {
  readonly hold: HoldOptions
  readonly backEnd: BackEndOptions
  readonly run: string
  /** Devices are `<name>-0` to `<name>-<devices - 1>`. */
  readonly name: string
  readonly devices: number
  readonly ledger: LedgerFile | null
}
