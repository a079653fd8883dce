/** An HTTP client that writes the given bytes to a plain socket. */

import { connect, type Socket } from "node:net"
import { until } from "./wait.ts"

export interface RawAnswer {
  readonly status: number
  readonly contentType: string | undefined
  readonly body: string
}

export class RawHttp {
  readonly socket: Socket
  received = ""
  isConnected = false
  closed = false

  constructor(port: number) {
    this.socket = connect(port, "127.0.0.1")
    this.socket.setEncoding("utf8")
    this.socket.on("connect", () => {
      this.isConnected = true
    })
    this.socket.on("data", (text: string) => {
      this.received += text
    })
    this.socket.on("close", () => {
      this.closed = true
    })
    this.socket.on("error", () => {})
  }

  write(data: string | Uint8Array): void {
    this.socket.write(data)
  }

  /** The head and the body of the first response, which must have a Content-Length. */
  async answer(): Promise<RawAnswer> {
    return until(
      () => {
        const [head = "", body] = this.received.split("\r\n\r\n")
        const length = Number(/^content-length: (\d+)/im.exec(head)?.[1])
        if (body === undefined || Buffer.byteLength(body) < length) return undefined
        const status = Number(/^HTTP\/1\.1 (\d+)/.exec(head)?.[1])
        return { status, contentType: /^content-type: (.+)\r?$/im.exec(head)?.[1], body }
      },
      { what: "an answer" },
    )
  }
}

/** Sends one request on a new connection, with exactly these lines as its head. */
export async function rawRequest(
  port: number,
  lines: readonly string[],
  body = "",
): Promise<RawAnswer> {
  const client = new RawHttp(port)
  try {
    client.write(`${lines.join("\r\n")}\r\n\r\n${body}`)
    return await client.answer()
  } finally {
    client.socket.destroy()
  }
}
