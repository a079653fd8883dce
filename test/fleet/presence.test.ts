/**
 * Presence: the events of devices that connect or disconnect, their order, and their handling while
 * the broker accepts no messages. With a publish channel that the test settles.
 */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import { EmbeddedBroker } from "../../src/broker/embedded.ts"
import { EXCHANGES, PRESENCE_EXCHANGE } from "../../src/broker/topology.ts"
import { Counters } from "../../src/counters.ts"
import { CLOSE_REASONS } from "../../src/device/close-reason.ts"
import type { Connection } from "../../src/device/connection.ts"
import { Presence, type PresenceEvent } from "../../src/fleet/presence.ts"
import { ScriptedBroker } from "../support/publish-channels.ts"

const NOW_MS = 1_750_000_000_123
const STEADY_MS = 4_567
const EPOCH = 1_750_000_000_000
const WORKER = "gw.eu.0"
const MAX_WAITING = 100_000
const MAX_IN_FLIGHT = 200
const LONGEST_WAIT_MS = 5_000

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

/** Sends at once, so that events are published separately. */
const AT_ONCE = { soon: (send: () => void) => send() }

class Subject {
  readonly broker = new ScriptedBroker()
  readonly publishChannel = this.broker.scripted
  readonly counters = new Counters()
  readonly presence = new Presence(this.broker, {
    schedule: AT_ONCE,
    workerId: WORKER,
    nowMs: () => NOW_MS,
    steadyMs: () => STEADY_MS,
    counters: this.counters,
  })

  lose(): void {
    this.publishChannel.state = "closed"
    this.publishChannel.settle("cut", Number.POSITIVE_INFINITY)
  }

  comeBack(): void {
    this.publishChannel.open()
  }

  /** The events that were published since this was last asked. */
  take(): PresenceEvent[] {
    return this.publishChannel.published.splice(0).map(({ body }) => JSON.parse(String(body)))
  }
}

function connection(deviceId: string, connectionId = "c1"): Connection {
  return {
    endpoint: { recipient: { deviceId, connectionId, epoch: EPOCH }, linesIn: 3, linesOut: 4 },
    remoteAddress: "192.0.2.1",
    peer: { tlsVersion: "TLSv1.3", fingerprint: "secret" },
  } as unknown as Connection
}

const CONNECTED: PresenceEvent = {
  device_id: "lock:1",
  connection_id: "c1",
  epoch: EPOCH,
  instance: "gw.eu",
  worker: WORKER,
  remote_address: "192.0.2.1",
  tls_version: "TLSv1.3",
  at: NOW_MS,
}

