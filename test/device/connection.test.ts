/**
 * One connection with a scripted socket, a clock and a window that the test controls, and back-ends that count their
 * outcomes. First each behaviour separately, then any order of operations.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { Counters } from "../../src/counters.ts"
import { Backpressure } from "../../src/device/backpressure.ts"
import { CLOSE_REASONS, type CloseReason } from "../../src/device/close-reason.ts"
import type { Command, Outcome, Recipient } from "../../src/device/command.ts"
import { Connection, type ConnectionLimits, type PauseSource } from "../../src/device/connection.ts"
import { BATCH_BYTES } from "../../src/device/outgoing.ts"
import type { DeviceSocket } from "../../src/device/peer.ts"
import { UnfinishedLines } from "../../src/device/unfinished-lines.ts"
import { Acknowledgement } from "../../src/lines/acknowledgement.ts"
import { type TestCommand, testCommand } from "../support/commands.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const LIMITS: ConnectionLimits = {
  maxLineBytes: 20,
  maxOutgoingBytes: 60,
  slowDeviceTimeoutMs: 1_000,
  windowCommands: 4,
  gapTimeoutMs: 50,
}
const HANDSHAKE_TIMEOUT_MS = 300
const IDLE_TIMEOUT_MS = 5_000
const IDENTIFY_TIMEOUT_MS = 400
const DEADLINES = {
  handshakeTimeoutMs: HANDSHAKE_TIMEOUT_MS,
  identifyTimeoutMs: IDENTIFY_TIMEOUT_MS,
  idleTimeoutMs: IDLE_TIMEOUT_MS,
}
/** Five lines of 20 bytes. */
const UNFINISHED = { maxPartialBytes: 100, lineTimeoutMs: 4_000 }
const CLOSING_MS = 2_000
const START_MS = 1_000_000
const PEER = { remoteAddress: "192.0.2.1", tlsVersion: "TLSv1.3", fingerprint: null }

/** A socket that accepts `room` bytes in total, then none, and records its calls. */
class ScriptedSocket implements DeviceSocket {
  wire = ""
  room = Number.POSITIVE_INFINITY
  state: "open" | "ended" | "gone" = "open"
  paused = false
  readonly calls: string[] = []
  /** Called first in `write`. */
  beforeWrite: () => void = () => undefined
  /** What `terminate` and `end` do besides, as Bun may call the close handler in them. */
  onTerminate: () => void = () => undefined
  onEnd: () => void = () => undefined

