/**
 * The handshake queue: first in, first out, also when peers close. With scripted sockets and a
 * clock that is fixed.
 */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import { Admission } from "../../src/device/admission.ts"
import { HandshakeQueue } from "../../src/device/handshake-queue.ts"

const AT_ONCE = 64

class ScriptedSocket {
  readonly calls: string[] = []

  pause(): void {
    this.calls.push("pause")
  }

  resume(): void {
    this.calls.push("resume")
  }
}

class Subject {
  nowMs = 0
  open = true
  readonly admission: Admission
  readonly begun: ScriptedSocket[] = []
  readonly handshakeQueue: HandshakeQueue<ScriptedSocket>

  constructor(perS = 0) {
    this.admission = new Admission({ maxConnections: 1_000_000, maxWaiting: 1_000_000, perS })
    this.handshakeQueue = new HandshakeQueue(this.admission, {
      steadyMs: () => this.nowMs,
      open: () => this.open,
      begin: (socket) => {
        this.admission.began(this.nowMs)
        this.begun.push(socket)
      },
    })
  }

  wait(count: number) {
    return Array.from({ length: count }, () =>
      this.handshakeQueue.wait(new ScriptedSocket(), "192.0.2.1"),
    )
  }
}

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

describe("handshakeQueue", () => {
  test("a socket is paused until its handshake starts, and then resumed", () => {
    const subject = new Subject()
    const [turn] = subject.wait(1)
    expect(turn?.socket.calls).toEqual(["pause"])
    subject.handshakeQueue.next()
    expect(turn?.socket.calls).toEqual(["pause", "resume"])
    expect(subject.handshakeQueue.waiting).toBe(0)
  })

  test("starts handshakes in order of arrival up to the limit, then one for each that ends", () => {
    const subject = new Subject()
    const sockets = subject.wait(AT_ONCE + 2).map(({ socket }) => socket)
    subject.handshakeQueue.next()
    expect(subject.begun).toEqual(sockets.slice(0, AT_ONCE))
    expect(subject.handshakeQueue.waiting).toBe(2)
    subject.admission.ended()
    subject.handshakeQueue.next()
    expect(subject.begun).toEqual(sockets.slice(0, AT_ONCE + 1))
  })

  test("skips sockets that have closed, and counts each once", () => {
    const subject = new Subject()
    const [first, second] = subject.wait(2)
    if (first === undefined || second === undefined) throw new Error("no handshakeQueue")
    subject.handshakeQueue.leave(first)
    subject.handshakeQueue.leave(first)
    expect(subject.handshakeQueue.waiting).toBe(1)
    subject.handshakeQueue.next()
    expect(subject.begun).toEqual([second.socket])
    expect(subject.handshakeQueue.waiting).toBe(0)
  })

  test("starts no handshake while the worker is suspended", () => {
    const subject = new Subject()
    subject.open = false
    subject.wait(1)
    subject.handshakeQueue.next()
    expect(subject.begun).toEqual([])
    subject.open = true
    subject.handshakeQueue.next()
    expect(subject.begun).toHaveLength(1)
  })

  test("starts handshakes at the fixed rate by a timer", () => {
    const subject = new Subject(100)
    subject.wait(3)
    subject.handshakeQueue.next()
    expect(subject.begun).toHaveLength(1)
    for (const expected of [2, 3]) {
      subject.nowMs += 10
      jest.advanceTimersByTime(10)
      expect(subject.begun).toHaveLength(expected)
    }
  })

  test("returns the waiting sockets on clear, without those that have closed", () => {
    const subject = new Subject()
    const [first, second] = subject.wait(2)
    if (first === undefined || second === undefined) throw new Error("no handshakeQueue")
    subject.handshakeQueue.leave(first)
    expect(subject.handshakeQueue.clear()).toEqual([second])
    expect(subject.handshakeQueue.waiting).toBe(0)
    subject.handshakeQueue.next()
    expect(subject.begun).toEqual([])
  })
})
