/**
 * One TLS connection: performs the decisions of framer, endpoint and outgoing queue on its socket.
 *
 *   handshaking ─┬─────admit──────► open ──close──► closing ──socket gone──► closed
 *                └► identifying ──►┘                                           ▲
 *   handshaking, identifying ─────────────────── close, peer gone ─────────────┘
 *
 * From the device: socket ─► framer ─► endpoint (numbers the line) ─► `lines` (the publish window).
 * To the device:   endpoint (decides) ─► outgoing ─► socket, one write in each tick.
 * A command with a reply: socket ─► waiting replies ─► a line that matches, or the end of its time.
 *
 * Never calls the broker and never throws into the socket's callbacks. Settles each command exactly
 * once. Lines that were read are still published after the connection has closed. Bounds: those of
 * framer, endpoint, outgoing and waiting replies. The sweep terminates a closing socket after
 * `CLOSING_MS`.
 */

import type { Counters } from "../counters.ts"
import type { Backpressure } from "./backpressure.ts"
import type { CloseDetails, CloseReason } from "./close-reason.ts"
import type { Command, Outcome, Reply } from "./command.ts"
import type { ConnectionTape } from "./connection-tape.ts"
import type { Timeouts } from "./connections.ts"
import type { DeviceRate } from "./device-rate.ts"
import { type Decision, Endpoint, SUPERSEDED } from "./endpoint.ts"
import { type Framer, LineTooLong } from "./framer.ts"
import { framedLine, type LineFormat, makeFramer, OVERHEAD_BYTES } from "./framing.ts"
import type { Goodbye } from "./goodbye.ts"
import { HoldBack } from "./hold-back.ts"
import { Outgoing } from "./outgoing.ts"
import { type DeviceSocket, type PeerInfo, UNKNOWN_PEER } from "./peer.ts"
import type { WrittenIds } from "./remembered-ids.ts"
import type { ReorderLimits } from "./reorder-buffer.ts"
import { LEFT_HANDSHAKE } from "./tls-failure.ts"
import type { UnfinishedLines } from "./unfinished-lines.ts"
import { type AskingCommand, WaitingReplies } from "./waiting-replies.ts"

/** How long the gateway waits for the peer to close its side, before it terminates the socket. */
const CLOSING_MS = 2_000
/**
 * A connection of an age that could not be closed gracefully, for example because the broker is
 * away, is not read for some seconds. So the next try is much later.
 */
const AGED_AGAIN_MS = 60_000

/** Why a connection is not being read. */
export const PAUSED_BY = { window: 1, memory: 2, drain: 4, rate: 8 } as const
export type PauseSource = keyof typeof PAUSED_BY

export interface ConnectionLimits extends ReorderLimits, LineFormat {
  readonly maxOutgoingBytes: number
  readonly slowDeviceTimeoutMs: number
}

const NO_DETAILS: CloseDetails = {}
const HANDSHAKE_TIMEOUT: CloseDetails = {
  detail: "the TLS handshake was not complete within HANDSHAKE_TIMEOUT_MS",
}
const IDENTIFY_TIMEOUT: CloseDetails = {
  detail: "the first line was not complete within IDENTIFY_TIMEOUT_MS",
}
const LEFT_IN_HANDSHAKE: CloseDetails = { detail: LEFT_HANDSHAKE }
const LEFT_EARLY: CloseDetails = {
  detail: "the peer closed the connection before it was admitted",
}

const GAVE_WAY = "it made room, since too many commands waited: see PREFETCH"

export type ConnectionState = "handshaking" | "identifying" | "open" | "closing" | "closed"

/** The next stage of a line. */
export interface LineHandler {
  /**
   * Takes a line for publishing; called only while `backpressure.hasRoom`.
   * @param answered the command that the line answers; null without one.
   */
  take(connection: Connection, seq: number, line: Uint8Array, answered: Command | null): void
}

