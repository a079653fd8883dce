/**
 * The tapes of the fleet: starts, stops and reads them for operators, and records the devices of
 * this worker.
 *
 *   start ─► tapes ─► all workers, each of which answers with its own tapes: the owner knows all
 *   each worker   recorder of the device ─► tape_entries ─► the owner, in each sweep
 *   any worker    tape_read ─► the owner ─► tape_part        tape_stop ─► tape_stopped
 *
 * The worker that got the request owns the tape. It announces its tapes every `ANNOUNCE_MS` while
 * it has any, so that a lost message and a worker that has just started are no special case. When
 * the owner ends, its tapes are lost. Rejected: the device's keeper as the owner, because shards
 * move whenever a worker comes, and with them all entries would.
 *
 * Bounds: `MAX_TAPES` in the fleet; `MAX_TAPES_OF_WORKER` for one owner, with those that are over;
 * those of `recorder.ts`, `tape.ts` and `questions.ts`.
 */

import type { Connection, LineHandler } from "../../device/connection.ts"
import type { Connections } from "../../device/connections.ts"
import type { WorkerProcess } from "../../device/ids.ts"
import type { Channel } from "../channel.ts"
import { keyOf } from "../directory.ts"
import type { Members } from "../members.ts"
import type { Answer, FleetMessage } from "../messages.ts"
import { ANSWER_TIMEOUT_MS, type QuestionFailure, Questions } from "../questions.ts"
import {
  type AnnouncedRow,
  AnnouncedTapes,
  isNewerTape,
  MAX_TAPES_OF_WORKER,
} from "./announced-tapes.ts"
import { type Payload, readTapeItem } from "./entry.ts"
import { LATE_MS, OwnTape, type TapeRow } from "./own-tape.ts"
import { Recorder } from "./recorder.ts"
import type { PartLimits } from "./tape.ts"
import { type PartAnswer, TapeReader } from "./tape-reader.ts"

/** Devices of the fleet that are recorded at a time. */
export const MAX_TAPES = 20
const ANNOUNCE_MS = 5_000
/** In place of an entry of a later version. */
const NOT_READABLE = { kind: "dropped", count: 1 } as const
const PART: PartLimits = { maxItems: 500, maxBytes: 262_144 }

export interface TapeRequest {
  readonly minutes: number
  readonly payload: Payload
  readonly maxBytes: number
}

/** A tape as the HTTP API shows it. */
export interface TapeView {
  readonly device_id: string
  readonly until: number
  readonly payload: Payload
  readonly max_bytes: number
}

export interface ListedTape extends TapeView {
  readonly started_at: number
  readonly recording: boolean
  /** The owner. */
  readonly worker: string
}

/** The last stage of lines, which tells tapes of confirms only while it must. */
export interface TapedLines extends LineHandler {
  /** Whether confirms are reported to the tapes of connections. */
  taping: boolean
}

export interface TapesHooks {
  readonly lines: TapedLines
  readonly started: (tape: TapeView) => void
  readonly ended: (tape: TapeView, reason: "over" | "stopped" | "replaced" | "drained") => void
}

export interface TapesOptions extends TapesHooks {
  readonly self: WorkerProcess
  readonly nowMs: () => number
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
}

type TapeMessage = Extract<
  FleetMessage,
  { type: "tapes" | "tape_entries" | "tape_read" | "tape_stop" }
>
type TapeAnswer = Extract<FleetMessage, { type: "tapes_told" | "tape_part" | "tape_stopped" }>

/** A tape that records devices of this worker, whoever owns it. */
interface Recording {
  readonly id: string
  readonly owner: WorkerProcess
  readonly recorder: Recorder
}

interface KnownTape {
  readonly row: TapeRow
  readonly owner: WorkerProcess
  readonly endsAtMs: number
}

export class Tapes {
  readonly #channel: Channel
  readonly #members: Members
  readonly #connections: Pick<Connections, "find">
  readonly #options: TapesOptions
  readonly #questions: Questions
  /** By id. */
  readonly #own = new Map<string, OwnTape>()
  readonly #announced = new AnnouncedTapes()
  /** By device id. */
  readonly #recordings = new Map<string, Recording>()
  /** Own tapes whose end was reported. */
  readonly #over = new Set<string>()
  #announceAtMs = Number.POSITIVE_INFINITY

  constructor(
    channel: Channel,
    members: Members,
    connections: Pick<Connections, "find">,
    options: TapesOptions,
  ) {
    this.#channel = channel
    this.#members = members
    this.#connections = connections
    this.#options = options
    this.#questions = new Questions(members, options.steadyMs)
  }

