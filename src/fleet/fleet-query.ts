/**
 * The fleet query: answers the operator's requests about the fleet. It asks all workers for their
 * devices, or asks the worker that holds a connection to describe or to close it.
 *
 *   list ─► all workers, for their shares of the page ─► listed … ─► merged ─┬─ the page is full ─► answer
 *                                                                            └─ a worker's share was too small ─► it is asked again
 *   describe, kick ─► this worker, or the process in the connection id, or the worker that the locator finds
 *   kick elsewhere ─► describe ─► described, with the holder's clock ─► kick, valid until a time of that clock
 *
 * The holder refuses a kick that arrives after its deadline, so a kick that has waited in a queue
 * closes no connection. After the caller has closed its HTTP connection no message is sent. A
 * message that was sent before stays valid for the rest of `ANSWER_TIMEOUT_MS`, because it cannot
 * be recalled. The clocks of two machines may differ by more than the deadline allows. So the
 * holder sends its clock with its first answer, the asking worker adds the time that is left, and
 * the holder compares the sum with its own clock. A message TTL at the broker was rejected: it does
 * not include the time before the broker has the message and after the delivery.
 *
 * Bounds: `MAX_QUESTIONS` questions and look-ups at a time; `MAX_ROWS` devices in an answer;
 * `ANSWER_TIMEOUT_MS` for an answer; `QUESTION_TIMEOUT_MS` for a request, including its look-up.
 */

import type { Counters } from "../counters.ts"
import type { Connection } from "../device/connection.ts"
import type { Connections } from "../device/connections.ts"
import { processOfConnection, type WorkerProcess } from "../device/ids.ts"
import { Smallest } from "../structures/smallest.ts"
import type { Channel } from "./channel.ts"
import { matches } from "./device-filter.ts"
import { type DeviceList, type ListRequest, Page, type WorkerPage } from "./device-page.ts"
import { type DeviceView, deviceView, readDeviceView } from "./device-view.ts"
import type { Located, Locator } from "./locator.ts"
import type { Members } from "./members.ts"
import type { Answer, FleetContent, FleetMessage } from "./messages.ts"
import { type Inquiry, MAX_QUESTIONS, type QuestionFailure, Questions } from "./questions.ts"

/**
 * Longer than two answers and a look-up need without faults (1.2 s for workers that have just
 * connected).
 */
const QUESTION_TIMEOUT_MS = 3_000

export type FleetQueryFailure = QuestionFailure

/** A look-up of the locator for a request. */
interface LookUp {
  readonly deadlineMs: number
  readonly end: (result: FleetQueryFailure) => void
}

export interface FleetQueryOptions {
  /** Milliseconds since 1970. */
  readonly nowMs: () => number
  /** Milliseconds of a monotonic clock, for deadlines. */
  readonly steadyMs: () => number
  readonly counters: Pick<Counters, "fleetMessagesUnknown">
}

export class FleetQuery {
  readonly #self: WorkerProcess
  readonly #channel: Channel
  readonly #members: Members
  readonly #connections: Connections
  readonly #locator: Locator
  readonly #options: FleetQueryOptions
  readonly #questions: Questions
  readonly #lookUps = new Set<LookUp>()

  constructor(
    self: WorkerProcess,
    channel: Channel,
    members: Members,
    connections: Connections,
    locator: Locator,
    options: FleetQueryOptions,
  ) {
    this.#self = self
    this.#channel = channel
    this.#members = members
    this.#connections = connections
    this.#locator = locator
    this.#options = options
    this.#questions = new Questions(members, options.steadyMs)
  }

