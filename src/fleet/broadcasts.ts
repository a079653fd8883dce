/**
 * Broadcasts over the fleet. The worker that got the request coordinates: it asks all workers how
 * many of their devices match, gives each its share of the rate, and adds up their reports.
 *
 *   begin ─► broadcast ─► all workers          here, as for all: `broadcast-writer.ts`
 *        ◄── broadcast_matched ── each
 *        ─► broadcast_go, its share ─► each
 *        ◄── broadcast_report ── each, once a second and at its end
 *   done ◄── counts: all have ended, or the caller waits no longer
 *        ─► broadcast_end ─► all workers       cancels what is not being written
 *
 * A worker that writes needs the coordinator no more, so a broadcast goes on when its coordinator
 * dies or its caller waits no longer. Rejected: a share of the rate that each worker computes from
 * the announced devices, because announcements may be late and the shares would not add up.
 *
 * Bounds: `MAX_BROADCASTS` at a time in the fleet, since each worker refuses one more.
 */

import type { Counters } from "../counters.ts"
import { type Connections, PAUSED_MS } from "../device/connections.ts"
import type { WorkerProcess } from "../device/ids.ts"
import { BroadcastCoordination } from "./broadcast-coordination.ts"
import type { BroadcastRequest, BroadcastResult } from "./broadcast-request.ts"
import { type BroadcastReport, BroadcastWriter } from "./broadcast-writer.ts"
import type { Channel } from "./channel.ts"
import type { Members } from "./members.ts"
import type { BroadcastMessage, FleetMessage } from "./messages.ts"

export interface BroadcastOrigin {
  /** The same for all deliveries of one message; null when it cannot be delivered again. */
  readonly key: string | null
  /** Whether the message may have been delivered before. */
  readonly again: boolean
  /** Milliseconds after which `done` gets the counts so far; null to wait for the end. */
  readonly withinMs: number | null
}

export interface BroadcastsOptions {
  readonly self: WorkerProcess
  readonly steadyMs: () => number
  readonly counters: Pick<Counters, "commandsSettled" | "broadcasts">
}

interface Coordinated {
  readonly id: string
  readonly coordination: BroadcastCoordination
  /** Milliseconds of the monotonic clock. */
  readonly answerByMs: number
  readonly done: (result: BroadcastResult) => void
}

export class Broadcasts {
  readonly #channel: Channel
  readonly #members: Pick<Members, "known">
  readonly #options: BroadcastsOptions
  readonly #writer: BroadcastWriter
  readonly #coordinated = new Map<string, Coordinated>()
  #sweptAtMs = Number.NEGATIVE_INFINITY
  #stopped = false