  write(bytes: Uint8Array): number {
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

interface Told {
  readonly command: Command
  readonly outcome: Outcome | "acknowledged" | "withdrawn"
  readonly detail: string
  readonly recipient: Recipient | null
}

/** A back-end: sends commands and records their outcomes in order. */
class BackEnd {
  readonly sent: Command[] = []
  readonly told: Told[] = []
  onSettled: (told: Told) => void = () => undefined

  command(text: string, about: Partial<Command> = {}): TestCommand {
    const tell = (outcome: Told["outcome"], detail = "", recipient: Recipient | null = null) => {
      this.told.push({ command, outcome, detail, recipient })
    }
    const command = testCommand({
      body: bytesOf(text),
      ...about,
      settle: (outcome, detail, recipient) => {
        tell(outcome, detail, recipient)
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

function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("latin1")
}

function bytesOf(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, "latin1"))
}

/** Ends a flush that would go on for ever, which no time-out of a test can. */
class EndingCounters extends Counters {
  #bytesOut = 0
  #changes = 0

  constructor() {
    super()
    Object.defineProperty(this, "commandBytesOut", {
      get: () => this.#bytesOut,
      set: (bytes: number) => {
        this.#changes += 1
        if (this.#changes > 10_000) throw new Error("a flush without end")
        this.#bytesOut = bytes
      },
    })
  }
}

/** What the connections of a worker share, and the worker's part in it. */
class Harness {
  nowMs = START_MS
  steadyMs = 0
  readonly counters = new EndingCounters()
  readonly window = {
    room: Number.POSITIVE_INFINITY,
    get hasRoom(): boolean {
      return this.room > 0
    },
  }
  readonly lines: { connection: Connection; seq: number; text: string }[] = []
  readonly closed: { connection: Connection; reason: CloseReason }[] = []
  readonly flushDue = new Set<Connection>()
  readonly waiting = new Set<Connection>()
  readonly connections: Connection[] = []
  readonly suspensions: boolean[] = []
  readonly backpressure: Backpressure
  readonly unfinishedLines = new UnfinishedLines(UNFINISHED)
  readonly scratch = new Uint8Array(BATCH_BYTES)
  readonly backEnd = new BackEnd()
  readonly limits: ConnectionLimits
  onClosed: () => void = () => undefined

  constructor(limits: Partial<ConnectionLimits> = {}, maxHeldBytes = 1_000_000) {
    this.limits = { ...LIMITS, ...limits }
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
    const connection = new Connection(`c${this.connections.length}`, socket, {
      limits: this.limits,
      counters: this.counters,
      backpressure: this.backpressure,
      unfinishedLines: this.unfinishedLines,
      scratch: this.scratch,
      nowMs: () => this.nowMs,
      steadyMs: () => this.steadyMs,
      lines: {
        take: (connection, seq, line) => {
          expect(this.backpressure.hasRoom).toBe(true)
          this.window.room -= 1
          this.lines.push({ connection, seq, text: textOf(line) })
        },
      },
      flushSoon: (connection) => this.flushDue.add(connection),
      commandsWait: (connection) => this.waiting.add(connection),
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
  admit(): { connection: Connection; socket: ScriptedSocket } {
    const { connection, socket } = this.accept()
    connection.admit("device-1", this.nowMs, PEER)
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

describe("admission", () => {
  test("handshaking, then open with an endpoint for the device", () => {
    const harness = new Harness()
    const { connection } = harness.accept()
    expect([connection.state, connection.endpoint]).toEqual(["handshaking", null])
    connection.admit("device-1", START_MS + 5, PEER)
    expect(connection.state).toBe("open")
    expect(connection.endpoint?.recipient).toEqual({
      deviceId: "device-1",
      connectionId: connection.id,
      epoch: START_MS + 5,
    })
    expect(connection.peer).toEqual(PEER)
  })

  test("a second call has no effect", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    const { endpoint } = connection
    connection.admit("device-2", START_MS, PEER)
    expect(connection.endpoint).toBe(endpoint)
    connection.close("kicked")
    connection.admit("device-2", START_MS, PEER)
    expect(connection.state).toBe("closing")
  })

  test("a command before it, or after a failed handshake, ends as offline", () => {
    const harness = new Harness()
    const { connection } = harness.accept()
    const { backEnd } = harness
    connection.offer(backEnd.command("a"))
    connection.socketClosed()
    connection.offer(backEnd.command("b"))
    expect(backEnd.told.map(({ outcome, recipient }) => [outcome, recipient])).toEqual([
      ["offline", null],
      ["offline", null],
    ])
  })

  test("while reading is suspended the device is not read at first", () => {
    const harness = new Harness({}, 5)
    const { connection } = harness.admit()
    harness.window.room = 0
    connection.received(bytesOf("123\n456\n"))
    expect(harness.suspensions).toEqual([true])
    const second = harness.admit()
    expect(second.socket.calls).toEqual(["pause"])
    harness.roomAgain(10)
    expect(harness.suspensions).toEqual([true, false])
    expect(second.socket.calls).toEqual(["pause", "resume"])
  })
})

describe("lines from the device", () => {
  test("are numbered from 0 and passed on; empty ones are a sign of life and counted", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    connection.received(bytesOf("a\r\n\n\r\nb"))
    connection.received(bytesOf("c\n\0\xff\n"))
    expect(harness.lines.map(({ seq, text }) => [seq, text])).toEqual([
      [0, "a"],
      [1, "bc"],
      [2, "\0\xff"],
    ])
    const { linesIn, lineBytesIn, emptyLines } = harness.counters
    expect([linesIn, lineBytesIn, emptyLines]).toEqual([3, 5, 2])
    expect(connection.endpoint?.linesIn).toBe(3)
  })

  test("the window full in the middle of a chunk: the rest waits, unread", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    harness.window.room = 2
    connection.received(bytesOf("a\nb\nc\nd\nrest"))
    expect(harness.texts()).toEqual(["a", "b"])
    expect(socket.calls).toEqual(["pause"])
    expect([harness.backpressure.waitingCount, harness.backpressure.heldBytes]).toEqual([1, 8])
    expect([connection.drained, harness.counters.readingPaused]).toEqual([false, 1])
    harness.roomAgain(1)
    expect(harness.texts()).toEqual(["a", "b", "c"])
    expect([socket.paused, harness.backpressure.waitingCount]).toEqual([true, 1])
    harness.roomAgain(5)
    expect(harness.texts()).toEqual(["a", "b", "c", "d"])
    expect([socket.paused, harness.backpressure.waitingCount]).toEqual([false, 0])
    expect([connection.drained, harness.backpressure.heldBytes]).toEqual([true, 0])
    connection.received(bytesOf("!\n"))
    expect(harness.texts().at(-1)).toBe("rest!")
  })

  test("the window full exactly at the end of a chunk is no reason to wait", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    harness.window.room = 1
    connection.received(bytesOf("a\n"))
    expect([socket.paused, harness.backpressure.waitingCount]).toEqual([false, 0])
    connection.received(bytesOf("b"))
    expect([socket.paused, harness.backpressure.waitingCount]).toEqual([true, 1])
    harness.roomAgain(1)
    expect([socket.paused, harness.backpressure.waitingCount]).toEqual([false, 0])
  })

  test("bytes that arrive while it waits are kept in order", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    harness.window.room = 0
    for (const text of ["a\nb", "c\n", "d\n\n", "e\n"]) connection.received(bytesOf(text))
    expect([harness.backpressure.heldBytes, harness.backpressure.waitingCount]).toEqual([10, 1])
    expect(socket.calls).toEqual(["pause"])
    harness.roomAgain(100)
    expect(harness.texts()).toEqual(["a", "bc", "d", "e"])
    expect(harness.backpressure.heldBytes).toBe(0)
  })

  test("a line too long closes the connection after the lines before it were passed on", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    connection.received(bytesOf(`a\n${"x".repeat(21)}\nb\n`))
    expect(harness.texts()).toEqual(["a"])
    expect(harness.reasons()).toEqual(["line_too_long"])
    expect(socket.calls).toEqual(["shutdown"])
    expect([connection.drained, harness.backpressure.heldBytes]).toEqual([true, 0])
  })

  test("an unfinished line closes the connection as soon as it is too long", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    connection.received(bytesOf("x".repeat(20)))
    connection.received(bytesOf("\r"))
    expect(connection.state).toBe("open")
    connection.received(bytesOf("x"))
    expect(harness.reasons()).toEqual(["line_too_long"])
    expect(harness.counters.unterminatedBytes).toBe(22)
  })

  test("a line too long that waits for room closes the connection when it is parsed", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    harness.window.room = 0
    connection.received(bytesOf(`a\n${"x".repeat(21)}`))
    expect(connection.state).toBe("open")
    harness.roomAgain(10)
    expect([harness.texts(), harness.reasons()]).toEqual([["a"], ["line_too_long"]])
    expect([harness.backpressure.heldBytes, harness.counters.unterminatedBytes]).toEqual([0, 21])
  })

  test("bytes received after the close are counted and not parsed", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    connection.close("kicked")
    connection.received(bytesOf("a\nb\n"))
    connection.socketClosed()
    connection.received(bytesOf("c"))
    expect([harness.texts(), harness.counters.bytesAfterClose]).toEqual([[], 5])
  })
})

describe("an unfinished line", () => {
  const { lineTimeoutMs, maxPartialBytes } = UNFINISHED

  test("is timed from its first byte, however many bytes follow", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    connection.received(bytesOf("a"))
    for (let ms = 1_000; ms < lineTimeoutMs; ms += 1_000) {
      harness.after(1_000)
      connection.received(bytesOf("b"))
    }
    harness.after(999)
    expect(harness.reasons()).toEqual([])
    harness.after(1)
    expect(harness.reasons()).toEqual(["line_timeout"])
    expect(harness.unfinishedLines).toMatchObject({ bytes: 0, timedCount: 0 })
    expect(harness.counters.unterminatedBytes).toBe(4)
  })

  test("that begins after the end of another is timed separately", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    connection.received(bytesOf("a"))
    harness.after(lineTimeoutMs - 1)
    connection.received(bytesOf("\nb"))
    harness.after(lineTimeoutMs - 1)
    expect([harness.texts(), harness.reasons()]).toEqual([["a"], []])
    harness.after(1)
    expect(harness.reasons()).toEqual(["line_timeout"])
  })

