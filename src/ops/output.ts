/**
 * Text lines for standard output or standard error that never block the process.
 *
 *   flowing ──the descriptor takes no more──► waiting ──the buffer is full──► dropping
 *      ▲                                        │  ▲                              │
 *      └────────────── all written ─────────────┘  └──half of the buffer is free──┘
 *
 * A write to a pipe, socket or terminal without a reader blocks its process for ever. Rejected: setting O_NONBLOCK on an inherited
 * descriptor. The flag belongs to the open file description, which is shared with the shell, `tee` and every other process that
 * has it. So each kind of descriptor is written without changing what others share; see `openSink`.
 *
 * Rejected: sonic-boom (pino's own destination), tried on Bun 1.4.5. Asynchronous, it leaves one thread of the runtime blocked in
 * `write`, and its flush at the exit blocks for ever; synchronous, it sleeps until the descriptor takes more.
 *
 * Lines are written whole, in order, and at once while the descriptor takes them. A write holds at most `PIPE_BUF` bytes of
 * whole lines, which a pipe takes as one, so lines of processes that share a pipe do not mix; a longer line may. Never throws.
 * Bound: `MAX_WAITING_BYTES` wait in memory. Beyond it new lines are dropped and counted until half of them are written.
 */

import { Fifo } from "../structures/fifo.ts"
import { openSink, PIPE_BUF, type Sink } from "./sink.ts"

const MAX_WAITING_BYTES = 1_048_576
/** Pauses between two tries while the descriptor takes no bytes; they double from `first` to `last`. */
const RETRY_MS = { first: 10, last: 200 }
/** How long an ending process keeps trying to write the waiting lines. */
const EXIT_FLUSH_MS = 1_000
const EXIT_RETRY_MS = 5

/** What is being written: whole lines, less the part that was written already. */
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
  /** Called with the number of dropped lines once lines are taken again; its own output comes next. */
  resumed: (lines: number) => void = () => undefined

  /** @param dropped called with the number of lines, each time that some are dropped. */
  constructor(sink: Sink, dropped: (lines: number) => void) {
    this.#sink = sink
    this.#dropped = dropped
  }

  /** The output of this process on a descriptor, flushed when the process ends. */
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

  /** Blocks until everything is written, but no longer than `maxMs`. */
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

  /** Writes what the descriptor takes; goes on later with the rest. */
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

  /** As many whole lines as fit into one write, at least one. */
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

  /** Reports dropped lines at their place in the output, once there is room for the next lines. */
  #report(): void {
    if (this.#unreported === 0 || this.#waitingBytes > MAX_WAITING_BYTES / 2) return
    this.#isDropping = false
    const lines = this.#unreported
    this.#unreported = 0
    this.resumed(lines)
  }

  /** After a full disk or a closed pipe the waiting lines could wait for ever. They are dropped; the next line is tried again. */
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
