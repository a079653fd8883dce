/**
 * The AMQP client with a few differences: the frames of one turn of the event loop go out in one write; publishes,
 * confirms and acknowledgements go past it; an exception while reading ends the connection instead of the process;
 * and what it misreads is put right. Each says why.
 *
 * Why: one `socket.write` a frame costs more than all else of publishing, and after that what the client makes for
 * each message (`frame-writer.ts`). Connecting, channels, declarations and deliveries are the client's own.
 * Bound: `BATCH_BYTES` are joined, then written at once; what the socket has not taken yet is bounded
 * by the unconfirmed windows and prefetches of those who send.
 */

import { AMQPClient } from "@cloudamqp/amqp-client"
import { AMQPView } from "@cloudamqp/amqp-client/amqp-view"
import type { OutgoingMessage } from "./broker.ts"
import { FrameWriter } from "./frame-writer.ts"
import { KnownTexts } from "./known-texts.ts"

const BATCH_BYTES = 65_536
/** Buffers kept for reuse; more are made when the socket is slow, and left to the collector. */
const SPARE_BUFFERS = 8

/** Bytes; what RabbitMQ allows at least. Longer bodies are cut into frames, but properties must fit one. */
export const PUBLISH_FRAME_MAX = 8_192

/** Commands come a few a turn; a write for the acknowledgements of each turn is a seventh of what they cost. */
const ACKNOWLEDGEMENTS_MS = 1

const SENT = Promise.resolve()

/** Where a frame has its type, its method's class and number, and, in a nack, its bits. */
const LEAST_FRAME_BYTES = 8
const METHOD_FRAME = 1
const CHANNEL_AT = 1
const METHOD_AT = 7
const BASIC_ACK = (60 << 16) | 80
const BASIC_NACK = (60 << 16) | 120
const TAG_AT = 11
const BITS_AT = 19
const MULTIPLE = 1

/** What the broker says of publishes on one channel: of one, or of all up to it. */
export type Confirmed = (tag: number, multiple: boolean, nacked: boolean) => void

/**
 * The client knows no header field "L", an unsigned 64-bit integer, and throws. RabbitMQ passes them
 * on, so one such command would break the connection, come again and break it again for ever. Of bytes
 * it hands out a view of its read buffer, which the next frame may overwrite.
 */
const UNSIGNED_64 = 0x4c
const getField = AMQPView.prototype.getField
const getByteArray = AMQPView.prototype.getByteArray
AMQPView.prototype.getField = function (offset, littleEndian) {
  if (this.getUint8(offset) !== UNSIGNED_64) return getField.call(this, offset, littleEndian)
  return [Number(this.getBigUint64(offset + 1, littleEndian)), 9]
}
AMQPView.prototype.getByteArray = function (offset, littleEndian) {
  const [bytes, length] = getByteArray.call(this, offset, littleEndian)
  return [bytes.slice(), length]
}

const knownTexts = new KnownTexts()
AMQPView.prototype.getShortString = function (offset) {
  const bytes = this.getUint8(offset)
  return [knownTexts.read(this, offset + 1, bytes), bytes + 1]
}
AMQPView.prototype.getLongString = function (offset, littleEndian) {
  const bytes = this.getUint32(offset, littleEndian)
  return [knownTexts.read(this, offset + 4, bytes), bytes + 4]
}

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
  /** By channel. */
  readonly #confirmed = new Map<number, Confirmed>()

  override connect(): ReturnType<AMQPClient["connect"]> {
    const connected = super.connect()
    const socket = this.socket
    let first = true
    const readers = socket?.listeners("data") ?? []
    for (const read of readers) {
      socket?.off("data", read as () => void)
      socket?.on("data", (chunk) => {
        try {
          if (first) refuseOtherProtocols(chunk as Buffer)
          first = false
          read.call(socket, chunk)
        } catch (error) {
          socket.destroy(error instanceof Error ? error : new Error(String(error)))
        }
      })
    }
    return connected
  }

  /** Confirms of what is published by `publish` on a channel in confirm mode. */
  onConfirmed(channel: number, confirmed: Confirmed): void {
    this.#confirmed.set(channel, confirmed)
  }

  /**
   * Publishes in place; the confirm comes to `onConfirmed`, by tags that count from 1 on each channel. Like `send`
   * it never fails for want of a connection.
   * @throws Unencodable when all but the body takes more than a frame; nothing was sent then.
   */
  publish(channel: number, message: OutgoingMessage): void {
    // 0 is a broker without a limit.
    const frameMax = this.frameMax === 0 ? PUBLISH_FRAME_MAX : this.frameMax
    this.#makeRoom(frameMax)
    this.#batch.publish(channel, message, frameMax)
    const { body } = message
    const most = frameMax - FrameWriter.FRAME_OVERHEAD
    for (let from = 0; from < body.length; from += most) {
      const to = Math.min(body.length, from + most)
      this.#makeRoom(to - from + FrameWriter.FRAME_OVERHEAD)
      this.#batch.body(channel, body, from, to)
    }
    this.#schedule()
  }

  /** Goes out with the next write, within `ACKNOWLEDGEMENTS_MS`: nobody waits for it. */
  acknowledge(channel: number, deliveryTag: number): void {
    this.#makeRoom(FrameWriter.ACK_BYTES)
    this.#batch.acknowledge(channel, deliveryTag)
    if (!this.#scheduled) this.#acknowledging ??= setTimeout(this.#flushLate, ACKNOWLEDGEMENTS_MS)
  }

  /** Takes one frame. */
  protected override parseFrames(frame: AMQPView): void {
    // The client would not come back from a frame that announces a size of less than nothing.
    if (frame.byteLength < LEAST_FRAME_BYTES) throw new Error("a frame of negative size")
    if (frame.byteLength > BITS_AT && frame.getUint8(0) === METHOD_FRAME) {
      const method = frame.getUint32(METHOD_AT)
      if (method === BASIC_ACK || method === BASIC_NACK) {
        // Of a nack RabbitMQ sets 2, "requeue", too; the client asks whether all the bits are 1.
        const multiple = (frame.getUint8(BITS_AT) & MULTIPLE) !== 0
        const confirmed = this.#confirmed.get(frame.getUint16(CHANNEL_AT))
        confirmed?.(frame.getUint64(TAG_AT), multiple, method === BASIC_NACK)
        return
      }
    }
    super.parseFrames(frame)
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
