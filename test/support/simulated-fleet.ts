/**
 * A fleet in the test's hands: workers on one simulated broker, devices, a back-end and callers by
 * HTTP, and a record of everything that became of each command and each connection. Performs what
 * it is told, and lets steps happen; decides nothing and checks nothing.
 */

import type { HeaderValue, MessageProperties } from "../../src/broker/broker.ts"
import { DEAD_LETTERS, workerQueue } from "../../src/broker/topology.ts"
import {
  COMMAND_ID_HEADER,
  GIVEN_UP_HEADER,
  HOPS_HEADER,
} from "../../src/commands/command-message.ts"
import { type CommandOptions, optionHeaders } from "../../src/commands/command-options.ts"
import type { SendResult } from "../../src/commands/http-sender.ts"
import type { Outcome } from "../../src/device/command.ts"
import { incarnation } from "../../src/device/ids.ts"
import type { TestCommand } from "./commands.ts"
import {
  type Disturbance,
  type Link,
  SimulatedBroker,
  type Step,
  type StoredMessage,
} from "./simulated-broker.ts"
import {
  DEFAULT_LIMITS,
  type HeldDevice,
  QUEUES,
  SimulatedWorker,
  type SimulatedWorkerLimits,
} from "./simulated-worker.ts"

/** How one command ended, as the worker that ended it counted. */
export interface Ending {
  readonly outcome: Outcome
  readonly detail: string
  /** Worker and incarnation. */
  readonly process: string
  readonly atStep: number
  readonly atMs: number
}

/** The line that a command waits for: the next one, or one that begins so. */
export type Asked = "next" | "r"
export const REPLY_TIMEOUT_MS = 2_000

export interface SentCommand {
  readonly number: number
  readonly by: "queue" | "http"
  readonly deviceId: string | null
  readonly connectionId: string | null
  readonly seq: number | null
  readonly messageId: string | null
  readonly body: string
  /** Never to be written at this time or later. */
  readonly expiresAtMs: number
  readonly wantsReceipt: boolean
  /** How long it may be held. */
  readonly holdMs: number | null
  readonly supersedeKey: string | null
  readonly asks: Asked | null
  readonly atStep: number
  readonly atMs: number
  /** The worker that the request came to. */
  readonly entry: SimulatedWorker | null
  readonly endings: Ending[]
  /** A queue had it, once at least. */
  stored: boolean
  /** How often a message of it, not one of its receipts, was disturbed. */
  readonly disturbed: Record<Disturbance, number>
  /** The same of its receipts. */
  readonly receiptsDisturbed: Record<Disturbance, number>
  /** How often the broker gave it up. */
  deadLetters: number
  /** The processes that took it before it was forwarded. */
  readonly takenBy: Set<string>
  /** The processes that took it after the broker had given it up. */
  readonly foundDeadBy: Set<string>
  /** The ids under which it was forwarded to be written. */
  readonly forwardedAs: Set<string>
  /** How often it was forwarded, of the copy that was most often. */
  hops: number
  /** What the caller by HTTP was told. */
  answers: SendResult[]
}

export interface SeenConnection {
  readonly id: string
  readonly name: string | null
  readonly epoch: number
  readonly worker: SimulatedWorker
  readonly device: HeldDevice
  /** The device hung up, or its worker ended. */
  closedFromOutside: boolean
}

export interface Publishing {
  readonly deviceId?: string | null
  readonly connectionId?: string | null
  readonly seq?: number | null
  readonly messageId?: string | null
  readonly body?: string
  readonly expirationMs?: number | null
  /** Whether it says when it was sent. */
  readonly dated?: boolean
  readonly wantsReceipt?: boolean
  readonly holdMs?: number | null
  readonly supersedeKey?: string | null
  readonly asks?: Asked | null
  /** Default: `to_device`. */
  readonly queue?: string
}

export interface SimulatedFleetOptions {
  readonly workers: number
  readonly limits?: Partial<SimulatedWorkerLimits>
  readonly confirmsInOrder?: boolean
  /** Every step that happens is told. */
  readonly trace?: (what: string) => void
}

