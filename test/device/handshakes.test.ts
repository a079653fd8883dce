/**
 * Which accepted sockets start their handshakes, wait, are refused or are replaced, and how they
 * are counted.
 */

import { expect, test } from "bun:test"
import { AddressLimits } from "../../src/device/address-limits.ts"
import type { AdmissionLimits } from "../../src/device/admission.ts"
import type { CloseReason } from "../../src/device/close-reason.ts"
import type { Connection } from "../../src/device/connection.ts"
import type { QueuedHandshake } from "../../src/device/handshake-queue.ts"
import { Handshakes } from "../../src/device/handshakes.ts"

interface TestSocket {
  connection: Connection | null
  queued: QueuedHandshake<TestSocket> | null
  refused: CloseReason | null
  replacedAfterMs: number | null
  pause(): void
  resume(): void
}

function makeSocket(): TestSocket {
  return {
    connection: null,
    queued: null,
    refused: null,
    replacedAfterMs: null,
    pause: () => undefined,
    resume: () => undefined,
  }
}

class Subject {
  nowMs = 1_000
  count = 0
  suspended = false
  shut = false
  mayBegin = true
  readonly handshakes: Handshakes<TestSocket>

  constructor(limits: AdmissionLimits, addressLimits: AddressLimits | null = null) {
    this.handshakes = new Handshakes({
      limits,
      addressLimits,
      steadyMs: () => this.nowMs,
      connectionCount: () => this.count,
      isBusy: () => true,
      mayBegin: () => this.mayBegin,
      isShut: () => this.shut,
      suspended: () => this.suspended,
      begin: (socket, remoteAddress) => {
        this.count += 1
        socket.connection = { acceptedAtMs: this.nowMs, remoteAddress } as Connection
        return socket.connection
      },
      waits: (socket, queued) => {
        socket.queued = queued
      },
      refuse: (socket, reason) => {
        socket.refused = reason
      },
      replace: (socket, ageMs) => {
        socket.replacedAfterMs = ageMs
      },
    })
  }

  accept(address = "192.0.2.1"): TestSocket {
    const socket = makeSocket()
    this.handshakes.accept(socket, address)
    return socket
  }
}

const LIMITS: AdmissionLimits = { maxConnections: 1_000, maxWaiting: 2, perS: 0 }

/** Accepts sockets until one has to wait. */
function fill(subject: Subject): { begun: TestSocket[]; waiting: TestSocket } {
  const begun: TestSocket[] = []
  for (;;) {
    const socket = subject.accept()
    if (socket.connection === null) return { begun, waiting: socket }
    begun.push(socket)
  }
}

function connectionOf({ connection }: TestSocket | undefined = makeSocket()): Connection {
  if (connection === null) throw new Error("its handshake has not begun")
  return connection
}

test("a handshake beyond the limit waits until one before it has completed", () => {
  const subject = new Subject(LIMITS)
  const { begun, waiting } = fill(subject)
  const { handshake_limit, handshakes_in_progress } = subject.handshakes.report
  expect(begun.length).toBe(handshake_limit)
  expect(handshakes_in_progress).toBe(handshake_limit)
  expect(subject.handshakes.report.waiting).toBe(1)
  subject.nowMs += 5
  expect(subject.handshakes.completed(connectionOf(begun[0]))).toBe(5)
  expect(waiting.connection).not.toBeNull()
  expect(subject.handshakes.report.waiting).toBe(0)
})

test("a handshake that ends with its socket makes room once, also when it has completed before", () => {
  const subject = new Subject(LIMITS)
  const { begun, waiting } = fill(subject)
  const [first] = begun
  if (first === undefined) throw new Error("none began")
  subject.handshakes.closed(first, connectionOf(first))
  expect(waiting.connection).not.toBeNull()
  const { handshakes_in_progress } = subject.handshakes.report
  subject.handshakes.closed(first, connectionOf(first))
  expect(subject.handshakes.report.handshakes_in_progress).toBe(handshakes_in_progress)
})