  test("is not counted after its end, and complete lines never are", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    connection.received(bytesOf("a\nb\n"))
    expect(harness.unfinishedLines).toMatchObject({ bytes: 0, timedCount: 0 })
    connection.received(bytesOf("c\nde"))
    expect(harness.unfinishedLines).toMatchObject({ bytes: 2, timedCount: 1 })
    connection.received(bytesOf("f\n"))
    expect(harness.unfinishedLines).toMatchObject({ bytes: 0, timedCount: 0 })
    harness.after(lineTimeoutMs)
    expect(harness.reasons()).toEqual([])
  })

  test.each(["window", "memory", "drain"] as const)(
    "of a device that is not read (%s) is not timed, and has its full time afterwards",
    (source) => {
      const harness = new Harness()
      const { connection } = harness.admit()
      connection.received(bytesOf("a"))
      harness.after(lineTimeoutMs - 1)
      connection.pause(source)
      harness.after(2 * lineTimeoutMs)
      expect(harness.unfinishedLines).toMatchObject({ bytes: 1, timedCount: 0 })
      connection.resume(source)
      harness.after(lineTimeoutMs - 1)
      expect(harness.unfinishedLines.timedCount).toBe(1)
      expect(harness.reasons()).toEqual([])
      harness.after(1)
      expect(harness.reasons()).toEqual(["line_timeout"])
    },
  )

  test("whose end waits for room in the window is not unfinished", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    connection.received(bytesOf("a"))
    harness.window.room = 0
    connection.received(bytesOf("b\nc"))
    expect([harness.backpressure.heldBytes, harness.unfinishedLines.bytes]).toEqual([3, 1])
    harness.after(2 * lineTimeoutMs)
    expect(harness.reasons()).toEqual([])
    harness.roomAgain(1)
    expect(harness.texts()).toEqual(["ab"])
    harness.roomAgain(1)
    expect([harness.backpressure.heldBytes, harness.unfinishedLines.bytes]).toEqual([0, 1])
    harness.after(lineTimeoutMs)
    expect(harness.reasons()).toEqual(["line_timeout"])
  })

  test("beyond MAX_PARTIAL_BYTES only the connection of the oldest one is closed", () => {
    const harness = new Harness()
    const devices = Array.from({ length: 7 }, () => harness.admit().connection)
    for (const each of devices.slice(0, 5)) each.received(bytesOf("x".repeat(20)))
    expect(harness.unfinishedLines.bytes).toBe(maxPartialBytes)
    devices[0]?.received(bytesOf("\n"))
    devices[5]?.received(bytesOf("x".repeat(20)))
    expect(harness.reasons()).toEqual([])
    devices[6]?.received(bytesOf("x"))
    expect(harness.closed.map(({ connection }) => connection)).toEqual([devices[1]] as Connection[])
    expect(harness.reasons()).toEqual(["line_timeout"])
    expect(harness.unfinishedLines.bytes).toBe(81)
  })

  test("beyond MAX_PARTIAL_BYTES paused devices stay, and one whose line grows is closed", () => {
    const harness = new Harness()
    const devices = Array.from({ length: 6 }, () => harness.admit().connection)
    for (const each of devices.slice(0, 5)) {
      each.received(bytesOf("x".repeat(20)))
      each.pause("memory")
    }
    devices[5]?.received(bytesOf("a\nb"))
    expect(harness.closed.map(({ connection }) => connection)).toEqual([devices[5]] as Connection[])
    expect([harness.texts(), harness.reasons()]).toEqual([["a"], ["line_timeout"]])
    expect(harness.unfinishedLines.bytes).toBe(maxPartialBytes)
  })

  test.each<[string, (connection: Connection) => void]>([
    ["closed", (connection) => connection.close("kicked")],
    ["cut", (connection) => connection.socketClosed()],
    ["too long", (connection) => connection.received(bytesOf("x".repeat(30)))],
  ])("of a connection that is %s is forgotten", (_, end) => {
    const harness = new Harness()
    const { connection } = harness.admit()
    connection.received(bytesOf("abc"))
    end(connection)
    expect(harness.unfinishedLines).toMatchObject({ bytes: 0, timedCount: 0 })
  })
})

describe("after the close", () => {
  test("lines that wait for room are still passed on, then the unterminated bytes are counted", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    harness.window.room = 1
    connection.received(bytesOf("a\nb\nc\nrest"))
    connection.socketClosed()
    expect([harness.reasons(), harness.texts()]).toEqual([["peer_closed"], ["a"]])
    expect([connection.drained, harness.counters.unterminatedBytes]).toEqual([false, 0])
    harness.roomAgain(1)
    harness.roomAgain(1)
    expect(harness.lines.map(({ seq, text }) => [seq, text])).toEqual([
      [0, "a"],
      [1, "b"],
      [2, "c"],
    ])
    harness.roomAgain(1)
    expect([connection.drained, harness.counters.unterminatedBytes]).toEqual([true, 4])
    expect(harness.backpressure).toMatchObject({ heldBytes: 0, waitingCount: 0 })
    expect(socket.calls).toEqual(["pause"])
  })

  test("unterminated bytes are counted once for each kind of close", () => {
    for (const end of [
      (connection: Connection) => connection.close("kicked"),
      (connection: Connection) => connection.socketClosed(),
    ]) {
      const harness = new Harness()
      const { connection } = harness.admit()
      connection.received(bytesOf("a\nrest"))
      end(connection)
      connection.socketClosed()
      connection.close("idle")
      expect(harness.counters.unterminatedBytes).toBe(4)
    }
  })

  test("a line too long is discarded and does not change the reason", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    harness.window.room = 0
    connection.received(bytesOf(`a\n${"x".repeat(21)}`))
    connection.close("kicked")
    harness.roomAgain(10)
    expect([harness.texts(), harness.reasons()]).toEqual([["a"], ["kicked"]])
    expect(harness.backpressure).toMatchObject({ heldBytes: 0, waitingCount: 0 })
    expect(harness.counters.unterminatedBytes).toBe(21)
  })
})