describe("an event", () => {
  test("of a device that connects contains its ids, its worker and its time", () => {
    const subject = new Subject()
    subject.presence.connected(connection("lock:1"))
    const [message] = subject.publishChannel.published
    expect(message).toMatchObject({
      exchange: PRESENCE_EXCHANGE,
      routingKey: "device.connected",
      mandatory: false,
    })
    expect(message?.properties).toMatchObject({
      contentType: "application/json",
      deliveryMode: 2,
      timestamp: new Date(NOW_MS),
      appId: "owsla",
    })
    expect(subject.take()).toEqual([CONNECTED])
  })

  test.each([...CLOSE_REASONS])(
    "of a device that disconnects contains the reason: %s",
    (reason) => {
      const subject = new Subject()
      subject.presence.disconnected(connection("lock:1"), reason)
      expect(subject.publishChannel.published).toMatchObject([
        { exchange: PRESENCE_EXCHANGE, routingKey: "device.disconnected", mandatory: false },
      ])
      expect(subject.take()).toEqual([{ ...CONNECTED, reason, lines_in: 3, lines_out: 4 }])
    },
  )

  test("is published for a device without a name too", () => {
    const subject = new Subject()
    subject.presence.connected(connection("c1", "c1"))
    expect(subject.take()).toMatchObject([{ device_id: "c1", connection_id: "c1" }])
  })

  test("is not published for a connection that was not admitted", () => {
    const subject = new Subject()
    const stranger = { endpoint: null } as Connection
    subject.presence.disconnected(stranger, "handshake_failed")
    expect(subject.publishChannel.published).toEqual([])
    expect(subject.presence.count).toBe(0)
  })

  test("has its own id, also for the same connection", () => {
    const subject = new Subject()
    subject.presence.connected(connection("lock:1"))
    subject.presence.disconnected(connection("lock:1"), "idle")
    const [first, second] = subject.publishChannel.published
    expect(first?.id).not.toBe(second?.id)
    expect([first, second].map((each) => each?.properties.messageId)).toEqual([
      first?.id,
      second?.id,
    ])
  })

  test("is counted when the broker has confirmed it", () => {
    const subject = new Subject()
    subject.presence.connected(connection("lock:1"))
    expect([subject.presence.count, subject.counters.presenceSent]).toEqual([1, 0])
    subject.publishChannel.settle("confirmed")
    expect([subject.presence.count, subject.counters.presenceSent]).toEqual([0, 1])
  })

  test("is published even without subscribers", async () => {
    const broker = new EmbeddedBroker()
    const counters = new Counters()
    const presence = new Presence(broker, {
      schedule: AT_ONCE,
      workerId: WORKER,
      nowMs: () => NOW_MS,
      steadyMs: () => STEADY_MS,
      counters,
    })
    const listener = { stateChanged: () => undefined, warning: () => undefined }
    broker.start({ exchanges: EXCHANGES, queues: [], subscriptions: [] }, listener)
    await Promise.resolve()
    presence.connected(connection("lock:1"))
    for (let n = 0; n < 20; n += 1) await Promise.resolve()
    expect([presence.count, counters.presenceSent]).toEqual([0, 1])
    await broker.close()
  })
})

describe("events", () => {
  test("are sent together when the schedule says so", () => {
    const broker = new ScriptedBroker()
    const due = new Set<() => void>()
    const presence = new Presence(broker, {
      schedule: { soon: (send) => due.add(send) },
      workerId: WORKER,
      nowMs: () => NOW_MS,
      steadyMs: () => STEADY_MS,
      counters: new Counters(),
    })
    presence.connected(connection("lock:1"))
    presence.connected(connection("bell:2"))
    expect(broker.scripted.published.length).toBe(0)
    for (const send of due) send()
    expect(due.size).toBe(1)
    expect(broker.scripted.published.length).toBe(2)
  })

  test("are sent in the order in which they happened", () => {
    const subject = new Subject()
    subject.presence.connected(connection("lock:1"))
    subject.presence.connected(connection("bell:2"))
    subject.presence.disconnected(connection("lock:1"), "idle")
    const told = subject.take().map(({ device_id, reason }) => [device_id, reason])
    expect(told).toEqual([
      ["lock:1", undefined],
      ["bell:2", undefined],
      ["lock:1", "idle"],
    ])
  })

  test("are in flight two hundred at a time, and the rest follow in order", () => {
    const subject = new Subject()
    const ids = Array.from({ length: MAX_IN_FLIGHT * 2 }, (_, n) => `d${n}`)
    for (const id of ids) subject.presence.connected(connection(id))
    expect(subject.publishChannel.published.length).toBe(MAX_IN_FLIGHT)
    expect(subject.presence.count).toBe(MAX_IN_FLIGHT * 2)
    subject.publishChannel.settle("confirmed")
    expect(subject.publishChannel.published.length).toBe(MAX_IN_FLIGHT + 1)
    subject.publishChannel.settle("confirmed", MAX_IN_FLIGHT)
    expect(subject.take().map(({ device_id }) => device_id)).toEqual(ids)
  })

  test("report since when the broker has confirmed nothing", () => {
    const subject = new Subject()
    expect(subject.presence.silentSinceMs()).toBeNull()
    subject.presence.connected(connection("lock:1"))
    expect(subject.presence.silentSinceMs()).toBe(STEADY_MS)
    subject.publishChannel.settle("confirmed")
    expect(subject.presence.silentSinceMs()).toBeNull()
  })

  test("that the broker refused are sent again, with later ones of the same device", () => {
    const subject = new Subject()
    subject.presence.connected(connection("lock:1"))
    subject.presence.connected(connection("bell:2"))
    subject.presence.disconnected(connection("lock:1"), "idle")
    subject.take()
    subject.publishChannel.settle("nacked")
    subject.publishChannel.settle("confirmed", 2)
    jest.advanceTimersByTime(LONGEST_WAIT_MS)
    const again = subject.take().map(({ device_id, reason }) => [device_id, reason])
    expect(again).toEqual([
      ["lock:1", undefined],
      ["lock:1", "idle"],
    ])
  })

  test("are not sent again after `stop`", () => {
    const subject = new Subject()
    subject.presence.connected(connection("lock:1"))
    subject.take()
    subject.publishChannel.settle("nacked")
    subject.presence.stop()
    jest.advanceTimersByTime(LONGEST_WAIT_MS)
    expect(subject.take()).toEqual([])
  })
})

