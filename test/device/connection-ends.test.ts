/** Time-outs of a connection, and closes from either side, also during a call. */

import { describe, expect, test } from "bun:test"
import { CLOSE_REASONS, type CloseReason } from "../../src/device/close-reason.ts"
import {
  bytesOf,
  CLOSING_MS,
  HANDSHAKE_TIMEOUT_MS,
  Harness,
  IDENTIFY_TIMEOUT_MS,
  IDLE_TIMEOUT_MS,
  LIMITS,
  PEER,
  START_MS,
  textOf,
} from "./connection-harness.ts"

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

  test("expired, at the end of the token by the system clock, however active the device is", () => {
    const harness = new Harness()
    const { connection, socket } = harness.admit({ ...PEER, expiresAtMs: START_MS + 9_000 })
    harness.after(3_999)
    // The system clock is set.
    harness.nowMs += 5_000
    connection.received(bytesOf("a\n"))
    harness.after(0)
    expect(connection.state).toBe("open")
    harness.after(1)
    expect([connection.state, harness.reasons()]).toEqual(["closing", ["expired"]])
    expect([socket.calls, harness.texts()]).toEqual([["shutdown"], ["a"]])
  })

  test("expired, also while the device is not read", () => {
    const harness = new Harness()
    const { connection } = harness.admit({ ...PEER, expiresAtMs: START_MS + 100 })
    connection.pause("memory")
    harness.after(100)
    expect(harness.reasons()).toEqual(["expired"])
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

  const ofFailedHandshakes: readonly CloseReason[] = ["handshake_failed", "not_identified"]

  test.each(CLOSE_REASONS.filter((reason) => !ofFailedHandshakes.includes(reason)))(
    "close(%p) during the handshake terminates the socket",
    (reason) => {
      const harness = new Harness()
      const { connection, socket } = harness.accept()
      connection.close(reason)
      expect([connection.state, harness.reasons(), socket.calls]).toEqual([
        "closed",
        [reason],
        ["terminate"],
      ])
    },
  )

  test.each(ofFailedHandshakes)("close(%p) leaves the socket to TLS for 2 s", (reason) => {
    const harness = new Harness()
    const { connection, socket } = harness.accept()
    connection.close(reason)
    expect([connection.state, harness.reasons(), socket.calls]).toEqual(["closing", [reason], []])
    harness.after(CLOSING_MS - 1)
    expect(socket.calls).toEqual([])
    harness.after(1)
    expect([connection.state, socket.calls]).toEqual(["closed", ["terminate"]])
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

describe("the age of a connection", () => {
  test("is reported once when it is reached, and again each minute while it stays open", () => {
    const harness = new Harness()
    harness.lifetimeMs = 30_000
    const { connection } = harness.admit()
    const reportedAtMs: number[] = []
    while (harness.steadyMs < 200_000) {
      // It is not idle.
      connection.received(bytesOf("\n"))
      const before = harness.aged.length
      harness.after(500)
      if (harness.aged.length > before) reportedAtMs.push(harness.steadyMs)
    }
    expect(reportedAtMs).toEqual([30_000, 90_000, 150_000])
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
