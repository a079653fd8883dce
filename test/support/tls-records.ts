/**
 * A TCP relay in front of a TLS server that measures the records which the server sends, from their
 * headers (RFC 8446, section 5.1), which are not encrypted.
 *
 *   client ◄─► relay on a free port ◄─► server
 *                │
 *                └── the type and the length of each record to the client
 *
 * It forwards all bytes unchanged, and keeps one small object for each record, without a bound.
 */

import { type AddressInfo, connect, createServer, type Socket } from "node:net"

const HEADER_BYTES = 5

/** The content types of RFC 8446, section 5.1. */
export const HANDSHAKE = 22
export const APPLICATION_DATA = 23

export interface TlsRecord {
  readonly type: number
  /** Bytes after the header: the plaintext and, once it is encrypted, what the cipher adds. */
  readonly bytes: number
}

export interface TlsRecords {
  /** Where clients connect, on 127.0.0.1. */
  readonly port: number
  /** The records that the server has sent to all clients, complete or begun, oldest first. */
  readonly sent: readonly TlsRecord[]
  /** The longest of them, in bytes after the header. */
  readonly longest: number
  readonly stop: () => void
}

/** A relay to `port` on 127.0.0.1. */
export async function measureRecords(port: number): Promise<TlsRecords> {
  const sent: TlsRecord[] = []
  const sockets = new Set<Socket>()
  const relay = createServer((client) => {
    const server = connect(port, "127.0.0.1")
    for (const [socket, other] of [
      [client, server],
      [server, client],
    ] as const) {
      sockets.add(socket)
      socket.on("error", () => other.destroy())
      socket.on("close", () => {
        sockets.delete(socket)
        other.end()
      })
    }
    server.on("data", recordReader(sent))
    client.pipe(server)
    server.pipe(client)
  })
  await new Promise<void>((resolve) => relay.listen(0, "127.0.0.1", resolve))
  return {
    port: (relay.address() as AddressInfo).port,
    sent,
    get longest() {
      return Math.max(0, ...sent.map(({ bytes }) => bytes))
    },
    stop: () => {
      relay.close()
      for (const socket of sockets) socket.destroy()
    },
  }
}

/** Appends each record of a stream of chunks to `sent` when its header is complete. */
function recordReader(sent: TlsRecord[]): (chunk: Buffer) => void {
  let header = Buffer.alloc(0)
  let skip = 0
  return (chunk) => {
    for (let at = 0; at < chunk.length; ) {
      if (skip > 0) {
        const skipped = Math.min(skip, chunk.length - at)
        skip -= skipped
        at += skipped
        continue
      }
      const part = chunk.subarray(at, at + HEADER_BYTES - header.length)
      header = Buffer.concat([header, part])
      at += part.length
      if (header.length < HEADER_BYTES) return
      skip = header.readUInt16BE(3)
      sent.push({ type: header.readUInt8(0), bytes: skip })
      header = Buffer.alloc(0)
    }
  }
}
