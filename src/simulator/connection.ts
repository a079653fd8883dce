/**
 * One connection of a simulated device: the lines that its socket accepted, their acknowledgements,
 * the commands that came, and its end.
 *
 *   connecting ──handshake──► open ──end──► ending ──the gateway closed──► over (drained)
 *        └───────failed────────┴─────────────┴──────────broke────────────► over (broken)
 *
 * It does not connect and has no timer: the herd sweeps it. Bytes that the socket did not accept
 * are offered again unchanged, since TLS may have encrypted them already. Bounds: `CHUNK_BYTES`
 * unsent, `MAX_ANSWERS` commands to answer, `MAX_REST_BYTES` of an unfinished line from the
 * gateway.
 */

import type { GoodbyeReader } from "./goodbye.ts"
import type { Histogram } from "./histogram.ts"
import type { LedgerFile } from "./ledger.ts"
import { type LineWriter, readCommandNumber, readHeldCommand } from "./line.ts"

const CHUNK_BYTES = 65_536
const MAX_ANSWERS = 64
const MAX_REST_BYTES = 65_537
/**
 * After its socket was full for longer than this, a device does not catch up with the missed lines.
 */
const MAX_LATE_MS = 1_000

export type ConnectionState = "connecting" | "open" | "ending" | "over"
export type ConnectionEnd = "drained" | "broken"

/** The part of Bun's socket that is used. */
export interface ConnectionSocket {
  /** Returns the number of accepted bytes; -1 when it is closed. */
  write(bytes: Uint8Array): number
  end(): unknown
  terminate(): unknown
}

/** The state and counters that all connections of a herd share. */
export interface Shared {
  readonly writer: LineWriter
  readonly ledger: LedgerFile | null
  readonly goodbye: GoodbyeReader | null
  /** Milliseconds between two lines of a device; 0: as fast as the socket accepts them. */
  readonly intervalMs: number
  readonly confirms: Histogram
  readonly counts: LineCounts
}

export interface LineCounts {
  /** Lines that sockets have accepted completely. */
  sent: number
  /** Lines of broken connections that were not accepted completely. */
  cutOff: number
  acked: number
  commands: number
  /** Held commands, which are not answered. */
  held: number
  /** Commands beyond `MAX_ANSWERS`. */
  unanswered: number
  /**
   * Lines from the gateway that are neither acknowledgements nor commands of the simulated
   * back-end.
   */
  others: number
  goodbyes: number
}

/** What the connections of one device have in common. */
export interface DeviceHistory {
  /** A command came that is newer than all held commands of the device. */
  wasCommanded: boolean
}

export class DeviceConnection {
  readonly device: string
  readonly attempt: number
  /** When connecting started; before that, when the object was made. */
  startedAtMs: number
  state: ConnectionState = "connecting"
  openedAtMs = 0
  socket: ConnectionSocket | null = null
  /** From the goodbye line; null without one. */
  retryAfterMs: number | null = null
  readonly #shared: Shared
  readonly #ended: (end: ConnectionEnd) => void
  /** The remaining lines of the device, shared by its connections. */
  readonly #quota: { left: number }
  readonly #history: DeviceHistory
  /** Accepted bytes of lines; negative until the hello is accepted. */
  #acceptedBytes = 0
  #offered = 0
  #pending: Uint8Array | null = null
  #dueMs = 0
  #lastWriteMs = 0
  #rest = ""
  #answers: number[] | null = null
  #ackedFrom = 0
  #ackedTo = -1
  #acked = 0
  #recordedSent = 0
  #takenNext = 0
  /** Lines that the back-end consumed before a preceding line. */
  readonly #takenAhead = new Set<number>()
  /** The line that is being timed; one at a time. */
  #timedLine = -1
  #timedAtMs = 0
  #peerEnded = false

