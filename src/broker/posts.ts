/**
 * Posts: what the gateway itself sends for a command. Receipts, copies for the undelivered queue,
 * commands forwarded to the worker that holds their connection. Kept until the broker has them.
 *
 * Never carries lines. Bound: each post belongs to a delivery that is not acknowledged yet or to an
 * HTTP request, so there are at most two for each of those; `MAX_IN_FLIGHT` are unconfirmed at a time.
 */

import type { Counters } from "../counters.ts"
import type { Broker, MessageProperties, OutgoingMessage } from "./broker.ts"
import { POST_ID_HEADER } from "./broker.ts"
import type { FinalResult } from "./publish-window.ts"
import { Publisher } from "./publisher.ts"

/** What may come twice after a lost connection. */
const MAX_IN_FLIGHT = 1_000
const BACKOFF = { firstMs: 100, mostMs: 5_000 }

interface Post {
  readonly message: OutgoingMessage
  readonly whenReturned: "again" | "final"
  readonly whenNacked: "again" | "final"
  readonly done: (result: FinalResult) => void
}

export class Posts {
  readonly #publisher: Publisher<Post>
  #nextId = 0

  constructor(broker: Broker, counters: Counters, steadyMs: () => number) {
    this.#publisher = new Publisher<Post>({
      limits: {
        maxCount: Number.POSITIVE_INFINITY,
        maxBytes: Number.POSITIVE_INFINITY,
        maxInFlight: MAX_IN_FLIGHT,
      },
      backoff: BACKOFF,
      steadyMs,
      groupOf: (post) => post.message.routingKey,
      describe: (post) => post.message,
      done: (post, result) => post.done(result),
      whenReturned: (post) => post.whenReturned,
      whenNacked: (post) => post.whenNacked,
      relieved: () => undefined,
      failed: (post, result) => {
        if (result === "returned" && post.whenReturned === "again") broker.redeclare()
      },
      repeating: (count) => {
        counters.postsRepeated += count
      },
    })
    this.#publisher.use(broker.lane({ opened: () => this.#publisher.opened() }))
  }

  get count(): number {
    return this.#publisher.count
  }

  silentSinceMs(): number | null {
    return this.#publisher.silentSinceMs()
  }

  /**
   * Publishes to a queue, persistently, and takes the properties over. `done` is told once: "confirmed",
   * "unencodable" when the properties are too large for a frame, or, where that is said to be final, "returned" or
   * "nacked".
   */
  send(
    queue: string,
    body: Uint8Array,
    properties: MessageProperties,
    whenReturned: "again" | "final",
    done: (result: FinalResult) => void,
    whenNacked: "again" | "final" = "again",
  ): void {
    const id = String(this.#nextId)
    this.#nextId += 1
    properties.headers ??= {}
    properties.headers[POST_ID_HEADER] = id
    properties.deliveryMode = 2
    const message = { id, exchange: "", routingKey: queue, body, properties }
    this.#publisher.publish({ message, whenReturned, whenNacked, done }, body.length)
  }

  stop(): void {
    this.#publisher.stop()
  }
}
