/**
 * The log between the supervisor and its workers, at the supervisor's end: takes the lines of
 * workers, and sends those of the instance to the workers that follow them.
 *
 *   attach ─► not following ──"follow"──► following ──"follow" off──► not following      detach
 *
 * A worker that has stopped gets one batch and no more; what it does not take is dropped and
 * counted. Bounds: those of `acknowledged-feed.ts` for each worker that follows.
 */

import type { NumberedEntry } from "../log-entry.ts"
import { AcknowledgedFeed } from "./acknowledged-feed.ts"
import type { LogToSupervisor, ToWorker } from "./control.ts"
import type { InstanceLog } from "./instance-log.ts"

interface Reader {
  readonly send: (message: ToWorker) => void
  readonly feed: AcknowledgedFeed<NumberedEntry>
  /** Null while the worker does not follow. */
  stop: (() => void) | null
}

export class SupervisorLog {
  readonly #log: InstanceLog
  readonly #readers = new Map<number, Reader>()

  constructor(log: InstanceLog) {
    this.#log = log
  }

  /** @param key of the worker. */
  attach(key: number, send: (message: ToWorker) => void): void {
    const feed = new AcknowledgedFeed<NumberedEntry>((entries, missed) =>
      send({ kind: "events", entries, missed }),
    )
    this.#readers.set(key, { send, feed, stop: null })
  }

  /** The worker has ended. */
  detach(key: number): void {
    this.#readers.get(key)?.stop?.()
    this.#readers.delete(key)
  }

  heard(key: number, message: LogToSupervisor): void {
    const reader = this.#readers.get(key)
    switch (message.kind) {
      case "log":
        for (const entry of message.entries) this.#log.add(entry)
        if (message.missed > 0) this.#log.missed(message.missed)
        reader?.send({ kind: "log_taken" })
        break
      case "follow":
        reader?.stop?.()
        if (reader) reader.stop = message.on ? this.#follow(reader) : null
        break
      case "events_taken":
        reader?.feed.acknowledged()
        break
      case "recent_wanted":
        reader?.send({ kind: "recent", id: message.id, recent: this.#log.recent() })
        break
    }
  }

  #follow({ feed }: Reader): () => void {
    return this.#log.follow({ entry: feed.push, missed: (count) => feed.missed(count) })
  }
}
