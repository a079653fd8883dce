/**
 * The census: what an operator asks of the fleet. A list of devices is asked of every worker; one
 * connection of the worker that holds it, to describe or to close it.
 *
 *   list ─► all ─► listed … ─► merged when all have answered, or when the time is over
 *   describe, kick ─► here, or the connection's process, or (a device id) where the locator finds it
 *
 * Bounds: `MAX_ASKS` questions at a time, `MAX_ROWS` devices an answer, `ANSWER_TIMEOUT_MS` for it.
 */

import type { Connection } from "../device/connection.ts"
import type { Connections } from "../device/connections.ts"
import { processOfConnection, type WorkerProcess } from "../device/ids.ts"
import type { Channel } from "./channel.ts"
import { type DeviceView, deviceView } from "./device-view.ts"
import type { Locator } from "./locator.ts"
import type { Members } from "./members.ts"
import type { Answer, FleetMessage } from "./messages.ts"

const ANSWER_TIMEOUT_MS = 1_000
const MAX_ASKS = 100

export interface ListRequest {
  /** Device ids that begin with this. */
  readonly prefix: string
  /** Device ids after this one, in the order of their characters' codes; "" for all. */
  readonly after: string
  readonly limit: number
}

export interface DeviceList {
  /** In the order of device ids. */
  readonly devices: readonly DeviceView[]
  /** How many fit the request, those beyond the limit included. */
  readonly total: number
  /** Workers that answered in time. */
  readonly answered: number
  /** Workers of the fleet, as far as they have been heard of lately. */
  readonly workers: number
}

export type CensusFailure =
  /** The broker, which leads to the other workers, is away. */
  | "unreachable"
  | "timeout"
  /** Too many questions already. */
  | "busy"

interface Question {
  readonly awaited: Set<string>
  readonly answers: Answer[]
  deadlineMs: number
  readonly done: (answers: readonly Answer[] | CensusFailure) => void
}

export class Census {
  readonly #self: WorkerProcess
  readonly #channel: Channel
  readonly #members: Members
  readonly #connections: Connections
  readonly #locator: Locator
  readonly #nowMs: () => number
  readonly #questions = new Map<number, Question>()
  /** Devices that the locator looks for, for an operator. */
  #looking = 0
  #nextAsk = 0

  constructor(
    self: WorkerProcess,
    channel: Channel,
    members: Members,
    connections: Connections,
    locator: Locator,
    nowMs: () => number,
  ) {
    this.#self = self
    this.#channel = channel
    this.#members = members
    this.#connections = connections
    this.#locator = locator
    this.#nowMs = nowMs
  }

  async list(request: ListRequest): Promise<DeviceList | CensusFailure> {
    // Who else there is would be a guess, and a part would pass for the whole.
    if (!this.#channel.open) return "unreachable"
    const own = this.#list(request)
    const awaited = this.#members.known()
    const answers =
      awaited.length === 0
        ? []
        : await this.#ask(awaited, (ask, settled) =>
            this.#channel.broadcast({ type: "list", ask, ...request }, settled),
          )
    if (typeof answers === "string") return answers
    const listed = answers.filter((answer) => answer.type === "listed")
    const others = listed.flatMap(({ devices }) => devices as unknown as DeviceView[])
    return {
      devices: [...own.devices, ...others].sort(byDevice).slice(0, request.limit),
      total: listed.reduce((sum, { total }) => sum + total, own.total),
      answered: 1 + listed.length,
      workers: 1 + this.#members.count,
    }
  }

  /** Null when no worker holds it. */
  describe(id: string): Promise<DeviceView | null | CensusFailure> {
    return this.#one("describe", id)
  }

  /** Closes the connection; returns what it was, or null when no worker holds it. */
  kick(id: string): Promise<DeviceView | null | CensusFailure> {
    return this.#one("kick", id)
  }

  /** Answers another worker's question. */
  asked(message: Extract<FleetMessage, { type: "list" | "describe" | "kick" }>): void {
    const to = { worker: message.from, incarnation: message.incarnation }
    const { ask } = message
    switch (message.type) {
      case "list": {
        const { devices, total } = this.#list(message)
        const rows = devices.map((device) => ({ ...device }))
        this.#channel.tell(to, { type: "listed", ask, devices: rows, total })
        break
      }
      case "describe":
      case "kick": {
        const device = this.#perform(message.type, this.#connections.find(message.connection))
        const type = message.type === "kick" ? "kicked" : "described"
        this.#channel.tell(to, { type, ask, device: device === null ? null : { ...device } })
        break
      }
    }
  }