  /**
   * Records a device from now on. A former tape of the device is discarded.
   * @param caller aborted when the HTTP client closes its connection.
   */
  async start(
    deviceId: string,
    { minutes, payload, maxBytes }: TapeRequest,
    caller?: AbortSignal,
  ): Promise<TapeView | "full" | QuestionFailure> {
    if (!this.#channel.open) return "unreachable"
    if (this.#othersOf(deviceId).length >= MAX_TAPES) {
      // It may not be known here yet that one was discarded.
      const failure = await this.#tellAll(caller)
      if (failure !== null) return failure
      if (this.#othersOf(deviceId).length >= MAX_TAPES) return "full"
    }
    const { nowMs, steadyMs, self } = this.#options
    const recordedMs = minutes * 60_000
    const before = this.#newest(deviceId)?.row.started_at ?? 0
    const startedAt = Math.max(nowMs(), before + 1)
    const row: TapeRow = {
      id: crypto.randomUUID(),
      device_id: deviceId,
      payload,
      max_bytes: maxBytes,
      started_at: startedAt,
      until: nowMs() + recordedMs,
    }
    const tape = new OwnTape(row, steadyMs() + recordedMs)
    this.#makeRoom(deviceId)
    this.#own.set(row.id, tape)
    this.#review()
    const failure = await this.#tellAll(caller)
    const earlier = this.#othersOf(deviceId).filter((other) => isNewerTape(row, other))
    if (failure !== null || earlier.length >= MAX_TAPES) {
      this.#discard(row.id)
      return failure ?? "full"
    }
    for (const { row: other, owner } of [...this.#all()]) {
      const isReplaced = other.device_id === deviceId && isNewerTape(row, other)
      if (isReplaced && keyOf(owner) === keyOf(self)) this.#end(other.id, "replaced")
    }
    const view = viewOf(row)
    this.#options.started(view)
    return view
  }

  /** @returns the tape that was discarded; null when the device has none. */
  async stop(deviceId: string, caller?: AbortSignal): Promise<TapeView | null | QuestionFailure> {
    const tape = this.#newest(deviceId)
    if (tape === null) return null
    const { row, owner } = tape
    if (this.#end(row.id, "stopped")) return viewOf(row)
    const answer = await this.#ask(owner, caller, (ask) => ({ type: "tape_stop", ask, id: row.id }))
    if (typeof answer === "string") return answer
    return answer.type === "tape_stopped" && answer.stopped ? viewOf(row) : null
  }

  list(): ListedTape[] {
    const steadyMs = this.#options.steadyMs()
    const listed = [...this.#all()].map(({ row, owner, endsAtMs }) => ({
      ...viewOf(row),
      started_at: row.started_at,
      recording: steadyMs < endsAtMs,
      worker: owner.worker,
    }))
    return listed.sort((a, b) => (a.device_id < b.device_id ? -1 : 1))
  }

  /** Reads the tape of a device; null when it has none. */
  reader(deviceId: string): TapeReader | null {
    const tape = this.#newest(deviceId)
    if (tape === null) return null
    const { row, owner } = tape
    return new TapeReader((from, caller) => this.#part(row.id, owner, from, caller))
  }

  /** Records the connection if its device has a tape. Call it after the connection was admitted. */
  admitted(connection: Connection): void {
    const recipient = connection.endpoint?.recipient
    const recording = recipient && this.#recordings.get(recipient.deviceId)
    if (recording) this.#attach(recording.recorder, connection, this.#options.nowMs())
  }

  heard(message: TapeMessage): void {
    const { from: worker, incarnation } = message
    const sender = { worker, incarnation }
    switch (message.type) {
      case "tapes":
        this.#heardTapes(sender, message.tapes)
        if (message.ask !== undefined) {
          const answer = { type: "tapes_told", ask: message.ask, tapes: this.#rows() } as const
          this.#channel.tell(sender, answer)
        }
        break
      case "tape_entries": {
        const tape = this.#own.get(message.id)
        if (tape?.isOpen(this.#options.steadyMs()) === true) {
          tape.add(sender, message.first, message.rows, message.open)
        }
        break
      }
      case "tape_read": {
        const tape = this.#own.get(message.id)
        const part = tape?.read(message.first, PART) ?? null
        const isOver = tape?.isOpen(this.#options.steadyMs()) === false
        this.#channel.tell(sender, { type: "tape_part", ask: message.ask, part, is_over: isOver })
        break
      }
      case "tape_stop": {
        const stopped = this.#end(message.id, "stopped")
        this.#channel.tell(sender, { type: "tape_stopped", ask: message.ask, stopped })
        break
      }
    }
  }

  answered(answer: TapeAnswer): void {
    const { from: worker, incarnation } = answer
    if (answer.type === "tapes_told") this.#heardTapes({ worker, incarnation }, answer.tapes)
    this.#questions.answered(answer)
  }

  /** A worker has asked who is there. */
  tell(to: WorkerProcess): void {
    if (this.#own.size > 0) this.#channel.tell(to, { type: "tapes", tapes: this.#rows() })
  }

  /** The broker connection is back: messages may be lost, also those that were confirmed. */
  connected(): void {
    if (this.#own.size > 0) this.#announceAtMs = 0
    for (const { recorder } of this.#recordings.values()) recorder.missed()
  }

  /** Call this periodically. */
  sweep(steadyMs: number): void {
    this.#questions.sweep()
    this.#send(steadyMs)
    const hasEnded = (process: WorkerProcess) => !this.#members.has(process)
    if (this.#announced.forget(hasEnded)) this.#review()
    for (const [deviceId, { id }] of this.#recordings) {
      const known = this.#find(id)
      if (known === null || steadyMs >= known.endsAtMs + LATE_MS) this.#stopRecording(deviceId)
    }
    const { self, nowMs } = this.#options
    for (const [id, tape] of this.#own) {
      tape.endLost((process) => keyOf(process) !== keyOf(self) && hasEnded(process), nowMs())
      if (!tape.isKept(steadyMs)) this.#discard(id)
      else if (steadyMs >= tape.endsAtMs && !this.#over.has(id)) {
        this.#over.add(id)
        this.#options.ended(viewOf(tape.row), "over")
      }
    }
    if (steadyMs >= this.#announceAtMs && this.#channel.open) this.#announce()
  }

  /** The worker drains: what it has recorded is sent, and its own tapes are discarded. */
  leave(): void {
    this.#send(Number.POSITIVE_INFINITY)
    for (const id of [...this.#own.keys()]) this.#end(id, "drained")
  }

  #heardTapes(owner: WorkerProcess, rows: readonly AnnouncedRow[]): void {
    this.#announced.heard(owner, rows, this.#options.steadyMs())
    for (const [id, { row }] of this.#own) {
      const isReplaced = rows.some(
        (other) => other.device_id === row.device_id && isNewerTape(other, row),
      )
      if (isReplaced) this.#end(id, "replaced")
    }
    this.#review()
  }

  *#all(): Generator<KnownTape> {
    const { self: owner } = this.#options
    for (const { row, endsAtMs } of this.#own.values()) yield { row, owner, endsAtMs }
    yield* this.#announced.all()
  }

  #find(id: string): KnownTape | null {
    for (const tape of this.#all()) if (tape.row.id === id) return tape
    return null
  }

  #newest(deviceId: string): KnownTape | null {
    let newest: KnownTape | null = null
    for (const tape of this.#all()) {
      if (tape.row.device_id !== deviceId) continue
      if (newest === null || isNewerTape(tape.row, newest.row)) newest = tape
    }
    return newest
  }

  /** The tapes that record other devices. */
  #othersOf(deviceId: string): TapeRow[] {
    const steadyMs = this.#options.steadyMs()
    const recording = [...this.#all()].filter(({ endsAtMs }) => steadyMs < endsAtMs)
    return recording.map(({ row }) => row).filter((row) => row.device_id !== deviceId)
  }

  /** Begins and ends recordings, so that the newest tape of each device is recorded. */
  #review(): void {
    const steadyMs = this.#options.steadyMs()
    for (const { row } of [...this.#all()]) {
      const newest = this.#newest(row.device_id)
      if (newest === null || steadyMs >= newest.endsAtMs) continue
      const current = this.#recordings.get(row.device_id)
      if (current?.id === newest.row.id) continue
      if (current !== undefined) this.#stopRecording(row.device_id)
      this.#record(newest)
    }
    for (const [deviceId, { id }] of this.#recordings) {
      if (this.#find(id) === null) this.#stopRecording(deviceId)
    }
  }

  #record({ row, owner, endsAtMs }: KnownTape): void {
    const { payload, id, device_id: deviceId } = row
    const recorder = new Recorder({ ...this.#options, payload, endsAtMs })
    this.#recordings.set(deviceId, { id, owner, recorder })
    const connection = this.#connections.find(deviceId)
    const recipient = connection?.endpoint?.recipient
    // A device with a name is not recorded by the id of its connection.
    if (connection === undefined || recipient?.deviceId !== deviceId) return
    this.#attach(recorder, connection, recipient.epoch)
  }

  #attach(recorder: Recorder, connection: Connection, admittedAt: number): void {
    this.#options.lines.taping = true
    connection.tape = recorder
    recorder.connected(connection, admittedAt)
  }

  #stopRecording(deviceId: string): void {
    const recording = this.#recordings.get(deviceId)
    if (recording === undefined) return
    this.#recordings.delete(deviceId)
    recording.recorder.stop()
    const connection = this.#connections.find(deviceId)
    if (connection?.tape === recording.recorder) connection.tape = null
    if (this.#recordings.size === 0) this.#options.lines.taping = false
  }

  /** Sends what was recorded to the owners. */
  #send(steadyMs: number): void {
    for (const { id, owner, recorder } of this.#recordings.values()) {
      const own = this.#own.get(id)
      if (own === undefined && !(this.#channel.open && this.#channel.hasRoom)) continue
      const batch = recorder.batch(steadyMs)
      if (batch === null) continue
      if (own !== undefined) {
        own.add(this.#options.self, batch.first, batch.rows, batch.open)
        continue
      }
      this.#channel.tell(owner, { type: "tape_entries", id, ...batch }, (result) => {
        if (result !== "confirmed") recorder.missed()
      })
    }
  }

  async #part(
    id: string,
    owner: WorkerProcess,
    from: number,
    caller: AbortSignal | undefined,
  ): Promise<PartAnswer | QuestionFailure> {
    const { self, steadyMs } = this.#options
    if (keyOf(owner) === keyOf(self)) {
      const tape = this.#own.get(id)
      if (tape === undefined) return "discarded"
      return { part: tape.read(from, PART), isOver: !tape.isOpen(steadyMs()) }
    }
    if (!this.#members.has(owner)) return "lost"
    const answer = await this.#ask(owner, caller, (ask) => ({
      type: "tape_read",
      ask,
      id,
      first: from,
    }))
    if (typeof answer === "string") return answer
    if (answer.type !== "tape_part") return "lost"
    if (answer.part === null) return "discarded"
    const items = answer.part.items.map((row) => readTapeItem(row) ?? NOT_READABLE)
    return { part: { ...answer.part, items }, isOver: answer.is_over }
  }

  async #ask(
    owner: WorkerProcess,
    caller: AbortSignal | undefined,
    content: (ask: number) => Parameters<Channel["tell"]>[1],
  ): Promise<Answer | QuestionFailure> {
    if (!this.#channel.open) return "unreachable"
    const inquiry = { deadlineMs: this.#options.steadyMs() + ANSWER_TIMEOUT_MS, caller }
    const answers = await this.#questions.ask([owner.worker], inquiry, (ask, settled) =>
      this.#channel.tell(owner, content(ask), settled),
    )
    return typeof answers === "string" ? answers : (answers[0] ?? "timeout")
  }

  /** Tells all workers the tapes of this one, and waits until they have told theirs. */
  async #tellAll(caller: AbortSignal | undefined): Promise<QuestionFailure | null> {
    const { steadyMs } = this.#options
    this.#announceAtMs = steadyMs() + ANNOUNCE_MS
    const others = this.#members.known()
    if (others.length === 0) return null
    // Workers of an earlier version do not answer, which must not make them silent members.
    const inquiry = { deadlineMs: steadyMs() + ANSWER_TIMEOUT_MS, caller }
    const answers = await this.#questions.ask(others, inquiry, (ask, settled) =>
      this.#channel.broadcast({ type: "tapes", ask, tapes: this.#rows() }, settled),
    )
    return typeof answers === "string" ? answers : null
  }

  #announce(): void {
    const isLast = this.#own.size === 0
    const nextMs = isLast ? Number.POSITIVE_INFINITY : ANNOUNCE_MS
    this.#announceAtMs = this.#options.steadyMs() + nextMs
    this.#channel.broadcast({ type: "tapes", tapes: this.#rows() }, (result) => {
      if (result === "cut" || result === "nacked") this.#announceAtMs = 0
    })
  }

  #rows(): AnnouncedRow[] {
    const steadyMs = this.#options.steadyMs()
    return [...this.#own.values()].map(({ row, endsAtMs }) => {
      return { ...row, left_ms: Math.max(0, Math.round(endsAtMs - steadyMs)) }
    })
  }

  /**
   * When there is no room for another tape, discards the one that was over first, or the former one
   * of the device.
   */
  #makeRoom(deviceId: string): void {
    if (this.#own.size < MAX_TAPES_OF_WORKER) return
    const steadyMs = this.#options.steadyMs()
    const unneeded = [...this.#own.values()].filter(
      ({ row, endsAtMs }) => steadyMs >= endsAtMs || row.device_id === deviceId,
    )
    const [first] = unneeded.sort((a, b) => a.endsAtMs - b.endsAtMs)
    if (first !== undefined) this.#discard(first.row.id)
  }

  /** Ends an own tape before its time, and discards it. @returns false when there is none. */
  #end(id: string, reason: "stopped" | "replaced" | "drained"): boolean {
    const tape = this.#own.get(id)
    if (tape === undefined) return false
    this.#discard(id)
    this.#options.ended(viewOf(tape.row), reason)
    return true
  }

  #discard(id: string): void {
    this.#own.delete(id)
    this.#over.delete(id)
    this.#review()
    this.#announceAtMs = 0
    if (this.#channel.open) this.#announce()
  }
}

function viewOf({ device_id, until, payload, max_bytes }: TapeRow): TapeView {
  return { device_id, until, payload, max_bytes }
}
