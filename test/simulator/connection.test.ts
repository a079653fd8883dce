/**
 * One connection of a simulated device: which lines count as sent, what is acknowledged, how it
 * ends, and what the ledger says of it. The socket is played here.
 */

import { afterEach, beforeEach, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import fc from "fast-check"
import {
  type ConnectionEnd,
  type ConnectionSocket,
  DeviceConnection,
} from "../../src/simulator/connection.ts"
import { goodbyeReader } from "../../src/simulator/goodbye.ts"
import { Histogram } from "../../src/simulator/histogram.ts"
import { LedgerFile } from "../../src/simulator/ledger.ts"
import { command, LineWriter, readLine } from "../../src/simulator/line.ts"
import { check } from "../support/property.ts"

const BYTES = 64

class PlayedSocket implements ConnectionSocket {
  taken = ""
  ended = false
  /** Bytes that it will still take. */
  room = Number.POSITIVE_INFINITY

  write(bytes: Uint8Array): number {
    const taken = Math.min(this.room, bytes.length)
    this.room -= taken
    this.taken += Buffer.from(bytes.subarray(0, taken)).toString("latin1")
    return taken
  }

  end(): void {
    this.ended = true
  }

  terminate(): void {}

  lines() {
    return this.taken.split("\n").slice(0, -1).map(readLine)
  }
}

let directory: string
const ledgers: LedgerFile[] = []

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "owsla-connection-"))
})

afterEach(() => {
  for (const ledger of ledgers.splice(0)) ledger.close()
  rmSync(directory, { recursive: true, force: true })
})

function connect(options: { intervalMs?: number; lines?: number; hello?: string } = {}) {
  const ledger = new LedgerFile(directory, crypto.randomUUID(), "devices")
  ledgers.push(ledger)
  const counts = {
    ...{ sent: 0, cutOff: 0, acked: 0, commands: 0, unanswered: 0, others: 0 },
    ...{ held: 0, goodbyes: 0 },
  }
  const confirms = new Histogram()
  const writer = new LineWriter("run1run1ab", BYTES)
  const quota = { left: options.lines ?? 1_000 }
  const history = { wasCommanded: false }
  const ends: ConnectionEnd[] = []
  const connection = new DeviceConnection(
    {
      ...{ writer, ledger, intervalMs: options.intervalMs ?? 100, confirms, counts },
      goodbye: goodbyeReader("BYE {reason} {retry_after_ms}"),
    },
    { device: "sim-3", attempt: 2, quota, history, nowMs: 0, ended: (end) => ends.push(end) },
  )
  const socket = new PlayedSocket()
  connection.socket = socket
  connection.opened(options.hello ?? "", 1_000, 1_000)
  const records = () => {
    ledger.flush()
    const [file = ""] = [...new Bun.Glob("*.devices").scanSync(directory)]
    return readFileSync(join(directory, file), "utf8").split("\n").slice(0, -1)
  }
  return { connection, socket, counts, confirms, quota, history, ends, records }
}

function receive(connection: DeviceConnection, text: string, nowMs = 2_000): void {
  connection.received(Buffer.from(text), nowMs)
}

describe("lines", () => {
  test("are sent when they are due, numbered from 0", () => {
    const { connection, socket } = connect({ intervalMs: 100 })
    connection.sweep(999)
    expect(socket.lines()).toEqual([])
    connection.sweep(1_000)
    connection.sweep(1_050)
    connection.sweep(1_250)
    expect(socket.lines().map((line) => line?.n)).toEqual([0, 1, 2])
    expect(socket.lines()[0]).toEqual({
      ...{ run: "run1run1ab", device: "sim-3", attempt: 2, n: 0, answers: null },
    })
  })

  test("are no more than the device still may send, over all its connections", () => {
    const { connection, socket, quota } = connect({ intervalMs: 0, lines: 5 })
    connection.sweep(1_000)
    connection.sweep(1_020)
    expect(socket.lines()).toHaveLength(5)
    expect(quota.left).toBe(0)
  })

  test("that were held up for long are not all made up for", () => {
    const { connection, socket } = connect({ intervalMs: 100 })
    connection.sweep(61_000)
    expect(socket.lines()).toHaveLength(11)
  })

  test("count as sent when the socket took them whole, however it takes them", () => {
    check(
      fc.property(fc.array(fc.integer({ min: 0, max: 200 }), { maxLength: 30 }), (rooms) => {
        const hello = "HELLO sim-3 abc\n"
        const { connection, socket, counts } = connect({ intervalMs: 0, lines: 20, hello })
        for (const room of rooms) {
          socket.room = room
          connection.drained(1_000)
          connection.sweep(1_000)
          const whole = socket.taken.split("\n").length - 1 - (socket.taken.includes("\n") ? 1 : 0)
          expect(connection.sent).toBe(whole)
          expect(counts.sent).toBe(whole)
        }
        socket.room = Number.POSITIVE_INFINITY
        connection.drained(1_000)
        connection.sweep(1_000)
        expect(socket.taken).toStartWith(hello)
        const numbers = socket.lines().slice(1)
        expect(numbers.map((line) => line?.n)).toEqual(Array.from({ length: 20 }, (_, n) => n))
      }),
    )
  })

  test("are not offered while earlier bytes wait", () => {
    const { connection, socket } = connect({ intervalMs: 0 })
    socket.room = 10
    connection.sweep(1_000)
    socket.room = 1_000
    connection.sweep(1_020)
    expect(socket.taken).toHaveLength(10)
  })
})