describe("pause and resume", () => {
  test("the socket is paused by the first source and resumed by the last", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    const sources: PauseSource[] = ["window", "memory", "drain"]
    for (const source of sources) connection.pause(source)
    connection.pause("memory")
    expect(socket.calls).toEqual(["pause"])
    for (const source of sources.toReversed()) {
      expect(socket.calls).toEqual(["pause"])
      connection.resume(source)
    }
    connection.resume("window")
    expect(socket.calls).toEqual(["pause", "resume"])
  })

  test("a paused connection that is closed is read again, so that the peer's close is detected", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    connection.pause("memory")
    connection.close("drained")
    expect(socket.calls).toEqual(["pause", "resume", "shutdown"])
    connection.resume("memory")
    connection.pause("drain")
    expect(socket.calls).toEqual(["pause", "resume", "shutdown"])
  })

  test("a suspended connection still accepts commands", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    connection.pause("memory")
    connection.offer(harness.backEnd.command("a"))
    harness.flush()
    expect(socket.wire).toBe("a\n")
  })
})

describe("commands", () => {
  test("are written with an LF each in one write, and settled as written with the recipient", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    let writes = 0
    socket.beforeWrite = () => {
      writes += 1
    }
    const commands = ["a", "", "b c"].map((text) => harness.backEnd.command(text))
    for (const command of commands) connection.offer(command)
    expect([socket.wire, connection.outgoingBytes]).toEqual(["", 7])
    harness.flush()
    expect([socket.wire, writes, connection.outgoingBytes]).toEqual(["a\n\nb c\n", 1, 0])
    const recipient = { deviceId: "device-1", connectionId: connection.id, epoch: START_MS }
    expect(harness.backEnd.told).toEqual(
      commands.map((command) => ({ command, outcome: "written", detail: "", recipient })),
    )
    expect([harness.counters.commandBytesOut, connection.endpoint?.linesOut]).toEqual([7, 3])
  })

  test("partial writes: settled when the socket has accepted the last byte", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    socket.room = 0
    for (const text of ["abc", "", "de"]) connection.offer(harness.backEnd.command(text))
    const toldAfter: number[] = []
    for (let i = 0; i < 8; i += 1) {
      socket.room = 1
      connection.flush()
      toldAfter.push(harness.backEnd.told.length)
    }
    expect(socket.wire).toBe("abc\n\nde\n")
    expect(toldAfter).toEqual([0, 0, 0, 1, 2, 2, 2, 3])
  })

  test("a waiting command expires, one that was offered to the socket does not", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    const { backEnd } = harness
    socket.room = 1
    connection.offer(backEnd.command("offered", { expiresAtMs: START_MS + 10 }))
    harness.flush()
    connection.offer(backEnd.command("waiting", { expiresAtMs: START_MS + 10 }))
    connection.offer(backEnd.command("lasting"))
    harness.nowMs += 10
    socket.room = 100
    connection.flush()
    expect(socket.wire).toBe("offered\nlasting\n")
    expect([backEnd.bodies("written"), backEnd.bodies("expired")]).toEqual([
      ["offered", "lasting"],
      ["waiting"],
    ])
  })

  test("commands beyond MAX_OUTGOING_BYTES end as slow_device, the others are written", () => {
    const harness = new Harness({ maxOutgoingBytes: 10 })
    const { connection, socket } = harness.admit()
    const { backEnd } = harness
    socket.room = 0
    for (const text of ["1234", "12345", "1234", ""]) connection.offer(backEnd.command(text))
    expect(backEnd.bodies("slow_device")).toEqual(["12345", ""])
    expect(connection.state).toBe("open")
    socket.room = 100
    connection.flush()
    expect([socket.wire, backEnd.bodies("written")]).toEqual(["1234\n1234\n", ["1234", "1234"]])
  })

  test("numbered ones wait for the missing number until the gap is given up; then that number is late", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    const { backEnd } = harness
    connection.offer(backEnd.command("two", { seq: 2 }))
    expect([...harness.waiting]).toEqual([connection])
    expect(connection.sweepCommands(harness.nowMs + LIMITS.gapTimeoutMs - 1)).toBe(true)
    connection.offer(backEnd.command("zero", { seq: 0 }))
    harness.flush()
    expect(socket.wire).toBe("zero\n")
    harness.after(LIMITS.gapTimeoutMs)
    harness.flush()
    connection.offer(backEnd.command("one", { seq: 1 }))
    connection.offer(backEnd.command("two again", { seq: 2 }))
    expect(socket.wire).toBe("zero\ntwo\n")
    expect([backEnd.bodies("late"), backEnd.bodies("duplicate")]).toEqual([["one"], ["two again"]])
    expect([harness.counters.gapsSkipped, harness.waiting.size]).toEqual([1, 0])
  })

  test("a gap given up because the buffer is full is counted too", () => {
    const harness = new Harness({ windowCommands: 1 })
    const { connection } = harness.admit()
    connection.offer(harness.backEnd.command("two", { seq: 2 }))
    connection.offer(harness.backEnd.command("four", { seq: 4 }))
    expect(harness.counters.gapsSkipped).toBe(1)
  })

  test("a command whose number waits in the closed connection ends as closed", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    const { backEnd } = harness
    connection.offer(backEnd.command("held", { seq: 5 }))
    connection.close("kicked")
    connection.offer(backEnd.command("after"))
    expect(backEnd.bodies("closed")).toEqual(["held", "after"])
    harness.after(LIMITS.gapTimeoutMs)
    expect(harness.waiting.size).toBe(0)
  })

  test("a message id is written once, however often it is delivered", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    const { backEnd } = harness
    for (let i = 0; i < 4; i += 1) {
      connection.offer(backEnd.command("once", { messageId: "m" }))
      harness.flush()
    }
    expect(socket.wire).toBe("once\n")
    expect(backEnd.told.map(({ outcome }) => outcome)).toEqual([
      "written",
      "duplicate",
      "duplicate",
      "duplicate",
    ])
  })

  test("a message id that waits for the socket is written once too", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    for (let i = 0; i < 4; i += 1) {
      connection.offer(harness.backEnd.command("once", { messageId: "m" }))
    }
    harness.flush()
    expect(socket.wire).toBe("once\n")
  })

  test("one that another worker forwards too is acknowledged, and the first delivery gets the outcome", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    const { backEnd } = harness
    socket.room = 2
    const first = backEnd.command("once", { messageId: "m" })
    connection.offer(first)
    harness.flush()
    const again = backEnd.command("once", { messageId: "m", redelivered: true })
    connection.offer(again)
    socket.room = 100
    connection.flush()
    const later = backEnd.command("once", { messageId: "m", redelivered: true })
    connection.offer(later)
    expect(socket.wire).toBe("once\n")
    const outcomes = [first, again, later].map((command) => backEnd.outcomesOf(command))
    expect(outcomes).toEqual([["written"], ["acknowledged"], ["acknowledged"]])
  })

  test("lost ones are given back unless bytes of them were offered to the socket", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    const { backEnd } = harness
    socket.room = 2
    const large = "waits"
    const commands = [
      backEnd.command("offered", { lost: true }),
      backEnd.command(large, { lost: true }),
      backEnd.command("stays"),
      backEnd.command("at a gap", { lost: true, seq: 3 }),
    ]
    for (const command of commands.slice(0, 1)) connection.offer(command)
    harness.flush()
    for (const command of commands.slice(1)) connection.offer(command)
    connection.withdrawLost()
    expect(connection.endpoint?.heldCommands).toBe(0)
    socket.room = Number.POSITIVE_INFINITY
    connection.flush()
    expect(socket.wire).toBe("offered\nstays\n")
    const outcomes = commands.map((command) => backEnd.outcomesOf(command))
    expect(outcomes).toEqual([["written"], ["withdrawn"], ["written"], ["withdrawn"]])
  })

  describe.each([
    ["id", { messageId: "m" }],
    ["number", { seq: 0 }],
    ["id and number", { messageId: "m", seq: 0 }],
  ])("redelivered with the %s of another but not its body", (_name, about) => {
    test.each([
      ["shorter", "x", 0],
      ["longer", "abcdefghijkl", 0],
      ["shorter, the other taken in part", "x", 2],
      ["longer, the other taken in part", "abcdefghijkl", 2],
    ])(
      "%s: both have one outcome together, and the next command has its own",
      (_case, body, takenBytes) => {
        const harness = new Harness()
        const { connection, socket } = harness.admit()
        const { backEnd } = harness
        socket.room = takenBytes
        connection.offer(backEnd.command("abcdef", about))
        if (takenBytes > 0) harness.flush()
        connection.offer(backEnd.command(body, { ...about, redelivered: true }))
        socket.room = 100
        connection.flush()
        const lines = socket.wire.split("\n").slice(0, -1)
        expect(lines).toEqual(backEnd.bodies("written"))
        expect(connection.outgoingBytes).toBe(0)
        for (const command of backEnd.sent) expect(backEnd.outcomesOf(command)).toHaveLength(1)

        const next = backEnd.command("next")
        connection.offer(next)
        socket.room = 4
        connection.flush()
        expect(backEnd.outcomesOf(next)).toEqual([])
        socket.room = 1
        connection.flush()
        expect(backEnd.outcomesOf(next)).toEqual(["written"])
      },
    )
  })

  test("an acknowledgement is written like a command; one that does not fit closes the connection as slow_device", () => {
    const harness = new Harness({ maxOutgoingBytes: 12 })
    const { connection, socket } = harness.admit()
    connection.offer(new Acknowledgement(connection, 7))
    harness.flush()
    expect(socket.wire).toBe("ACK 7\n")
    socket.room = 0
    connection.offer(harness.backEnd.command("12345678"))
    connection.offer(new Acknowledgement(connection, 8))
    expect(harness.reasons()).toEqual(["slow_device"])
    expect(harness.backEnd.bodies("slow_device")).toEqual(["12345678"])
  })
})

