/**
 * `bun run simulate replay tape.jsonl`: one device that sends the lines of a tape again.
 *
 *   connecting ──handshake──► sending ──all accepted──► ending ──the gateway closed──► done
 *        └───────failed──────────┴──────────broke─────────┴──► an error
 *
 * The lines keep their order and, divided by the speed, their distances in time. With the speed
 * "max" they are sent as fast as the socket accepts them. What the gateway sends is ignored.
 * Bounds: `CHUNK_BYTES` offered at a time, or one longer line; `CONNECT_MS`; `ENDING_MS`.
 */

import { type Credentials, Issuer } from "./credentials.ts"
import { handshakeSucceeded } from "./handshake.ts"
import type { ReplayOptions } from "./options.ts"
import { readTapeFile, type TapedLine, type TapeFile } from "./tape-file.ts"

const CHUNK_BYTES = 65_536
const CONNECT_MS = 10_000
const ENDING_MS = 10_000
/** A gateway that refuses the device, or a line, closes the connection within this time. */
const REFUSED_WITHIN_MS = 500
const CLOSED = "the gateway closed the connection; see its log for the reason"
/** Lines that are due within this time are sent together. */
const TICK_MS = 1
const LF = Buffer.of(10)

/** The connection failed, or ended before all lines were sent. */
export class ReplayError extends Error {
  override readonly name = "ReplayError"
}

export interface ReplayReport {
  readonly lines: number
  readonly bytes: number
  readonly durationMs: number
  /** Entries that the tape lacks. */
  readonly dropped: number
}

/**
 * @throws TapeFileError, CredentialsError
 * @throws ReplayError
 */
export async function replay(options: ReplayOptions): Promise<ReplayReport> {
  const tape = readTapeFile(options.file)
  const issuer = new Issuer(options)
  const credentials = await issuer.of(options.device)
  return new Replay(options, tape, issuer.checksGateway).run(credentials)
}

export function replayText({ lines, bytes, durationMs, dropped }: ReplayReport): string {
  const missing = dropped === 0 ? "" : `; the tape lacks ${dropped} entries`
  return `${lines} lines, ${bytes} bytes in ${(durationMs / 1_000).toFixed(1)} s${missing}`
}

class Replay {
  readonly #options: ReplayOptions
  readonly #tape: TapeFile
  readonly #checksGateway: boolean
  readonly #connected = Promise.withResolvers<void>()
  readonly #closed = Promise.withResolvers<void>()
  #isClosed = false
  /** Resolves when the socket accepts bytes again, or has closed. */
  #drained = Promise.withResolvers<void>()

  constructor(options: ReplayOptions, tape: TapeFile, checksGateway: boolean) {
    this.#options = options
    this.#tape = tape
    this.#checksGateway = checksGateway
  }

  async run({ tls, hello }: Credentials): Promise<ReplayReport> {
    const { host, port } = this.#options
    const connecting = Bun.connect({
      ...{ hostname: host, port, tls },
      socket: {
        handshake: (_socket, success, error) => {
          if (handshakeSucceeded(success, error, this.#checksGateway)) this.#connected.resolve()
          else this.#connected.reject(new ReplayError(`no TLS connection to ${host}:${port}`))
        },
        data: () => undefined,
        drain: () => this.#drained.resolve(),
        close: () => this.#close(),
        error: () => this.#close(),
      },
    })
    const timer = setTimeout(() => {
      this.#connected.reject(
        new ReplayError(`no TLS connection to ${host}:${port} in ${CONNECT_MS} ms`),
      )
    }, CONNECT_MS)
    try {
      const [socket] = await Promise.all([connecting, this.#connected.promise])
      return await this.#send(socket, hello)
    } finally {
      clearTimeout(timer)
    }
  }

  async #send(socket: Bun.Socket, hello: string): Promise<ReplayReport> {
    const { speed } = this.#options
    const { lines, dropped } = this.#tape
    const startedAtMs = performance.now()
    await this.#write(socket, Buffer.from(hello))
    let bytes = 0
    let next = 0
    while (next < lines.length) {
      const passedMs =
        speed === "max" ? Number.POSITIVE_INFINITY : (performance.now() - startedAtMs) * speed
      const due = dueLines(lines, next, passedMs + TICK_MS)
      if (due.length === 0) {
        await Bun.sleep(((lines[next]?.afterMs ?? 0) - passedMs) / Number(speed))
        continue
      }
      await this.#write(socket, Buffer.concat(due.flatMap(({ body }) => [body, LF])))
      bytes += due.reduce((sum, { body }) => sum + body.length, 0)
      next += due.length
    }
    const durationMs = performance.now() - startedAtMs
    await Promise.race([this.#closed.promise, Bun.sleep(REFUSED_WITHIN_MS)])
    if (this.#isClosed) throw new ReplayError(CLOSED)
    socket.end()
    await Promise.race([this.#closed.promise, Bun.sleep(ENDING_MS)])
    socket.terminate()
    return { lines: next, bytes, durationMs, dropped }
  }

  /** Resolves when the socket has accepted all bytes. */
  async #write(socket: Bun.Socket, bytes: Uint8Array): Promise<void> {
    let rest = bytes
    for (;;) {
      if (this.#isClosed) throw new ReplayError(CLOSED)
      this.#drained = Promise.withResolvers()
      if (rest.length > 0) rest = rest.subarray(Math.max(0, socket.write(rest)))
      if (rest.length === 0) return
      await this.#drained.promise
    }
  }

  #close(): void {
    this.#isClosed = true
    this.#connected.reject(new ReplayError(CLOSED))
    this.#connected.promise.catch(() => undefined)
    this.#drained.resolve()
    this.#closed.resolve()
  }
}

/** The lines from `next` on that are due, as many as fit into one chunk, and at least one. */
function dueLines(
  lines: readonly TapedLine[],
  next: number,
  passedMs: number,
): readonly TapedLine[] {
  let bytes = 0
  let end = next
  for (;;) {
    const line = lines[end]
    if (line === undefined || line.afterMs > passedMs) break
    bytes += line.body.length + 1
    if (end > next && bytes > CHUNK_BYTES) break
    end += 1
  }
  return lines.slice(next, end)
}
