/** Commands at a connection: written in order, repeated, lost, and refused by the socket. */

import { describe, expect, test } from "bun:test"
import { Acknowledgement } from "../../src/lines/acknowledgement.ts"
import { Harness, LIMITS, START_MS } from "./connection-harness.ts"

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
    for (const seq of [8, 9]) connection.offer(new Acknowledgement(connection, seq))
    expect(harness.reasons()).toEqual([])
    connection.offer(new Acknowledgement(connection, 10))
    expect(harness.reasons()).toEqual(["slow_device"])
    expect(harness.backEnd.bodies("slow_device")).toEqual(["12345678"])
  })
})