  /** Takes the answer of another worker. */
  answered(answer: Answer): void {
    const question = this.#questions.get(answer.ask)
    if (question === undefined || !question.awaited.delete(answer.from)) return
    question.answers.push(answer)
    if (question.awaited.size === 0) this.#end(answer.ask, question.answers)
  }

  sweep(nowMs: number): void {
    for (const [ask, question] of this.#questions) {
      const { awaited, answers } = question
      // Further away than at most, the clock was set back.
      question.deadlineMs = Math.min(question.deadlineMs, nowMs + ANSWER_TIMEOUT_MS)
      if (nowMs < question.deadlineMs) continue
      for (const worker of awaited) this.#members.missed(worker)
      this.#end(ask, answers)
    }
  }

  async #one(act: "describe" | "kick", id: string): Promise<DeviceView | null | CensusFailure> {
    const here = this.#connections.find(id)
    if (here !== undefined) return this.#perform(act, here)
    if (processOfConnection(id) !== null) return this.#elsewhere(act, id)
    if (!this.#channel.open) return "unreachable"
    if (this.#questions.size + this.#looking >= MAX_ASKS) return "busy"
    this.#looking += 1
    const { promise, resolve } = Promise.withResolvers<string | null>()
    this.#locator.locate(id, false, (place) => {
      resolve(place.is === "with" ? place.connectionId : null)
    })
    const connectionId = await promise
    this.#looking -= 1
    if (connectionId === null) {
      // It may have come to this worker while the others were asked.
      return this.#perform(act, this.#connections.find(id))
    }
    return this.#elsewhere(act, connectionId)
  }

  async #elsewhere(
    act: "describe" | "kick",
    connection: string,
  ): Promise<DeviceView | null | CensusFailure> {
    const holder = processOfConnection(connection)
    if (holder === null || holder.worker === this.#self.worker) return null
    if (!this.#channel.open) return "unreachable"
    const answers = await this.#ask([holder.worker], (ask, settled) =>
      this.#channel.tell(holder, { type: act, ask, connection }, settled),
    )
    if (typeof answers === "string") return answers
    const answer = answers[0]
    if (answer === undefined) return "timeout"
    if (answer.type !== "described" && answer.type !== "kicked") return null
    return answer.device as unknown as DeviceView | null
  }

  /** Asks those in `awaited`; "returned" answers for the only one. */
  #ask(
    awaited: readonly string[],
    send: (ask: number, settled: (result: string) => void) => void,
  ): Promise<readonly Answer[] | CensusFailure> {
    if (this.#questions.size >= MAX_ASKS) return Promise.resolve("busy")
    const { promise, resolve } = Promise.withResolvers<readonly Answer[] | CensusFailure>()
    const ask = this.#nextAsk
    this.#nextAsk += 1
    this.#questions.set(ask, {
      awaited: new Set(awaited),
      answers: [],
      deadlineMs: this.#nowMs() + ANSWER_TIMEOUT_MS,
      done: resolve,
    })
    send(ask, (result) => {
      if (result === "returned") this.#end(ask, [GONE])
      else if (result !== "confirmed") this.#end(ask, "unreachable")
    })
    return promise
  }

  #end(ask: number, result: readonly Answer[] | CensusFailure): void {
    const question = this.#questions.get(ask)
    this.#questions.delete(ask)
    question?.done(result)
  }

  #perform(act: "describe" | "kick", connection: Connection | undefined): DeviceView | null {
    if (connection === undefined) return null
    const view = deviceView(connection, this.#self, this.#nowMs())
    if (act === "kick") connection.close("kicked")
    return view
  }

  #list({ prefix, after, limit }: ListRequest): { devices: DeviceView[]; total: number } {
    const fitting: { id: string; connection: Connection }[] = []
    this.#connections.forEach((connection) => {
      const id = connection.endpoint?.recipient.deviceId
      if (connection.state !== "open" || id === undefined) return
      if (id > after && id.startsWith(prefix)) fitting.push({ id, connection })
    })
    fitting.sort((a, b) => (a.id < b.id ? -1 : 1))
    const views = fitting
      .slice(0, limit)
      .map(({ connection }) => deviceView(connection, this.#self, this.#nowMs()))
    return { devices: views.filter((view) => view !== null), total: fitting.length }
  }
}

/** What a process that is gone would answer. */
const GONE: Answer = { type: "described", from: "", incarnation: "", ask: 0, device: null }

function byDevice(a: DeviceView, b: DeviceView): number {
  if (a.device_id !== b.device_id) return a.device_id < b.device_id ? -1 : 1
  return a.connection_id < b.connection_id ? -1 : 1
}
