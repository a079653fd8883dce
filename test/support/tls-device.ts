/**
 * A device for the tests: one TLS connection that sends and receives lines.
 *
 *     connecting ──handshake──► connected ──end──► ending ──► closed
 *
 * It has its own framing: it splits at LF and keeps all other bytes, including CR, so that a test
 * sees exactly what was sent to a device. It keeps all received bytes, without a bound, and all
 * bytes to send until the socket accepts them. Never reconnects and never retries. Verifies the
 * certificate only if a CA is given.
 */
import { type Deferred, deferred, within } from "./wait.ts"

export interface TestDeviceOptions {
  port: number
  /** Default 127.0.0.1. */
  host?: string
  /** Merged over `{ rejectUnauthorized }`, which is true exactly when a `ca` is given. */
  tls?: Bun.TLSOptions
  /** The limit for TCP connect and handshake together; default 20000. */
  connectTimeoutMs?: number
}

export interface DeviceClose {
  /**
   * What closed the connection: this device (`end`, `terminate`), the other side cleanly, or a
   * reset or error.
   */
  by: "device" | "peer" | "fault"
  error?: Error
  /** Bytes that `send` had accepted and the socket had not. */
  unsentBytes: number
}

export interface TestDevice {
  /** Received lines as UTF-8, without their LF, oldest first. */
  readonly lines: readonly string[]
  /** The same lines as bytes. */
  readonly lineBytes: readonly Uint8Array[]
  /** The bytes after the last LF. */
  readonly rest: Uint8Array
  readonly closed: Promise<DeviceClose>
  /** Sends the line and one LF. Resolves and rejects like `sendBytes`. */
  send(line: string): Promise<void>
  /**
   * Resolves when the socket has accepted all bytes; the other side may not have read them. Rejects
   * when the connection closes before that. The rejection may be left unhandled.
   */
  sendBytes(bytes: Uint8Array): Promise<void>
  /**
   * The oldest line that `nextLine` has not returned yet. Rejects when the connection closes before
   * it arrives.
   */
  nextLine(timeoutMs?: number): Promise<string>
  /** The first `count` received lines. Rejects when the connection closes with fewer. */
  waitLines(count: number, timeoutMs?: number): Promise<readonly string[]>
  /** Closes cleanly after the socket has accepted all bytes. */
  end(): void
  /** Resets the connection. Bytes that are not sent yet are lost. */
  terminate(): void
  /** Stops reading, so that the other side fills the socket's buffers. */
  pause(): void
  resume(): void
}

const DEFAULT_TIMEOUT_MS = 20_000
const LF = 0x0a

/**
 * Resolves after the handshake. Rejects with its error, or when the connection closes during it.
 */
export async function connectDevice(options: TestDeviceOptions): Promise<TestDevice> {
  const host = options.host ?? "127.0.0.1"
  const tls = { rejectUnauthorized: options.tls?.ca !== undefined, ...options.tls }
  const device = new Device(tls.rejectUnauthorized)
  const connecting = Bun.connect({
    hostname: host,
    port: options.port,
    tls,
    socket: {
      open: (socket) => device.onOpen(socket),
      handshake: (_socket, success, error) => device.onHandshake(success, error),
      data: (_socket, chunk) => device.onData(chunk),
      drain: () => device.onDrain(),
      end: () => device.onPeerEnd(),
      close: (_socket, error) => device.onClose(error),
      error: (_socket, error) => device.onError(error),
    },
  })
  const ready = Promise.all([connecting, device.connected])
  try {
    await within(ready, {
      what: `the TLS handshake with ${host}:${options.port}`,
      timeoutMs: options.connectTimeoutMs ?? DEFAULT_TIMEOUT_MS,
    })
  } catch (error) {
    device.terminate()
    throw error
  }
  return device
}

interface Unsent {
  bytes: Uint8Array
  taken: Deferred<void>
}

interface LineWaiter {
  count: number
  reached: Deferred<void>
}

type DeviceState = "connecting" | "connected" | "ending" | "closed"

class Device implements TestDevice {
  readonly lines: string[] = []
  readonly lineBytes: Uint8Array[] = []
  readonly #handshake = deferred<void>()
  readonly #closed = deferred<DeviceClose>()
  readonly closed: Promise<DeviceClose> = this.#closed.promise
  /** Resolves after the handshake. Used by `connectDevice` only. */
  readonly connected: Promise<void> = this.#handshake.promise

  readonly #rejectUnauthorized: boolean
  #state: DeviceState = "connecting"
  #closingBy: DeviceClose["by"] = "fault"
  #socket: Bun.Socket | undefined
  #unsent: Unsent[] = []
  #waiters: LineWaiter[] = []
  /**
   * Chunks since the last LF. They are joined at the next LF, so that the cost of a long line stays
   * linear.
   */
  #restChunks: Uint8Array[] = []
  #returnedLines = 0
  #fault: Error | undefined

  constructor(rejectUnauthorized: boolean) {
    this.#rejectUnauthorized = rejectUnauthorized
  }

