/**
 * The AMQP client with three differences. The frames of one tick are sent in one write, and
 * messages may wait for later ones (`gathering.ts`). Messages, confirms and acknowledgements bypass
 * the client. An exception while reading closes the connection instead of ending the process.
 *
 * Why: one `socket.write` for each frame was the largest cost of publishing, and the objects that
 * the client makes for each message the second largest (`frame-writer.ts`, `frame-reader.ts`).
 * Connecting, channels, declarations and heartbeats are the client's. Bounds: `BATCH_BYTES` are
 * joined, then written. Bytes that the socket has not accepted are bounded by the publish windows
 * and the prefetch.
 */

import { AMQPClient } from "@cloudamqp/amqp-client"
import { AMQPView } from "@cloudamqp/amqp-client/amqp-view"
import type { OutgoingMessage } from "../broker/broker.ts"
import { asError } from "../errors.ts"
import { type ChannelHandler, FrameReader } from "./frame-reader.ts"
import { FrameWriter } from "./frame-writer.ts"
import { Gathering } from "./gathering.ts"
import { FRAME_OVERHEAD } from "./protocol.ts"
import { type BrokerServer, serverOf } from "./server-properties.ts"

const BATCH_BYTES = 65_536
/** The part of a body that is sent in one tick: about 2 ms of work. */
const PIECE_BYTES = 1_048_576
/** Buffers kept for reuse. With a slow socket more are made, and collected as garbage. */
const SPARE_BUFFERS = 8

/**
 * Bytes; the least that RabbitMQ allows. Longer bodies are split into frames, but properties must
 * fit one frame.
 */
export const PUBLISH_FRAME_MAX = 8_192

const SENT = Promise.resolve()

/**
 * A broker starts with a method frame on channel 0. Any other server is detected here, since the
 * client would wait for the rest of a frame.
 */
function refuseOtherProtocols(chunk: Buffer): void {
  const header = [1, 0, 0]
  if (header.some((byte, at) => at < chunk.length && chunk[at] !== byte)) {
    throw new Error("whatever listens there does not speak AMQP 0-9-1")
  }
}

export class BatchingClient extends AMQPClient {
  #batch = new FrameWriter(BATCH_BYTES)
  #scheduled = false
  #acknowledging: ReturnType<typeof setTimeout> | null = null
  /** The wait of that timer, from when it was set. */
  #acknowledgesWithinMs = Number.POSITIVE_INFINITY
  readonly #gathering: Gathering
  /** Messages wait for later ones. */
  #gatherTimer: ReturnType<typeof setTimeout> | null = null
  readonly #spare: FrameWriter[] = []
  readonly #handlers = new Map<number, ChannelHandler>()
  #server: BrokerServer | null = null
  /** The host for the socket. The client would keep the brackets of an IPv6 address. */
  override readonly host: string

  /**
   * @param ca PEM; the only trusted CAs for `amqps:`. Null: the CAs of the system.
   * @param gatherMs the longest time for which a published message waits for later ones.
   */
  constructor(url: string, ca: string | null = null, gatherMs = 0) {
    super(url, ca === null ? undefined : { ca })
    this.#gathering = new Gathering(gatherMs)
    this.host = new URL(url).hostname.replace(/^\[(.*)\]$/, "$1")
  }

  /** Product and version of the broker; "unknown" before the connection is open. */
  get server(): BrokerServer {
    return this.#server ?? { product: "unknown", version: "unknown" }
  }

  override connect(): ReturnType<AMQPClient["connect"]> {
    const connected = super.connect()
    const socket = this.socket
    const reader = new FrameReader(this.frameMax + FRAME_OVERHEAD, {
      handlerOf: (channel) => this.#handlers.get(channel),
      other: (frame) => {
        this.#server ??= serverOf(frame)
        this.parseFrames(new AMQPView(frame.buffer, frame.byteOffset, frame.length))
      },
    })
    let first = true
    socket?.removeAllListeners("data")
    socket?.on("data", (chunk) => {
      try {
        if (first) refuseOtherProtocols(chunk as Buffer)
        first = false
        reader.push(chunk as Buffer)
      } catch (error) {
        socket.destroy(asError(error))
      }
    })
    return connected
  }

  /** Sets the handler of a channel's messages and confirms, before any can arrive. */
  take(channel: number, handler: ChannelHandler): void {
    this.#handlers.set(channel, handler)
  }