export const REPLIES = "replies"
const NUMBER_HEADER = "test-number"
const MAX_STEPS = 200_000
/** Longer than all that anybody waits for, one after the other. */
const CALM_WITHIN_MS = 240_000

export class SimulatedFleet {
  readonly broker: SimulatedBroker
  /** The present process of each slot. */
  readonly workers: SimulatedWorker[] = []
  readonly pastWorkers: SimulatedWorker[] = []
  readonly commands: SentCommand[] = []
  readonly connections: SeenConnection[] = []
  /** Connections to the broker that were lost, and workers that were killed. */
  losses = 0
  steps = 0
  /** When each device's connections last changed. */
  readonly movedAtStep = new Map<string, number>()
  readonly #options: SimulatedFleetOptions
  readonly #limits: SimulatedWorkerLimits
  readonly #byHttp = new Map<string, SentCommand>()
  #incarnations = 0

  constructor(options: SimulatedFleetOptions) {
    this.#options = options
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits }
    const { confirmsInOrder = true } = options
    this.broker = new SimulatedBroker(1_750_000_000_000, {
      confirmsInOrder,
      disturbed: (message, how, queue) => {
        if (queue === REPLIES) {
          const asked = this.commandOfReceipt(message)
          if (asked !== undefined) asked.receiptsDisturbed[how] += 1
          return
        }
        const command = this.commandOf(message)
        if (command !== undefined) command.disturbed[how] += 1
      },
      delivered: (client, message, queue) => {
        const command = queue === REPLIES ? undefined : this.commandOf(message)
        if (command === undefined) return
        const { headers = {} } = message.properties
        if (queue === DEAD_LETTERS) command.foundDeadBy.add(client)
        else if (headers[COMMAND_ID_HEADER] === undefined) command.takenBy.add(client)
      },
      stored: (queue, message) => {
        const command = queue === REPLIES ? undefined : this.commandOf(message)
        if (command === undefined) return
        command.stored = true
        if (queue === DEAD_LETTERS) command.deadLetters += 1
        const commandId = message.properties.headers?.[COMMAND_ID_HEADER]
        const givenUp = message.properties.headers?.[GIVEN_UP_HEADER] !== undefined
        if (typeof commandId === "string" && !givenUp) command.forwardedAs.add(commandId)
        const hops = Number(message.properties.headers?.[HOPS_HEADER] ?? 0)
        command.hops = Math.max(command.hops, hops)
      },
    })
    const replies = { name: REPLIES, durable: true, arguments: {} }
    this.broker.declare({ exchanges: [], queues: [replies] })
    for (let slot = 0; slot < options.workers; slot += 1) this.start(slot)
  }

  get nowMs(): number {
    return this.broker.nowMs
  }

  get allWorkers(): SimulatedWorker[] {
    return [...this.pastWorkers, ...this.workers]
  }

  /** Starts the worker of this slot, unless it runs. */
  start(slot: number): void {
    const before = this.workers[slot]
    if (before !== undefined) {
      if (before.state !== "gone") return
      this.pastWorkers.push(before)
    }
    // A process takes a while to start.
    this.broker.nowMs += 1
    this.#incarnations += 1
    const self = {
      worker: workerOf(slot),
      incarnation: incarnation(this.nowMs, this.#incarnations / 36 ** 4),
    }
    const worker = new SimulatedWorker(this.broker, self, this.#limits, {
      offered: (command) => this.#watchHttp(worker, command),
    })
    this.workers[slot] = worker
    this.#watch(worker)
    worker.start()
  }

  /** Cuts one or both connections of a worker to the broker. `first` is who learns of it first. */
  cut(slot: number, links: readonly Link[], first: "client" | "broker" = "client"): void {
    const worker = this.workers[slot]
    if (worker === undefined || worker.state === "gone") return
    for (const link of links) {
      if (!worker.client.isUp(link)) continue
      this.losses += 1
      if (first === "client") worker.client.cut(link)
      else worker.client.cutByBroker(link)
    }
  }

  kill(slot: number): void {
    const worker = this.workers[slot]
    if (worker === undefined || worker.state === "gone") return
    this.losses += 1
    for (const seen of this.#openOf(worker)) this.#closedFromOutside(seen)
    worker.kill()
  }

  drain(slot: number): void {
    const worker = this.workers[slot]
    if (worker?.state !== "serving") return
    for (const seen of this.#openOf(worker)) this.#closedFromOutside(seen)
    worker.drain()
  }

  connect(slot: number, name: string | null): SeenConnection | null {
    const worker = this.workers[slot]
    if (worker?.state !== "serving") return null
    const device = worker.connect(name)
    const { connectionId, epoch, deviceId } = recipientOf(device)
    const seen = {
      id: connectionId,
      name,
      epoch,
      worker,
      device,
      closedFromOutside: false,
    }
    this.connections.push(seen)
    this.movedAtStep.set(deviceId, this.steps)
    return seen
  }

  hangUp(seen: SeenConnection): void {
    if (seen.worker.state === "gone" || seen.device.socket.state === "gone") return
    this.#closedFromOutside(seen)
    seen.worker.hangUp(seen.device)
  }

  /** The device reads again, all that there is. */
  readAll(seen: SeenConnection): void {
    if (seen.worker.state !== "gone") seen.worker.read(seen.device)
  }

  /** The device sends a line. */
  says(seen: SeenConnection, line: string): void {
    if (this.isOpen(seen)) seen.worker.receive(seen.device, line)
  }

  /** A back-end publishes a command; null when there is no such queue. */
  publish(publishing: Publishing): SentCommand | null {
    const { queue = QUEUES.toDeviceQueue, expirationMs = null } = publishing
    if (!this.broker.hasQueue(queue)) return null
    const command = this.#command("queue", publishing, null)
    const headers: Record<string, HeaderValue> = { [NUMBER_HEADER]: command.number }
    if (command.deviceId !== null) headers["device_id"] = command.deviceId
    if (command.connectionId !== null) headers["connection_id"] = command.connectionId
    if (command.seq !== null) headers["to_device_seq"] = command.seq
    Object.assign(headers, optionHeaders(optionsOf(command)))
    const properties: MessageProperties = { headers }
    if (command.messageId !== null) properties.messageId = command.messageId
    if (expirationMs !== null) properties.expiration = String(expirationMs)
    if (publishing.dated === true) properties.timestamp = new Date(this.nowMs)
    if (command.wantsReceipt) {
      properties.replyTo = REPLIES
      properties.correlationId = String(command.number)
    }
    this.broker.publish(queue, command.body, properties)
    return command
  }

  /** A caller asks a worker to send a line. */
  send(
    slot: number,
    id: string,
    asked: Pick<Publishing, "messageId" | "supersedeKey" | "asks"> & { ttlMs?: number | null } = {},
  ): SentCommand | null {
    const { ttlMs = null, ...about } = asked
    const worker = this.workers[slot]
    if (worker === undefined || worker.state === "gone") return null
    const expirationMs = ttlMs ?? this.#limits.sendTimeoutMs
    const command = this.#command("http", { deviceId: id, ...about, expirationMs }, worker)
    this.#byHttp.set(command.body, command)
    const { messageId } = command
    const options = optionsOf(command)
    const request = { id, body: Buffer.from(command.body), ttlMs, messageId, options }
    worker.send(request, (result) => command.answers.push(result))
    return command
  }

  /** What can happen next. */
  pending(): Step[] {
    return [...this.broker.pending(), ...this.workers.flatMap((worker) => worker.pending())]
  }

  /** Lets one thing happen. */
  take(step: Step): void {
    this.steps += 1
    this.#options.trace?.(step.what())
    step.run()
  }

  /** Lets `count` things happen, drawn by `seed`. */
  run(count: number, seed: number): void {
    let drawn = seed
    for (let n = 0; n < count; n += 1) {
      const pending = this.pending()
      drawn = (Math.imul(drawn, 1_664_525) + 1_013_904_223) >>> 0
      const step = pending[Math.floor((drawn / 2 ** 32) * pending.length)]
      if (step === undefined) return
      this.take(step)
    }
  }

  /** Lets the first step happen that is described like this. */
  step(what: RegExp): void {
    const step = this.pending().find((each) => what.test(each.what()))
    if (step !== undefined) {
      this.take(step)
      return
    }
    const possible = this.pending().map((each) => each.what())
    throw new Error(`no step ${what} of:\n${possible.join("\n")}`)
  }

  /** Lets everything happen that needs no time, but for steps that are described like this. */
  settle(except: RegExp | null = null): void {
    for (;;) {
      const all = this.pending()
      const pending = except === null ? all : all.filter((step) => !except.test(step.what()))
      if (pending.length === 0) return
      for (const step of pending) {
        // What was possible may not be any more, and what it would do may be another thing by now.
        if (!this.#isPossible(step) || except?.test(step.what()) === true) continue
        this.take(step)
        if (this.steps > MAX_STEPS) throw new Error(`no end: ${step.what()}`)
      }
    }
  }

  /** Jumps ahead, whatever has not happened yet. */
  advance(ms: number): void {
    this.broker.nowMs += ms
    this.#options.trace?.(`${ms} ms pass`)
  }

  /** Lets time pass as on a network that is quick: what can happen happens before. */
  pass(ms: number, except: RegExp | null = null): void {
    const untilMs = this.nowMs + ms
    for (;;) {
      this.settle(except)
      if (this.nowMs >= untilMs) return
      this.broker.nowMs = Math.min(untilMs, this.#nextMs())
    }
  }

  /** Lets time pass until no command is left anywhere. Throws when that takes too long. */
  calm(): void {
    const untilMs = this.nowMs + CALM_WITHIN_MS
    for (;;) {
      this.settle()
      const left = this.#left()
      if (left === null) return
      const nextMs = this.#nextMs()
      // Nobody would do anything any more, or not soon enough.
      if (nextMs > untilMs) throw new Error(`not calm after ${CALM_WITHIN_MS} ms: ${left}`)
      this.broker.nowMs = nextMs
    }
  }

  /** The open connections of a device with a name. */
  openOf(name: string): SeenConnection[] {
    return this.connections.filter((seen) => seen.name === name && this.isOpen(seen))
  }

  isOpen({ worker, device }: SeenConnection): boolean {
    return worker.state !== "gone" && device.connection.state === "open"
  }

  /** The command that a message carries, or a copy of it. */
  commandOf({ body, properties }: Pick<StoredMessage, "body" | "properties">) {
    const number = properties.headers?.[NUMBER_HEADER]
    if (number !== undefined) return this.commands[Number(number)]
    return this.#byHttp.get(Buffer.from(body).toString())
  }

  /** The command that a message in the queue of replies tells of. */
  commandOfReceipt({ properties }: Pick<StoredMessage, "properties">) {
    return this.commands[Number(properties.correlationId)]
  }

  #isPossible(step: Step): boolean {
    const { possible } = step as { possible?: () => boolean }
    return possible === undefined || possible()
  }

  #nextMs(): number {
    const nextMs = Math.min(
      this.broker.nextExpiryMs(),
      ...this.workers.map((worker) => worker.nextMs),
    )
    return Math.max(this.nowMs + 1, nextMs)
  }

  /** Where a command, or something that is owed for one, still waits; null when nowhere. */
  #left(): string | null {
    const queues = this.broker.queueNames().filter((name) => name.startsWith("owsla.worker."))
    for (const name of [QUEUES.toDeviceQueue, DEAD_LETTERS, ...queues]) {
      const waiting = this.broker.waiting(name).length
      const inHand = this.broker.unacknowledged(name).length
      if (waiting + inHand > 0) return `${waiting} in ${name}, ${inHand} in hand`
    }
    for (const worker of this.workers) {
      if (!worker.idle) return `${worker.process.name} is ${worker.state} and not idle`
    }
    return null
  }

  #openOf(worker: SimulatedWorker): SeenConnection[] {
    return this.connections.filter((seen) => seen.worker === worker && this.isOpen(seen))
  }

  #closedFromOutside(seen: SeenConnection): void {
    seen.closedFromOutside = true
    this.movedAtStep.set(seen.name ?? seen.id, this.steps)
  }

  #command(
    by: SentCommand["by"],
    publishing: Publishing,
    entry: SimulatedWorker | null,
  ): SentCommand {
    const number = this.commands.length
    const { deviceId = null, connectionId = null, seq = null, messageId = null } = publishing
    const { expirationMs = null, dated = false } = publishing
    // A timestamp has whole seconds, and the fraction never shortens an expiration.
    const sentAtMs = by === "http" ? this.nowMs : Math.floor(this.nowMs / 1_000) * 1_000 + 999
    // Without a date an expiration counts from wherever the command arrives.
    const expires = expirationMs !== null && (by === "http" || dated)
    const command: SentCommand = {
      number,
      by,
      deviceId,
      connectionId,
      seq,
      messageId,
      body: publishing.body ?? `${by === "http" ? "h" : "c"}${number}`,
      expiresAtMs: expires ? sentAtMs + expirationMs : Number.POSITIVE_INFINITY,
      wantsReceipt: publishing.wantsReceipt ?? false,
      holdMs: publishing.holdMs ?? null,
      supersedeKey: publishing.supersedeKey ?? null,
      asks: publishing.asks ?? null,
      atStep: this.steps,
      atMs: this.nowMs,
      entry,
      endings: [],
      stored: false,
      disturbed: { requeued: 0, cut: 0, abandoned: 0 },
      receiptsDisturbed: { requeued: 0, cut: 0, abandoned: 0 },
      deadLetters: 0,
      takenBy: new Set(),
      foundDeadBy: new Set(),
      forwardedAs: new Set(),
      hops: 0,
      answers: [],
    }
    this.commands.push(command)
    return command
  }

  /** Records the outcomes that a worker counts. */
  #watch(worker: SimulatedWorker): void {
    const { outcomes } = worker.worker.commands
    const stands = outcomes.stands.bind(outcomes)
    const keep = outcomes.keep.bind(outcomes)
    outcomes.stands = (command, outcome, detail) => {
      this.#ended(worker, this.commandOf(command.delivery), outcome, detail)
      stands(command, outcome, detail)
    }
    outcomes.keep = (body, properties, outcome, detail, options) => {
      const command = this.commandOf({ body, properties })
      // The sender, whose copies are always wanted, keeps what did not even come to a connection;
      // what did was recorded there.
      if (options.wanted === undefined && !this.#endsOnConnection)
        this.#ended(worker, command, outcome, detail)
      keep(body, properties, outcome, detail, options)
    }
  }

  #endsOnConnection = false

  /** Records how a command that came by HTTP ends on a connection. */
  #watchHttp(worker: SimulatedWorker, command: TestCommand): void {
    if (command.cameBy !== "http") return
    const settle = command.settle
    command.settle = (outcome, detail, recipient, reply) => {
      const found = this.#byHttp.get(Buffer.from(command.body).toString())
      this.#ended(worker, found, outcome, detail)
      this.#endsOnConnection = true
      settle(outcome, detail, recipient, reply)
      this.#endsOnConnection = false
    }
  }

  #ended(
    worker: SimulatedWorker,
    command: SentCommand | undefined,
    outcome: Outcome,
    detail: string,
  ): void {
    if (command === undefined) throw new Error(`${outcome} for a command that nobody sent`)
    const { name } = worker.process
    this.#options.trace?.(`  -> ${command.body} (${command.number}) ends ${outcome} at ${name}`)
    command.endings.push({
      outcome,
      detail,
      process: name,
      atStep: this.steps,
      atMs: this.nowMs,
    })
  }
}

function optionsOf({ holdMs, supersedeKey, asks }: SentCommand): CommandOptions {
  const condition =
    asks === "next"
      ? ({ kind: "next" } as const)
      : ({ kind: "prefix", prefix: Buffer.from("r") } as const)
  const reply = asks === null ? null : { condition, timeoutMs: REPLY_TIMEOUT_MS }
  return { holdMs, supersedeKey, reply, trace: null }
}

/** Two slots of one instance, then those of another. */
export function workerOf(slot: number): string {
  return `gw${Math.floor(slot / 2)}.${slot % 2}`
}

export function queueOf(slot: number): string {
  return workerQueue(workerOf(slot))
}

function recipientOf({ connection }: HeldDevice) {
  if (connection.endpoint === null) throw new Error("not admitted")
  return connection.endpoint.recipient
}
