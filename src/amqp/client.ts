/**
 * The AMQP client with a few differences: the frames of one tick of the event loop go out in one write; what comes and
 * goes in numbers, messages, confirms and acknowledgements, goes past it; an exception while reading ends the
 * connection instead of the process.
 *
 * Why: one `socket.write` a frame costs more than all else of publishing, and after that what the client makes for
 * each message (`frame-writer.ts`, `frame-reader.ts`). Connecting, channels, declarations and heartbeats are the
 * client's own.
 * Bound: `BATCH_BYTES` are joined, then written at once; what the socket has not taken yet is bounded
 * by the unconfirmed windows and prefetches of those who send.
 */

import { AMQPClient } from "@cloudamqp/amqp-client"
import { AMQPView } from "@cloudamqp/amqp-client/amqp-view"
import type { OutgoingMessage } from "../broker/broker.ts"
import { asError } from "../errors.ts"
import { type ChannelHandler, FrameReader } from "./frame-reader.ts"
import { FrameWriter } from "./frame-writer.ts"
import { FRAME_OVERHEAD } from "./protocol.ts"
import { type BrokerServer, serverOf } from "./server-properties.ts"

const BATCH_BYTES = 65_536
/** How much of a body goes out in one turn of the event loop: about 2 ms of work. */
const PIECE_BYTES = 1_048_576
/** Buffers kept for reuse; more are made when the socket is slow, and left to the collector. */
const SPARE_BUFFERS = 8

/** Bytes; what RabbitMQ allows at least. Longer bodies are cut into frames, but properties must fit one. */
export const PUBLISH_FRAME_MAX = 8_192

/** Commands come a few a tick; a write for the acknowledgements of each tick is a seventh of what they cost. */
const ACKNOWLEDGEMENTS_MS = 1

const SENT = Promise.resolve()

/**
 * A broker begins with a method frame on channel 0. Whatever else is at that port is told apart here:
 * the client would wait for the rest of a frame.
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
  readonly #spare: FrameWriter[] = []
  readonly #handlers = new Map<number, ChannelHandler>()
  #server: BrokerServer | null = null
  /** The host for the socket: the client leaves IPv6 addresses in the brackets of their URLs. */
  override readonly host: string

  /** @param ca PEM; the only CAs to trust with `amqps:`. Null: those of the system. */
  constructor(url: string, ca: string | null = null) {
    super(url, ca === null ? undefined : { ca })
    this.host = new URL(url).hostname.replace(/^\[(.*)\]$/, "$1")
  }

  /** Product and version of the broker, known once connected. */
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

  /** Who takes the messages and confirms of a channel, in the client's stead; to be set before any can come. */
  take(channel: number, handler: ChannelHandler): void {
    this.#handlers.set(channel, handler)
  }

  /**
   * Publishes in place; the confirm comes to the channel's handler, by tags that count from 1 on each channel. Like `send`
   * it never fails for want of a connection.
   *
   * A body of more than `PIECE_BYTES` goes out piece by piece, when the socket has taken the one before, so that nothing
   * else waits for all of it. No other message may be published on the channel until then.
   *
   * @param sent called later, once a body that is not sent when this returns is; not when the connection is lost before.
   * @returns whether the whole body is sent.
   * @throws Unencodable when all but the body takes more than a frame; nothing was sent then.
   */
  publish(channel: number, message: OutgoingMessage, sent: () => void): boolean {
    // 0 is a broker without a limit.
    const frameMax = this.frameMax === 0 ? PUBLISH_FRAME_MAX : this.frameMax
    this.#makeRoom(frameMax)
    this.#batch.publish(channel, message, frameMax)
    const { body } = message
    const max = frameMax - FRAME_OVERHEAD
    if (body.length > PIECE_BYTES) {
      this.#sendPieces(channel, body, 0, max, sent)
      return false
    }
    this.#sendBody(channel, body, 0, body.length, max)
    return true
  }

  #sendPieces(channel: number, body: Uint8Array, from: number, max: number, sent: () => void) {
    const { socket } = this
    if (socket === undefined || socket.destroyed) return
    const to = Math.min(body.length, from + PIECE_BYTES)
    this.#sendBody(channel, body, from, to, max)
    this.#flush()
    const next = () => {
      if (to === body.length) sent()
      else this.#sendPieces(channel, body, to, max, sent)
    }
    if (socket.writableNeedDrain) socket.once("drain", next)
    else setImmediate(next)
  }

  #sendBody(channel: number, body: Uint8Array, start: number, end: number, max: number): void {
    for (let from = start; from < end; from += max) {
      const to = Math.min(end, from + max)
      this.#makeRoom(to - from + FRAME_OVERHEAD)
      this.#batch.body(channel, body, from, to)
    }
    this.#schedule()
  }

  /** Goes out with the next write, within `ACKNOWLEDGEMENTS_MS`: no caller waits for it. */
  acknowledge(channel: number, deliveryTag: number): void {
    this.#makeRoom(FrameWriter.ACK_BYTES)
    this.#batch.acknowledge(channel, deliveryTag)
    if (!this.#scheduled) this.#acknowledging ??= setTimeout(this.#flushLate, ACKNOWLEDGEMENTS_MS)
  }

  /**
   * Copies `bytes`, so the caller may reuse them; resolves when they are queued. Never rejects: with
   * the connection gone the bytes go nowhere, and what waits for an answer to them is settled by the
   * closing of its channel.
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

  readonly #flushLate = (): void => {
    this.#acknowledging = null
    this.#flush()
  }

  #flush(): void {
    const batch = this.#batch
    if (batch.length === 0) return
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