  constructor(
    shared: Shared,
    of: {
      readonly device: string
      readonly attempt: number
      readonly quota: { left: number }
      readonly history: DeviceHistory
      readonly nowMs: number
      readonly ended: (end: ConnectionEnd) => void
    },
  ) {
    this.#shared = shared
    this.device = of.device
    this.attempt = of.attempt
    this.startedAtMs = of.nowMs
    this.#quota = of.quota
    this.#history = of.history
    this.#ended = of.ended
  }

  /** Lines that the socket has taken whole. */
  get sent(): number {
    return Math.max(0, Math.floor(this.#acceptedBytes / this.#shared.writer.lineBytes))
  }

  /** @param firstLineMs when its first line is due, spread over the herd. */
  opened(hello: string, nowMs: number, firstLineMs: number): void {
    this.state = "open"
    this.openedAtMs = nowMs
    this.#dueMs = firstLineMs
    if (hello === "") return
    this.#acceptedBytes = -hello.length
    this.#write(Buffer.from(hello, "latin1"), nowMs)
  }

  /** Sends the lines that are due. */
  sweep(nowMs: number): void {
    if (this.state !== "open" || this.#pending !== null) return
    const { intervalMs, writer } = this.#shared
    const answers = this.#answers?.length ?? 0
    const most = Math.max(1, Math.floor(CHUNK_BYTES / writer.lineBytes) - answers)
    let due = most
    if (intervalMs > 0) {
      this.#dueMs = Math.max(this.#dueMs, nowMs - MAX_LATE_MS)
      due = nowMs < this.#dueMs ? 0 : Math.floor((nowMs - this.#dueMs) / intervalMs) + 1
    }
    due = Math.min(due, most, this.#quota.left)
    this.#quota.left -= due
    this.#dueMs += due * intervalMs
    if (due + answers > 0) this.#send(due + answers, nowMs)
  }

  /** The socket accepts bytes again. */
  drained(nowMs: number): void {
    if (this.#pending === null || this.state !== "open") return
    this.#write(this.#pending, nowMs)
    if (this.#pending === null) this.sweep(nowMs)
  }

  received(chunk: Uint8Array, nowMs: number): void {
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length)
    const text = this.#rest + bytes.toString("latin1")
    let start = 0
    for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", start)) {
      this.#receivedLine(text.slice(start, at), nowMs)
      start = at + 1
    }
    this.#rest = text.length - start > MAX_REST_BYTES ? "" : text.slice(start)
    if ((this.#answers?.length ?? 0) > 0) this.#answer(nowMs)
  }

  peerEnded(): void {
    if (this.state !== "ending") this.#peerEnded = true
  }

  /** The back-end of this process has consumed line `n`. */
  taken(n: number): void {
    if (n < this.#takenNext) return
    // A message that is redelivered after a lost connection may arrive after later messages.
    this.#takenAhead.add(n)
    while (this.#takenAhead.delete(this.#takenNext)) this.#takenNext += 1
  }

  /**
   * Whether everything that was sent has arrived. Without a back-end or acknowledgements: nothing
   * was sent for `quietMs`.
   */
  settled(by: { backEnd: boolean; acks: boolean }, nowMs: number, quietMs: number): boolean {
    if (this.#pending !== null || (this.#answers?.length ?? 0) > 0) return false
    if (by.backEnd && this.#takenNext < this.sent) return false
    if (by.acks && this.#acked < this.sent) return false
    return by.backEnd || by.acks || nowMs - this.#lastWriteMs >= quietMs
  }

  /** Closes the connection. With unsent bytes it ends as broken. */
  end(): void {
    if (this.state !== "open") return
    this.state = "ending"
    this.socket?.end()
  }

  /** Resets the connection, which ends it at once. */
  terminate(): void {
    const { socket } = this
    this.closed(true)
    socket?.terminate()
  }

  /** The socket is closed, or connecting failed. May be called again. */
  closed(byFault: boolean): void {
    if (this.state === "over") return
    const inOrder = this.state === "ending" && !this.#peerEnded && this.#pending === null
    const wasOpen = this.state !== "connecting"
    const end = inOrder && !byFault ? "drained" : "broken"
    this.state = "over"
    this.#shared.counts.cutOff += this.#offered - this.sent
    if (wasOpen) this.#recordEnd(end)
    this.#pending = null
    this.socket = null
    this.#ended(end)
  }

  /** Writes new records to the ledger. */
  record(): void {
    const { ledger } = this.#shared
    if (ledger === null) return
    const sent = this.sent
    if (sent > this.#recordedSent) ledger.append("sent", this.device, this.attempt, sent)
    this.#recordedSent = sent
    this.#recordAcks(this.#ackedTo + 1)
  }

  #recordEnd(end: ConnectionEnd): void {
    this.record()
    const { ledger } = this.#shared
    ledger?.append("end", this.device, this.attempt, this.sent, this.#offered, end)
  }

  /** @param next where the next range begins. */
  #recordAcks(next: number): void {
    const [from, to] = [this.#ackedFrom, this.#ackedTo]
    if (to >= from) this.#shared.ledger?.append("acked", this.device, this.attempt, from, to)
    this.#ackedFrom = next
    this.#ackedTo = next - 1
  }

  #receivedLine(line: string, nowMs: number): void {
    const { counts, confirms } = this.#shared
    if (line.startsWith("ACK ")) {
      const n = Number(line.slice(4))
      if (!Number.isSafeInteger(n) || n < 0) return
      counts.acked += 1
      this.#acked += 1
      if (n !== this.#ackedTo + 1) this.#recordAcks(n)
      this.#ackedTo = n
      if (n !== this.#timedLine) return
      this.#timedLine = -1
      confirms.record(nowMs - this.#timedAtMs)
      return
    }
    const afterMs = this.#shared.goodbye?.(line) ?? null
    if (afterMs !== null) {
      counts.goodbyes += 1
      this.retryAfterMs = afterMs
      return
    }
    const command = readCommandNumber(line)
    if (command === null) {
      this.#receivedOther(line)
      return
    }
    counts.commands += 1
    this.#history.wasCommanded = true
    this.#answers ??= []
    if (this.#answers.length === MAX_ANSWERS) counts.unanswered += 1
    else this.#answers.push(command)
  }

  #receivedOther(line: string): void {
    const { counts, ledger } = this.#shared
    const held = readHeldCommand(line)
    if (held === null) {
      counts.others += 1
      return
    }
    counts.held += 1
    if (held.device !== this.device) {
      ledger?.append("misdirected", this.device, this.attempt)
      return
    }
    const late = this.#history.wasCommanded ? ["late"] : []
    ledger?.append("got", this.device, this.attempt, held.run, held.n, ...late)
  }

  #answer(nowMs: number): void {
    if (this.state === "open" && this.#pending === null) {
      this.#send(this.#answers?.length ?? 0, nowMs)
    }
  }

  #send(count: number, nowMs: number): void {
    let text = ""
    for (let left = count; left > 0; left -= 1) {
      const answers = this.#answers?.shift() ?? null
      text += this.#shared.writer.compose(this.device, this.attempt, this.#offered, answers)
      if (this.#timedLine < 0) {
        this.#timedLine = this.#offered
        this.#timedAtMs = nowMs
      }
      this.#offered += 1
    }
    this.#write(Buffer.from(text, "latin1"), nowMs)
  }

  #write(bytes: Uint8Array, nowMs: number): void {
    const before = this.sent
    // -1: the socket is closed, and `closed` follows.
    const taken = Math.max(0, this.socket?.write(bytes) ?? 0)
    this.#acceptedBytes += taken
    this.#pending = taken < bytes.length ? bytes.subarray(taken) : null
    this.#lastWriteMs = nowMs
    this.#shared.counts.sent += this.sent - before
  }
}
