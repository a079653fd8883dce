/**
 * The locator: finds the worker that holds a named device.
 *
 *   locate ─┬─ announced by a worker that answers ──► with that worker
 *           └─ else: ask all (many devices a message) ─┬─ one holds it ────────► with that worker
 *                                                      ├─ all say no ──────────► nowhere
 *                                                      ├─ some silent too long ► nowhere
 *                                                      └─ broker lost ─────────► asked again when it is back
 *
 * An announcement is a hint and may be old: a caller for whom it was wrong asks without it. In the first
 * `ACQUAINT_MS` with the broker no "no" is final, since not all members are known yet. In the first `REJOIN_MS` no
 * "no" is final while a member that was known before has not been heard again: it may still be connecting. Never holds a
 * command: its caller does. Bounds: what its callers hold; `MAX_ASKS` questions of `MAX_ROWS` devices
 * unanswered; `ASK_TIMEOUT_MS` for the answers.
 */

import type { Counters } from "../counters.ts"
import { processOfConnection } from "../device/ids.ts"
import type { Channel } from "./channel.ts"
import type { LocationCache } from "./location-cache.ts"
import { type Members, REJOIN_MS } from "./members.ts"
import { type Answer, MAX_ROWS } from "./messages.ts"

/** With the sweep's period, less than the second within which a back-end is told "offline". */
export const ASK_TIMEOUT_MS = 600
const ACQUAINT_MS = 600
const MAX_ASKS = 16

export type Located =
  | { readonly kind: "worker"; readonly worker: string; readonly connectionId: string }
  | { readonly kind: "nowhere"; readonly detail: string }

type Found = (place: Located) => void

interface Question {
  /** Those not found yet, by device id. */
  readonly devices: Map<string, Found[]>
  readonly awaited: Set<string>
  readonly deadlineMs: number
}

export interface LocatorOptions {
  /** Milliseconds that never jump. */
  readonly steadyMs: () => number
  readonly counters: Counters
}

export class Locator {
  readonly #channel: Channel
  readonly #members: Members
  readonly #locationCache: LocationCache
  readonly #options: LocatorOptions
  readonly #wanted = new Map<string, Found[]>()
  readonly #questions = new Map<number, Question>()
  #nextAsk = 0
  #scheduled = false
  #acquaintedAtMs = Number.POSITIVE_INFINITY
  #rejoinedAtMs = Number.POSITIVE_INFINITY

  constructor(
    channel: Channel,
    members: Members,
    locationCache: LocationCache,
    options: LocatorOptions,
  ) {
    this.#channel = channel
    this.#members = members
    this.#locationCache = locationCache
    this.#options = options
  }

