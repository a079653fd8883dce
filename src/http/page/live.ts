/**
 * `GET /page/live`: the state of the instance as server-sent events, for the operator page.
 *
 *   first follower ─► look every 2 s ─► state and findings ─► every follower      last one gone ─► no look
 *
 * All followers of a worker share one look at the instance, so the cost does not depend on their
 * number. The event `history` is sent once, to a new follower: the last 15 minutes. The event
 * `state` follows, first after a second, since rates need two looks.
 *
 * Bounds: `MAX_FOLLOWERS`. For a follower that reads too slowly only the newest state is kept.
 */

import { Hono } from "hono"
import { type SSEStreamingApi, streamSSE } from "hono/streaming"
import type { Gathered, Snapshot } from "../../process/control.ts"
import { Sampler } from "../../process/samples.ts"
import { type HttpEnvironment, refuse } from "../errors.ts"
import { type Before, type Finding, findingsOf } from "./findings.ts"
import { type InstanceFacts, type InstanceState, instanceState } from "./instance-state.ts"

const MAX_FOLLOWERS = 32
const FIRST_LOOK_MS = 1_000
const LOOK_EVERY_MS = 2_000
/** Shorter than the idle time-outs of this server and of most proxies. */
const KEEP_ALIVE_MS = 5_000
const HISTORY_MS = 900_000

export interface LiveDependencies {
  /** Null when the supervisor does not answer. */
  readonly gather: (wantsHistory: boolean) => Promise<Gathered | null>
  readonly facts: () => InstanceFacts
}

/** Gets the JSON of each state from now on. */
type Listener = (state: string) => void

export class LiveFeed {
  readonly #gather: LiveDependencies["gather"]
  readonly #facts: LiveDependencies["facts"]
  readonly #listeners = new Set<Listener>()
  #timer: ReturnType<typeof setTimeout> | null = null
  #sampler = new Sampler()
  /** By worker id. */
  #ofWorkers = new Map<string, Sampler>()
  /** Ascending by time. */
  #before: Before[] = []

  constructor({ gather, facts }: LiveDependencies) {
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
    const { history, snapshots } = gathered
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
      this.#stateOf(snapshots)
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
      const text = JSON.stringify(this.#withFindings(this.#stateOf(gathered.snapshots)))
      for (const listener of this.#listeners) listener(text)
    }
    this.#lookAfter(LOOK_EVERY_MS)
  }

  #stateOf(snapshots: Gathered["snapshots"]): InstanceState {
    const facts = this.#facts()
    const all = snapshots.map(({ metrics }) => metrics)
    const sample = this.#sampler.take(facts.atMs, all)
    const sampleOf = (worker: string, metrics: Snapshot["metrics"]) => {
      const sampler = this.#ofWorkers.get(worker) ?? new Sampler()
      this.#ofWorkers.set(worker, sampler)
      return sampler.take(facts.atMs, [metrics]).sample
    }
    return instanceState(snapshots, sample, sampleOf, facts)
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

export function live(dependencies: LiveDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  const feed = new LiveFeed(dependencies)

  routes.get("/page/live", (c) => {
    // Hono answers HEAD with the route of GET and drops the stream, which would then never end.
    if (c.req.method === "HEAD") return c.body(null, 200, { "content-type": "text/event-stream" })
    if (feed.followers >= MAX_FOLLOWERS) {
      return refuse(c, "busy", `${MAX_FOLLOWERS} pages already follow this worker`)
    }
    return streamSSE(c, (stream) => follow(stream, feed))
  })

  return routes
}

async function follow(stream: SSEStreamingApi, feed: LiveFeed): Promise<void> {
  let newest: string | null = null
  let wake = () => {}
  const stop = feed.follow((state) => {
    newest = state
    wake()
  })
  stream.onAbort(() => wake())
  try {
    const history = await feed.history()
    // The browser connects again, perhaps to another worker.
    if (history === null) return
    await stream.writeSSE({ event: "history", data: history })
    while (!stream.aborted && !stream.closed) {
      if (newest === null) {
        const { promise, resolve } = Promise.withResolvers<"woken" | "quiet">()
        wake = () => resolve("woken")
        const timer = setTimeout(() => resolve("quiet"), KEEP_ALIVE_MS)
        if ((await promise) === "quiet") await stream.write(": keep-alive\n\n")
        clearTimeout(timer)
        continue
      }
      const data = newest
      newest = null
      await stream.writeSSE({ event: "state", data })
    }
  } finally {
    stop()
  }
}
