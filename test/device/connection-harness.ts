/** A connection with a scripted socket, a back-end that records outcomes, and a held clock. */

import { expect } from "bun:test"
import { Counters } from "../../src/counters.ts"
import { Backpressure } from "../../src/device/backpressure.ts"
import type { CloseReason } from "../../src/device/close-reason.ts"
import type { Command, Outcome, Recipient, Reply } from "../../src/device/command.ts"
import { Connection, type ConnectionLimits } from "../../src/device/connection.ts"
import { type DeviceRateLimits, DeviceRates } from "../../src/device/device-rate.ts"
import type { Goodbye } from "../../src/device/goodbye.ts"
import { BATCH_BYTES } from "../../src/device/outgoing.ts"
import { type DeviceSocket, type PeerInfo, UNKNOWN_PEER } from "../../src/device/peer.ts"
import { WrittenIds } from "../../src/device/remembered-ids.ts"
import { UnfinishedLines } from "../../src/device/unfinished-lines.ts"
import { type TestCommand, testCommand } from "../support/commands.ts"

export const LIMITS: ConnectionLimits = {
  framing: "line",
  maxLineBytes: 20,
  maxOutgoingBytes: 60,
  slowDeviceTimeoutMs: 1_000,
  windowCommands: 4,
  gapTimeoutMs: 50,
}
export const HANDSHAKE_TIMEOUT_MS = 300
export const IDLE_TIMEOUT_MS = 5_000
export const IDENTIFY_TIMEOUT_MS = 400
export const DEADLINES = {
  handshakeTimeoutMs: HANDSHAKE_TIMEOUT_MS,
  identifyTimeoutMs: IDENTIFY_TIMEOUT_MS,
  idleTimeoutMs: IDLE_TIMEOUT_MS,
}
/** Five lines of 20 bytes. */
export const UNFINISHED = { maxPartialBytes: 100, lineTimeoutMs: 4_000 }
export const CLOSING_MS = 2_000
export const START_MS = 1_000_000
export const PEER = { ...UNKNOWN_PEER, tlsVersion: "TLSv1.3" }

/**
 * More than any test needs. A flush without end must fail, since the time-out of a test cannot stop
 * it.
 */
const MAX_CALLS = 10_000

/** A socket that accepts `room` bytes in total, then none, and records its calls. */
export class ScriptedSocket implements DeviceSocket {
  wire = ""
  room = Number.POSITIVE_INFINITY
  state: "open" | "ended" | "gone" = "open"
  paused = false
  readonly calls: string[] = []
  #writes = 0
  /** Called first in `write`. */
  beforeWrite: () => void = () => undefined
  /** What `terminate` and `end` do besides, as Bun may call the close handler in them. */
  onTerminate: () => void = () => undefined
  onEnd: () => void = () => undefined

  write(bytes: Uint8Array): number {
    this.#writes += 1
    if (this.#writes > MAX_CALLS) throw new Error("a flush without end: too many writes")
    const offered = bytes.slice()
    this.beforeWrite()
    if (this.state !== "open") return -1
    const taken = Math.min(this.room, offered.length)
    this.room -= taken
    this.wire += textOf(offered.subarray(0, taken))
    return taken
  }

  shutdown(): void {
    this.calls.push("shutdown")
    if (this.state === "open") this.state = "ended"
    this.onEnd()
  }

  terminate(): void {
    this.calls.push("terminate")
    this.state = "gone"
    this.onTerminate()
  }

  pause(): void {
    this.calls.push("pause")
    this.paused = true
  }

  resume(): void {
    this.calls.push("resume")
    this.paused = false
  }
}

export interface Told {
  readonly command: Command
  readonly outcome: Outcome | "acknowledged" | "withdrawn"
  readonly detail: string
  readonly recipient: Recipient | null
  /** With the outcome `answered` only. */
  readonly reply?: Reply
}

/** A back-end: sends commands and records their outcomes in order. */
export class BackEnd {
  readonly sent: Command[] = []
  readonly told: Told[] = []
  onSettled: (told: Told) => void = () => undefined

  command(text: string, about: Partial<Command> = {}): TestCommand {
    const tell = (
      outcome: Told["outcome"],
      detail = "",
      recipient: Recipient | null = null,
      reply?: Reply,
    ) => {
      const told = { command, outcome, detail, recipient }
      this.told.push(reply === undefined ? told : { ...told, reply })
      if (this.told.length > MAX_CALLS) throw new Error("a flush without end: too many outcomes")
    }
    const command = testCommand({
      body: bytesOf(text),
      ...about,
      settle: (outcome, detail, recipient, reply) => {
        tell(outcome, detail, recipient, reply)
        this.onSettled({ command, outcome, detail, recipient })
      },
      acknowledge: () => tell("acknowledged"),
      withdraw: () => tell("withdrawn"),
    })
    this.sent.push(command)
    return command
  }

  outcomesOf(command: Command): string[] {
    return this.told.filter((told) => told.command === command).map(({ outcome }) => outcome)
  }