  /**
   * Publishes one message. Its confirm goes to the channel's handler, with tags that count from 1
   * on each channel. Like `send`, it does not fail without a connection.
   *
   * A body of more than `PIECE_BYTES` is sent in pieces, each when the socket has accepted the one
   * before, so that other work does not wait for the whole body. Until then no other message may be
   * published on the channel.
   *
   * @param sent called once a body is sent that was not sent when this returned; not called when
   * the connection is lost.
   * @returns whether the whole body is sent.
   * @throws Unencodable when the method and header do not fit a frame. Nothing was sent then.
   */
  publish(channel: number, message: OutgoingMessage, sent: () => void): boolean {
    // 0: the broker has no limit.
    const frameMax = this.frameMax === 0 ? PUBLISH_FRAME_MAX : this.frameMax
    this.#makeRoom(frameMax)
    this.#batch.publish(channel, message, frameMax)
    const { body } = message
    const max = frameMax - FRAME_OVERHEAD
    if (body.length > PIECE_BYTES) {
      this.#sendPieces(channel, body, 0, max, sent)
      return false
    }
    this.#addBody(channel, body, 0, body.length, max)
    this.#gather()
    return true
  }

  #sendPieces(channel: number, body: Uint8Array, from: number, max: number, sent: () => void) {
    const { socket } = this
    if (socket === undefined || socket.destroyed) return
    const to = Math.min(body.length, from + PIECE_BYTES)
    this.#addBody(channel, body, from, to, max)
    this.#flush()
    const next = () => {
      if (to === body.length) sent()
      else this.#sendPieces(channel, body, to, max, sent)
    }
    if (socket.writableNeedDrain) socket.once("drain", next)
    else setImmediate(next)
  }

  #addBody(channel: number, body: Uint8Array, start: number, end: number, max: number): void {
    for (let from = start; from < end; from += max) {
      const to = Math.min(end, from + max)
      this.#makeRoom(to - from + FRAME_OVERHEAD)
      this.#batch.body(channel, body, from, to)
    }
  }

  /** Writes the message with later ones, or at the end of this tick. */
  #gather(): void {
    const steadyMs = performance.now()
    const isEnough = this.#gathering.added(steadyMs)
    if (this.#scheduled || (this.#gatherTimer !== null && !isEnough)) return
    const waitMs = isEnough ? 0 : this.#gathering.waitMs(steadyMs)
    if (waitMs === 0) this.#schedule()
    else this.#gatherTimer = setTimeout(this.#flushGathered, waitMs)
  }

  /** Acknowledges with the next write, which is made within `withinMs`. */
  acknowledge(channel: number, deliveryTag: number, withinMs: number): void {
    this.#makeRoom(FrameWriter.ACK_BYTES)
    this.#batch.acknowledge(channel, deliveryTag)
    if (this.#scheduled || this.#acknowledgesWithinMs <= withinMs) return
    if (this.#acknowledging !== null) clearTimeout(this.#acknowledging)
    this.#acknowledging = setTimeout(this.#flushLate, withinMs)
    this.#acknowledgesWithinMs = withinMs
  }

  /**
   * Copies `bytes`, so the caller may reuse them. Resolves when they are queued and never rejects:
   * on a closed connection the bytes are dropped, and the closing of the channel settles the calls
   * that wait for an answer.
   */
  override send(bytes: Uint8Array): Promise<void> {
    if (bytes.length > BATCH_BYTES) {
      this.#flush()
      this.socket?.write(Buffer.from(bytes))
      return SENT
    }
    this.#makeRoom(bytes.length)
    this.#batch.append(bytes)
    this.#schedule()
    return SENT
  }

  #makeRoom(bytes: number): void {
    if (this.#batch.room < bytes) this.#flush()
  }

  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(this.#flushTurn)
  }

  readonly #flushTurn = (): void => {
    this.#scheduled = false
    this.#flush()
  }

  readonly #flushGathered = (): void => {
    this.#gatherTimer = null
    this.#flush()
  }

  readonly #flushLate = (): void => {
    this.#acknowledging = null
    this.#acknowledgesWithinMs = Number.POSITIVE_INFINITY
    this.#flush()
  }

  #flush(): void {
    const batch = this.#batch
    if (batch.length === 0) return
    this.#gathering.written(performance.now())
    if (!this.socket) {
      batch.length = 0
      return
    }
    this.#batch = this.#spare.pop() ?? new FrameWriter(BATCH_BYTES)
    this.socket.write(batch.bytes.subarray(0, batch.length), () => {
      batch.length = 0
      if (this.#spare.length < SPARE_BUFFERS) this.#spare.push(batch)
    })
  }
}
