/** Graceful closes: what they wait for, and for how long. */

import { describe, expect, test } from "bun:test"
import type { CloseReason } from "../../src/device/close-reason.ts"
import { GracefulClose } from "../../src/device/graceful-close.ts"
import { bytesOf, Harness } from "./connection-harness.ts"

class Subject extends Harness {
  confirmed = 0
  readonly gracefulClose = new GracefulClose({
    taken: () => this.lines.length,
    confirmed: () => this.confirmed,
  })

  begin(reason: CloseReason = "aged") {
    const admitted = this.admit()
    return {
      ...admitted,
      close: () => this.gracefulClose.begin(admitted.connection, reason, this.steadyMs),
    }
  }

  sweep(ms = 0): void {
    this.after(ms)
    this.gracefulClose.sweep(this.steadyMs)
  }
}

describe("a connection", () => {
  test("is read no further, and closed once its lines are confirmed", () => {
    const subject = new Subject()
    const { connection, socket, close } = subject.begin()
    connection.received(bytesOf("a\nb\n"))
    close()
    expect([socket.paused, subject.gracefulClose.count]).toEqual([true, 1])
    subject.sweep()
    subject.confirmed = 1
    subject.sweep()
    expect(connection.state).toBe("open")
    subject.confirmed = 2
    subject.sweep()
    expect([connection.state, subject.reasons()]).toEqual(["closing", ["aged"]])
    expect(subject.gracefulClose.count).toBe(0)
  })

  test("is not kept waiting by lines of others that came later", () => {
    const subject = new Subject()
    const first = subject.begin()
    const other = subject.begin()
    first.connection.received(bytesOf("a\n"))
    first.close()
    subject.sweep()
    other.connection.received(bytesOf("b\n"))
    subject.confirmed = 1
    subject.sweep()
    expect([first.connection.state, other.connection.state]).toEqual(["closing", "open"])
  })

  test("waits for lines that have no room in the window yet", () => {
    const subject = new Subject()
    const { connection, close } = subject.begin()
    subject.window.room = 1
    connection.received(bytesOf("a\nb\n"))
    close()
    subject.confirmed = 1
    subject.sweep()
    expect(connection.state).toBe("open")
    subject.roomAgain(1)
    subject.sweep()
    expect(connection.state).toBe("open")
    subject.confirmed = 2
    subject.sweep()
    expect(connection.state).toBe("closing")
  })

  test("without lines is closed at once", () => {
    const subject = new Subject()
    const { connection, close } = subject.begin()
    close()
    subject.sweep()
    expect(connection.state).toBe("closing")
  })

  test("is closed after five seconds, whatever is not confirmed", () => {
    const subject = new Subject()
    const { connection, close } = subject.begin("drained")
    connection.received(bytesOf("a\n"))
    close()
    subject.sweep(4_999)
    expect(connection.state).toBe("open")
    subject.sweep(1)
    expect(connection.state).toBe("closing")
  })

  test("of an age is read again after five seconds, and tried later", () => {
    const subject = new Subject()
    const { connection, socket, close } = subject.begin()
    connection.received(bytesOf("a\n"))
    close()
    subject.sweep(5_000)
    expect(connection.state).toBe("open")
    expect([socket.paused, subject.gracefulClose.count]).toEqual([false, 0])
    close()
    subject.confirmed = 1
    subject.sweep()
    expect(connection.state).toBe("closing")
  })

  test("at its rate has its lines taken at once, and acknowledged", () => {
    const subject = new Subject({ linesPerS: 1 })
    const { connection, close } = subject.begin()
    connection.received(bytesOf("a\nb\nc\nd\n"))
    expect(subject.texts()).toEqual(["a", "b"])
    close()
    expect(subject.texts()).toEqual(["a", "b", "c", "d"])
    subject.sweep()
    expect(connection.state).toBe("open")
    subject.confirmed = 4
    subject.sweep()
    expect(connection.state).toBe("closing")
  })

  test("is read while a command waits for its reply, then no further", () => {
    const subject = new Subject()
    const { connection, socket, close } = subject.begin("drained")
    const reply = { condition: { kind: "next" }, timeoutMs: 60_000 } as const
    const ask = (text: string) => {
      connection.offer(subject.backEnd.command(text, { reply }))
      subject.flush()
    }
    ask("a")
    close()
    expect(socket.paused).toBe(false)
    subject.sweep()
    connection.received(bytesOf("1\n"))
    subject.sweep()
    expect([socket.paused, connection.state]).toEqual([true, "open"])
    // Another one before the line is confirmed.
    ask("b")
    subject.sweep()
    expect(socket.paused).toBe(false)
    connection.received(bytesOf("2\n"))
    subject.confirmed = 2
    subject.sweep()
    expect([connection.state, subject.backEnd.bodies("answered")]).toEqual(["closing", ["a", "b"]])
  })

  test("waits for a reply until its time is over, and five seconds at most", () => {
    const subject = new Subject()
    const begin = (timeoutMs: number) => {
      const begun = subject.begin("drained")
      const reply = { condition: { kind: "next" }, timeoutMs } as const
      begun.connection.offer(subject.backEnd.command(String(timeoutMs), { reply }))
      subject.flush()
      begun.close()
      return begun.connection
    }
    const [short, long] = [begin(1_000), begin(60_000)]
    subject.sweep(1_000)
    expect([short.state, long.state]).toEqual(["closing", "open"])
    // A sign of life, so that it is not idle.
    long.received(bytesOf("\n"))
    subject.sweep(4_000)
    expect(long.state).toBe("closing")
    expect(subject.backEnd.told.map(({ outcome, detail }) => [outcome, detail])).toEqual([
      ["no_reply", "no matching line within 1000 ms"],
      ["no_reply", "the connection ended: drained"],
    ])
  })

  test("that ends meanwhile keeps its own reason", () => {
    const subject = new Subject()
    const { connection, close } = subject.begin()
    connection.received(bytesOf("a\n"))
    close()
    connection.close("kicked")
    subject.sweep()
    expect([subject.reasons(), subject.gracefulClose.count]).toEqual([["kicked"], 0])
  })
})

test("a connection that is not open, or is closed already, is left alone", () => {
  const subject = new Subject()
  const { connection } = subject.accept()
  subject.gracefulClose.begin(connection, "aged", 0)
  expect(subject.gracefulClose.count).toBe(0)
  const admitted = subject.begin("drained")
  admitted.connection.received(bytesOf("a\n"))
  admitted.close()
  subject.after(3_000)
  admitted.close()
  subject.sweep(2_000)
  expect(admitted.connection.state).toBe("closing")
})
