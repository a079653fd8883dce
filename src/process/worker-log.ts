/**
 * The log between a worker and its supervisor, at the worker's end: sends the worker's lines, and
 * gets those of the whole instance while someone here follows them.
 *
 *   line of this worker ─► "log" ─► supervisor ─► "log_taken"
 *   first tap ─► "follow" ─► supervisor ─► "events" … ─► taps          last tap gone ─► "follow" off
 *   recent ─► "recent_wanted" ─► supervisor ─► "recent"
 *
 * Bounds: those of `acknowledged-feed.ts`; `MAX_ASKED` unanswered questions; the HTTP API bounds
 * the taps.
 */

import type { InstanceLogReader, LogEntry, LogTap, RecentEntries } from "../log-entry.ts"
import { AcknowledgedFeed } from "./acknowledged-feed.ts"
import { GATHER_TIMEOUT_MS, type LogToWorker, type ToSupervisor } from "./control.ts"

/** A stopped supervisor reads no questions; they would accumulate in memory. */
const MAX_ASKED = 16

export class WorkerLog implements InstanceLogReader {
  readonly #send: (message: ToSupervisor) => void
  readonly #feed: AcknowledgedFeed<LogEntry>
  readonly #taps = new Set<LogTap>()
  readonly #asked = new Map<number, (recent: RecentEntries) => void>()
  #unanswered = 0
  #nextId = 0

  constructor(send: (message: ToSupervisor) => void) {
    this.#send = send
    this.#feed = new AcknowledgedFeed((entries, missed) => send({ kind: "log", entries, missed }))
  }

  /** A line of this worker. */
  readonly add = (entry: LogEntry): void => this.#feed.push(entry)

  readonly follow = (tap: LogTap): (() => void) => {
    if (this.#taps.size === 0) this.#send({ kind: "follow", on: true })
    this.#taps.add(tap)
    return () => {
      if (this.#taps.delete(tap) && this.#taps.size === 0) this.#send({ kind: "follow", on: false })
    }
  }

  readonly recent = async (): Promise<RecentEntries | null> => {
    if (this.#unanswered >= MAX_ASKED) return null
    const id = this.#nextId
    this.#nextId += 1
    const { promise, resolve } = Promise.withResolvers<RecentEntries | null>()
    const timer = setTimeout(() => resolve(null), GATHER_TIMEOUT_MS * 2)
    this.#asked.set(id, resolve)
    this.#unanswered += 1
    this.#send({ kind: "recent_wanted", id })
    const recent = await promise
    clearTimeout(timer)
    this.#asked.delete(id)
    return recent
  }

  heard(message: LogToWorker): void {
    switch (message.kind) {
      case "log_taken":
        this.#feed.acknowledged()
        break
      case "events":
        for (const tap of this.#taps) {
          for (const entry of message.entries) tap.entry(entry)
          if (message.missed > 0) tap.missed(message.missed)
        }
        this.#send({ kind: "events_taken" })
        break
      case "recent":
        this.#unanswered -= 1
        this.#asked.get(message.id)?.(message.recent)
        break
    }
  }
}