  get rest(): Uint8Array {
    return Buffer.concat(this.#restChunks)
  }

  send(line: string): Promise<void> {
    return this.sendBytes(Buffer.from(`${line}\n`))
  }

  sendBytes(bytes: Uint8Array): Promise<void> {
    const taken = deferred<void>()
    if (this.#state === "connected") {
      this.#unsent.push({ bytes, taken })
      this.#write()
    } else {
      taken.reject(new Error(`sending: the device's connection is ${this.#state}`))
    }
    return taken.promise
  }

  async nextLine(timeoutMs?: number): Promise<string> {
    const index = this.#returnedLines
    this.#returnedLines += 1
    try {
      const lines = await this.waitLines(index + 1, timeoutMs)
      return lines[index] ?? ""
    } catch (error) {
      // The line that did not arrive in time is still the next one.
      this.#returnedLines = Math.min(this.#returnedLines, index)
      throw error
    }
  }

  async waitLines(count: number, timeoutMs = DEFAULT_TIMEOUT_MS): Promise<readonly string[]> {
    const waiter = { count, reached: deferred<void>() }
    this.#waiters.push(waiter)
    this.#settleWaiters()
    try {
      await within(waiter.reached.promise, { what: `line ${count} at the device`, timeoutMs })
    } catch (error) {
      const have = `${this.lines.length} received`
      throw new Error(`${error instanceof Error ? error.message : error} (${have})`)
    } finally {
      this.#waiters = this.#waiters.filter((other) => other !== waiter)
    }
    return this.lines.slice(0, count)
  }

  end(): void {
    if (this.#state !== "connected") return
    this.#state = "ending"
    this.#closingBy = "device"
    this.#endWhenSent()
  }

  terminate(): void {
    if (this.#state === "closed") return
    this.#closingBy = "device"
    if (this.#socket === undefined) this.onClose()
    else this.#socket.terminate()
  }

  pause(): void {
    this.#socket?.pause()
  }

  resume(): void {
    this.#socket?.resume()
  }

  onOpen(socket: Bun.Socket): void {
    this.#socket = socket
    // The connect took longer than its limit, and the caller does not wait any more.
    if (this.#state === "closed") socket.terminate()
  }

  onHandshake(success: boolean, error: (Error & { code?: string }) | null): void {
    if (this.#state !== "connecting") return
    // When the certificate does not match the host name and no CA was given, Bun reports no
    // success, although the connection can be used. A handshake that failed has one of these codes.
    const failed = error === null || ["EPROTO", "ECONNRESET"].includes(error.code ?? "")
    if (success || !(this.#rejectUnauthorized || failed)) {
      this.#state = "connected"
      this.#handshake.resolve()
    } else {
      this.#handshake.reject(error ?? new Error("the TLS handshake failed"))
    }
  }

  onData(chunk: Uint8Array): void {
    let start = 0
    for (let at = chunk.indexOf(LF); at >= 0; at = chunk.indexOf(LF, start)) {
      this.#restChunks.push(chunk.subarray(start, at))
      const line = Buffer.concat(this.#restChunks)
      this.lineBytes.push(line)
      this.lines.push(line.toString("utf8"))
      this.#restChunks = []
      start = at + 1
    }
    if (start < chunk.length) this.#restChunks.push(chunk.subarray(start))
    this.#settleWaiters()
  }

  onDrain(): void {
    if (this.#unsent.length > 0) this.#write()
  }

  onPeerEnd(): void {
    if (this.#closingBy === "fault") this.#closingBy = "peer"
  }

  /**
   * A TLS alert, such as a refused client certificate after a TLS 1.3 handshake, or an exception in
   * a callback.
   */
  onError(error: Error): void {
    this.#fault ??= error
    this.#socket?.terminate()
  }

  onClose(error: Error | undefined = this.#fault): void {
    if (this.#state === "closed") return
    this.#state = "closed"
    const by = error === undefined || this.#closingBy === "device" ? this.#closingBy : "fault"
    const gone = new Error(`the connection was closed by ${by}`, { cause: error })
    const unsentBytes = this.#unsent.reduce((sum, { bytes }) => sum + bytes.length, 0)
    for (const { taken } of this.#unsent) taken.reject(gone)
    this.#unsent = []
    this.#handshake.reject(gone)
    this.#closed.resolve({ by, unsentBytes, ...(error === undefined ? {} : { error }) })
    this.#settleWaiters()
  }

  #write(): void {
    if (this.#state !== "connected" && this.#state !== "ending") return
    for (let first = this.#unsent[0]; first !== undefined; first = this.#unsent[0]) {
      const taken = this.#socket?.write(first.bytes) ?? 0
      if (taken < first.bytes.length) {
        // With 0 or -1 no bytes were accepted: `drain` or `close` follows.
        first.bytes = first.bytes.subarray(Math.max(taken, 0))
        return
      }
      this.#unsent.shift()
      first.taken.resolve()
    }
    this.#endWhenSent()
  }

  #endWhenSent(): void {
    if (this.#state === "ending" && this.#unsent.length === 0) this.#socket?.end()
  }

  #settleWaiters(): void {
    for (const { count, reached } of this.#waiters) {
      if (this.lines.length >= count) reached.resolve()
      else if (this.#state === "closed") {
        reached.reject(new Error(`waited for line ${count} at the device, which is closed`))
      }
    }
  }
}
