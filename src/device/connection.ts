/**
 * One TLS connection: performs on its socket what framer, endpoint and outgoing queue decide.
 *
 *   handshaking ─┬─────admit──────► open ──close──► closing ──socket gone──► closed
 *                └► identifying ──►┘                                           ▲
 *   handshaking, identifying ─────────────────── close, peer gone ─────────────┘
 *
 * From the device: socket ─► framer ─► endpoint (number) ─► line sink (the publish window).
 * To the device:   endpoint (decision) ─► outgoing ─► socket, one write a tick.
 *
 * Never talks to the broker, never throws into the socket's callbacks, settles every command it was
 * given exactly once. Lines that were read are still published after the connection has closed.
 * Bounds: those of framer, endpoint and outgoing; a closing socket is terminated by the sweep after
 * `CLOSING_MS`.
 */

import type { Counters } from "../counters.ts"
import type { Backpressure } from "./backpressure.ts"
import type { CloseReason } from "./close-reason.ts"
import type { Command, Outcome } from "./command.ts"
import type { Timeouts } from "./connections.ts"
import { type Decision, Endpoint } from "./endpoint.ts"
import { Framer, LineTooLong } from "./framer.ts"
import { Outgoing } from "./outgoing.ts"
import { type DeviceSocket, type PeerInfo, UNKNOWN_PEER } from "./peer.ts"
import type { ReorderLimits } from "./reorder-buffer.ts"
import type { UnfinishedLines } from "./unfinished-lines.ts"

/** How long a peer may take to answer our close. */
const CLOSING_MS = 2_000

/** Why a connection is not being read. */
export const PAUSED_BY = { window: 1, memory: 2, drain: 4 } as const
export type PauseSource = keyof typeof PAUSED_BY

export interface ConnectionLimits extends ReorderLimits {
  readonly maxLineBytes: number
  readonly maxOutgoingBytes: number
  readonly slowDeviceTimeoutMs: number
}

export type ConnectionState = "handshaking" | "identifying" | "open" | "closing" | "closed"

/** What all connections of a worker share. */
/** The next stage of a line. */
export interface LineHandler {
  /** Takes a line for publishing; to be called only while `backpressure.hasRoom`. */
  take(connection: Connection, seq: number, line: Uint8Array): void
}

export interface ConnectionContext {
  readonly limits: ConnectionLimits
  readonly counters: Counters
  readonly backpressure: Backpressure
  readonly unfinishedLines: UnfinishedLines
  /** `BATCH_BYTES` long; used within one call of `flush`. */
  readonly scratch: Uint8Array
  /** Milliseconds since 1970, for what is compared with others' clocks; it may jump. */
  readonly nowMs: () => number
  /** Milliseconds that never jump, for deadlines. */
  readonly steadyMs: () => number
  readonly lines: LineHandler
  /** Asks for `flush` to be called once at the end of this tick. */
  readonly flushSoon: (connection: Connection) => void
  /** Told when commands wait in the reorder buffer: `sweepCommands` is to be called now and then. */
  readonly commandsWait: (connection: Connection) => void
  /** Told once, when the connection has begun to close: it takes part in nothing any more. */
  readonly closed: (connection: Connection, reason: CloseReason) => void
}

export class Connection {
  readonly id: string
  readonly socket: DeviceSocket
  readonly acceptedAtMs: number
  #state: ConnectionState = "handshaking"
  #endpoint: Endpoint | null = null
  #peer: PeerInfo = UNKNOWN_PEER
  readonly #context: ConnectionContext
  #framer: Framer | null = null
  #outgoing: Outgoing | null = null
  #pausedBy = 0
  /** As accounted for with `backpressure`. */
  #heldBytes = 0
  /** As accounted for with `unfinishedLines`. */
  #partialBytes = 0
  #lastActivityMs: number
  /** Since when the socket has taken nothing of what it was offered; null while it takes all. */
  #stalledSinceMs: number | null = null
  #closeAtMs = 0
  #reason: CloseReason | null = null
  #ended = false

  constructor(id: string, socket: DeviceSocket, context: ConnectionContext) {
    this.id = id
    this.socket = socket
    this.#context = context
    this.acceptedAtMs = context.steadyMs()
    this.#lastActivityMs = this.acceptedAtMs
  }

