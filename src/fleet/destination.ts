/**
 * The changes on their way to one keeper, or to all workers: the latest change of each device, many
 * in one message.
 *
 *   add ─► waiting ─► message (one at a time, `gathered.ts`) ─┬─ confirmed ─► unanswered ──kept──► done
 *                                                             ├─ returned ──► the process has ended
 *                                                             └─ otherwise ─► lost
 *
 * To all workers there is no answer; a lost message is sent again, unless the channel has closed.
 * Bounds: one change for each device; `MAX_ROWS` in a message.
 */

import type { PublishResult } from "../broker/broker.ts"
import type { WorkerProcess } from "../device/ids.ts"
import type { Channel } from "./channel.ts"
import { Gathered } from "./gathered.ts"
import { MAX_ROWS } from "./messages.ts"
import { aged, type Deregistration, type Registration, repeated } from "./registration.ts"
import type { SendSchedule } from "./send-schedule.ts"

export type Change = Registration | Deregistration

interface Unanswered {
  readonly sentAtMs: number
  readonly here: readonly Registration[]
  isOverdue: boolean
}

export interface DestinationOptions {
  readonly schedule: Pick<SendSchedule, "soon">
  readonly channel: Channel
  /** The keeper; null for all workers. */
  readonly keeper: WorkerProcess | null
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
  /** The number of the next message to a keeper, larger than all before. */
  readonly next: () => number
  /** Whether the connection of a registration is still the one of its device. */
  readonly isCurrent: (registration: Registration) => boolean
  /** A message was not confirmed. */
  readonly failed: (result: Exclude<PublishResult, "confirmed">) => void
}

export interface Waiting {
  readonly change: Change
  /** Milliseconds of a monotonic clock. */
  readonly sinceMs: number
}

export class Destination {
  readonly #options: DestinationOptions
  readonly #changes = new Map<string, Waiting>()
  /** Shards of which this worker begins to tell all its devices. */
  #tells: number[] = []
  /** The same shards, until all those devices are sent. */
  #told: number[] = []
  readonly #unanswered = new Map<number, Unanswered>()
  readonly #gathered: Gathered

  constructor(options: DestinationOptions) {
    this.#options = options
    this.#gathered = new Gathered(options.schedule, (ended) => this.#send(ended))
  }

  /** Changes that are not sent yet, and messages that are not answered yet. */
  get pendingCount(): number {
    return this.#changes.size + this.#told.length + this.#unanswered.size
  }

  /** @returns the changes that were not sent or not answered. */
  clear(): readonly Change[] {
    const unanswered = [...this.#unanswered.values()].flatMap(({ here }) => here)
    const left = [...unanswered, ...this.#changes.values().map(({ change }) => change)]
    this.#unanswered.clear()
    this.#changes.clear()
    this.#tells = []
    this.#told = []
    return left
  }

  /** A registration whose connection has closed meanwhile is left out. */
  add(change: Change, sinceMs = this.#options.steadyMs()): void {
    if (!isDeregistration(change) && !this.#options.isCurrent(change)) return
    this.#changes.set(change[0], { change, sinceMs })
    this.#gathered.soon()
  }

  /** Tells all devices of these shards: `devices` are those of this worker. */
  tellAll(shards: readonly number[], devices: Iterable<Registration>): void {
    this.#tells.push(...shards)
    this.#told.push(...shards)
    const sinceMs = this.#options.steadyMs()
    for (const device of devices) {
      if (!this.#changes.has(device[0])) this.#changes.set(device[0], { change: device, sinceMs })
    }
    this.#gathered.soon()
  }

  /** Messages can be sent again. */
  opened(): void {
    if (this.pendingCount > 0) this.#gathered.soon()
  }

  /**
   * The keeper has handled all messages up to this one.
   * @returns the registrations of those that were not answered before.
   */
  answered(n: number): readonly Registration[] {
    const answered: Registration[] = []
    for (const [sent, { here }] of this.#unanswered) {
      if (sent > n) break
      this.#unanswered.delete(sent)
      answered.push(...here)
    }
    return answered
  }

  /**
   * Registrations of messages that were sent `timeoutMs` ago and are not answered. Once each; a
   * slow keeper may still answer them.
   */
  overdue(timeoutMs: number): readonly Registration[] {
    const overdue: Registration[] = []
    const beforeMs = this.#options.steadyMs() - timeoutMs
    for (const message of this.#unanswered.values()) {
      if (message.sentAtMs > beforeMs) break
      if (message.isOverdue) continue
      message.isOverdue = true
      overdue.push(...message.here)
    }
    return overdue
  }

  /** Unless there is a later change of the device. */
  #addAgain(...lost: (readonly Change[])[]): void {
    for (const change of lost.flat()) if (!this.#changes.has(change[0])) this.add(change)
  }

  #send(ended: () => void): boolean {
    const { channel, keeper, steadyMs, isCurrent, failed } = this.#options
    // `opened` sends them, and after a lost connection all devices are told again.
    if (!channel.open) return false
    const here: Registration[] = []
    const gone: Deregistration[] = []
    const nowMs = steadyMs()
    for (const [deviceId, { change, sinceMs }] of this.#changes) {
      if (here.length + gone.length === MAX_ROWS) break
      this.#changes.delete(deviceId)
      if (isDeregistration(change)) gone.push(change)
      else if (isCurrent(change)) {
        // Earlier versions refuse marked rows in a message to all.
        here.push(keeper === null ? repeated(change) : aged(change, nowMs - sinceMs))
      }
    }
    const tells = this.#tells
    const told = this.#changes.size === 0 ? this.#told : []
    if (here.length + gone.length + tells.length + told.length === 0) return false
    this.#tells = []
    if (told.length > 0) this.#told = []
    const settled = (result: PublishResult) => {
      // A keeper is told everything again instead (`failed`).
      if (keeper === null && (result === "cut" || result === "nacked")) this.#addAgain(here, gone)
      ended()
      if (result !== "confirmed") failed(result)
    }
    if (keeper === null) channel.broadcast({ type: "devices", here, gone }, settled)
    else {
      const n = this.#options.next()
      if (here.length > 0) this.#unanswered.set(n, { sentAtMs: nowMs, here, isOverdue: false })
      const shards = {
        ...(tells.length > 0 ? { tells } : {}),
        ...(told.length > 0 ? { told } : {}),
      }
      channel.tell(keeper, { type: "devices", here, gone, n, ...shards }, settled)
    }
    if (this.#changes.size > 0) this.#gathered.soon()
    return true
  }
}

function isDeregistration(change: Change): change is Deregistration {
  return change.length === 2
}