  /** Devices that are looked for. */
  get pendingCount(): number {
    let count = this.#wanted.size
    for (const { devices } of this.#questions.values()) count += devices.size
    return count
  }

  /**
   * @param trusting whether an announcement is enough; false when it was wrong before.
   * @param found called once, possibly before the call returns.
   */
  locate(deviceId: string, trusting: boolean, found: Found): void {
    const place = trusting ? this.#announced(deviceId) : null
    if (place !== null) {
      found(place)
      return
    }
    const waiting = this.#wanted.get(deviceId)
    if (waiting === undefined) this.#wanted.set(deviceId, [found])
    else waiting.push(found)
    this.#askSoon()
  }

  /** The caller of `locate` no longer waits; `found` is not called any more. */
  forget(deviceId: string, found: Found): void {
    without(this.#wanted.get(deviceId), found)
    if (this.#wanted.get(deviceId)?.length === 0) this.#wanted.delete(deviceId)
    for (const { devices } of this.#questions.values()) without(devices.get(deviceId), found)
  }

  /** The broker is back, and members are about to say that they are there. */
  opened(): void {
    const steadyMs = this.#options.steadyMs()
    this.#acquaintedAtMs = steadyMs + ACQUAINT_MS
    this.#rejoinedAtMs = steadyMs + REJOIN_MS
    this.#askSoon()
  }

  /** Takes a member's answer: the devices that it holds of those it was asked for. */
  answered({ from, ask, devices }: Extract<Answer, { type: "there" }>): void {
    const question = this.#questions.get(ask)
    if (question === undefined) return
    for (const registration of devices) {
      const [deviceId, connectionId] = registration
      // Its announcement may still be on its way, and what was announced before leads astray.
      this.#locationCache.here(registration)
      const waiting = question.devices.get(deviceId)
      const holder = processOfConnection(connectionId)
      if (waiting === undefined || holder === null) continue
      question.devices.delete(deviceId)
      tell(waiting, { kind: "worker", worker: holder.worker, connectionId })
    }
    question.awaited.delete(from)
    this.#conclude(ask, question)
  }

  /** Ends questions whose time is over. */
  sweep(steadyMs: number): void {
    for (const [ask, question] of this.#questions) {
      const overdue = steadyMs >= question.deadlineMs
      if (overdue) for (const worker of question.awaited) this.#members.missed(worker)
      this.#conclude(ask, question, overdue)
    }
    this.#askSoon()
  }

  #announced(deviceId: string): Located | null {
    const connectionId = this.#locationCache.find(deviceId)
    const holder = connectionId === undefined ? null : processOfConnection(connectionId)
    if (connectionId === undefined || holder === null) return null
    if (!this.#members.answers(holder)) return null
    return { kind: "worker", worker: holder.worker, connectionId }
  }

  /** At the end of the tick, so that what many commands want is asked at once. */
  #askSoon(): void {
    if (this.#scheduled || this.#wanted.size === 0 || this.#questions.size >= MAX_ASKS) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      this.#ask()
    })
  }

  #ask(): void {
    // Asked when it opens, or at a sweep when it has room again.
    if (!this.#channel.open || !this.#channel.hasRoom) return
    const devices = new Map<string, Found[]>()
    for (const [deviceId, waiting] of this.#wanted) {
      if (devices.size === MAX_ROWS) break
      this.#wanted.delete(deviceId)
      devices.set(deviceId, waiting)
    }
    if (devices.size === 0) return
    const ask = this.#nextAsk
    this.#nextAsk += 1
    const { steadyMs, counters } = this.#options
    const deadlineMs = Math.max(steadyMs() + ASK_TIMEOUT_MS, this.#acquaintedAtMs)
    const question = { devices, awaited: new Set(this.#members.known()), deadlineMs }
    this.#questions.set(ask, question)
    counters.locationsAsked += devices.size
    if (question.awaited.size > 0 || steadyMs() < this.#acquaintedAtMs) {
      this.#channel.broadcast({ type: "where", ask, devices: [...devices.keys()] }, (result) => {
        // No fleet queue exists, so the sweep asks again: asking at once would loop.
        if (result === "returned") this.#askAgain(ask, false)
        else if (result !== "confirmed") this.#askAgain(ask)
      })
    }
    this.#conclude(ask, question)
    this.#askSoon()
  }

  #askAgain(ask: number, soon = true): void {
    const question = this.#questions.get(ask)
    if (question === undefined) return
    this.#questions.delete(ask)
    for (const [deviceId, waiting] of question.devices) {
      if (waiting.length === 0) continue
      this.#wanted.set(deviceId, [...waiting, ...(this.#wanted.get(deviceId) ?? [])])
    }
    if (soon) this.#askSoon()
  }

  /** Ends a question when all is found, when all have answered, or when its time is over. */
  #conclude(ask: number, { devices, awaited }: Question, overdue = false): void {
    const steadyMs = this.#options.steadyMs()
    const final = awaited.size === 0 && steadyMs >= this.#acquaintedAtMs
    if (devices.size > 0 && !final && !overdue) return
    if (devices.size > 0 && this.#members.someUnheard && steadyMs < this.#rejoinedAtMs) {
      if (overdue) this.#askAgain(ask)
      return
    }
    this.#questions.delete(ask)
    const silent = [...awaited]
    const detail =
      silent.length === 0 ? "no worker holds it" : `no answer from ${silent.slice(0, 5).join(", ")}`
    for (const waiting of devices.values()) tell(waiting, { kind: "nowhere", detail })
    this.#askSoon()
  }
}

function tell(waiting: readonly Found[], place: Located): void {
  for (const found of waiting) found(place)
}

function without(waiting: Found[] | undefined, found: Found): void {
  const at = waiting?.indexOf(found) ?? -1
  if (at !== -1) waiting?.splice(at, 1)
}