describe("deadlines", () => {
  test.each([-3_600_000, 3_600_000])(
    "setting the clock by %i ms closes no connection",
    (jumpMs) => {
      const harness = new Harness()
      harness.accept()
      harness.admit()
      harness.nowMs += jumpMs
      harness.after(HANDSHAKE_TIMEOUT_MS - 1)
      expect(harness.reasons()).toEqual([])
    },
  )

  test("handshake_timeout", () => {
    const harness = new Harness()
    const { connection, socket } = harness.accept()
    harness.after(HANDSHAKE_TIMEOUT_MS - 1)
    expect(connection.state).toBe("handshaking")
    harness.after(1)
    expect([connection.state, harness.reasons()]).toEqual(["closed", ["handshake_timeout"]])
    expect(socket.calls).toEqual(["terminate"])
  })

  test("not_identified, counted from the end of the handshake, even if bytes were received", () => {
    const harness = new Harness()
    const { connection } = harness.accept()
    harness.after(HANDSHAKE_TIMEOUT_MS - 1)
    connection.identify()
    harness.after(IDENTIFY_TIMEOUT_MS - 1)
    expect(connection.state).toBe("identifying")
    harness.after(1)
    expect(harness.reasons()).toEqual(["not_identified"])
  })

  test("idle, counted from the last bytes, an empty line included", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    harness.after(IDLE_TIMEOUT_MS - 1)
    connection.received(bytesOf("\n"))
    harness.after(IDLE_TIMEOUT_MS - 1)
    expect(connection.state).toBe("open")
    harness.after(1)
    expect([connection.state, harness.reasons()]).toEqual(["closing", ["idle"]])
    expect(socket.calls).toEqual(["shutdown"])
  })

  test("commands are no sign of the device's life", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    harness.after(IDLE_TIMEOUT_MS - 1)
    connection.offer(harness.backEnd.command("a"))
    harness.flush()
    harness.after(1)
    expect(harness.reasons()).toEqual(["idle"])
  })

  test.each(["window", "memory", "drain"] as const)(
    "not idle while it is not read (%s), and then it has its full time again",
    (source) => {
      const harness = new Harness()
      const { connection } = harness.admit()
      connection.pause(source)
      harness.after(IDLE_TIMEOUT_MS * 3)
      connection.resume(source)
      harness.after(IDLE_TIMEOUT_MS - 1)
      expect(connection.state).toBe("open")
      harness.after(1)
      expect(harness.reasons()).toEqual(["idle"])
    },
  )

  test("slow_device: no byte accepted for the time-out, and waiting commands end with it", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    const { backEnd } = harness
    socket.room = 3
    for (const text of ["abc", "waiting"]) connection.offer(backEnd.command(text))
    connection.offer(backEnd.command("held", { seq: 9 }))
    harness.flush()
    harness.after(LIMITS.slowDeviceTimeoutMs - 1)
    expect(connection.state).toBe("open")
    harness.after(1)
    expect(harness.reasons()).toEqual(["slow_device"])
    expect(backEnd.bodies("slow_device")).toEqual(["abc", "waiting", "held"])
  })

  test("a device that accepts single bytes is not slow", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    socket.room = 1
    connection.offer(harness.backEnd.command("abcdef"))
    harness.flush()
    for (let i = 0; i < 6; i += 1) {
      connection.received(bytesOf("\n"))
      harness.after(LIMITS.slowDeviceTimeoutMs - 1)
      socket.room = 1
      connection.flush()
    }
    expect([connection.state, harness.backEnd.bodies("written")]).toEqual(["open", ["abcdef"]])
    harness.after(LIMITS.slowDeviceTimeoutMs * 2)
    expect(connection.state).toBe("open")
  })

  test("offering the same bytes again does not extend the time-out", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    socket.room = 0
    for (let i = 0; i < 4; i += 1) {
      connection.offer(harness.backEnd.command("a"))
      harness.flush()
      harness.after(LIMITS.slowDeviceTimeoutMs / 4)
    }
    expect(harness.reasons()).toEqual(["slow_device"])
  })

  test("the socket of a peer that does not close is terminated", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    connection.close("kicked")
    harness.after(CLOSING_MS - 1)
    expect([connection.state, socket.calls]).toEqual(["closing", ["shutdown"]])
    harness.after(1)
    expect([connection.state, socket.calls]).toEqual(["closed", ["shutdown", "terminate"]])
    harness.after(CLOSING_MS * 10)
    expect(socket.calls).toEqual(["shutdown", "terminate"])
    expect(harness.reasons()).toEqual(["kicked"])
  })
})

