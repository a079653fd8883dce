/**
 * The locator: finds the worker that holds a named device.
 *
 *   locate ─┬─ located before, and that worker answers ──► that worker
 *           ├─ its keeper knows (`keeper-look-ups.ts`) ──► that worker, or nowhere
 *           └─ otherwise: ask all workers ─┬─ one holds it ────────────► that worker
 *                (many devices a message)  ├─ none holds it ───────────► nowhere
 *                                          ├─ some are silent ─────────► nowhere, after `ASK_TIMEOUT_MS`
 *                                          ├─ some are slow ───────────► nowhere, after `SLOW_TIMEOUT_MS`
 *                                          └─ broker connection lost ──► asked again when it returns
 *
 * A device is in one question at a time. Callers that come meanwhile wait for its answer. When the
 * device is found, they get its location too. When it is not, all are asked again for them, because
 * the device may have connected after the question. So a look-up that takes seconds does not
 * reorder the commands that one worker has taken for a device.
 *
 * A location is a hint and may be outdated. A caller for whom it was wrong asks all workers.
 * "Nowhere" is not final during the first `ACQUAINT_MS` of a broker connection, because not all
 * members are known yet. During the first `REJOIN_MS` it is not final while a member that was known
 * before has not announced itself again, because it may still be connecting.
 *
 * A member that does not answer but sends other messages is slow, for example in a storm of
 * reconnections. The devices that it holds must not count as offline. When its answer comes, those
 * of the others are old, so all are asked again.
 *
 * Holds no commands; the callers do. Bounds: the callers' bounds on waiting commands; `MAX_ASKS`
 * unanswered questions with `MAX_ROWS` devices each; `SLOW_TIMEOUT_MS` for the answers.
 */

import type { Counters } from "../counters.ts"
import { processOfConnection, type WorkerProcess } from "../device/ids.ts"
import type { Channel } from "./channel.ts"
import type { LocationCache } from "./location-cache.ts"
import { type Members, REJOIN_MS } from "./members.ts"
import { type Answer, MAX_ROWS } from "./messages.ts"

/** For members that are silent. */
export const ASK_TIMEOUT_MS = 600
/** For members that are not. One that has ended becomes silent earlier. */
export const SLOW_TIMEOUT_MS = 5_000
/** Longer than `ASK_TIMEOUT_MS` and the interval of sweeps. Later answers are old. */
const FRESH_MS = 1_000
const MAX_ASKS_EACH = 2
const ACQUAINT_MS = 600
const MAX_ASKS = 16

export type Located =
  | { readonly kind: "worker"; readonly worker: string; readonly connectionId: string }
  | { readonly kind: "nowhere"; readonly detail: string }

type Found = (place: Located) => void

/** A device that is not found yet. */
interface LookUp {
  readonly callers: Found[]
  /** How often all are asked at most, when their answers are old. */
  readonly asksLeft: number
}

interface Question {
  readonly devices: Map<string, LookUp>
  readonly awaited: Set<string>
  readonly askedAtMs: number
  /** For silent members. */
  readonly deadlineMs: number
}

/** Asks a device's keeper. @param found called once; null when all workers must be asked. */
export type AskKeeper = (deviceId: string, found: (place: Located | null) => void) => void

export interface LocatorOptions {
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
  readonly counters: Counters
}

export class Locator {
  readonly #channel: Channel
  readonly #members: Members
  readonly #locationCache: LocationCache
  readonly #options: LocatorOptions
  readonly #askKeeper: AskKeeper
  /** Callers by device id, for devices whose keepers are asked. */
  readonly #atKeepers = new Map<string, Found[]>()
  readonly #wanted = new Map<string, LookUp>()
  readonly #questions = new Map<number, Question>()
  /** Callers that wait for the question about a device, by device id. */
  readonly #following = new Map<string, Found[]>()
  #nextAsk = 0
  #scheduled = false
  #acquaintedAtMs = Number.POSITIVE_INFINITY
  #rejoinedAtMs = Number.POSITIVE_INFINITY

  constructor(
    channel: Channel,
    members: Members,
    locationCache: LocationCache,
    askKeeper: AskKeeper,
    options: LocatorOptions,
  ) {
    this.#channel = channel
    this.#members = members
    this.#locationCache = locationCache
    this.#askKeeper = askKeeper
    this.#options = options
  }