describe("what comes from the gateway", () => {
  test("is read across chunks", () => {
    const { connection, counts } = connect()
    connection.sweep(1_300)
    for (const chunk of ["ACK", " 0\nACK 1", "\n", "something\nACK 2\n"]) receive(connection, chunk)
    expect(counts).toMatchObject({ acked: 3, others: 1 })
  })

  test("is a goodbye line: when to come back", () => {
    const { connection, counts } = connect()
    for (const line of ["BYE drained", "BYE drained x", "bye drained 5"]) {
      receive(connection, `${line}\n`)
    }
    expect([connection.retryAfterMs, counts.others]).toEqual([null, 3])
    receive(connection, "BYE taken_over 1840\n")
    expect([connection.retryAfterMs, counts.goodbyes]).toEqual([1_840, 1])
  })

  test("times one line at a time until its acknowledgement", () => {
    const { connection, confirms } = connect({ intervalMs: 100 })
    connection.sweep(1_200)
    receive(connection, "ACK 1\n", 1_250)
    expect(confirms.count).toBe(0)
    receive(connection, "ACK 0\n", 1_270)
    expect(confirms.summary()).toMatchObject({ count: 1, max: 70 })
  })

  test("is answered by a line that names the command", () => {
    const { connection, socket, counts } = connect({ lines: 0 })
    receive(connection, `${command(7)}\n${command(8)}\n`)
    expect(socket.lines().map((line) => [line?.n, line?.answers])).toEqual([
      [0, 7],
      [1, 8],
    ])
    expect(counts.commands).toBe(2)
  })

  test("is answered later when the socket takes nothing, and then no more than it keeps", () => {
    const { connection, socket, counts } = connect({ intervalMs: 0, lines: 1 })
    socket.room = 0
    connection.sweep(1_000)
    for (let number = 0; number < 70; number += 1) receive(connection, `${command(number)}\n`)
    expect(counts.unanswered).toBe(6)
    socket.room = Number.POSITIVE_INFINITY
    connection.drained(1_000)
    expect(socket.lines()).toHaveLength(65)
  })

  test("is dropped when it is a line without end", () => {
    const { connection, counts } = connect()
    for (let at = 0; at < 20; at += 1) receive(connection, "x".repeat(10_000))
    receive(connection, "\nACK 0\n")
    expect(counts.acked).toBe(1)
  })
})

