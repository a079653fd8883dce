/**
 * A proxy in front of a real broker that modifies the frames of the broker: each frame to the
 * client may be dropped, delayed, changed, or followed by another.
 *
 *   client ──unchanged──► broker
 *   client ◄──modified─── frames ◄── broker
 *
 * It parses only the framing of AMQP 0-9-1 and the two numbers of a method. For tests only.
 */

import net from "node:net"
import { FRAME_END, FRAME_HEAD, METHOD } from "../../src/amqp/protocol.ts"

export interface AmqpFrame {
  readonly type: number
  readonly channel: number
  readonly payload: Buffer
}

/** `[class, method]` as in the tables of the protocol; null for a frame that is not a method. */
export function methodOf({ type, payload }: AmqpFrame): `${number}.${number}` | null {
  if (type !== METHOD) return null
  return `${payload.readUInt16BE(0)}.${payload.readUInt16BE(2)}`
}

export function methodFrame(
  channel: number,
  classId: number,
  methodId: number,
  ...args: Buffer[]
): AmqpFrame {
  const ids = Buffer.alloc(4)
  ids.writeUInt16BE(classId, 0)
  ids.writeUInt16BE(methodId, 2)
  return { type: METHOD, channel, payload: Buffer.concat([ids, ...args]) }
}

/** The frames that replace one frame to the client. */
export type Meddle = (frame: AmqpFrame, connection: ProxiedConnection) => readonly AmqpFrame[]

/** Allows a meddler to send frames later, and to keep the state of one connection. */
export interface ProxiedConnection {
  readonly number: number
  readonly send: (frame: AmqpFrame) => void
}

export class AmqpProxy {
  readonly port: number
  /** Passes all frames unchanged. */
  meddle: Meddle = (frame) => [frame]
  /** Returns the delay of bytes in each direction, milliseconds; null for no delay. */
  delayMs: (() => number) | null = null
  readonly #server: net.Server
  readonly #sockets: Set<net.Socket>

  private constructor(server: net.Server, port: number, sockets: Set<net.Socket>) {
    this.#server = server
    this.port = port
    this.#sockets = sockets
  }

  /** @param host the address to listen on. */
  static async start(brokerPort: number, host = "127.0.0.1"): Promise<AmqpProxy> {
    const sockets = new Set<net.Socket>()
    let proxy: AmqpProxy | null = null
    let connections = 0
    const server = net.createServer((client) => {
      const broker = net.connect(brokerPort, "127.0.0.1")
      for (const [socket, other] of [
        [client, broker],
        [broker, client],
      ] as const) {
        sockets.add(socket)
        socket.on("error", () => undefined)
        socket.on("close", () => {
          sockets.delete(socket)
          other.destroy()
        })
      }
      const delay = () => proxy?.delayMs?.() ?? 0
      const toBroker = new Delayed(delay, (bytes) => broker.write(bytes))
      const toClient = new Delayed(delay, (bytes) => client.write(bytes))
      client.on("data", (chunk: Buffer) => toBroker.push(chunk))
      const send = (frame: AmqpFrame) => toClient.push(encode(frame))
      const connection = { number: connections, send }
      connections += 1
      const reader = new FrameReader((frame) => {
        for (const each of proxy?.meddle(frame, connection) ?? [frame]) send(each)
      })
      broker.on("data", (chunk: Buffer) => reader.push(chunk))
    })
    await new Promise<void>((resolve) => server.listen(0, host, resolve))
    proxy = new AmqpProxy(server, (server.address() as net.AddressInfo).port, sockets)
    return proxy
  }

  /** Closes all open connections. New ones are accepted. */
  closeConnections(): void {
    for (const socket of [...this.#sockets]) socket.destroy()
  }

  stop(): void {
    this.#server.close()
    this.closeConnections()
  }
}

/** Delays bytes and keeps their order, which timers alone do not guarantee. */
class Delayed {
  readonly #delayMs: () => number
  readonly #arrive: (bytes: Buffer) => void
  #waiting: { readonly bytes: Buffer; readonly dueMs: number }[] = []
  #lastDueMs = 0

  constructor(delayMs: () => number, arrive: (bytes: Buffer) => void) {
    this.#delayMs = delayMs
    this.#arrive = arrive
  }

  push(bytes: Buffer): void {
    const nowMs = performance.now()
    const dueMs = Math.max(nowMs + this.#delayMs(), this.#lastDueMs)
    this.#lastDueMs = dueMs
    if (dueMs <= nowMs && this.#waiting.length === 0) {
      this.#arrive(bytes)
      return
    }
    this.#waiting.push({ bytes, dueMs })
    if (this.#waiting.length === 1) this.#wait()
  }

  #wait(): void {
    const [first] = this.#waiting
    if (first === undefined) return
    setTimeout(() => this.#arriveDue(), Math.max(0, first.dueMs - performance.now()))
  }

  #arriveDue(): void {
    const nowMs = performance.now()
    const due = this.#waiting.filter(({ dueMs }) => dueMs <= nowMs)
    this.#waiting = this.#waiting.slice(due.length)
    for (const { bytes } of due) this.#arrive(bytes)
    this.#wait()
  }
}

class FrameReader {
  #bytes = Buffer.alloc(0)
  readonly #each: (frame: AmqpFrame) => void

  constructor(each: (frame: AmqpFrame) => void) {
    this.#each = each
  }

  push(chunk: Buffer): void {
    this.#bytes = Buffer.concat([this.#bytes, chunk])
    while (this.#bytes.length >= FRAME_HEAD) {
      const end = FRAME_HEAD + this.#bytes.readUInt32BE(3)
      if (this.#bytes.length <= end) return
      this.#each({
        type: this.#bytes.readUInt8(0),
        channel: this.#bytes.readUInt16BE(1),
        payload: this.#bytes.subarray(FRAME_HEAD, end),
      })
      this.#bytes = this.#bytes.subarray(end + 1)
    }
  }
}

function encode({ type, channel, payload }: AmqpFrame): Buffer {
  const header = Buffer.alloc(FRAME_HEAD)
  header.writeUInt8(type, 0)
  header.writeUInt16BE(channel, 1)
  header.writeUInt32BE(payload.length, 3)
  return Buffer.concat([header, payload, Buffer.from([FRAME_END])])
}