describe("closing", () => {
  test.each(CLOSE_REASONS)("close(%p) of an open connection ends it for that reason", (reason) => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    connection.close(reason)
    expect([connection.state, harness.reasons(), socket.calls]).toEqual([
      "closing",
      [reason],
      ["shutdown"],
    ])
    connection.socketClosed()
    expect([connection.state, harness.reasons()]).toEqual(["closed", [reason]])
  })

  test.each(CLOSE_REASONS)("close(%p) during the handshake terminates the socket", (reason) => {
    const harness = new Harness()
    const { connection, socket } = harness.accept()
    connection.close(reason)
    expect([connection.state, harness.reasons(), socket.calls]).toEqual([
      "closed",
      [reason],
      ["terminate"],
    ])
  })

  test("the first reason stays", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    connection.close("kicked")
    connection.close("fault")
    connection.socketClosed()
    connection.socketClosed()
    connection.close("idle")
    expect([harness.reasons(), socket.calls]).toEqual([["kicked"], ["shutdown"]])
  })

  test("the socket closes: peer_closed when open, handshake_failed before", () => {
    const harness = new Harness()
    harness.admit().connection.socketClosed()
    harness.accept().connection.socketClosed()
    expect(harness.reasons()).toEqual(["peer_closed", "handshake_failed"])
    expect(harness.connections.map(({ state }) => state)).toEqual(["closed", "closed"])
  })

  test("bytes that the socket still accepts are written first, the rest ends as closed", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    const { backEnd } = harness
    socket.room = 4
    for (const text of ["a", "b", "c"]) connection.offer(backEnd.command(text))
    connection.close("drained")
    expect(socket.wire).toBe("a\nb\n")
    expect([backEnd.bodies("written"), backEnd.bodies("closed")]).toEqual([["a", "b"], ["c"]])
    connection.flush()
    expect([socket.wire, backEnd.told.length]).toEqual(["a\nb\n", 3])
  })

  test("a command that was accepted in part ends as closed", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    socket.room = 2
    connection.offer(harness.backEnd.command("abc"))
    harness.flush()
    connection.socketClosed()
    expect(harness.backEnd.bodies("closed")).toEqual(["abc"])
  })

  test("a close while the first close settles a command has no effect", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    const { backEnd } = harness
    socket.room = 0
    backEnd.onSettled = () => connection.close("fault")
    harness.onClosed = () => connection.close("idle")
    connection.offer(backEnd.command("a"))
    connection.offer(backEnd.command("b", { seq: 3 }))
    connection.close("kicked")
    expect(harness.reasons()).toEqual(["kicked"])
    expect(backEnd.bodies("closed")).toEqual(["a", "b"])
  })

  test("a command offered while another is settled by the close ends as closed", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    const { backEnd } = harness
    socket.room = 0
    connection.offer(backEnd.command("a"))
    backEnd.onSettled = ({ command }) => {
      if (textOf(command.body) === "a") connection.offer(backEnd.command("b"))
    }
    connection.close("kicked")
    expect(backEnd.told.map(({ outcome }) => outcome)).toEqual(["closed", "closed"])
  })
})

describe("reentrant closes", () => {
  test("the socket closes during a write: the connection and each command end once", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    socket.beforeWrite = () => {
      socket.state = "gone"
      connection.socketClosed()
    }
    connection.offer(harness.backEnd.command("a"))
    harness.flush()
    expect([connection.state, harness.reasons()]).toEqual(["closed", ["peer_closed"]])
    expect(harness.backEnd.told.map(({ outcome }) => outcome)).toEqual(["closed"])
    expect(connection.outgoingBytes).toBe(0)
  })

  test("the socket closes during the write of a close: the first reason stays", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    connection.offer(harness.backEnd.command("a"))
    socket.beforeWrite = () => {
      socket.state = "gone"
      connection.socketClosed()
    }
    connection.close("idle")
    expect(harness.reasons()).toHaveLength(1)
    expect(connection.state).toBe("closed")
    expect(harness.backEnd.told.map(({ outcome }) => outcome)).toEqual(["closed"])
  })

  test("the socket closes during the shutdown of a close, as after a reset by the peer", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    socket.onEnd = () => connection.socketClosed()
    connection.close("idle")
    harness.after(CLOSING_MS)
    expect([connection.state, harness.reasons(), socket.calls]).toEqual([
      "closed",
      ["idle"],
      ["shutdown"],
    ])
  })

  test("a source closes when the write of a close settles its command: everything ends once", () => {
    const harness = new Harness()
    const { connection } = harness.admit()
    harness.backEnd.onSettled = () => connection.close("kicked")
    connection.offer(harness.backEnd.command("a"))
    connection.close("drained")
    expect(harness.reasons()).toHaveLength(1)
    expect(harness.backEnd.bodies("written")).toEqual(["a"])
  })

  test("a source closes when its command does not fit: commands released with it end too", () => {
    const harness = new Harness({ maxOutgoingBytes: 8 })
    const { connection } = harness.admit()
    const { backEnd } = harness
    backEnd.onSettled = ({ outcome }) => {
      if (outcome === "slow_device") connection.close("slow_device")
    }
    connection.offer(backEnd.command("2", { seq: 2 }))
    connection.offer(backEnd.command("12345678", { seq: 1 }))
    connection.offer(backEnd.command("0", { seq: 0 }))
    harness.flush()
    connection.socketClosed()
    for (const command of backEnd.sent) expect(backEnd.outcomesOf(command)).toHaveLength(1)
  })

  test("a source closes when its command expires: nothing is written after the close", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit()
    const { backEnd } = harness
    backEnd.onSettled = ({ outcome }) => {
      if (outcome === "expired") connection.close("kicked")
    }
    connection.offer(backEnd.command("over", { expiresAtMs: START_MS }))
    connection.offer(backEnd.command("next"))
    socket.beforeWrite = () => expect(connection.state).toBe("open")
    harness.flush()
    const written = backEnd.bodies("written")
    expect(socket.wire).toBe(written.map((text) => `${text}\n`).join(""))
    for (const command of backEnd.sent) expect(backEnd.outcomesOf(command)).toHaveLength(1)
    expect(connection.outgoingBytes).toBe(0)
  })

  test("a source closes another connection when its command expires: each device gets its own bytes", () => {
    // All connections share one buffer for what they offer to their sockets.
    const harness = new Harness()
    const first = harness.admit()
    const second = harness.admit()
    const { backEnd } = harness
    backEnd.onSettled = ({ outcome }) => {
      if (outcome === "expired") second.connection.close("taken_over")
    }
    first.connection.offer(backEnd.command("over", { expiresAtMs: START_MS }))
    first.connection.offer(backEnd.command("for the first"))
    second.connection.offer(backEnd.command("FOR SECOND"))
    first.connection.flush()
    expect([first.socket.wire, second.socket.wire]).toEqual(["for the first\n", "FOR SECOND\n"])
  })
})