  /** The number of devices in open look-ups. */
  get pendingCount(): number {
    let count = this.#wanted.size + this.#atKeepers.size
    for (const { devices } of this.#questions.values()) count += devices.size
    return count
  }

  /**
   * @param trusting whether hints may answer; false when one was wrong before.
   * @param found called once, possibly before the call returns.
   */
  locate(deviceId: string, trusting: boolean, found: Found): void {
    const waitingFor = this.#following.get(deviceId) ?? this.#wanted.get(deviceId)?.callers
    if (waitingFor !== undefined) {
      waitingFor.push(found)
      return
    }
    if (!trusting) {
      this.#askAll(deviceId, [found])
      return
    }
    const place = this.#cached(deviceId)
    if (place !== null) {
      found(place)
      return
    }
    const waiting = this.#atKeepers.get(deviceId)
    if (waiting !== undefined) {
      waiting.push(found)
      return
    }
    this.#atKeepers.set(deviceId, [found])
    this.#askKeeper(deviceId, (answer) => {
      const callers = this.#atKeepers.get(deviceId) ?? []
      this.#atKeepers.delete(deviceId)
      if (callers.length === 0) return
      if (answer === null) this.#askAll(deviceId, callers)
      else tell(callers, answer)
    })
  }

  /** The caller of `locate` does not wait any more. `found` will not be called. */
  forget(deviceId: string, found: Found): void {
    without(this.#atKeepers.get(deviceId), found)
    without(this.#following.get(deviceId), found)
    const wanted = this.#wanted.get(deviceId)?.callers
    without(wanted, found)
    if (wanted?.length === 0) this.#wanted.delete(deviceId)
    for (const { devices } of this.#questions.values()) {
      without(devices.get(deviceId)?.callers, found)
    }
  }

  /** Messages reach the other workers and this one again. Answers were lost meanwhile. */
  connected(): void {
    for (const ask of [...this.#questions.keys()]) this.#askAgain(ask, false)
    this.opened()
  }

  /** The broker connection has returned, and members are about to announce themselves. */
  opened(): void {
    const steadyMs = this.#options.steadyMs()
    this.#acquaintedAtMs = steadyMs + ACQUAINT_MS
    this.#rejoinedAtMs = steadyMs + REJOIN_MS
    this.#askSoon()
  }

  /** Handles a member's answer: which of the requested devices it holds. */
  answered({ from, ask, devices }: Extract<Answer, { type: "there" }>): void {
    const question = this.#questions.get(ask)
    if (question === undefined) return
    for (const registration of devices) {
      const [deviceId, connectionId] = registration
      this.#locationCache.add(registration, this.#options.steadyMs())
      const waiting = question.devices.get(deviceId)
      const holder = processOfConnection(connectionId)
      if (waiting === undefined || holder === null) continue
      question.devices.delete(deviceId)
      const followers = this.#endFollowing(deviceId)
      tell([...waiting.callers, ...followers], {
        kind: "worker",
        worker: holder.worker,
        connectionId,
      })
    }
    question.awaited.delete(from)
    this.#conclude(ask, question)
  }

  /**
   * A member has connected to the broker again. Its queue may have been lost with the questions in
   * it, for example when the broker has restarted and this worker was the first to return.
   */
  rejoined(member: WorkerProcess): void {
    for (const [ask, { devices, awaited }] of this.#questions) {
      if (!awaited.has(member.worker)) continue
      this.#channel.tell(member, { type: "where", ask, devices: [...devices.keys()] })
    }
  }

  /** Ends questions whose answers are overdue. */
  sweep(steadyMs: number): void {
    for (const [ask, question] of this.#questions) {
      this.#conclude(ask, question, this.#isOverdue(question, steadyMs))
    }
    this.#askSoon()
  }

  #isOverdue({ awaited, askedAtMs, deadlineMs }: Question, steadyMs: number): boolean {
    if (steadyMs < deadlineMs) return false
    for (const worker of awaited) this.#members.wasSlow(worker, steadyMs)
    return steadyMs >= askedAtMs + SLOW_TIMEOUT_MS || !this.#someSlow(awaited)
  }

  #someSlow(awaited: ReadonlySet<string>): boolean {
    for (const worker of awaited) if (this.#members.isHeardOf(worker)) return true
    return false
  }

  #askAll(deviceId: string, callers: Found[]): void {
    const following = this.#following.get(deviceId)
    if (following !== undefined) {
      following.push(...callers)
      return
    }
    this.#want(deviceId, { callers, asksLeft: MAX_ASKS_EACH })
    this.#askSoon()
  }

  #want(deviceId: string, { callers, asksLeft }: LookUp): void {
    const known = this.#wanted.get(deviceId)
    this.#wanted.set(deviceId, {
      callers: [...(known?.callers ?? []), ...callers],
      asksLeft: Math.max(known?.asksLeft ?? 0, asksLeft),
    })
  }

  /** The question about a device has ended. @returns who has looked for it meanwhile. */
  #endFollowing(deviceId: string): Found[] {
    const followers = this.#following.get(deviceId) ?? []
    this.#following.delete(deviceId)
    return followers
  }

  #cached(deviceId: string): Located | null {
    const connectionId = this.#locationCache.find(deviceId, this.#options.steadyMs())
    const holder = connectionId === undefined ? null : processOfConnection(connectionId)
    if (connectionId === undefined || holder === null) return null
    if (!this.#members.answers(holder)) return null
    return { kind: "worker", worker: holder.worker, connectionId }
  }

  /** Asks at the end of the tick, so that the look-ups of many commands share one message. */
  #askSoon(): void {
    if (this.#scheduled || this.#wanted.size === 0 || this.#questions.size >= MAX_ASKS) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      this.#ask()
    })
  }

  #ask(): void {
    // `opened` or `sweep` asks later.
    if (!this.#channel.open || !this.#channel.hasRoom) return
    const devices = new Map<string, LookUp>()
    for (const [deviceId, lookUp] of this.#wanted) {
      if (devices.size === MAX_ROWS) break
      this.#wanted.delete(deviceId)
      devices.set(deviceId, lookUp)
      this.#following.set(deviceId, [])
    }
    if (devices.size === 0) return
    const ask = this.#nextAsk
    this.#nextAsk += 1
    const { steadyMs, counters } = this.#options
    const question = {
      devices,
      awaited: new Set(this.#members.known()),
      askedAtMs: steadyMs(),
      deadlineMs: Math.max(steadyMs() + ASK_TIMEOUT_MS, this.#acquaintedAtMs),
    }
    this.#questions.set(ask, question)
    counters.locationsAsked += devices.size
    if (question.awaited.size > 0 || steadyMs() < this.#acquaintedAtMs) {
      this.#channel.broadcast({ type: "where", ask, devices: [...devices.keys()] }, (result) => {
        // "returned" means that no fleet queue exists. The sweep asks again, because asking at once
        // would loop.
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
    for (const [deviceId, { callers, asksLeft }] of question.devices) {
      const all = [...callers, ...this.#endFollowing(deviceId)]
      if (all.length > 0) this.#want(deviceId, { callers: all, asksLeft })
    }
    if (soon) this.#askSoon()
  }

  /**
   * Ends a question when all devices are found, when all workers have answered, or when it is
   * overdue. The devices of an old one are asked for again.
   */
  #conclude(ask: number, { devices, awaited, askedAtMs }: Question, overdue = false): void {
    const steadyMs = this.#options.steadyMs()
    const final = awaited.size === 0 && steadyMs >= this.#acquaintedAtMs
    if (devices.size > 0 && !final && !overdue) return
    if (devices.size > 0 && this.#members.someUnheard && steadyMs < this.#rejoinedAtMs) {
      if (overdue) this.#askAgain(ask)
      return
    }
    this.#questions.delete(ask)
    const isOld = steadyMs > Math.max(askedAtMs + FRESH_MS, this.#acquaintedAtMs)
    const silent = [...awaited]
    const detail =
      silent.length === 0
        ? "not connected to any worker"
        : `no answer from ${silent.slice(0, 5).join(", ")}`
    for (const [deviceId, lookUp] of devices) {
      const { callers, asksLeft } = lookUp
      const followers = this.#endFollowing(deviceId)
      if (isOld && asksLeft > 1) {
        this.#want(deviceId, { callers: [...callers, ...followers], asksLeft: asksLeft - 1 })
        continue
      }
      if (followers.length > 0) this.#askAll(deviceId, followers)
      tell(callers, { kind: "nowhere", detail })
    }
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
