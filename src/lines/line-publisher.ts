/**
 * Publishes the lines of this worker's devices to the queue `from_device` or to its partitions
 * (`partitions.ts`). This is the last stage that a line passes.
 *
 * A line is kept until the broker has confirmed it. A line that the broker returns is published
 * again. Bounds: `PUBLISH_WINDOW_LINES` and `PUBLISH_WINDOW_BYTES`. When either is reached, the
 * window has no room and reading from devices pauses. The partitions share the window: when one of
 * them accepts nothing, the others continue until lines for it fill the window.
 */

import type { Broker, HeaderValue, MessageProperties, OutgoingMessage } from "../broker/broker.ts"
import { Publisher } from "../broker/publisher.ts"
import type { Counters } from "../counters.ts"
import type { Command, Recipient } from "../device/command.ts"
import type { Connection } from "../device/connection.ts"
import { Acknowledgement } from "./acknowledgement.ts"
import type { LineTraces } from "./traces.ts"

export interface Line {
  readonly connection: Connection
  /** `from_device_seq`: 0 for the connection's first line. */
  readonly seq: number
  readonly body: Uint8Array
  readonly readAtMs: number
  /** When it was received, of the monotonic clock. */
  readonly receivedAtMs: number
  /** The command that it answers; null without one. */
  readonly answered: Command | null
}

export interface LinesOptions {
  /** The queue for the lines of a connection. Always the same one for the same connection. */
  readonly queueOf: (recipient: Recipient) => string
  /** The queue of this worker. Back-ends can send commands for its connections to it. */
  readonly replyTo: string
  readonly windowLines: number
  readonly windowBytes: number
  /** Milliseconds since 1970, for the timestamps of lines. */
  readonly nowMs: () => number
  /** Milliseconds of a monotonic clock, for the age of lines. */
  readonly steadyMs: () => number
  readonly counters: Counters
  /** Whether each line that the broker has confirmed is acknowledged to its device, in order. */
  readonly acknowledges: boolean
  /** Null unless lines are traced. */
  readonly traces: LineTraces | null
  /** Called when the window was full and has become half empty. */
  readonly relieved: () => void
}

interface LineHeaders extends Record<string, HeaderValue> {
  connection_id: string
  device_id: string
  from_device_seq: number
  epoch: number
}

interface LineProperties extends MessageProperties {
  messageId: string
  readonly timestamp: Date
}

/**
 * The message of a line. One object is refilled for each publish, to avoid an allocation for each
 * line.
 */
class LineMessage implements OutgoingMessage {
  id = ""
  readonly exchange = ""
  routingKey = ""
  body: Uint8Array = new Uint8Array(0)
  readonly properties: LineProperties
  readonly #headers: LineHeaders = {
    connection_id: "",
    device_id: "",
    from_device_seq: 0,
    epoch: 0,
  }
  readonly #queueOf: LinesOptions["queueOf"]
  readonly #traces: LinesOptions["traces"]

  constructor({ queueOf, replyTo, traces }: Pick<LinesOptions, "queueOf" | "replyTo" | "traces">) {
    this.#queueOf = queueOf
    this.#traces = traces
    this.properties = {
      headers: this.#headers,
      deliveryMode: 2,
      messageId: "",
      replyTo,
      timestamp: new Date(0),
      appId: "owsla",
    }
  }

  fill(line: Line): this {
    const { connection, seq, body, readAtMs, answered } = line
    const recipient = connection.endpoint?.recipient
    if (recipient === undefined) throw new Error("a line of a connection that was not admitted")
    this.routingKey = this.#queueOf(recipient)
    const headers = this.#headers
    headers.connection_id = recipient.connectionId
    headers.device_id = recipient.deviceId
    headers.from_device_seq = seq
    headers.epoch = recipient.epoch
    const traced = this.#traces === null ? null : this.#traces.headersOf(line)
    this.properties.headers =
      answered === null && traced === null
        ? headers
        : { ...headers, ...traced, ...(answered && inReplyTo(answered)) }
    this.id = `${recipient.connectionId}:${seq}`
    this.properties.messageId = this.id
    this.properties.timestamp.setTime(readAtMs)
    this.body = body
    return this
  }
}

/**
 * The headers by which a back-end finds the command that the line answers. They are bounded, so
 * that the headers of a line fit a frame.
 */
function inReplyTo({ messageId, trace }: Command): Record<string, HeaderValue> {
  return { ...(messageId === null ? {} : { in_reply_to: messageId }), ...trace }
}

/** What is done with a line that the broker has confirmed. */
type Confirmed = ((connection: Connection, seq: number) => void) | null

const acknowledge: Confirmed = (connection, seq) =>
  connection.offer(new Acknowledgement(connection, seq))
const tellTape: Confirmed = (connection, seq) => connection.tape?.confirmed(connection, seq)
const acknowledgeAndTellTape: Confirmed = (connection, seq) => {
  tellTape(connection, seq)
  acknowledge(connection, seq)
}

export class LinePublisher {
  readonly #publisher: Publisher<Line>
  readonly #nowMs: () => number
  readonly #acknowledges: boolean
  readonly #traces: LinesOptions["traces"]
  #confirmed: Confirmed = null

  constructor(broker: Broker, options: LinesOptions) {
    const { counters, steadyMs, traces } = options
    this.#traces = traces
    this.#acknowledges = options.acknowledges
    this.taping = false
    const message = new LineMessage(options)
    this.#nowMs = options.nowMs
    this.#publisher = new Publisher<Line>(broker, {
      limits: {
        maxCount: options.windowLines,
        maxBytes: options.windowBytes,
        maxInFlight: options.windowLines,
      },
      steadyMs,
      groupOf: (line) => line.connection,
      describe: (line) => message.fill(line),
      done: (line, result) => {
        // Ids and queue names are bounded so that a message's properties fit a frame, so no other
        // result is possible.
        if (result !== "confirmed") throw new Error(`the message of a line ended ${result}`)
        counters.linesConfirmed += 1
        counters.lineConfirm.observe(steadyMs() - line.receivedAtMs)
        this.#confirmed?.(line.connection, line.seq)
        traces?.end(line)
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
  }

  /** The publish window, for readers that wait for room in it. */
  get window(): { readonly hasRoom: boolean } {
    return this.#publisher.window
  }

  /** Whether confirms are reported to the tapes of connections. */
  set taping(on: boolean) {
    if (this.#acknowledges) this.#confirmed = on ? acknowledgeAndTellTape : acknowledge
    else this.#confirmed = on ? tellTape : null
  }

  /** Lines that are accepted and not yet confirmed. */
  get count(): number {
    return this.#publisher.count
  }

  get bytes(): number {
    return this.#publisher.bytes
  }

  silentSinceMs(): number | null {
    return this.#publisher.silentSinceMs()
  }

  /** Accepts one line. Call it only while the window has room. */
  take(connection: Connection, seq: number, body: Uint8Array, answered: Command | null): void {
    const readAtMs = this.#nowMs()
    const receivedAtMs = connection.linesReceivedAtMs
    const line = { connection, seq, body, readAtMs, receivedAtMs, answered }
    this.#traces?.begin(line)
    this.#publisher.publish(line, body.length)
  }

  stop(): void {
    this.#publisher.stop()
  }
}