describe("while the broker is not available", () => {
  test("unconfirmed events are kept, and sent again when it returns", () => {
    const subject = new Subject()
    subject.presence.connected(connection("lock:1"))
    subject.take()
    subject.lose()
    expect(subject.presence.count).toBe(1)
    subject.comeBack()
    expect(subject.take()).toEqual([CONNECTED])
    subject.publishChannel.settle("confirmed")
    expect([subject.presence.count, subject.counters.presenceSent]).toEqual([0, 1])
  })

  test("new events are kept, and sent after the unconfirmed ones", () => {
    const subject = new Subject()
    subject.presence.connected(connection("lock:1"))
    subject.take()
    subject.lose()
    subject.presence.disconnected(connection("lock:1"), "idle")
    expect(subject.take()).toEqual([])
    subject.comeBack()
    expect(subject.take().map(({ reason }) => reason)).toEqual([undefined, "idle"])
  })

  test("from the start, events wait for it, and keep their times", () => {
    const subject = new Subject()
    subject.publishChannel.state = "closed"
    subject.presence.connected(connection("lock:1"))
    expect(subject.presence.count).toBe(1)
    subject.comeBack()
    expect(subject.take()).toEqual([CONNECTED])
  })

  test("or blocked, events wait too", () => {
    const subject = new Subject()
    subject.publishChannel.state = "blocked"
    subject.presence.connected(connection("lock:1"))
    expect(subject.take()).toEqual([])
    subject.comeBack()
    expect(subject.take()).toEqual([CONNECTED])
  })

  test("the oldest waiting event is dropped for each one beyond the bound, and counted", () => {
    const subject = new Subject()
    subject.publishChannel.state = "closed"
    const count = MAX_IN_FLIGHT + MAX_WAITING
    for (let n = 0; n < count; n += 1) subject.presence.connected(connection(`d${n}`))
    expect([subject.presence.count, subject.counters.presenceDropped]).toEqual([count, 0])
    for (let n = 0; n < 3; n += 1) subject.presence.connected(connection(`new${n}`))
    expect([subject.presence.count, subject.counters.presenceDropped]).toEqual([count, 3])

    subject.comeBack()
    subject.publishChannel.settle("confirmed", MAX_IN_FLIGHT)
    const told = subject.take().map(({ device_id }) => device_id)
    // Those that the publisher had taken were sent; the next three made room.
    expect(told.slice(MAX_IN_FLIGHT - 1, MAX_IN_FLIGHT + 1)).toEqual([
      `d${MAX_IN_FLIGHT - 1}`,
      `d${MAX_IN_FLIGHT + 3}`,
    ])
    while (subject.presence.count > 0) subject.publishChannel.settle("confirmed", MAX_IN_FLIGHT)
    expect(subject.take().at(-1)?.device_id).toBe("new2")
    expect(subject.counters.presenceSent).toBe(count)
  })
})