  get state(): ConnectionState {
    return this.#state
  }

  /** Null until the connection was admitted. */
  get endpoint(): Endpoint | null {
    return this.#endpoint
  }

  get peer(): PeerInfo {
    return this.#peer
  }

  /** For how long no bytes came although it was read. */
  get idleMs(): number {
    return this.#context.steadyMs() - this.#lastActivityMs
  }

  isPausedBy(source: PauseSource): boolean {
    return (this.#pausedBy & PAUSED_BY[source]) !== 0
  }

  get outgoingBytes(): number {
    return this.#outgoing?.bytes ?? 0
  }

  /** True when every line that was read has been taken for publishing. */
  get drained(): boolean {
    return this.#framer === null || this.#framer.drained
  }

  /** The handshake is complete, and the device has yet to say who it is. */
  identify(): void {
    if (this.#state !== "handshaking") return
    this.#state = "identifying"
    this.#lastActivityMs = this.#context.steadyMs()
  }

  /** We know who the device is and it may speak. */
  admit(deviceId: string, epoch: number, peer: PeerInfo): void {
    if (this.#state !== "handshaking" && this.#state !== "identifying") return
    this.#state = "open"
    this.#peer = peer
    this.#lastActivityMs = this.#context.steadyMs()
    this.#endpoint = new Endpoint({ deviceId, connectionId: this.id, epoch }, this.#context.limits)
    if (this.#context.backpressure.suspended) this.#pausedBy |= PAUSED_BY.memory
    if (this.#pausedBy !== 0) this.socket.pause()
  }

  /** Bytes from the device. */
  received(chunk: Uint8Array): void {
    if (this.#state !== "open" || this.#reason !== null) {
      this.#context.counters.bytesAfterClose += chunk.length
      return
    }
    this.#lastActivityMs = this.#context.steadyMs()
    this.#framer ??= new Framer(this.#context.limits.maxLineBytes)
    this.#framer.push(chunk)
    if (this.#pausedBy & PAUSED_BY.window) {
      this.#accountHeld()
      return
    }
    if (!this.pump()) {
      this.#context.counters.readingPaused += 1
      this.pause("window")
      this.#context.backpressure.wait(this)
    }
  }

  /** Takes the lines that were read while the window has room; false when some must wait. */
  pump(): boolean {
    const { backpressure, counters } = this.#context
    const framer = this.#framer
    if (framer === null) return true
    let ended = false
    for (;;) {
      if (framer.drained) break
      if (!backpressure.hasRoom) {
        this.#accountHeld()
        this.#accountPartial(ended)
        return false
      }
      let line: Uint8Array | null
      try {
        line = framer.next()
      } catch (error) {
        if (!(error instanceof LineTooLong)) throw error
        counters.unterminatedBytes += error.discardedBytes
        this.#framer = null
        this.close("line_too_long")
        break
      }
      if (line === null) break
      ended = true
      if (line.length === 0) counters.emptyLines += 1
      else this.#takeLine(line)
    }
    this.#accountHeld()
    if (this.#reason === null) this.resume("window")
    else this.#countUnterminated()
    // Last, since it may end this connection.
    this.#accountPartial(ended)
    return true
  }

  closeUnfinished(): void {
    this.close("line_timeout")
  }

  /** Performs what becomes of one command. */
  offer(command: Command): void {
    if (this.#endpoint === null) {
      command.settle("offline", "not admitted yet", null)
      return
    }
    const gaps = this.#endpoint.gaps
    this.#perform(this.#endpoint, this.#endpoint.offer(command, this.#context.nowMs()))
    this.#context.counters.gapsSkipped += this.#endpoint.gaps - gaps
    if (this.#endpoint.heldCommands > 0) this.#context.commandsWait(this)
  }

  /**
   * Gives back the lost commands of which no byte was offered to the socket: the broker delivers them again or
   * dead-letters them. Their sources are told; those that were offered stay, since they may be on the wire.
   */
  withdrawLost(): void {
    const endpoint = this.#endpoint
    if (endpoint === null) return
    const unoffered = this.#outgoing?.withdrawLost() ?? []
    const unreleased = endpoint.withdrawLost(unoffered)
    for (const command of [...unoffered, ...unreleased]) command.withdraw()
  }

  /** Gives up the lowest gap in the numbers of the commands that wait, before its time. */
  giveUpGap(): void {
    const endpoint = this.#endpoint
    if (endpoint === null) return
    const { gaps } = endpoint
    this.#perform(endpoint, endpoint.giveUpGap())
    this.#context.counters.gapsSkipped += endpoint.gaps - gaps
  }

  /** Hands the outgoing bytes to the socket, as many as it takes. */
  flush(): void {
    if (this.#reason === null) this.#write()
  }

  /** Gives up gaps that were waited out. True while commands wait for a number. */
  sweepCommands(nowMs: number): boolean {
    const endpoint = this.#endpoint
    if (endpoint === null) return false
    const gaps = endpoint.gaps
    this.#perform(endpoint, endpoint.expire(nowMs))
    this.#context.counters.gapsSkipped += endpoint.gaps - gaps
    return endpoint.heldCommands > 0
  }

  /** Enforces the deadlines of this connection. */
  sweep(steadyMs: number, deadlines: Timeouts): void {
    switch (this.#state) {
      case "handshaking":
        if (steadyMs - this.acceptedAtMs >= deadlines.handshakeTimeoutMs) {
          this.close("handshake_timeout")
        }
        break
      case "identifying":
        if (steadyMs - this.#lastActivityMs >= deadlines.identifyTimeoutMs) {
          this.close("not_identified")
        }
        break
      case "open": {
        const { slowDeviceTimeoutMs } = this.#context.limits
        const stalledMs = this.#stalledSinceMs === null ? 0 : steadyMs - this.#stalledSinceMs
        // A device that we do not read cannot show a sign of life.
        const idleMs = this.#pausedBy === 0 ? steadyMs - this.#lastActivityMs : 0
        if (stalledMs >= slowDeviceTimeoutMs) this.close("slow_device")
        else if (idleMs >= deadlines.idleTimeoutMs) this.close("idle")
        break
      }
      case "closing":
        if (steadyMs >= this.#closeAtMs) this.socket.terminate()
        break
      case "closed":
        break
    }
  }

  pause(by: PauseSource): void {
    const before = this.#pausedBy
    this.#pausedBy |= PAUSED_BY[by]
    // A handshake goes on; the socket is paused when it is complete.
    if (before !== 0 || this.#state !== "open") return
    this.socket.pause()
    if (this.#partialBytes > 0) this.#context.unfinishedLines.stopped(this)
  }

  resume(by: PauseSource): void {
    const before = this.#pausedBy
    this.#pausedBy &= ~PAUSED_BY[by]
    if (before !== 0 && this.#pausedBy === 0 && this.#state === "open") {
      // The time it was not read is not held against the device.
      this.#lastActivityMs = this.#context.steadyMs()
      if (this.#partialBytes > 0) this.#context.unfinishedLines.began(this, this.#lastActivityMs)
      this.socket.resume()
    }
  }

  /** Ends the connection for `reason`. The first reason stands; later calls do nothing. */
  close(reason: CloseReason): void {
    if (this.#reason !== null) return
    this.#reason = reason
    const handshaking = this.#state === "handshaking"
    if (!handshaking) this.#write()
    this.#end()
    if (this.#state === "closed") return
    this.#state = "closing"
    this.#closeAtMs = this.#context.steadyMs() + CLOSING_MS
    if (handshaking) this.socket.terminate()
    else {
      // A paused socket would not notice that the peer has closed too.
      if (this.#pausedBy !== 0) this.socket.resume()
      this.socket.shutdown()
    }
  }

  /** The socket is gone, by our doing or the peer's. */
  socketClosed(): void {
    this.#reason ??= this.#state === "handshaking" ? "handshake_failed" : "peer_closed"
    this.#state = "closed"
    this.#end()
  }

  /** Settles what waits and tells the others; once. */
  #end(): void {
    if (this.#ended || this.#reason === null) return
    this.#ended = true
    const reason = this.#reason
    const endpoint = this.#endpoint
    if (endpoint !== null) {
      const held = endpoint.close()
      const outcome = reason === "slow_device" ? "slow_device" : "closed"
      for (const command of this.#outgoing?.clear() ?? []) {
        this.#settle(endpoint, command, outcome, `the connection ended: ${reason}`)
      }
      this.#perform(endpoint, held)
    }
    if (this.drained) this.#countUnterminated()
    this.#context.closed(this, reason)
  }

  /**
   * Offers bytes to the socket until it takes no more. Sources are told after the write, since what
   * they do may close this connection, or write to another that shares the scratch buffer.
   */
  #write(): void {
    const { scratch, counters } = this.#context
    const outgoing = this.#outgoing
    const endpoint = this.#endpoint
    if (outgoing === null || endpoint === null || this.#state !== "open") return
    const nowMs = this.#context.nowMs()
    while (!this.#ended && !outgoing.empty) {
      const expired: Command[] = []
      const written: Command[] = []
      const bytes = outgoing.nextBytes(nowMs, scratch, expired)
      const offered = bytes.length
      const accepted = offered === 0 ? 0 : Math.max(0, this.socket.write(bytes))
      // The write may have told us that the socket is gone, and what was offered was settled then.
      if (!this.#ended) {
        outgoing.accepted(accepted, written)
        if (accepted > 0) this.#stalledSinceMs = null
        if (accepted < offered) this.#stalledSinceMs ??= this.#context.steadyMs()
      }
      counters.commandBytesOut += accepted
      for (const command of expired) this.#settle(endpoint, command, "expired", "before its turn")
      for (const command of written) {
        endpoint.written(command)
        command.settle("written", "", endpoint.recipient)
      }
      if (accepted < offered || (offered === 0 && expired.length === 0)) return
    }
  }

  #takeLine(line: Uint8Array): void {
    if (this.#endpoint === null) return
    const { counters } = this.#context
    counters.linesIn += 1
    counters.lineBytesIn += line.length
    this.#context.lines.take(this, this.#endpoint.numberLine(), line)
  }

  #perform(endpoint: Endpoint, decisions: readonly Decision[]): void {
    for (const decision of decisions) {
      switch (decision.kind) {
        case "write":
          this.#enqueue(endpoint, decision.command)
          break
        case "settle":
          this.#settle(endpoint, decision.command, decision.outcome, decision.detail)
          break
        case "acknowledge":
          decision.command.acknowledge()
          break
        case "replace":
          decision.command.replace(decision.waiting)
          break
      }
    }
  }

  #enqueue(endpoint: Endpoint, command: Command): void {
    if (this.#ended) {
      this.#settle(endpoint, command, "closed", "the connection has closed")
      return
    }
    this.#outgoing ??= new Outgoing(this.#context.limits.maxOutgoingBytes)
    if (this.#outgoing.push(command)) this.#context.flushSoon(this)
    else {
      const detail = `${this.#outgoing.bytes} bytes wait for this device already`
      this.#settle(endpoint, command, "slow_device", detail)
    }
  }

  #settle(endpoint: Endpoint, command: Command, outcome: Outcome, detail: string): void {
    endpoint.unwritten(command)
    command.settle(outcome, detail, endpoint.recipient)
  }

  #accountHeld(): void {
    const framer = this.#framer
    const held = framer?.drained === false ? framer.heldBytes - framer.partialBytes : 0
    if (held === this.#heldBytes) return
    const change = held - this.#heldBytes
    this.#heldBytes = held
    this.#context.backpressure.hold(change)
  }

  /** @param ended whether a line has ended since the last call, so that an unfinished one is another. */
  #accountPartial(ended: boolean): void {
    const partial = this.#framer?.partialBytes ?? 0
    const before = this.#partialBytes
    if (partial === 0 && before === 0) return
    const { unfinishedLines } = this.#context
    this.#partialBytes = partial
    if (partial === 0) unfinishedLines.stopped(this)
    else if ((ended || before === 0) && this.#pausedBy === 0) {
      unfinishedLines.began(this, this.#lastActivityMs)
    }
    unfinishedLines.hold(partial - before)
  }

  #countUnterminated(): void {
    if (this.#framer === null) return
    this.#context.counters.unterminatedBytes += this.#framer.heldBytes
    this.#framer = null
    this.#accountPartial(false)
  }
}
