/** A connection: admission, lines, pauses, and calls after the close. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import type { Connection, PauseSource } from "../../src/device/connection.ts"
import { check } from "../support/property.ts"
import { bytesOf, Harness, PEER, START_MS, UNFINISHED } from "./connection-harness.ts"

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

test("lines that waited for room in the window were received when they came", () => {
  const harness = new Harness()
  const { connection } = harness.admit()
  harness.window.room = 1
  connection.received(bytesOf("a\nb\n"))
  harness.after(300)
  harness.roomAgain(10)
  expect(harness.texts()).toEqual(["a", "b"])
  expect(harness.receivedAtMs).toEqual([0, 0])
})

describe("the rate of a device", () => {
  test("counts as its own time: lines that waited for it are received when they go on", () => {
    const harness = new Harness({ linesPerS: 2 })
    const { connection } = harness.admit()
    connection.received(bytesOf("a\nb\nc\nd\ne\n"))
    expect(harness.receivedAtMs).toEqual([0, 0, 0, 0])
    harness.after(500)
    expect(harness.receivedAtMs).toEqual([0, 0, 0, 0, 500])
    connection.received(bytesOf("f\n"))
    harness.after(500)
    expect(harness.receivedAtMs).toEqual([0, 0, 0, 0, 500, 1_000])
  })

  test("beyond its burst the rest of a chunk waits, unread, and nothing is lost", () => {
    const harness = new Harness({ linesPerS: 2 })
    const { connection, socket } = harness.admit()
    connection.received(bytesOf("a\nb\nc\nd\ne\nf\nrest"))
    expect(harness.texts()).toEqual(["a", "b", "c", "d"])
    expect([socket.paused, connection.isPausedBy("rate"), connection.drained]).toEqual([
      ...[true, true, false],
    ])
    // Or devices at their rate would stop all others.
    expect(harness.backpressure.heldBytes).toBe(0)
    harness.after(499)
    expect(harness.texts()).toHaveLength(4)
    harness.after(1)
    expect(harness.texts()).toEqual(["a", "b", "c", "d", "e"])
    expect(socket.paused).toBe(true)
    harness.after(500)
    expect(harness.texts()).toEqual(["a", "b", "c", "d", "e", "f"])
    harness.after(500)
    expect([socket.paused, connection.isPausedBy("rate"), harness.atRate.size]).toEqual([
      ...[false, false, 0],
    ])
    expect(harness.backpressure.heldBytes).toBe(0)
    connection.received(bytesOf("!\n"))
    expect(harness.texts().at(-1)).toBe("rest!")
    expect(harness.counters.readingPaused).toEqual({ window: 0, rate: 2 })
  })

  test("counts bytes, and empty lines as lines", () => {
    const bytes = new Harness({ bytesPerS: 4 })
    const first = bytes.admit().connection
    first.received(bytesOf("12345678\n9\n"))
    expect(bytes.texts()).toEqual(["12345678"])
    bytes.after(499)
    expect(bytes.texts()).toEqual(["12345678"])
    bytes.after(1)
    expect(bytes.texts()).toEqual(["12345678", "9"])
    const lines = new Harness({ linesPerS: 1 })
    const second = lines.admit().connection
    second.received(bytesOf("\n\na\n"))
    expect([lines.texts(), lines.counters.emptyLines]).toEqual([[], 2])
    lines.after(1_000)
    expect(lines.texts()).toEqual(["a"])
  })

  test.each(["kicked", "peer_closed"] as const)(
    "a device that ends (%s) has all published",
    (by) => {
      const harness = new Harness({ linesPerS: 1 })
      const { connection } = harness.admit()
      harness.window.room = 4
      connection.received(bytesOf("a\nb\nc\nd\ne\npart"))
      expect(harness.texts()).toEqual(["a", "b"])
      if (by === "kicked") connection.close("kicked")
      else connection.socketClosed()
      expect(harness.texts()).toEqual(["a", "b", "c", "d"])
      harness.roomAgain(5)
      expect(harness.texts()).toEqual(["a", "b", "c", "d", "e"])
      expect(harness.backpressure.heldBytes).toBe(0)
      expect(harness.counters.unterminatedBytes).toBe(4)
    },
  )

  test("a full window holds it back longer, and the device is read when both allow it", () => {
    const harness = new Harness({ linesPerS: 1 })
    const { connection, socket } = harness.admit()
    harness.window.room = 1
    connection.received(bytesOf("a\nb\nc\n"))
    expect(harness.texts()).toEqual(["a"])
    harness.roomAgain(5)
    expect([harness.texts(), connection.isPausedBy("rate")]).toEqual([["a", "b"], true])
    harness.window.room = 0
    harness.after(1_000)
    expect([socket.paused, connection.isPausedBy("window")]).toEqual([true, true])
    harness.roomAgain(5)
    expect([harness.texts(), socket.paused]).toEqual([["a", "b", "c"], true])
    harness.after(1_000)
    expect(socket.paused).toBe(false)
  })

  test("many devices at their rates stop no other device: beyond a bound their lines are taken", () => {
    const harness = new Harness({ linesPerS: 1 }, 400)
    const flooding = Array.from({ length: 20 }, (_, n) => {
      const { connection } = harness.accept()
      connection.admit(`lock:${n}`, START_MS, PEER)
      return connection
    })
    for (const connection of flooding) connection.received(bytesOf("12345678\n".repeat(4)))
    expect([harness.suspensions, harness.backpressure.heldBytes]).toEqual([[], 0])
    // 18 bytes of each wait, up to a quarter of 400 bytes.
    expect(flooding.filter(({ drained }) => !drained)).toHaveLength(6)
    expect(flooding.every((connection) => connection.isPausedBy("rate"))).toBe(true)
    harness.after(2_000)
    expect(flooding.filter(({ drained }) => !drained)).toHaveLength(0)
    // Those whose lines were taken pay for them before they are read again.
    expect(flooding.map((connection) => connection.isPausedBy("rate")).at(-1)).toBe(true)
    expect(harness.lines).toHaveLength(80)
  })

  test("stays with a named device that connects again", () => {
    const harness = new Harness({ linesPerS: 1 })
    const admit = () => {
      const { connection } = harness.accept()
      connection.admit("lock:1", START_MS, PEER)
      return connection
    }
    const first = admit()
    first.received(bytesOf("a\nb\nc\nd\n"))
    expect(harness.texts()).toEqual(["a", "b"])
    first.socketClosed()
    expect(harness.texts()).toEqual(["a", "b", "c", "d"])
    const second = admit()
    second.received(bytesOf("e\n"))
    expect(harness.texts()).toHaveLength(4)
    harness.after(3_000)
    expect(harness.texts()).toEqual(["a", "b", "c", "d", "e"])
  })

  test("any lines at any times come out once, in order, and no faster", () => {
    const steps = fc.array(
      fc.oneof(
        fc.record({ lines: fc.integer({ min: 1, max: 9 }) }),
        fc.record({ ms: fc.integer({ min: 1, max: 900 }) }),
        fc.record({ room: fc.integer({ min: 0, max: 6 }) }),
      ),
      { maxLength: 40 },
    )
    check(
      fc.property(steps, fc.integer({ min: 1, max: 4 }), fc.boolean(), (all, perS, closes) => {
        const harness = new Harness({ linesPerS: perS })
        const { connection } = harness.admit()
        const startMs = harness.steadyMs
        const sent: string[] = []
        for (const step of all) {
          if ("ms" in step) harness.after(step.ms)
          else if ("room" in step) harness.roomAgain(step.room)
          else {
            const texts = Array.from({ length: step.lines }, (_, at) => String(sent.length + at))
            sent.push(...texts)
            connection.received(bytesOf(texts.map((text) => `${text}\n`).join("")))
          }
          const allowed = perS * 2 + ((harness.steadyMs - startMs) / 1_000) * perS
          expect(harness.lines.length).toBeLessThanOrEqual(allowed + 1e-6)
        }
        if (closes) connection.close("kicked")
        else for (let n = 0; n < 400; n += 1) harness.after(1_000 / perS)
        harness.roomAgain(1_000)
        for (let n = 0; n < 400; n += 1) harness.after(1_000 / perS)
        expect(harness.texts()).toEqual(sent)
        expect(harness.backpressure.heldBytes).toBe(0)
      }),
    )
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
    expect([connection.drained, harness.counters.readingPaused.window]).toEqual([false, 1])
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