  constructor(
    channel: Channel,
    members: Pick<Members, "known">,
    connections: Pick<Connections, "find" | "forEach">,
    options: BroadcastsOptions,
  ) {
    this.#channel = channel
    this.#members = members
    this.#options = options
    const { steadyMs, counters } = options
    this.#writer = new BroadcastWriter(connections, {
      ...{ steadyMs, counters },
      report: (to, report, gone) => this.#report(to, report, gone),
    })
  }

  /**
   * Sends a broadcast of a caller who waits for the counts.
   * @param withinMs after this time the caller gets the counts so far.
   */
  send(request: BroadcastRequest, withinMs: number): Promise<BroadcastResult> {
    const { promise, resolve } = Promise.withResolvers<BroadcastResult>()
    this.begin(request, { key: null, again: false, withinMs }, resolve)
    return promise
  }

  /** @param done called once, possibly before the call returns. */
  begin(
    request: BroadcastRequest,
    { key, again, withinMs }: BroadcastOrigin,
    done: (result: BroadcastResult) => void,
  ): void {
    const { self, steadyMs } = this.#options
    // Without the broker the other workers are unknown, and the counts would look complete.
    if (!this.#channel.open) {
      done({ kind: "unreachable" })
      return
    }
    const id = crypto.randomUUID()
    const own = this.#stopped ? null : this.#writer.prepare(id, self, request, key, again)
    if (own === null) {
      done({ kind: "busy" })
      return
    }
    const startedAtMs = steadyMs()
    const others = this.#members.known()
    const awaited = [self.worker, ...others]
    const coordination = new BroadcastCoordination(request.perS, awaited, startedAtMs)
    const answerByMs = startedAtMs + (withinMs ?? Number.POSITIVE_INFINITY)
    const coordinated = { id, coordination, answerByMs, done }
    this.#coordinated.set(id, coordinated)
    coordination.answered(self, own.matched, { ...own.outcomes }, startedAtMs)
    if (others.length > 0) {
      this.#channel.broadcast(contentOf(request, id, key, again), (result) => {
        const isMatching = coordination.state === "matching"
        if (result !== "confirmed" && isMatching) this.#end(coordinated, { kind: "unreachable" })
      })
    }
    this.#advance(coordinated)
  }

  /** Handles a message of another worker. */
  heard(message: BroadcastMessage): void {
    const { from: worker, incarnation, id } = message
    const member = { worker, incarnation }
    const { steadyMs } = this.#options
    switch (message.type) {
      case "broadcast":
        this.#asked(message, member)
        return
      case "broadcast_go":
        if (!this.#stopped) this.#writer.go(id, member, message.per_s)
        return
      case "broadcast_end":
        this.#writer.coordinated(id, member)
        return
    }
    const coordinated = this.#coordinated.get(id)
    if (coordinated === undefined) {
      // This worker waits for no reports: its message to that worker may have been lost.
      if (message.type === "broadcast_report" && message.ended) {
        this.#channel.tell(member, { type: "broadcast_end", id })
      }
      return
    }
    const { coordination } = coordinated
    const { outcomes } = message
    if (message.type === "broadcast_matched") {
      coordination.answered(member, message.matched, outcomes, steadyMs())
    } else coordination.reported(member, outcomes, message.ended, steadyMs())
    this.#advance(coordinated)
  }

  /** To be called periodically. */
  sweep(steadyMs: number): void {
    // Messages that arrived while this process was stopped are not read yet.
    const wasPaused = steadyMs - this.#sweptAtMs > PAUSED_MS
    this.#sweptAtMs = steadyMs
    const isReading = this.#channel.open && !wasPaused
    for (const coordinated of this.#coordinated.values()) {
      coordinated.coordination.sweep(steadyMs, isReading)
      if (!wasPaused) this.#advance(coordinated)
    }
    if (!wasPaused) this.#writer.sweep()
  }

  /** Writes no more lines, and ends what this worker coordinates with the counts so far. */
  stop(): void {
    this.#stopped = true
    this.#writer.stop()
    for (const coordinated of this.#coordinated.values()) {
      const { coordination } = coordinated
      const isWriting = coordination.state !== "matching"
      this.#end(coordinated, isWriting ? coordination.counts() : { kind: "busy" })
    }
  }

  #asked(message: Extract<FleetMessage, { type: "broadcast" }>, member: WorkerProcess): void {
    const { id, to, line, supersede_key: supersedeKey, key, again } = message
    const request = { audience: to, line: Buffer.from(line, "base64"), supersedeKey }
    const own = this.#stopped
      ? { matched: 0, outcomes: {} }
      : this.#writer.prepare(id, member, request, key, again)
    const matched = own?.matched ?? null
    const outcomes = { ...own?.outcomes }
    this.#channel.tell(member, { type: "broadcast_matched", id, matched, outcomes })
  }

  #advance(coordinated: Coordinated): void {
    const { id, coordination, answerByMs } = coordinated
    const { self, steadyMs, counters } = this.#options
    const nowMs = steadyMs()
    if (coordination.state === "matching") {
      if (!coordination.isMatched(nowMs)) return
      const { isBusy, fault } = coordination
      if (isBusy || fault !== null) {
        this.#end(coordinated, isBusy ? { kind: "busy" } : { kind: "invalid", detail: fault ?? "" })
        return
      }
      counters.broadcasts += 1
      for (const { member, perS } of coordination.begin(nowMs)) {
        if (member.worker === self.worker) this.#writer.go(id, self, perS)
        else this.#channel.tell(member, { type: "broadcast_go", id, per_s: perS })
      }
    }
    if (coordination.state === "ended" || nowMs >= answerByMs) {
      this.#end(coordinated, coordination.counts())
    }
  }

  #end(coordinated: Coordinated, result: BroadcastResult): void {
    const { id, done } = coordinated
    // The end of this worker's own lines may have ended it already.
    if (!this.#coordinated.delete(id)) return
    this.#writer.coordinated(id, this.#options.self)
    if (this.#members.known().length > 0) this.#channel.broadcast({ type: "broadcast_end", id })
    done(result)
  }

  /** Reports to another worker, or to this one when it coordinates the broadcast. */
  #report(to: WorkerProcess, report: BroadcastReport, gone: () => void): void {
    const { self, steadyMs } = this.#options
    const { id, outcomes, ended } = report
    if (to.worker !== self.worker) {
      this.#channel.tell(to, { type: "broadcast_report", ...report }, (result) => {
        if (result === "returned") gone()
      })
      return
    }
    const coordinated = this.#coordinated.get(id)
    if (coordinated === undefined) return
    coordinated.coordination.reported(self, outcomes, ended, steadyMs())
    this.#advance(coordinated)
  }
}

function contentOf(request: BroadcastRequest, id: string, key: string | null, again: boolean) {
  const { audience, line, supersedeKey } = request
  return {
    type: "broadcast",
    ...{ id, key, again },
    to: audience,
    line: Buffer.from(line).toString("base64"),
    supersede_key: supersedeKey,
  } as const
}
