/**
 * Writes text lines to standard output or standard error without ever blocking the process.
 *
 *   flowing ──the descriptor accepts no more──► waiting ──the buffer is full──► dropping
 *      ▲                                          │  ▲                              │
 *      └────────────── all written ───────────────┘  └──half of the buffer is free──┘
 *
 * A write to a pipe, socket or terminal that nothing reads blocks its process for ever. Setting
 * O_NONBLOCK on an inherited descriptor was rejected: the flag belongs to the open file
 * description, which is shared with the shell, `tee` and all other processes that have it. So
 * `openSink` writes to each kind of descriptor in a way that does not change it.
 *
 * sonic-boom (pino's own destination) was rejected after a test with Bun 1.4.5. In asynchronous
 * mode one thread of the runtime stays blocked in `write`, and the flush at exit blocks for ever.
 * In synchronous mode it sleeps until the descriptor accepts more.
 *
 * Lines are written completely, in order, and immediately while the descriptor accepts them. A
 * write has at most `PIPE_BUF` bytes of complete lines. A pipe accepts such a write atomically, so
 * lines of processes that share a pipe do not mix; longer lines may. Never throws. Bound:
 * `MAX_WAITING_BYTES` in memory. Beyond it new lines are dropped and counted until half of the
 * buffer is written.
 */

import { Fifo } from "../structures/fifo.ts"
import { openSink, PIPE_BUF, type Sink } from "./sink.ts"

const MAX_WAITING_BYTES = 1_048_576
/**
 * Delays between attempts while the descriptor accepts no bytes. They double from `first` to
 * `last`.
 */
const RETRY_MS = { first: 10, last: 200 }
/** How long an exiting process tries to write the waiting lines. */
const EXIT_FLUSH_MS = 1_000
const EXIT_RETRY_MS = 5

/** The lines that are being written, without the bytes that are written already. */
interface Chunk {
  readonly bytes: Uint8Array
  readonly lines: number
}

export class Output {
  readonly #sink: Sink
  readonly #dropped: (lines: number) => void
  readonly #waiting = new Fifo<Uint8Array>()
  #waitingBytes = 0
  #chunk: Chunk | null = null
  #isDropping = false
  /** Lines dropped since `resumed` was last called. */
  #unreported = 0
  #retryMs = RETRY_MS.first
  #timer: ReturnType<typeof setTimeout> | null = null
  /**
   * Called with the number of dropped lines once lines are accepted again. Its own output is
   * written next.
   */
  resumed: (lines: number) => void = () => undefined

  /** @param dropped called with the number of dropped lines, each time that lines are dropped. */
  constructor(sink: Sink, dropped: (lines: number) => void) {
    this.#sink = sink
    this.#dropped = dropped
  }

  /** An output of this process to a descriptor. It is flushed when the process exits. */
  static toDescriptor(descriptor: number, dropped: (lines: number) => void): Output {
    const output = new Output(openSink(descriptor), dropped)
    process.on("exit", () => output.flush(EXIT_FLUSH_MS))
    return output
  }

  /** @param line ends with a line feed. */
  write(line: string): void {
    if (this.#isDropping) {
      this.#drop(1)
      return
    }
    const bytes = Buffer.from(line)
    if (this.#chunk !== null) {
      this.#wait(bytes)
      return
    }
    this.#chunk = { bytes, lines: 1 }
    this.#offer()
  }

  /** Blocks until all lines are written, at most for `maxMs`. */
  flush(maxMs: number): void {
    const untilMs = performance.now() + maxMs
    this.#offer()
    while (this.#chunk !== null && performance.now() < untilMs) {
      Bun.sleepSync(EXIT_RETRY_MS)
      this.#offer()
    }
  }

  #wait(bytes: Uint8Array): void {
    if (this.#waitingBytes + bytes.length > MAX_WAITING_BYTES) {
      this.#isDropping = true
      this.#drop(1)
      return
    }
    this.#waiting.push(bytes)
    this.#waitingBytes += bytes.length
  }

  #drop(lines: number): void {
    this.#unreported += lines
    this.#dropped(lines)
  }

  /** Writes until the descriptor accepts no more, and schedules the rest. */
  #offer(): void {
    while (this.#chunk !== null) {
      const { bytes, lines } = this.#chunk
      let taken: number
      try {
        taken = this.#sink(bytes)
      } catch {
        this.#fail()
        return
      }
      if (taken === 0) {
        this.#retryLater()
        return
      }
      this.#retryMs = RETRY_MS.first
      this.#chunk =
        taken < bytes.length ? { bytes: bytes.subarray(taken), lines } : this.#nextChunk()
      this.#report()
    }
  }

  /** As many complete lines as fit into one write, at least one. */
  #nextChunk(): Chunk | null {
    const parts: Uint8Array[] = []
    let length = 0
    for (;;) {
      const next = this.#waiting.first
      if (next === undefined || (parts.length > 0 && length + next.length > PIPE_BUF)) break
      this.#waiting.shift()
      parts.push(next)
      length += next.length
    }
    this.#waitingBytes -= length
    if (parts.length === 0) return null
    return { bytes: Buffer.concat(parts, length), lines: parts.length }
  }

  /**
   * Reports dropped lines at their position in the output, once there is room for the next lines.
   */
  #report(): void {
    if (this.#unreported === 0 || this.#waitingBytes > MAX_WAITING_BYTES / 2) return
    this.#isDropping = false
    const lines = this.#unreported
    this.#unreported = 0
    this.resumed(lines)
  }

  /**
   * The write failed, for example because the disk is full or the pipe is closed. Drops the waiting
   * lines, which could otherwise wait for ever. The next line is a new attempt.
   */
  #fail(): void {
    const lines = (this.#chunk?.lines ?? 0) + this.#waiting.length
    this.#chunk = null
    while (this.#waiting.length > 0) this.#waiting.shift()
    this.#waitingBytes = 0
    this.#isDropping = false
    this.#drop(lines)
  }

  #retryLater(): void {
    if (this.#timer !== null) return
    this.#timer = setTimeout(() => {
      this.#timer = null
      this.#offer()
    }, this.#retryMs)
    this.#timer.unref()
    this.#retryMs = Math.min(this.#retryMs * 2, RETRY_MS.last)
  }
}