test("a handshake can be completed while reading is suspended", () => {
  // A paused socket would get no more of the handshake and end as handshake_timeout.
  const harness = new Harness({}, 5)
  const { socket } = harness.accept()
  const { connection } = harness.admit()
  harness.window.room = 0
  connection.received(bytesOf("123\n456\n"))
  expect(harness.suspensions).toEqual([true])
  expect(socket.paused).toBe(false)
})

type Step =
  | { readonly kind: "receive"; readonly text: string }
  | { readonly kind: "offer"; readonly n: number; readonly ttlMs: number }
  | { readonly kind: "misuse"; readonly text: string; readonly about: Authenticator }
  | { readonly kind: "redeliver"; readonly which: number }
  | { readonly kind: "socket"; readonly room: number }
  | { readonly kind: "flush" }
  | { readonly kind: "after"; readonly ms: number }
  | { readonly kind: "room"; readonly room: number }
  | { readonly kind: "pause" | "resume"; readonly source: "memory" | "drain" }
  | { readonly kind: "close"; readonly reason: CloseReason }
  | { readonly kind: "socketClosed" }

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant("receive" as const),
      text: fc
        .array(fc.constantFrom("a", "bc", "\r", "\n", "\n", "\r\n", "\0", "\xff"), {
          maxLength: 20,
          size: "max",
        })
        .map((parts) => parts.join("")),
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constant("offer" as const),
      n: fc.nat(11),
      ttlMs: fc.oneof(fc.constant(Number.POSITIVE_INFINITY), fc.nat(60)),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ kind: fc.constant("redeliver" as const), which: fc.nat(15) }),
  },
  { weight: 5, arbitrary: fc.record({ kind: fc.constant("socket" as const), room: fc.nat(30) }) },
  { weight: 5, arbitrary: fc.constant({ kind: "flush" } as const) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("after" as const), ms: fc.nat(600) }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant("room" as const), room: fc.nat(4) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constantFrom("pause" as const, "resume" as const),
      source: fc.constantFrom("memory" as const, "drain" as const),
    }),
  },
)
const ending: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ kind: fc.constant("close" as const), reason: fc.constantFrom(...CLOSE_REASONS) }),
  fc.constant({ kind: "socketClosed" } as const),
)

function sequenceOf(step: fc.Arbitrary<Step>): fc.Arbitrary<Step[]> {
  const before = fc.array(step, { maxLength: 60, size: "max" })
  const after = fc.array(fc.oneof(step, ending), { maxLength: 8, size: "max" })
  return fc.tuple(before, ending, after).map(([first, end, last]) => [...first, end, ...last])
}

const sequence = sequenceOf(step)

interface Authenticator {
  readonly seq: number | null
  readonly messageId: string | null
}

/** What belongs to n is always the same: a number and an id, one of them, or neither. */
function identityOf(n: number): Authenticator {
  const kind = n % 4
  return { seq: kind < 2 ? n : null, messageId: kind % 2 === 0 ? `id-${n}` : null }
}

/** And its body, of 0 to 12 bytes. */
function bodyOf(n: number): string {
  return String(n % 10).repeat((n * 5) % 13)
}

/** A back-end that gives one number or id to different commands, some of them redelivered. */
const misuse: fc.Arbitrary<Step> = fc.record({
  kind: fc.constant("misuse" as const),
  text: fc.constantFrom("", "x", "longer", "longest of all"),
  about: fc.record({
    seq: fc.option(fc.nat(4)),
    messageId: fc.option(fc.constantFrom("a", "b")),
    redelivered: fc.boolean(),
  }),
})

/** Runs the steps against one connection and returns it all for judging. */
function run(steps: readonly Step[], react: (harness: Harness, connection: Connection) => void) {
  const harness = new Harness({}, 40)
  const { connection, socket } = harness.admit()
  const { backEnd } = harness
  let received = ""
  react(harness, connection)
  harness.window.room = 3
  socket.room = 10
  for (const step of steps) {
    switch (step.kind) {
      case "receive":
        if (connection.state === "open") received += step.text
        connection.received(bytesOf(step.text))
        break
      case "offer": {
        const expiresAtMs = harness.nowMs + step.ttlMs
        const about = { ...identityOf(step.n), expiresAtMs }
        connection.offer(backEnd.command(bodyOf(step.n), about))
        break
      }
      case "misuse":
        connection.offer(backEnd.command(step.text, step.about))
        break
      case "redeliver": {
        const before = backEnd.sent[step.which]
        if (before === undefined) break
        const { body, ...about } = before
        connection.offer(backEnd.command(textOf(body), { ...about, redelivered: true }))
        break
      }
      case "socket":
        socket.room = step.room
        connection.flush()
        break
      case "flush":
        harness.flush()
        break
      case "after":
        harness.after(step.ms)
        break
      case "room":
        harness.roomAgain(step.room)
        break
      case "pause":
        connection.pause(step.source)
        break
      case "resume":
        connection.resume(step.source)
        break
      case "close":
        connection.close(step.reason)
        break
      case "socketClosed":
        socket.state = "gone"
        connection.socketClosed()
    }
    expect(connection.outgoingBytes).toBeGreaterThanOrEqual(0)
    expect(connection.outgoingBytes).toBeLessThanOrEqual(LIMITS.maxOutgoingBytes)
  }
  // Drain and close the connection, as at the end of each connection.
  harness.flush()
  harness.roomAgain(1_000_000)
  harness.after(CLOSING_MS)
  socket.state = "gone"
  connection.socketClosed()
  return { harness, connection, socket, received }
}

