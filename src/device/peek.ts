/**
 * Reads the first bytes of a socket before Bun does: Bun's TLS sockets cannot be read below TLS.
 * The socket must be paused. `recv` with MSG_PEEK shows what the kernel has received, and `recv`
 * without it takes exactly the bytes of a header; then the TLS handshake finds its own first byte.
 *
 * Bun's `socket.fd` is not documented, so `tryPeeking` shows at start whether it works.
 */

import { dlopen, FFIType, type Pointer, read } from "bun:ffi"
import { errorText } from "../errors.ts"

const MSG_PEEK = 2
const MSG_DONTWAIT = 0x40
const EAGAIN = 11
const PROBE = Buffer.from("probe")

export type Peeked =
  | { readonly kind: "bytes"; readonly bytes: Uint8Array }
  /** Nothing has arrived since the bytes that were taken. */
  | { readonly kind: "nothing" }
  /** The peer has closed the connection, or it has broken. */
  | { readonly kind: "closed" }

export interface PeekableSocket {
  readonly fd?: number
}

export class SocketPeek {
  readonly #libc = openLibc()
  readonly #buffer: Uint8Array

  /**
   * @param maxBytes that are shown at most.
   * @throws when libc cannot be called.
   */
  constructor(maxBytes: number) {
    this.#buffer = new Uint8Array(maxBytes)
  }

  /** @returns a view that is valid until the next call. */
  look(socket: PeekableSocket): Peeked {
    const received = this.#receive(socket, this.#buffer.length, MSG_PEEK)
    if (received > 0) return { kind: "bytes", bytes: this.#buffer.subarray(0, received) }
    if (received < 0 && this.#errno() === EAGAIN) return { kind: "nothing" }
    return { kind: "closed" }
  }

  /** Takes bytes that `look` has shown. */
  take(socket: PeekableSocket, bytes: number): void {
    this.#receive(socket, bytes, 0)
  }

  #receive({ fd = -1 }: PeekableSocket, bytes: number, flags: number): number {
    return Number(this.#libc.recv(fd, this.#buffer, bytes, flags | MSG_DONTWAIT))
  }

  #errno(): number {
    const at = this.#libc.__errno_location()
    return at === null ? 0 : read.i32(at as Pointer)
  }
}

function openLibc() {
  const { i32, i64, u64, ptr } = FFIType
  return dlopen("libc.so.6", {
    recv: { args: [i32, ptr, u64, i32], returns: i64 },
    __errno_location: { args: [], returns: ptr },
  }).symbols
}

/** Tries it on a connection of this process with itself. @returns why it does not work, or null. */
export async function tryPeeking(): Promise<string | null> {
  let peek: SocketPeek
  try {
    peek = new SocketPeek(PROBE.length)
  } catch (error) {
    return errorText(error)
  }
  const { promise: read, resolve } = Promise.withResolvers<string>()
  const listening = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open: async (socket) => {
        socket.pause()
        let peeked = peek.look(socket as PeekableSocket)
        while (peeked.kind === "nothing") {
          await Bun.sleep(1)
          peeked = peek.look(socket as PeekableSocket)
        }
        if (peeked.kind === "bytes") peek.take(socket as PeekableSocket, 1)
        socket.resume()
      },
      data: (_socket, chunk) => resolve(chunk.toString()),
      close: () => resolve(""),
    },
  })
  const client = await Bun.connect({
    hostname: "127.0.0.1",
    port: listening.port,
    socket: {
      data: () => undefined,
      open: (socket) => {
        socket.write(PROBE)
      },
    },
  })
  const rest = await read
  client.terminate()
  listening.stop(true)
  return rest === PROBE.subarray(1).toString()
    ? null
    : "recv with MSG_PEEK does not show the received bytes"
}
