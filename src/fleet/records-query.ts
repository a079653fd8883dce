/**
 * The records query: what all workers of the fleet remember of connections that have ended.
 *
 *   refusals ─────► all workers, for their latest refusals ────────────────► merged, the newest first
 *   connections ──► all workers, for the latest connections of one device ─► merged, the newest first
 *
 * Each worker has its own records, in memory. Bounds: `MAX_AT_ONCE` queries at a time, since an
 * answer may be large; `MAX_ROWS` refusals, or `MAX_PER_DEVICE` connections and the open one, from
 * each worker; `ANSWER_TIMEOUT_MS`.
 */

import * as v from "valibot"
import type { Counters } from "../counters.ts"
import { type ConnectionHistory, MAX_PER_DEVICE } from "../device/connection-history.ts"
import type { Connections } from "../device/connections.ts"
import type { WorkerProcess } from "../device/ids.ts"
import type { Refusals } from "../device/refusals.ts"
import type { Channel } from "./channel.ts"
import { instanceOf } from "./device-view.ts"
import type { Members } from "./members.ts"
import { type Answer, type FleetContent, type FleetMessage, MAX_ROWS } from "./messages.ts"
import { ANSWER_TIMEOUT_MS, type QuestionFailure, Questions } from "./questions.ts"

const MAX_AT_ONCE = 8

const text = v.pipe(v.string(), v.maxLength(256))
const timeMs = v.pipe(v.number(), v.safeInteger(), v.minValue(0))

export const refusalViewSchema = v.object({
  /** Milliseconds since 1970. */
  at: timeMs,
  /** Empty when it is not known. */
  address: text,
  /** A close reason. Later versions may add some. */
  reason: text,
  detail: text,
  /** The id that the device has proven or claimed; null when it has shown none. */
  device_id: v.nullable(text),
  worker: text,
})

/** A connection that did not become a device. */
export type RefusalView = v.InferOutput<typeof refusalViewSchema>

export const connectionViewSchema = v.object({
  connection_id: text,
  /** When it was admitted, in milliseconds since 1970: the epoch of the connection. */
  connected_at: timeMs,
  /** Null while it is open. */
  disconnected_at: v.nullable(timeMs),
  /** A close reason; null while it is open. */
  reason: v.nullable(text),
  remote_address: text,
  instance: text,
  worker: text,
})

/** One connection of a device, which has ended or is open. */
export type ConnectionView = v.InferOutput<typeof connectionViewSchema>

/** How complete a list is. */
interface Coverage {
  /** The workers whose answers arrived in time and could be parsed completely. */
  readonly answered: number
  /** The known workers of the fleet. */
  readonly workers: number
}

export type RefusalList = Coverage & { readonly refusals: readonly RefusalView[] }
export type ConnectionList = Coverage & { readonly connections: readonly ConnectionView[] }

type Asked = Extract<FleetMessage, { type: "refusals_list" | "connections_list" }>
type Unnumbered<T> = T extends unknown ? Omit<T, "ask"> : never

export interface RecordsQueryOptions {
  readonly refusals: Refusals
  readonly history: ConnectionHistory
  readonly connections: Connections
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
  readonly counters: Pick<Counters, "fleetMessagesUnknown">
}

export class RecordsQuery {
  readonly #self: WorkerProcess
  readonly #channel: Channel
  readonly #members: Members
  readonly #options: RecordsQueryOptions
  readonly #questions: Questions

  constructor(
    self: WorkerProcess,
    channel: Channel,
    members: Members,
    options: RecordsQueryOptions,
  ) {
    this.#self = self
    this.#channel = channel
    this.#members = members
    this.#options = options
    this.#questions = new Questions(members, options.steadyMs)
  }