  /** @param caller aborted when the HTTP client closes its connection. */
  async list(request: ListRequest, caller?: AbortSignal): Promise<DeviceList | FleetQueryFailure> {
    // Without the broker the other workers are unknown, and a partial list would look complete.
    if (!this.#channel.open) return "unreachable"
    const awaited = this.#members.known()
    const inquiry = this.#inquiry(caller)
    const page = new Page(request, awaited.length + 1)
    page.add(this.#self.worker, this.#list(page.request))
    const answers =
      awaited.length === 0
        ? []
        : await this.#questions.ask(awaited, inquiry, (ask, settled) =>
            this.#channel.broadcast({ type: "list", ask, ...page.request }, settled),
          )
    if (typeof answers === "string") return answers
    for (const answer of answers)
      if (answer.type === "listed") page.add(answer.from, this.#listed(answer))
    const rest = await this.#rest(page, inquiry)
    if (typeof rest === "string") return rest
    return { ...page.list(), workers: 1 + this.#members.count }
  }

  /** Asks the workers again whose devices could be missing in the page. */
  async #rest(page: Page, inquiry: Inquiry): Promise<FleetQueryFailure | null> {
    const { limit, prefix, filter } = page.wanted
    const asked: Promise<readonly Answer[] | FleetQueryFailure>[] = []
    for (const { worker, after } of page.unfinished()) {
      const request = { prefix, after, limit, ...(filter === undefined ? {} : { filter }) }
      if (worker === this.#self.worker) {
        page.add(worker, this.#list(request))
        continue
      }
      const process = this.#members.processOf(worker)
      if (process === null) continue
      const told = this.#questions.ask([worker], inquiry, (ask, settled) =>
        this.#channel.tell(process, { type: "list", ask, ...request }, settled),
      )
      asked.push(told)
    }
    for (const answers of await Promise.all(asked)) {
      if (typeof answers === "string") return answers
      for (const answer of answers) {
        if (answer.type === "listed") page.add(answer.from, this.#listed(answer))
      }
    }
    return null
  }

  /**
   * Describes a connection. Null when no worker holds it.
   * @param caller aborted when the HTTP client closes its connection.
   */
  describe(id: string, caller?: AbortSignal): Promise<DeviceView | null | FleetQueryFailure> {
    return this.#one("describe", id, this.#inquiry(caller))
  }

  /**
   * Closes a connection and returns its description, or null when no worker holds it.
   * @param caller aborted when the HTTP client closes its connection: then the request ends.
   */
  kick(id: string, caller?: AbortSignal): Promise<DeviceView | null | FleetQueryFailure> {
    return this.#one("kick", id, this.#inquiry(caller))
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
      case "describe": {
        const device = this.#perform("describe", this.#connections.find(message.connection))
        const clock_ms = this.#options.steadyMs()
        this.#channel.tell(to, { type: "described", ask, device: rowOf(device), clock_ms })
        break
      }
      case "kick": {
        // Workers of earlier versions send no deadline.
        const untilMs = message.until_ms ?? Number.POSITIVE_INFINITY
        if (this.#options.steadyMs() >= untilMs) {
          this.#channel.tell(to, { type: "kicked", ask, device: null, overdue: true })
          break
        }
        const device = this.#perform("kick", this.#connections.find(message.connection))
        this.#channel.tell(to, { type: "kicked", ask, device: rowOf(device) })
        break
      }
    }
  }

  /** Handles the answer of another worker. */
  answered(answer: Answer): void {
    this.#questions.answered(answer)
  }

  /** Ends overdue questions and look-ups, and look-ups while the broker is not available. */
  sweep(): void {
    const nowMs = this.#options.steadyMs()
    for (const lookUp of this.#lookUps) {
      if (!this.#channel.open) lookUp.end("unreachable")
      else if (nowMs >= lookUp.deadlineMs) lookUp.end("timeout")
    }
    this.#questions.sweep()
  }

  #inquiry(caller: AbortSignal | undefined): Inquiry {
    return { deadlineMs: this.#options.steadyMs() + QUESTION_TIMEOUT_MS, caller }
  }

  async #one(
    act: "describe" | "kick",
    id: string,
    inquiry: Inquiry,
  ): Promise<DeviceView | null | FleetQueryFailure> {
    if (this.#questions.isOver(inquiry)) return "timeout"
    const here = this.#connections.find(id)
    if (here !== undefined) return this.#perform(act, here)
    if (processOfConnection(id) !== null) return this.#elsewhere(act, id, inquiry)
    if (!this.#channel.open) return "unreachable"
    if (this.#questions.count + this.#lookUps.size >= MAX_QUESTIONS) return "busy"
    // A hint may be wrong: then all workers are asked.
    for (const trusting of [true, false]) {
      const place = await this.#locate(id, trusting, inquiry)
      if (typeof place === "string") return place
      if (this.#questions.isOver(inquiry)) return "timeout"
      if (place.kind === "nowhere") break
      const device = await this.#elsewhere(act, place.connectionId, inquiry)
      if (device !== null) return device
    }
    // The device may have connected to this worker during the look-up.
    return this.#perform(act, this.#connections.find(id))
  }

  #locate(
    id: string,
    trusting: boolean,
    { deadlineMs, caller }: Inquiry,
  ): Promise<Located | FleetQueryFailure> {
    const { promise, resolve } = Promise.withResolvers<Located | FleetQueryFailure>()
    const end = (result: Located | FleetQueryFailure) => {
      this.#lookUps.delete(lookUp)
      caller?.removeEventListener("abort", hungUp)
      if (typeof result === "string") this.#locator.forget(id, end)
      resolve(result)
    }
    const hungUp = () => end("timeout")
    const lookUp = { deadlineMs, end }
    this.#lookUps.add(lookUp)
    caller?.addEventListener("abort", hungUp)
    this.#locator.locate(id, trusting, end)
    return promise
  }

  async #elsewhere(
    act: "describe" | "kick",
    connection: string,
    inquiry: Inquiry,
  ): Promise<DeviceView | null | FleetQueryFailure> {
    const holder = processOfConnection(connection)
    if (holder === null || holder.worker === this.#self.worker) return null
    const described = await this.#askHolder(holder, inquiry, { type: "describe", connection })
    if (typeof described === "string") return described
    if (described.type !== "described" || described.device === null) return null
    const device = this.#read(described.device)
    if (device === null) return "timeout"
    if (act === "describe") return device
    if (this.#questions.isOver(inquiry)) return "timeout"
    const leftMs = this.#questions.answerDeadlineMs(inquiry) - this.#options.steadyMs()
    const { clock_ms } = described
    const kicked = await this.#askHolder(holder, inquiry, {
      type: "kick",
      connection,
      ...(clock_ms === undefined ? {} : { until_ms: clock_ms + leftMs }),
    })
    if (typeof kicked === "string") return kicked
    if (kicked.type === "kicked" && kicked.overdue === true) return "timeout"
    if (kicked.type !== "kicked" || kicked.device === null) return null
    return this.#read(kicked.device) ?? device
  }

  async #askHolder(
    holder: WorkerProcess,
    inquiry: Inquiry,
    content: Unnumbered<Extract<FleetContent, { type: "describe" | "kick" }>>,
  ): Promise<Answer | FleetQueryFailure> {
    if (!this.#channel.open) return "unreachable"
    const answers = await this.#questions.ask([holder.worker], inquiry, (ask, settled) =>
      this.#channel.tell(holder, { ...content, ask }, settled),
    )
    if (typeof answers === "string") return answers
    return answers[0] ?? "timeout"
  }

  #perform(act: "describe" | "kick", connection: Connection | undefined): DeviceView | null {
    if (connection === undefined) return null
    const view = deviceView(connection, this.#self, this.#options.nowMs())
    if (act === "kick") connection.close("kicked")
    return view
  }

  /**
   * Parses another worker's description of a connection. Null, and counted, when it is not valid.
   */
  #read(row: Readonly<Record<string, unknown>>): DeviceView | null {
    const view = readDeviceView(row)
    if (view === null) this.#options.counters.fleetMessagesUnknown += 1
    return view
  }

  #listed({ devices, total }: Extract<Answer, { type: "listed" }>): WorkerPage {
    const views = devices.map((row) => this.#read(row)).filter((view) => view !== null)
    // An answer with an invalid row must not count as complete.
    const isComplete = views.length === devices.length
    return { devices: views, total, hasMore: devices.length < total, isComplete }
  }

  #list({ prefix, after, limit, filter }: ListRequest): WorkerPage {
    const first = new Smallest<{ id: string; connection: Connection }>(limit, (a, b) => a.id < b.id)
    let total = 0
    this.#connections.forEach((connection) => {
      const id = connection.endpoint?.recipient.deviceId
      if (connection.state !== "open" || id === undefined) return
      if (id <= after || !id.startsWith(prefix)) return
      if (filter !== undefined && !matches(connection, filter)) return
      total += 1
      first.add({ id, connection })
    })
    const views = first.values.map(({ connection }) =>
      deviceView(connection, this.#self, this.#options.nowMs()),
    )
    const devices = views.filter((view) => view !== null)
    return { devices, total, hasMore: first.values.length < total, isComplete: true }
  }
}

/** Each member of the union without its question number, which `#ask` assigns. */
type Unnumbered<T> = T extends unknown ? Omit<T, "ask"> : never

function rowOf(device: DeviceView | null): Record<string, unknown> | null {
  return device === null ? null : { ...device }
}
