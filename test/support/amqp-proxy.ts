/**
 * A proxy before a real broker that meddles with what the broker says: each frame on its way to the client
 * may be dropped, held, changed, or followed by another.
 *
 *   client ──as it is──► broker
 *   client ◄──meddle──── frames ◄── broker
 *
 * Knows the framing of AMQP 0-9-1 and the two numbers of a method, and nothing else. For tests only.
 */

import net from "node:net"

const METHOD_FRAME = 1
const FRAME_END = 0xce
const HEADER_BYTES = 7

export interface AmqpFrame {
  readonly type: number
  readonly channel: number
  readonly payload: Buffer
}

/** `[class, method]`, as in the protocol's tables; null for what is no method. */
export function methodOf({ type, payload }: AmqpFrame): `${number}.${number}` | null {
  if (type !== METHOD_FRAME) return null
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
  return { type: METHOD_FRAME, channel, payload: Buffer.concat([ids, ...args]) }
}

/** What goes to the client in the place of one frame. */
export type Meddle = (frame: AmqpFrame, connection: ProxiedConnection) => readonly AmqpFrame[]

/** Lets a meddler say something later, and keep what it knows of one connection. */
export interface ProxiedConnection {
  readonly number: number
  readonly send: (frame: AmqpFrame) => void
}

export class AmqpProxy {
  readonly port: number
  /** Everything as it is. */
  meddle: Meddle = (frame) => [frame]
  readonly #server: net.Server
  readonly #sockets: Set<net.Socket>

  private constructor(server: net.Server, port: number, sockets: Set<net.Socket>) {
    this.#server = server
    this.port = port
    this.#sockets = sockets
  }

  static async start(brokerPort: number): Promise<AmqpProxy> {
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
      client.pipe(broker)
      const send = (frame: AmqpFrame) => void client.write(encode(frame))
      const connection = { number: connections, send }
      connections += 1
      const reader = new FrameReader((frame) => {
        for (const each of proxy?.meddle(frame, connection) ?? [frame]) send(each)
      })
      broker.on("data", (chunk: Buffer) => reader.push(chunk))
    })
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    proxy = new AmqpProxy(server, (server.address() as net.AddressInfo).port, sockets)
    return proxy
  }

  stop(): void {
    this.#server.close()
    for (const socket of this.#sockets) socket.destroy()
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
    while (this.#bytes.length >= HEADER_BYTES) {
      const end = HEADER_BYTES + this.#bytes.readUInt32BE(3)
      if (this.#bytes.length <= end) return
      this.#each({
        type: this.#bytes.readUInt8(0),
        channel: this.#bytes.readUInt16BE(1),
        payload: this.#bytes.subarray(HEADER_BYTES, end),
      })
      this.#bytes = this.#bytes.subarray(end + 1)
    }
  }
}

function encode({ type, channel, payload }: AmqpFrame): Buffer {
  const header = Buffer.alloc(HEADER_BYTES)
  header.writeUInt8(type, 0)
  header.writeUInt16BE(channel, 1)
  header.writeUInt32BE(payload.length, 3)
  return Buffer.concat([header, payload, Buffer.from([FRAME_END])])
}