  /**
   * The latest refusals of the fleet, the newest first.
   * @param limit at most `MAX_ROWS`.
   * @param caller aborted when the HTTP client closes its connection.
   */
  async refusals(limit: number, caller?: AbortSignal): Promise<RefusalList | QuestionFailure> {
    const merged = await this.#merged(
      { type: "refusals_list", limit },
      this.#ownRefusals(limit),
      (answer) => (answer.type === "refusals_listed" ? answer.refusals : []),
      refusalViewSchema,
      caller,
    )
    if (typeof merged === "string") return merged
    const { rows, ...coverage } = merged
    return { refusals: rows.sort((a, b) => b.at - a.at).slice(0, limit), ...coverage }
  }

  /**
   * The latest connections of a device, the newest first, with the open one.
   * @param caller aborted when the HTTP client closes its connection.
   */
  async connections(
    deviceId: string,
    caller?: AbortSignal,
  ): Promise<ConnectionList | QuestionFailure> {
    const merged = await this.#merged(
      { type: "connections_list", device: deviceId },
      this.#ownConnections(deviceId),
      (answer) => (answer.type === "connections_listed" ? answer.connections : []),
      connectionViewSchema,
      caller,
    )
    if (typeof merged === "string") return merged
    const { rows, ...coverage } = merged
    const newestFirst = rows.sort((a, b) => b.connected_at - a.connected_at)
    return { connections: newestFirst.slice(0, MAX_PER_DEVICE), ...coverage }
  }

  /** Answers another worker's question. */
  asked(message: Asked): void {
    const to = { worker: message.from, incarnation: message.incarnation }
    const { ask } = message
    if (message.type === "refusals_list") {
      const refusals = this.#ownRefusals(message.limit)
      this.#channel.tell(to, { type: "refusals_listed", ask, refusals })
    } else {
      const connections = this.#ownConnections(message.device)
      this.#channel.tell(to, { type: "connections_listed", ask, connections })
    }
  }

  /** Handles the answer of another worker. */
  answered(answer: Answer): void {
    this.#questions.answered(answer)
  }

  /** Ends overdue questions. To be called periodically. */
  sweep(): void {
    this.#questions.sweep()
  }

  /** Asks all other workers and reads their rows, one by one. */
  async #merged<Row>(
    content: Unnumbered<Extract<FleetContent, { type: Asked["type"] }>>,
    own: readonly Row[],
    rowsOf: (answer: Answer) => readonly unknown[],
    schema: v.GenericSchema<unknown, Row>,
    caller: AbortSignal | undefined,
  ): Promise<(Coverage & { rows: Row[] }) | QuestionFailure> {
    // Without the broker the other workers are unknown, and a partial list would look complete.
    if (!this.#channel.open) return "unreachable"
    if (this.#questions.count >= MAX_AT_ONCE) return "busy"
    const awaited = this.#members.known()
    const inquiry = { deadlineMs: this.#options.steadyMs() + ANSWER_TIMEOUT_MS, caller }
    const answers =
      awaited.length === 0
        ? []
        : await this.#questions.ask(awaited, inquiry, (ask, settled) =>
            this.#channel.broadcast({ ...content, ask }, settled),
          )
    if (typeof answers === "string") return answers
    const rows = [...own]
    let answered = 1
    for (const answer of answers) {
      const given = rowsOf(answer)
      const read = given.flatMap((row) => this.#read(schema, row) ?? [])
      // An answer with an invalid row must not count as complete.
      if (read.length === given.length) answered += 1
      rows.push(...read)
    }
    return { rows, answered, workers: 1 + this.#members.count }
  }

  #read<Row>(schema: v.GenericSchema<unknown, Row>, row: unknown): Row | null {
    const checked = v.safeParse(schema, row)
    if (checked.success) return checked.output
    this.#options.counters.fleetMessagesUnknown += 1
    return null
  }

  #ownRefusals(limit: number): RefusalView[] {
    const { worker } = this.#self
    const refusals = this.#options.refusals.newest(Math.min(limit, MAX_ROWS))
    return refusals.map(({ at, address, reason, detail, deviceId }) => {
      return { at, address, reason, detail, device_id: deviceId, worker }
    })
  }

  #ownConnections(deviceId: string): ConnectionView[] {
    const { history, connections } = this.#options
    const { worker } = this.#self
    const about = { instance: instanceOf(worker), worker }
    const ended = history.of(deviceId).map((connection) => ({
      connection_id: connection.connectionId,
      connected_at: connection.connectedAt,
      disconnected_at: connection.endedAt,
      reason: connection.reason,
      remote_address: connection.address,
      ...about,
    }))
    const open = connections.find(deviceId)
    const recipient = open?.endpoint?.recipient
    if (open === undefined || recipient?.deviceId !== deviceId) return ended
    const { connectionId, epoch } = recipient
    const view = {
      ...{ connection_id: connectionId, connected_at: epoch },
      ...{ disconnected_at: null, reason: null },
      ...{ remote_address: open.remoteAddress, ...about },
    }
    return [view, ...ended]
  }
}