/** Dependencies that all connections of a worker share. */
export interface ConnectionContext {
  readonly limits: ConnectionLimits
  readonly counters: Counters
  readonly backpressure: Backpressure
  readonly unfinishedLines: UnfinishedLines
  readonly writtenIds: WrittenIds
  /** `BATCH_BYTES` long. Its contents are valid within one call of `flush` only. */
  readonly scratch: Uint8Array
  /** Milliseconds since 1970, for times that are compared with other clocks. It may jump. */
  readonly nowMs: () => number
  /** Milliseconds of a monotonic clock, for deadlines. */
  readonly steadyMs: () => number
  readonly lines: LineHandler
  /** Schedules one call of `flush` at the end of this tick. */
  readonly flushSoon: (connection: Connection) => void
  /**
   * Called when commands wait in the reorder buffer. From then on `sweepCommands` must be called
   * periodically.
   */
  readonly commandsWait: (connection: Connection) => void
  /**
   * Called when a written command waits for its reply. From then on `sweepReplies` must be called
   * periodically.
   */
  readonly repliesWait: (connection: Connection) => void
  /** The rate of a device; null without a limit. */
  readonly rateOf: (deviceId: string, isNamed: boolean) => DeviceRate | null
  /**
   * Called when the device has reached its rate. From then on `sweepRate` must be called
   * periodically.
   */
  readonly rateReached: (connection: Connection) => void
  /** How long a connection that is admitted now may stay; `Infinity` without a limit. */
  readonly lifetimeMs: () => number
  /** Called when the connection is older than that, and again after each `AGED_AGAIN_MS`. */
  readonly aged: (connection: Connection) => void
  /** Null when devices get no goodbye line. */
  readonly goodbye: Goodbye | null
  /** Called once, when the connection begins to close. */
  readonly closed: (connection: Connection, reason: CloseReason, details: CloseDetails) => void
}

export class Connection {
  readonly id: string
  readonly socket: DeviceSocket
  /** Of the device, which is not that of the socket behind a proxy. */
  readonly remoteAddress: string
  readonly acceptedAtMs: number
  /** Null unless the device is recorded. It is read once for each batch of lines or commands. */
  tape: ConnectionTape | null = null
  #state: ConnectionState = "handshaking"
  #endpoint: Endpoint | null = null
  #peer: PeerInfo = UNKNOWN_PEER
  readonly #context: ConnectionContext
  #framer: Framer | null = null
  #outgoing: Outgoing | null = null
  /** Null until the first command with a reply. */
  #replies: WaitingReplies | null = null
  /** Null unless newer commands wait for held ones. */
  #holdBack: HoldBack | null = null
  /** Null without a limit, and until the connection is admitted. */
  #rate: DeviceRate | null = null
  #pausedBy = 0
  /** Bytes reported to `backpressure`. */
  #heldBytes = 0
  /** Bytes reported to it because the device has reached its rate. */
  #heldForRateBytes = 0
  /** Bytes reported to `unfinishedLines`. */
  #partialBytes = 0
  #lastActivityMs: number
  #closesAtMs = Number.POSITIVE_INFINITY
  /**
   * Since when the socket has accepted no bytes although some were offered; null while it accepts
   * all bytes.
   */
  #stalledSinceMs: number | null = null
  #closeAtMs = 0
  #reason: CloseReason | null = null
  #ended = false

  constructor(id: string, socket: DeviceSocket, remoteAddress: string, context: ConnectionContext) {
    this.id = id
    this.socket = socket
    this.remoteAddress = remoteAddress
    this.#context = context
    this.acceptedAtMs = context.steadyMs()
    this.#lastActivityMs = this.acceptedAtMs
  }

  get state(): ConnectionState {
    return this.#state
  }

  /** Null until the connection is admitted. */
  get endpoint(): Endpoint | null {
    return this.#endpoint
  }

  get peer(): PeerInfo {
    return this.#peer
  }

  /** Milliseconds since bytes were last received or reading was last resumed. */
  get idleMs(): number {
    return this.#context.steadyMs() - this.#lastActivityMs
  }

