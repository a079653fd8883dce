/**
 * `GET /page/live`: the state of the instance as server-sent events, for the operator page.
 *
 *   first follower ─► look every 2 s ─► state and findings ─► every follower      last one gone ─► no look
 *
 * All followers of a worker share one look at the instance, so the cost does not depend on their
 * number. The event `history` is sent once, to a new follower: the last 15 minutes. The event
 * `state` follows, first after a second, since rates need two looks.
 *
 * Bounds: those of `event-stream.ts`.
 */

import { Hono } from "hono"
import type { Gathered, Snapshot } from "../../process/control.ts"
import { Sampler } from "../../process/samples.ts"
import type { HttpEnvironment } from "../errors.ts"
import { type EventSink, EventStreams } from "../event-stream.ts"
import { type Before, type Finding, findingsOf } from "./findings.ts"
import { type InstanceFacts, type InstanceState, instanceState } from "./instance-state.ts"

const FIRST_LOOK_MS = 1_000
const LOOK_EVERY_MS = 2_000
const HISTORY_MS = 900_000

export interface FeedDependencies {
  /** Null when the supervisor does not answer. */
  readonly gather: (wantsHistory: boolean) => Promise<Gathered | null>
  readonly facts: () => InstanceFacts
}

export interface LiveDependencies extends FeedDependencies {
  /** Aborted when the server stops. */
  readonly stopping: AbortSignal
}

/** Gets the JSON of each state from now on. */
type Listener = (state: string) => void

export class LiveFeed {
  readonly #gather: FeedDependencies["gather"]
  readonly #facts: FeedDependencies["facts"]
  readonly #listeners = new Set<Listener>()
  #timer: ReturnType<typeof setTimeout> | null = null
  #sampler = new Sampler()
  /** By worker id. */
  #ofWorkers = new Map<string, Sampler>()
  /** Ascending by time. */
  #before: Before[] = []

  constructor({ gather, facts }: FeedDependencies) {
    this.#gather = gather
    this.#facts = facts
  }

  get followers(): number {
    return this.#listeners.size
  }

  /** Calls `listener` until the returned function is called. */
  follow(listener: Listener): () => void {
    this.#listeners.add(listener)
    return () => {
      this.#listeners.delete(listener)
      if (this.#listeners.size > 0 || this.#timer === null) return
      clearTimeout(this.#timer)
      this.#timer = null
    }
  }

  /** The JSON of the last 15 minutes; null when the supervisor does not answer. Begins to look. */
  async history(): Promise<string | null> {
    const gathered = await this.#gather(true)
    if (gathered === null) return null
    const { history } = gathered
    if (this.#timer === null && this.#listeners.size > 0) {
      this.#before = (history?.at ?? []).map((at, index) => ({
        at,
        devices: history?.devices[index] ?? null,
        lines_per_s: history?.lines_per_s[index] ?? null,
        restarts: history?.restarts[index] ?? null,
        faults: history?.faults[index] ?? null,
      }))
      this.#sampler = new Sampler()
      this.#ofWorkers.clear()
      this.#stateOf(gathered)
      this.#lookAfter(FIRST_LOOK_MS)
    }
    return JSON.stringify(history)
  }

  #lookAfter(ms: number): void {
    this.#timer = setTimeout(() => void this.#look(), ms)
  }

  async #look(): Promise<void> {
    const timer = this.#timer
    const gathered = await this.#gather(false)
    // The last follower has gone meanwhile, and perhaps another one has come.
    if (timer !== this.#timer) return
    if (gathered !== null) {
      const text = JSON.stringify(this.#withFindings(this.#stateOf(gathered)))
      for (const listener of this.#listeners) listener(text)
    }
    this.#lookAfter(LOOK_EVERY_MS)
  }

  #stateOf(gathered: Gathered): InstanceState {
    const facts = this.#facts()
    const all = gathered.snapshots.map(({ metrics }) => metrics)
    const sample = this.#sampler.take(facts.atMs, all)
    const sampleOf = (worker: string, metrics: Snapshot["metrics"]) => {
      const sampler = this.#ofWorkers.get(worker) ?? new Sampler()
      this.#ofWorkers.set(worker, sampler)
      return sampler.take(facts.atMs, [metrics]).sample
    }
    return instanceState(gathered, sample, sampleOf, facts)
  }

  #withFindings(state: InstanceState): InstanceState & { readonly findings: readonly Finding[] } {
    const findings = findingsOf(state, this.#before)
    const { at, devices, lines_per_s, restarts, faults } = state.sample
    this.#before.push({ at, devices, lines_per_s, restarts, faults })
    const since = at - HISTORY_MS
    while ((this.#before[0]?.at ?? at) < since) this.#before.shift()
    return { ...state, findings }
  }
}

export function live({ stopping, ...dependencies }: LiveDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  const streams = new EventStreams("the state of the instance", stopping)
  const feed = new LiveFeed(dependencies)

  routes.get("/page/live", (c) => streams.answer(c, (sink) => follow(feed, sink)))

  return routes
}

function follow(feed: LiveFeed, sink: EventSink): () => void {
  const stop = feed.follow((state) => sink.push({ event: "state", data: state }))
  void feed.history().then((history) => {
    if (history !== null) sink.push({ event: "history", data: history })
    // The browser connects again, perhaps to another worker.
    else sink.end()
  })
  return stop
}