describe("it has settled", () => {
  test("when a back-end here took every line, in any order", () => {
    const { connection } = connect({ intervalMs: 100 })
    const by = { backEnd: true, acks: false }
    connection.sweep(1_100)
    expect(connection.settled(by, 1_200, 1_000)).toBe(false)
    for (const n of [1, 1]) connection.taken(n)
    expect(connection.settled(by, 1_200, 1_000)).toBe(false)
    for (const n of [0, 1, 0]) connection.taken(n)
    expect(connection.settled(by, 1_200, 1_000)).toBe(true)
  })

  test("when every line is acknowledged", () => {
    const { connection } = connect({ intervalMs: 100 })
    const by = { backEnd: false, acks: true }
    connection.sweep(1_100)
    receive(connection, "ACK 0\n")
    expect(connection.settled(by, 9_999, 1_000)).toBe(false)
    receive(connection, "ACK 1\n")
    expect(connection.settled(by, 1_200, 1_000)).toBe(true)
  })

  test("with nobody to tell, when it was quiet for a while", () => {
    const { connection } = connect({ intervalMs: 100 })
    const by = { backEnd: false, acks: false }
    connection.sweep(1_100)
    expect(connection.settled(by, 2_099, 1_000)).toBe(false)
    expect(connection.settled(by, 2_100, 1_000)).toBe(true)
  })

  test("never while bytes wait", () => {
    const { connection, socket } = connect({ intervalMs: 100 })
    socket.room = 10
    connection.sweep(1_000)
    expect(connection.settled({ backEnd: false, acks: false }, 99_999, 1_000)).toBe(false)
  })
})

describe("it ends", () => {
  test("as drained when it closed in order and then the gateway did", () => {
    const { connection, socket, ends, records } = connect({ intervalMs: 100 })
    connection.sweep(1_100)
    connection.end()
    expect(socket.ended).toBe(true)
    receive(connection, "ACK 0\n")
    connection.peerEnded()
    connection.closed(false)
    connection.closed(true)
    expect(ends).toEqual(["drained"])
    expect(records()).toEqual(["sent sim-3 2 2", "acked sim-3 2 0 0", "end sim-3 2 2 2 drained"])
  })

  test("as broken when the gateway closed first", () => {
    const { connection, ends } = connect()
    connection.peerEnded()
    connection.end()
    connection.closed(false)
    expect(ends).toEqual(["broken"])
  })

  test("as broken by a fault, after it closed in order too", () => {
    const { connection, ends } = connect()
    connection.end()
    connection.closed(true)
    expect(ends).toEqual(["broken"])
  })

  test("as broken when bytes were left, and says how far lines may have come", () => {
    const { connection, socket, counts, ends, records } = connect({ intervalMs: 0, lines: 4 })
    socket.room = 2 * (BYTES + 1) + 3
    connection.sweep(1_000)
    connection.end()
    connection.closed(false)
    expect(ends).toEqual(["broken"])
    expect(counts).toMatchObject({ sent: 2, cutOff: 2 })
    expect(records()).toEqual(["sent sim-3 2 2", "end sim-3 2 2 4 broken"])
  })

  test("without a record when it never opened", () => {
    const { connection, ends, records } = connect()
    connection.state = "connecting"
    connection.terminate()
    expect(ends).toEqual(["broken"])
    expect(records()).toEqual([])
  })
})

test("what is new is recorded once; acknowledgements out of order as ranges of their own", () => {
  const { connection, records } = connect({ intervalMs: 100 })
  connection.sweep(1_500)
  receive(connection, "ACK 0\nACK 1\nACK 3\nACK 2\n")
  connection.record()
  connection.record()
  connection.sweep(1_600)
  receive(connection, "ACK 4\n")
  connection.record()
  expect(records()).toEqual([
    "acked sim-3 2 0 1",
    "acked sim-3 2 3 3",
    "sent sim-3 2 6",
    "acked sim-3 2 2 2",
    "sent sim-3 2 7",
    "acked sim-3 2 4 4",
  ])
})

describe("held commands", () => {
  const held = (n: number, device = "sim-3") => `HELD run1run1ab ${device} ${n}\n`

  test("are recorded as they come, and as late after a newer command", () => {
    const { connection, counts, records } = connect({ intervalMs: 1_000_000 })
    receive(connection, `${held(0)}${held(1)}${command(4)}\n${held(2)}`)
    expect(counts).toMatchObject({ held: 3, commands: 1, others: 0 })
    expect(records()).toEqual([
      "got sim-3 2 run1run1ab 0",
      "got sim-3 2 run1run1ab 1",
      "got sim-3 2 run1run1ab 2 late",
    ])
  })

  test("of another device are recorded as misdirected", () => {
    const { connection, records } = connect()
    receive(connection, held(0, "sim-4"))
    expect(records()).toEqual(["misdirected sim-3 2"])
  })

  test("are late on a later connection too", () => {
    const { connection, history, records } = connect()
    history.wasCommanded = true
    receive(connection, held(0))
    expect(records()).toEqual(["got sim-3 2 run1run1ab 0 late"])
  })
})