  /** Bodies by outcome, in the order of their outcomes. */
  bodies(outcome: Outcome | "acknowledged" | "withdrawn"): string[] {
    const told = this.told.filter((each) => each.outcome === outcome)
    return told.map(({ command }) => textOf(command.body))
  }
}

export function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("latin1")
}

export function bytesOf(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, "latin1"))
}

/** What the connections of a worker share, and the worker's part in it. */
export class Harness {
  nowMs = START_MS
  steadyMs = 0
  readonly counters = new Counters()
  readonly window = {
    room: Number.POSITIVE_INFINITY,
    get hasRoom(): boolean {
      return this.room > 0
    },
  }
  readonly lines: {
    connection: Connection
    seq: number
    text: string
    answered: Command | null
  }[] = []
  /** When each of these lines was received. */
  readonly receivedAtMs: number[] = []
  readonly closed: { connection: Connection; reason: CloseReason }[] = []
  readonly flushDue = new Set<Connection>()
  readonly waiting = new Set<Connection>()
  readonly replying = new Set<Connection>()
  readonly atRate = new Set<Connection>()
  readonly rates: DeviceRates
  readonly aged: Connection[] = []
  lifetimeMs = Number.POSITIVE_INFINITY
  goodbye: Goodbye | null = null
  readonly connections: Connection[] = []
  readonly suspensions: boolean[] = []
  readonly backpressure: Backpressure
  readonly unfinishedLines = new UnfinishedLines(UNFINISHED)
  readonly scratch = new Uint8Array(BATCH_BYTES)
  readonly backEnd = new BackEnd()
  readonly limits: ConnectionLimits
  onClosed: () => void = () => undefined

  constructor(
    { linesPerS = 0, bytesPerS = 0, ...limits }: Partial<ConnectionLimits & DeviceRateLimits> = {},
    maxHeldBytes = 1_000_000,
  ) {
    this.limits = { ...LIMITS, ...limits }
    this.rates = new DeviceRates({ linesPerS, bytesPerS })
    this.backpressure = new Backpressure(maxHeldBytes, this.window, (suspended) => {
      this.suspensions.push(suspended)
      for (const connection of this.connections) {
        if (suspended) connection.pause("memory")
        else connection.resume("memory")
      }
    })
  }

  /** A connection during its handshake. */
  accept(): { connection: Connection; socket: ScriptedSocket } {
    const socket = new ScriptedSocket()
    const connection = new Connection(`c${this.connections.length}`, socket, "192.0.2.1", {
      limits: this.limits,
      counters: this.counters,
      backpressure: this.backpressure,
      unfinishedLines: this.unfinishedLines,
      writtenIds: new WrittenIds(),
      scratch: this.scratch,
      nowMs: () => this.nowMs,
      steadyMs: () => this.steadyMs,
      lines: {
        take: (connection, seq, line, answered) => {
          expect(this.backpressure.hasRoom).toBe(true)
          this.window.room -= 1
          this.lines.push({ connection, seq, text: textOf(line), answered })
          this.receivedAtMs.push(connection.linesReceivedAtMs)
        },
      },
      flushSoon: (connection) => this.flushDue.add(connection),
      commandsWait: (connection) => this.waiting.add(connection),
      repliesWait: (connection) => this.replying.add(connection),
      rateOf: (deviceId, isNamed) => this.rates.of(deviceId, isNamed),
      rateReached: (connection) => this.atRate.add(connection),
      lifetimeMs: () => this.lifetimeMs,
      aged: (connection) => this.aged.push(connection),
      goodbye: this.goodbye,
      closed: (connection, reason) => {
        this.closed.push({ connection, reason })
        this.onClosed()
      },
    })
    socket.onTerminate = () => connection.socketClosed()
    this.connections.push(connection)
    return { connection, socket }
  }

  /** One that is open. */
  admit(peer: PeerInfo = PEER): { connection: Connection; socket: ScriptedSocket } {
    const { connection, socket } = this.accept()
    connection.admit("device-1", this.nowMs, peer)
    return { connection, socket }
  }

  flush(): void {
    const due = [...this.flushDue]
    this.flushDue.clear()
    for (const connection of due) connection.flush()
  }

  /** Lets the time go on and sweeps. */
  after(ms: number): void {
    this.nowMs += ms
    this.steadyMs += ms
    for (const connection of [...this.waiting]) {
      if (!connection.sweepCommands(this.nowMs)) this.waiting.delete(connection)
    }
    for (const connection of this.replying) {
      if (!connection.sweepReplies(this.nowMs, this.steadyMs)) this.replying.delete(connection)
    }
    for (const connection of this.atRate) {
      if (!connection.sweepRate(this.steadyMs)) this.atRate.delete(connection)
    }
    for (const connection of this.connections) {
      connection.sweep(this.steadyMs, DEADLINES)
    }
    this.unfinishedLines.sweep(this.steadyMs, false)
  }

  roomAgain(room: number): void {
    this.window.room = room
    this.backpressure.roomAgain()
  }

  texts(): string[] {
    return this.lines.map(({ text }) => text)
  }

  reasons(): CloseReason[] {
    return this.closed.map(({ reason }) => reason)
  }
}