test("no handshake is started for a socket that closes while it waits", () => {
  const subject = new Subject(LIMITS)
  const { begun, waiting } = fill(subject)
  if (waiting.queued === null) throw new Error("it does not wait")
  subject.handshakes.left(waiting.queued)
  subject.nowMs += 5
  subject.handshakes.completed(connectionOf(begun[0]))
  expect(waiting.connection).toBeNull()
  expect(subject.handshakes.report.waiting).toBe(0)
})

test("sockets beyond those that may wait, under memory pressure and while draining are refused", () => {
  const subject = new Subject(LIMITS)
  fill(subject)
  expect(subject.accept().refused).toBeNull()
  expect(subject.accept().refused).toBe("overloaded")
  expect(subject.handshakes.refusing).toBe("overloaded")
  const suspended = new Subject(LIMITS)
  suspended.suspended = true
  expect(suspended.accept().refused).toBe("overloaded")
  expect(subject.handshakes.stop().length).toBe(2)
  expect(subject.accept().refused).toBe("drained")
})

test("a stalled handshake is no longer counted, and may still complete", () => {
  const subject = new Subject(LIMITS)
  const { begun, waiting } = fill(subject)
  subject.nowMs += 60_000
  subject.handshakes.sweep(0)
  expect(waiting.connection).not.toBeNull()
  expect(subject.handshakes.report.handshakes_in_progress).toBe(1)
  subject.handshakes.completed(connectionOf(begun[0]))
  expect(subject.handshakes.report.handshakes_in_progress).toBe(1)
})

test("in a full worker the oldest unadmitted connection is replaced, once", () => {
  const subject = new Subject({ ...LIMITS, maxConnections: 2 })
  const first = subject.accept()
  const second = subject.accept()
  expect(subject.accept().refused).toBe("overloaded")
  subject.handshakes.admitted(first)
  subject.nowMs += 60_000
  subject.accept()
  expect(first.replacedAfterMs).toBeNull()
  expect(second.replacedAfterMs).toBe(60_000)
  // It is still there while it is being closed, and is not asked again.
  second.replacedAfterMs = null
  subject.accept()
  expect(second.replacedAfterMs).toBeNull()
})

test("refuses an address at its limit, and counts each way a connection ends", () => {
  const limits = { maxConnections: 1_000, maxWaiting: 10, perS: 1 }
  const subject = new Subject(limits, new AddressLimits({ maxConnections: 2, handshakesPerS: 0 }))
  const begun = subject.accept()
  const waiting = subject.accept()
  expect([begun.connection !== null, waiting.queued !== null]).toEqual([true, true])
  expect(subject.accept().refused).toBe("overloaded_address")
  expect(subject.accept("192.0.2.2").refused).toBeNull()
  if (begun.connection === null || waiting.queued === null) throw new Error("not accepted")
  subject.handshakes.closed(begun, begun.connection)
  expect(subject.accept().refused).toBeNull()
  expect(subject.accept().refused).toBe("overloaded_address")
  subject.handshakes.left(waiting.queued)
  expect(subject.accept().refused).toBeNull()
  expect(subject.accept().refused).toBe("overloaded_address")
})

test("handshakes wait until they may begin, and then start in order of arrival", () => {
  const subject = new Subject(LIMITS)
  subject.mayBegin = false
  const [first, second] = [subject.accept(), subject.accept()]
  subject.handshakes.sweep(0)
  expect([first.connection, second.connection]).toEqual([null, null])
  expect(subject.handshakes.report.waiting).toBe(2)
  subject.mayBegin = true
  subject.handshakes.sweep(0)
  expect([first.connection === null, second.connection === null]).toEqual([false, false])
})

test("a shut gate refuses before TLS", () => {
  const subject = new Subject(LIMITS)
  subject.shut = true
  expect(subject.accept().refused).toBe("gated")
})