  /**
   * When the lines that are passed on now were received, of the monotonic clock. When they waited
   * for the rate of the device, it is now: that wait is the device's.
   */
  get linesReceivedAtMs(): number {
    return this.isPausedBy("rate") ? this.#context.steadyMs() : this.#lastActivityMs
  }

  isPausedBy(source: PauseSource): boolean {
    return (this.#pausedBy & PAUSED_BY[source]) !== 0
  }

  get outgoingBytes(): number {
    return this.#outgoing?.bytes ?? 0
  }

  /** True while commands wait for replies, or to be written and then for replies. */
  get awaitsReplies(): boolean {
    return this.#replies !== null && this.#replies.count > 0
  }

  /** True when all lines that were read have been passed on for publishing. */
  get drained(): boolean {
    return this.#framer === null || this.#framer.drained
  }

  /** The handshake is complete. The device is not identified yet. */
  identify(): void {
    if (this.#state !== "handshaking") return
    this.#state = "identifying"
    this.#lastActivityMs = this.#context.steadyMs()
  }

  /** The device is identified: its lines are read from now on. */
  admit(deviceId: string, epoch: number, peer: PeerInfo): void {
    if (this.#state !== "handshaking" && this.#state !== "identifying") return
    this.#state = "open"
    this.#peer = peer
    this.#lastActivityMs = this.#context.steadyMs()
    const { limits, writtenIds } = this.#context
    this.#endpoint = new Endpoint({ deviceId, connectionId: this.id, epoch }, limits, writtenIds)
    this.#closesAtMs = this.#lastActivityMs + this.#context.lifetimeMs()
    this.#rate = this.#context.rateOf(deviceId, deviceId !== this.id)
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
    this.#framer ??= makeFramer(this.#context.limits)
    this.#framer.push(chunk)
    if (this.#pausedBy & (PAUSED_BY.window | PAUSED_BY.rate)) this.#accountHeld()
    else this.#pumpOrWait()
  }

  #pumpOrWait(): void {
    if (this.pump()) return
    this.#context.counters.readingPaused.window += 1
    this.pause("window")
    this.#accountHeld()
    this.#context.backpressure.wait(this)
  }

  /**
   * Passes on lines that were read while the window has room and the rate allows it.
   * @returns false when lines wait for the window.
   */
  pump(): boolean {
    const { backpressure, counters } = this.#context
    const framer = this.#framer
    if (framer === null) return true
    const lines = this.tape ?? this.#context.lines
    let ended = false
    for (;;) {
      if (framer.drained) break
      if (!backpressure.hasRoom) {
        this.#accountHeld()
        this.#accountPartial(ended)
        return false
      }
      // Without room the lines are taken, and the device is paused for longer.
      if (this.#mustWaitForRate && backpressure.hasRoomForRate) break
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
      this.#rate?.spend(
        line.length + OVERHEAD_BYTES[this.#context.limits.framing],
        this.#context.steadyMs(),
      )
      if (line.length === 0) counters.emptyLines += 1
      else this.#takeLine(line, lines)
    }
    if (this.#mustWaitForRate) this.#reachRate()
    if (this.#reason === null) this.resume("window")
    this.#accountHeld()
    if (this.#reason !== null) this.#countUnterminated()
    // Last, because it may close this connection.
    this.#accountPartial(ended)
    return true
  }

  /** Continues when the rate allows it. @returns false when the device no longer waits for it. */
  sweepRate(steadyMs: number): boolean {
    if (this.#state !== "open" || !this.isPausedBy("rate")) return false
    if (this.#rate?.isOver(steadyMs)) return true
    if (!this.isPausedBy("window")) this.#pumpOrWait()
    if (this.#rate?.isOver(steadyMs)) return true
    this.resume("rate")
    this.#accountHeld()
    return false
  }

  /** Takes the lines that wait for the rate. Call it while reading is paused by `drain`. */
  takeAll(): void {
    if (this.isPausedBy("rate") && !this.isPausedBy("window")) this.#pumpOrWait()
  }

  get #mustWaitForRate(): boolean {
    if (this.#rate === null || this.#reason !== null || this.isPausedBy("drain")) return false
    return this.#rate.isOver(this.#context.steadyMs())
  }

  #reachRate(): void {
    if (this.isPausedBy("rate")) return
    this.#context.counters.readingPaused.rate += 1
    this.pause("rate")
    this.#context.rateReached(this)
  }

  closeUnfinished(): void {
    this.close("line_timeout")
  }

  /** Takes one command and performs the endpoint's decisions. */
  offer(command: Command): void {
    if (this.#endpoint === null) {
      command.settle("offline", "not admitted yet", null)
      return
    }
    const holdBack = this.#holdBack
    if (holdBack !== null && command.cameBy !== "gateway") {
      if (!command.wasHeld) {
        holdBack.wait(command)
        return
      }
      holdBack.isHeld(this.#context.steadyMs())
      if (holdBack.supersedes(command)) {
        const detail = "by a newer command with its supersede_key"
        this.tape?.settled(this, command, "superseded")
        command.settle("superseded", detail, this.#endpoint.recipient)
        return
      }
    }
    this.#take(this.#endpoint, command)
  }

  #take(endpoint: Endpoint, command: Command): void {
    const gaps = endpoint.gaps
    this.#perform(endpoint, endpoint.offer(command, this.#context.nowMs()))
    this.#context.counters.gapsSkipped += endpoint.gaps - gaps
    if (endpoint.heldCommands > 0) this.#context.commandsWait(this)
  }

  /** Newer commands wait from now on, until it is known that no held ones come before them. */
  holdBack(): void {
    if (this.#reason === null) this.#holdBack ??= new HoldBack(this.#context.steadyMs())
  }

  /** The keeper of held commands has answered whether the device has any. */
  heldAnswered(hasHeld: boolean): void {
    if (hasHeld) this.#holdBack?.isHeld(this.#context.steadyMs())
    else this.releaseHeldBack()
  }

  isHeldBack(command: Command): boolean {
    return this.#holdBack?.includes(command) === true
  }

  /** All held commands have been written, or newer commands must not wait longer. */
  releaseHeldBack(): void {
    const endpoint = this.#endpoint
    const holdBack = this.#holdBack
    this.#holdBack = null
    if (endpoint === null || holdBack === null) return
    for (const command of holdBack.clear()) this.#take(endpoint, command)
  }

  #sweepHeldBack(holdBack: HoldBack, steadyMs: number): void {
    const endpoint = this.#endpoint
    // A held command is being written, or waits for its reply.
    if (this.outgoingBytes > 0 || this.awaitsReplies) holdBack.isHeld(steadyMs)
    if (holdBack.isOver(steadyMs)) this.releaseHeldBack()
    else if (endpoint !== null) {
      for (const command of holdBack.expire(this.#context.nowMs())) {
        this.#settle(endpoint, command, "expired", "while older commands were written")
      }
    }
  }

  /**
   * Gives lost commands back to their sources, unless bytes of them were offered to the socket. The
   * broker redelivers or dead-letters them. Commands that were offered stay, because the device may
   * receive them.
   */
  withdrawLost(): void {
    const endpoint = this.#endpoint
    if (endpoint === null) return
    const unoffered = this.#outgoing?.withdrawLost() ?? []
    const unreleased = endpoint.withdrawLost(unoffered)
    for (const command of unoffered) this.#asksNoMore(command)
    const heldBack = this.#holdBack?.withdrawLost() ?? []
    for (const command of [...unoffered, ...unreleased, ...heldBack]) command.withdraw()
  }

  /** Gives up the lowest gap in the numbers of waiting commands, before `SEQ_GAP_TIMEOUT_MS`. */
  giveUpGap(): void {
    const endpoint = this.#endpoint
    if (endpoint === null) return
    const { gaps } = endpoint
    this.#perform(endpoint, endpoint.giveUpGap())
    this.#context.counters.gapsSkipped += endpoint.gaps - gaps
  }

  /** Its commands may wait long: for replies, or because the device takes no bytes. */
  get isStuck(): boolean {
    return this.#stalledSinceMs !== null || this.awaitsReplies
  }

  /**
   * Ends a command that waits for its reply, or of which a device that takes no bytes was offered
   * none. @returns false when it does not wait for that.
   */
  giveWay(command: Command): boolean {
    const endpoint = this.#endpoint
    if (endpoint === null) return false
    if (asksReply(command) && this.#replies?.giveUp(command) === true) {
      this.#replied(endpoint, command, "no_reply", GAVE_WAY)
      return true
    }
    if (this.#stalledSinceMs === null || this.#outgoing?.remove(command) !== true) return false
    this.#settle(endpoint, command, "slow_device", GAVE_WAY)
    return true
  }

  /** Writes outgoing bytes until the socket accepts no more. */
  flush(): void {
    if (this.#reason === null) this.#write()
  }

  /** Gives up gaps after `SEQ_GAP_TIMEOUT_MS`. True while commands wait for a missing number. */
  sweepCommands(nowMs: number): boolean {
    const endpoint = this.#endpoint
    if (endpoint === null) return false
    const gaps = endpoint.gaps
    this.#perform(endpoint, endpoint.expire(nowMs))
    this.#context.counters.gapsSkipped += endpoint.gaps - gaps
    return endpoint.heldCommands > 0
  }

  /**
   * Ends the commands whose replies did not come in time, and those that have expired while they
   * waited behind a command with `reply_next`. True while commands wait for replies.
   */
  sweepReplies(nowMs: number, steadyMs: number): boolean {
    const endpoint = this.#endpoint
    const replies = this.#replies
    if (endpoint === null || replies === null) return false
    for (const command of replies.expire(steadyMs)) {
      this.#replied(endpoint, command, "no_reply", noLine(command.reply.timeoutMs))
    }
    for (const command of this.#outgoing?.expire(nowMs) ?? []) {
      this.#settle(endpoint, command, "expired", "before it was written")
    }
    return this.awaitsReplies
  }

  /** Enforces the deadlines of this connection. */
  sweep(steadyMs: number, deadlines: Timeouts): void {
    switch (this.#state) {
      case "handshaking":
        if (steadyMs - this.acceptedAtMs >= deadlines.handshakeTimeoutMs) {
          this.close("handshake_timeout", HANDSHAKE_TIMEOUT)
        }
        break
      case "identifying":
        if (steadyMs - this.#lastActivityMs >= deadlines.identifyTimeoutMs) {
          this.close("not_identified", IDENTIFY_TIMEOUT)
        }
        break
      case "open": {
        const { slowDeviceTimeoutMs } = this.#context.limits
        const stalledMs = this.#stalledSinceMs === null ? 0 : steadyMs - this.#stalledSinceMs
        // While the device is not read, its activity is unknown.
        const idleMs = this.#pausedBy === 0 ? steadyMs - this.#lastActivityMs : 0
        // By the system clock, because a token names its end by that.
        if (this.#context.nowMs() >= this.#peer.expiresAtMs) this.close("expired")
        else if (stalledMs >= slowDeviceTimeoutMs) this.close("slow_device")
        else if (idleMs >= deadlines.idleTimeoutMs) this.close("idle")
        else if (steadyMs >= this.#closesAtMs) {
          this.#closesAtMs = steadyMs + AGED_AGAIN_MS
          this.#context.aged(this)
        }
        if (this.#holdBack !== null) this.#sweepHeldBack(this.#holdBack, steadyMs)
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
    // A handshake must continue: `admit` pauses the socket.
    if (before !== 0 || this.#state !== "open") return
    this.socket.pause()
    if (this.#partialBytes > 0) this.#context.unfinishedLines.stopped(this)
  }

  resume(by: PauseSource): void {
    const before = this.#pausedBy
    this.#pausedBy &= ~PAUSED_BY[by]
    if (before !== 0 && this.#pausedBy === 0 && this.#state === "open") {
      // The time during which the device was not read does not count as idle.
      this.#lastActivityMs = this.#context.steadyMs()
      if (this.#partialBytes > 0) this.#context.unfinishedLines.began(this, this.#lastActivityMs)
      this.socket.resume()
    }
  }

  /** Closes the connection for `reason`. Later calls have no effect: the first reason stays. */
  close(reason: CloseReason, details: CloseDetails = NO_DETAILS): void {
    if (this.#reason !== null) return
    this.#reason = reason
    const handshaking = this.#state === "handshaking"
    if (!handshaking) {
      this.#write()
      this.#sayGoodbye(reason, details.retryAfterMs ?? null)
    }
    this.#end(details)
    if (this.#state === "closed") return
    this.#state = "closing"
    this.#closeAtMs = this.#context.steadyMs() + CLOSING_MS
    if (handshaking) {
      // After a failed handshake Bun sends the alert and closes the socket. A reset could overtake
      // the alert.
      if (reason !== "handshake_failed" && reason !== "not_identified") this.socket.terminate()
    } else {
      // A paused socket does not report that the peer has closed.
      if (this.#pausedBy !== 0) this.socket.resume()
      this.socket.shutdown()
    }
  }

  /** The socket has closed, by the gateway or by the peer. */
  socketClosed(): void {
    const handshaking = this.#state === "handshaking"
    this.#reason ??= handshaking ? "handshake_failed" : "peer_closed"
    this.#state = "closed"
    this.#end(handshaking ? LEFT_IN_HANDSHAKE : LEFT_EARLY)
  }

  /** Unless a command is written in part. A device that takes no bytes gets none. */
  #sayGoodbye(reason: CloseReason, retryAfterMs: number | null): void {
    const { goodbye, limits } = this.#context
    if (goodbye === null || this.#outgoing?.isCut === true) return
    const text = goodbye.textFor(reason, retryAfterMs)
    if (text !== null) this.socket.write(framedLine(limits.framing, Buffer.from(text)))
  }

  /** Settles the waiting commands and calls `closed`, once. */
  #end(details: CloseDetails): void {
    if (this.#ended || this.#reason === null) return
    this.#ended = true
    const reason = this.#reason
    // What was read is published, without waiting for the rate.
    if (this.isPausedBy("rate") && !this.pump()) this.#context.backpressure.wait(this)
    const endpoint = this.#endpoint
    if (endpoint !== null) {
      const held = endpoint.close()
      const outcome = reason === "slow_device" ? "slow_device" : "closed"
      for (const command of this.#outgoing?.clear() ?? []) {
        this.#settle(endpoint, command, outcome, `the connection ended: ${reason}`)
      }
      for (const command of this.#replies?.clear() ?? []) {
        this.#replied(endpoint, command, "no_reply", `the connection ended: ${reason}`)
      }
      this.#perform(endpoint, held)
      const heldBack = this.#holdBack?.clear() ?? []
      this.#holdBack = null
      for (const command of heldBack) {
        this.#settle(endpoint, command, "closed", `the connection ended: ${reason}`)
      }
    }
    if (this.drained) this.#countUnterminated()
    this.tape?.disconnected(this, reason)
    this.#context.closed(this, reason, details)
  }

  /**
   * Writes until the socket accepts no more bytes. Commands are settled after the write, because a
   * source may close this connection, or write to another connection that shares the scratch
   * buffer.
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
      // The write may have reported that the socket is closed. Then all commands are settled
      // already.
      if (!this.#ended) {
        outgoing.accepted(accepted, written)
        if (accepted > 0) this.#stalledSinceMs = null
        if (accepted < offered) this.#stalledSinceMs ??= this.#context.steadyMs()
      }
      counters.commandBytesOut += accepted
      for (const command of expired)
        this.#settle(endpoint, command, "expired", "before it was written")
      this.tape?.written(this, written)
      for (const command of written) {
        endpoint.written(command)
        if (asksReply(command)) this.#awaitReply(endpoint, command)
        else command.settle("written", "", endpoint.recipient)
      }
      if (accepted < offered || (offered === 0 && expired.length === 0)) return
    }
  }

  #takeLine(line: Uint8Array, lines: LineHandler): void {
    if (this.#endpoint === null) return
    const { counters } = this.#context
    counters.linesIn += 1
    counters.lineBytesIn += line.length
    const seq = this.#endpoint.numberLine()
    const answered = this.#replies === null ? null : this.#replies.match(line)
    lines.take(this, seq, line, answered)
    if (answered === null) return
    this.#replied(this.#endpoint, answered, "answered", "", { line, fromDeviceSeq: seq })
  }

  /** The command was written. */
  #awaitReply(endpoint: Endpoint, command: AskingCommand): void {
    // A source has closed the connection meanwhile.
    if (this.#ended || this.#replies === null) {
      this.#replied(endpoint, command, "no_reply", `the connection ended: ${this.#reason}`)
      return
    }
    this.#replies.written(command, this.#context.steadyMs())
    this.#context.repliesWait(this)
  }

  #replied(
    endpoint: Endpoint,
    command: AskingCommand,
    outcome: "answered" | "no_reply",
    detail: string,
    reply?: Reply,
  ): void {
    this.#outgoing?.replyEnded(command)
    if (this.#outgoing?.empty === false) this.#context.flushSoon(this)
    this.tape?.settled(this, command, outcome)
    command.settle(outcome, detail, endpoint.recipient, reply)
  }

  /** The command ends before it was written. */
  #asksNoMore(command: Command): void {
    if (asksReply(command)) this.#replies?.remove(command)
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
        case "supersede":
          if (this.#outgoing?.remove(decision.command) === true) {
            this.#settle(endpoint, decision.command, "superseded", SUPERSEDED)
          }
          break
      }
    }
  }

  #enqueue(endpoint: Endpoint, command: Command): void {
    if (this.#ended) {
      this.#settle(endpoint, command, "closed", "the connection has closed")
      return
    }
    const { maxOutgoingBytes, framing } = this.#context.limits
    this.#outgoing ??= new Outgoing(maxOutgoingBytes, framing)
    if (asksReply(command)) {
      this.#replies ??= new WaitingReplies()
      const refused = this.#replies.add(command)
      if (refused !== null) {
        this.#settle(endpoint, command, "slow_device", refused)
        return
      }
    }
    if (!this.#outgoing.push(command)) {
      const detail = `${this.#outgoing.bytes} bytes already wait for this device`
      this.#settle(endpoint, command, "slow_device", detail)
      return
    }
    this.#context.flushSoon(this)
  }

  #settle(endpoint: Endpoint, command: Command, outcome: Outcome, detail: string): void {
    endpoint.unwritten(command)
    this.#asksNoMore(command)
    this.tape?.settled(this, command, outcome)
    command.settle(outcome, detail, endpoint.recipient)
  }

  #accountHeld(): void {
    const framer = this.#framer
    const held = framer?.drained === false ? framer.heldBytes - framer.partialBytes : 0
    const waitsForRate = this.isPausedBy("rate") && !this.isPausedBy("window")
    const heldForRate = waitsForRate ? held : 0
    const { backpressure } = this.#context
    if (heldForRate !== this.#heldForRateBytes) {
      const change = heldForRate - this.#heldForRateBytes
      this.#heldForRateBytes = heldForRate
      backpressure.holdForRate(change)
    }
    const change = held - heldForRate - this.#heldBytes
    if (change === 0) return
    this.#heldBytes += change
    backpressure.hold(change)
  }

  /**
   * @param ended whether a line has ended since the last call, so that an unfinished line is a new
   * one.
   */
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

function asksReply(command: Command): command is AskingCommand {
  return command.reply !== null
}

function noLine(timeoutMs: number): string {
  return `no matching line within ${timeoutMs} ms`
}