/**
 * Checks the conditions that hold after any order of operations.
 * @param inOrder whether commands were settled in the order of writes. They are not when sources act on it.
 */
function expectWhole(done: ReturnType<typeof run>, inOrder = true): void {
  const { harness, connection, socket, received } = done
  const { backEnd, counters, lines, closed, backpressure } = harness
  expect([connection.state, closed.length, connection.drained]).toEqual(["closed", 1, true])

  for (const command of backEnd.sent) expect(backEnd.outcomesOf(command)).toHaveLength(1)
  expect(backEnd.told).toHaveLength(backEnd.sent.length)
  const written = backEnd.bodies("written")
  const wire = socket.wire.split("\n").slice(0, -1)
  if (inOrder) expect(wire).toEqual(written)
  else expect(wire.toSorted()).toEqual(written.toSorted())
  expect(counters.commandBytesOut).toBe(socket.wire.length)
  expect(connection.endpoint?.linesOut).toBe(written.length)
  expect(connection.outgoingBytes).toBe(0)

  const parts = received.split("\n")
  const unterminated = parts.pop() ?? ""
  const sent = parts.map((part) => part.replace(/\r$/, ""))
  const tooLong = [...sent, unterminated.replace(/\r$/, "")].findIndex(
    (line) => line.length > LIMITS.maxLineBytes,
  )
  const complete = tooLong === -1 ? sent : sent.slice(0, tooLong)
  const expected = complete.filter((line) => line !== "")
  expect(lines.map(({ text }) => text)).toEqual(expected)
  expect(lines.map(({ seq }) => seq)).toEqual(expected.map((_, i) => i))
  expect(counters.emptyLines).toBe(complete.length - expected.length)
  if (tooLong === -1) expect(counters.unterminatedBytes).toBe(unterminated.length)
  expect(backpressure).toMatchObject({ heldBytes: 0, waitingCount: 0, suspended: false })
  expect(harness.unfinishedLines).toMatchObject({ bytes: 0, timedCount: 0 })

  const flow = socket.calls.filter((call) => call === "pause" || call === "resume")
  expect(flow).toEqual(flow.map((_, i) => (i % 2 === 0 ? "pause" : "resume")))
  const afterShutdown = socket.calls.slice(socket.calls.indexOf("shutdown") + 1)
  if (socket.calls.includes("shutdown"))
    expect(afterShutdown.filter((c) => c !== "terminate")).toEqual([])
}

test("any order of operations: each command is settled once, all bytes and lines are complete, nothing is held", () => {
  check(
    fc.property(sequence, (steps) => expectWhole(run(steps, () => undefined))),
    CHEAP_RUNS,
  )
})

test("in any order no message id is written twice", () => {
  check(
    fc.property(sequence, (steps) => {
      const { harness } = run(steps, () => undefined)
      const written = harness.backEnd.told.filter(({ outcome }) => outcome === "written")
      const ids = written.flatMap(({ command }) => command.messageId ?? [])
      expect(ids).toEqual([...new Set(ids)])
    }),
    CHEAP_RUNS,
  )
})

test("in any order numbered commands are written in order, each number once", () => {
  check(
    fc.property(sequence, (steps) => {
      const { harness } = run(steps, () => undefined)
      const written = harness.backEnd.told.filter(({ outcome }) => outcome === "written")
      const seqs = written.flatMap(({ command }) => command.seq ?? [])
      expect(seqs).toEqual([...new Set(seqs)].sort((a, b) => a - b))
    }),
    CHEAP_RUNS,
  )
})

test("in any order no number is a duplicate if its only command was not written", () => {
  // Otherwise the command would be lost: a duplicate is neither written nor kept.
  const unwritten = new Set(["expired", "slow_device", "closed"])
  check(
    fc.property(sequence, (steps) => {
      const { told } = run(steps, () => undefined).harness.backEnd
      const ended = new Set<number>()
      for (const { outcome, command } of told) {
        if (command.seq === null) continue
        if (unwritten.has(outcome)) ended.add(command.seq)
        if (outcome === "duplicate") expect([...ended]).not.toContain(command.seq)
      }
    }),
    CHEAP_RUNS,
  )
})

test("any order, with back-ends that use numbers and ids twice: each command is settled once", () => {
  const steps = sequenceOf(
    fc.oneof({ weight: 4, arbitrary: step }, { weight: 1, arbitrary: misuse }),
  )
  check(
    fc.property(steps, (steps) => expectWhole(run(steps, () => undefined))),
    CHEAP_RUNS,
  )
})

test("any order, with sources that close and offer when a command is settled", () => {
  const reaction = fc.constantFrom("close" as const, "offer" as const, null)
  const reactions = fc.array(reaction, { maxLength: 10, size: "max" })
  check(
    fc.property(sequence, reactions, (steps, planned) => {
      const reacting = (harness: Harness, connection: Connection) => {
        const left = [...planned]
        harness.backEnd.onSettled = () => {
          const next = left.shift()
          if (next === "close") connection.close("kicked")
          if (next === "offer") connection.offer(harness.backEnd.command("!"))
        }
      }
      expectWhole(run(steps, reacting), false)
    }),
    CHEAP_RUNS,
  )
})

test("any order, with a socket that closes during a write", () => {
  check(
    fc.property(sequence, fc.nat(6), (steps, atWrite) => {
      const failing = (_: Harness, connection: Connection) => {
        const socket = connection.socket as ScriptedSocket
        let writes = 0
        socket.beforeWrite = () => {
          writes += 1
          if (writes <= atWrite || connection.state === "closed") return
          socket.state = "gone"
          connection.socketClosed()
        }
      }
      expectWhole(run(steps, failing))
    }),
    CHEAP_RUNS,
  )
})
