/**
 * The lines of this worker's devices on their way into `from_device`: the last stage of a line's way.
 *
 * A line accepted here is kept until the broker has confirmed it and not returned it. Bounds:
 * `PUBLISH_WINDOW_LINES` and `PUBLISH_WINDOW_BYTES`; when either is reached the window has no room and the
 * devices are read no further.
 */

import type { Broker, OutgoingMessage } from "../broker/broker.ts"
import { Publisher } from "../broker/publisher.ts"
import type { Counters } from "../counters.ts"
import type { Connection } from "../device/connection.ts"
import { Acknowledgement } from "./acknowledgement.ts"

const BACKOFF = { firstMs: 100, mostMs: 5_000 }

export interface Line {
  readonly connection: Connection
  /** `from_device_seq`: 0 for the connection's first line. */
  readonly seq: number
  readonly body: Uint8Array
  readonly readAtMs: number
}

export interface LinesOptions {
  readonly queue: string
  /** The queue of this worker, where commands for its connections may be sent. */
  readonly replyTo: string
  readonly windowLines: number
  readonly windowBytes: number
  /** Milliseconds since 1970, for the lines' timestamps. */
  readonly nowMs: () => number
  /** Milliseconds that never jump, for the age of what is unconfirmed. */
  readonly steadyMs: () => number
  readonly counters: Counters
  /** Whether a device is told of each line that the broker has confirmed, in order. */
  readonly acknowledges: boolean
  /** The window was full and is half empty now. */
  readonly relieved: () => void
}

/** What every line's message has in common; one object, filled again for each publish. */
class LineMessage implements OutgoingMessage {
  id = ""
  readonly exchange = ""
  readonly routingKey: string
  body: Uint8Array = new Uint8Array(0)
  readonly properties

  constructor(queue: string, replyTo: string) {
    this.routingKey = queue
    this.properties = {
      headers: { connection_id: "", device_id: "", from_device_seq: 0, epoch: 0 },
      deliveryMode: 2,
      messageId: "",
      replyTo,
      timestamp: new Date(0),
      appId: "owsla",
    }
  }

  fill({ connection, seq, body, readAtMs }: Line): this {
    const recipient = connection.endpoint?.recipient
    if (recipient === undefined) throw new Error("a line of a connection that was not admitted")
    const { headers } = this.properties
    headers.connection_id = recipient.connectionId
    headers.device_id = recipient.deviceId
    headers.from_device_seq = seq
    headers.epoch = recipient.epoch
    this.id = `${recipient.connectionId}:${seq}`
    this.properties.messageId = this.id
    this.properties.timestamp.setTime(readAtMs)
    this.body = body
    return this
  }
}

export class LinePublisher {
  readonly #publisher: Publisher<Line>
  readonly #nowMs: () => number

  constructor(broker: Broker, options: LinesOptions) {
    const { counters, acknowledges } = options
    const message = new LineMessage(options.queue, options.replyTo)
    this.#nowMs = options.nowMs
    this.#publisher = new Publisher<Line>({
      limits: {
        maxCount: options.windowLines,
        maxBytes: options.windowBytes,
        maxInFlight: options.windowLines,
      },
      backoff: BACKOFF,
      steadyMs: options.steadyMs,
      groupOf: (line) => line.connection,
      describe: (line) => message.fill(line),
      done: (line, result) => {
        // Its ids and queue names are bounded so that they fit a frame; a defect if they do not.
        if (result !== "confirmed") throw new Error(`the message of a line ended ${result}`)
        counters.linesConfirmed += 1
        const { connection, seq } = line
        if (acknowledges) connection.offer(new Acknowledgement(connection, seq))
      },
      whenReturned: () => "again",
      relieved: options.relieved,
      failed: (_line, result) => {
        if (result === "nacked") counters.linesNacked += 1
        if (result !== "returned") return
        counters.linesReturned += 1
        broker.redeclare()
      },
      repeating: (count) => {
        counters.linesRepublished += count
      },
    })
    this.#publisher.use(broker.publishChannel(this.#publisher))
  }

  /** The window that every line enters, for those who wait for room in it. */
  get window(): { readonly hasRoom: boolean } {
    return this.#publisher.window
  }

  /** Lines accepted and not yet confirmed. */
  get count(): number {
    return this.#publisher.count
  }

  get bytes(): number {
    return this.#publisher.bytes
  }

  silentSinceMs(): number | null {
    return this.#publisher.silentSinceMs()
  }

  /** Accepts one line; to be called only while the window has room. */
  take(connection: Connection, seq: number, body: Uint8Array): void {
    this.#publisher.publish({ connection, seq, body, readAtMs: this.#nowMs() }, body.length)
  }

  stop(): void {
    this.#publisher.stop()
  }
}
