/**
 * Outbound messages: that each is kept until the broker has it, is told once how it ended, and can
 * be told from every other when the broker returns it. On the embedded broker, which answers as it
 * is told, with the clock held.
 */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import {
  type OutgoingMessage,
  PUBLISH_ID_HEADER,
  type PublishChannel,
  type PublishChannelListener,
  type PublishResult,
} from "../../src/broker/broker.ts"
import { EmbeddedBroker } from "../../src/broker/embedded.ts"
import { OutboundMessages } from "../../src/broker/outbound-messages.ts"
import { Counters } from "../../src/counters.ts"

const LONGEST_WAIT_MS = 5_000
const MAX_IN_FLIGHT = 1_000

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

/** The embedded broker with the results of the next publishes as the test wants them. */
class ScriptedBroker extends EmbeddedBroker {
  readonly results: (PublishResult | "never")[] = []
  readonly published: OutgoingMessage[] = []
  redeclared = 0

  override publishChannel<T>(listener: PublishChannelListener<T>): PublishChannel<T> {
    const publishChannel = super.publishChannel(listener)
    const broker = this
    return {
      get state() {
        return publishChannel.state
      },
      publish(message, item) {
        if (broker.results[0] !== "never") publishChannel.publish(message, item)
        else broker.results.shift()
      },
    }
  }

  override store(message: OutgoingMessage): PublishResult {
    this.published.push(message)
    const [result] = this.results.splice(0, 1)
    return result === undefined || result === "never" ? super.store(message) : result
  }

  override redeclare(): void {
    this.redeclared += 1
  }

  bodies(): string[] {
    return this.published.splice(0).map(({ body }) => Buffer.from(body).toString())
  }
}

class Subject {
  readonly broker = new ScriptedBroker()
  readonly counters = new Counters()
  nowMs = 1_000
  readonly outboundMessages = new OutboundMessages(this.broker, this.counters, () => this.nowMs)
  /** `<body> <result>` of each post that has ended. */
  readonly done: string[] = []

  async start(): Promise<this> {
    const queues = ["q", "r"].map((name) => ({ name, durable: true, arguments: {} }))
    const listener = { stateChanged: () => undefined, warning: () => undefined }
    this.broker.start({ exchanges: [], queues, subscriptions: [] }, listener)
    await settled()
    return this
  }

  send(queue: string, body: string, whenReturned: "again" | "final" = "again", properties = {}) {
    this.outboundMessages.send(queue, Buffer.from(body), properties, {
      whenReturned,
      done: (result) => this.done.push(`${body} ${result}`),
    })
  }

  /** Lets the longest wait between tries pass. */
  async waitOut(): Promise<void> {
    jest.advanceTimersByTime(LONGEST_WAIT_MS)
    await settled()
  }
}

/**
 * Lets everything happen that needs no time: the embedded broker answers at the end of the turn.
 */
async function settled(): Promise<void> {
  for (let n = 0; n < 20; n += 1) await Promise.resolve()
}

describe("a post", () => {
  test("goes to its queue, persistent, with its properties and an id of its own", async () => {
    const subject = await new Subject().start()
    const properties = { headers: { device_id: "d" }, messageId: "m", correlationId: "c" }
    subject.send("q", "body", "again", properties)
    const [message] = subject.broker.published
    const publishId = message?.properties.headers?.[PUBLISH_ID_HEADER]
    expect(message).toEqual({
      id: String(publishId),
      exchange: "",
      routingKey: "q",
      body: Buffer.from("body"),
      properties: {
        messageId: "m",
        correlationId: "c",
        deliveryMode: 2,
        headers: { device_id: "d", [PUBLISH_ID_HEADER]: publishId as string },
      },
    })
  })

  test("is told from every other by that id, whatever its message_id", async () => {
    const subject = new Subject()
    for (let n = 0; n < 50; n += 1) subject.send("q", "x", "again", { messageId: "same" })
    await subject.start()
    const ids = subject.broker.published.map(({ id }) => id)
    expect(new Set(ids).size).toBe(50)
  })

  test("replaces an owsla-publish-id header that came with it", async () => {
    const subject = await new Subject().start()
    subject.send("q", "x", "again", { headers: { [PUBLISH_ID_HEADER]: "forged" } })
    subject.send("q", "y", "again", { headers: { [PUBLISH_ID_HEADER]: "forged" } })
    const ids = subject.broker.published.map(({ properties }) => properties.headers)
    expect(new Set(ids.map((headers) => headers?.[PUBLISH_ID_HEADER])).size).toBe(2)
    for (const { id, properties } of subject.broker.published) {
      expect(properties.headers?.[PUBLISH_ID_HEADER]).toBe(id)
    }
  })

  test("is told once when it is confirmed", async () => {
    const subject = await new Subject().start()
    subject.send("q", "a")
    expect([subject.done, subject.outboundMessages.count]).toEqual([[], 1])
    await settled()
    expect([subject.done, subject.outboundMessages.count]).toEqual([["a confirmed"], 0])
    await subject.waitOut()
    expect(subject.done.length).toBe(1)
  })

  test("waits while the broker is away", async () => {
    const subject = new Subject()
    subject.send("q", "a")
    await subject.waitOut()
    expect([subject.done, subject.outboundMessages.count]).toEqual([[], 1])
    expect(subject.outboundMessages.silentSinceMs()).toBeNull()
    await subject.start()
    expect(subject.done).toEqual(["a confirmed"])
  })

  test.each(["nacked", "cut"] as const)(
    "that was %s goes again, whichever it is",
    async (result) => {
      const subject = await new Subject().start()
      subject.broker.results.push(result, result)
      subject.send("q", "a", "again")
      subject.send("q", "b", "final")
      await settled()
      expect(subject.done).toEqual([])
      await subject.waitOut()
      expect(subject.broker.bodies()).toEqual(["a", "b", "a", "b"])
      expect(subject.done).toEqual(["a confirmed", "b confirmed"])
      expect([subject.counters.outboundRepublished, subject.broker.redeclared]).toEqual([2, 0])
    },
  )

  test("that must arrive has its queue declared when it is returned, and goes again", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("returned")
    subject.send("q", "a", "again")
    await settled()
    expect([subject.done, subject.broker.redeclared]).toEqual([[], 1])
    await subject.waitOut()
    expect(subject.done).toEqual(["a confirmed"])
  })

  test("that may fail ends when it is returned, and declares nothing", async () => {
    const subject = await new Subject().start()
    subject.send("nowhere", "a", "final")
    await settled()
    await subject.waitOut()
    expect(subject.done).toEqual(["a returned"])
    expect([subject.broker.redeclared, subject.broker.bodies()]).toEqual([0, ["a"]])
  })

  test("that cannot be encoded ends, whichever it is", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("unencodable", "unencodable")
    subject.send("q", "a", "again")
    subject.send("q", "b", "final")
    await settled()
    await subject.waitOut()
    expect(subject.done).toEqual(["a unencodable", "b unencodable"])
    expect(subject.broker.bodies()).toEqual(["a", "b"])
  })

  test("that is not wanted any more is not published, nor again, and ends as withdrawn", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    let isWanted = true
    const begun: string[] = []
    const send = (body: string) =>
      subject.outboundMessages.send(
        "q",
        Buffer.from(body),
        {},
        {
          whenReturned: "again",
          wanted: () => isWanted,
          begun: () => begun.push(body),
          done: (result) => subject.done.push(`${body} ${result}`),
        },
      )
    send("a")
    await settled()
    send("b")
    subject.send("q", "c")
    isWanted = false
    await subject.waitOut()
    expect(subject.done).toEqual(["a withdrawn", "b withdrawn", "c confirmed"])
    expect(subject.broker.bodies()).toEqual(["a", "c"])
    expect(begun).toEqual(["a"])
    expect(subject.outboundMessages.count).toBe(0)
  })

  test("is done when its queue has it, whatever a queue before it refuses", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    subject.send("q", "refused")
    for (let n = 0; n < 3; n += 1) subject.send("r", `taken ${n}`)
    await settled()
    expect(subject.done).toEqual(["taken 0 confirmed", "taken 1 confirmed", "taken 2 confirmed"])
    expect(subject.outboundMessages.count).toBe(1)
    await subject.waitOut()
    expect(subject.done.at(-1)).toBe("refused confirmed")
    expect(subject.broker.bodies()).toEqual(["refused", "taken 0", "taken 1", "taken 2", "refused"])
    expect(subject.outboundMessages.count).toBe(0)
  })

  test("to a queue that never confirms is given up while others are confirmed, and not before", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("never", "never")
    const options = { whenReturned: "final", whenUnconfirmed: "final" } as const
    const done = (body: string) => (result: string) => void subject.done.push(`${body} ${result}`)
    subject.outboundMessages.send(
      "q",
      Buffer.from("receipt"),
      {},
      { ...options, done: done("receipt") },
    )
    subject.outboundMessages.send(
      "q",
      Buffer.from("copy"),
      {},
      { whenReturned: "again", done: done("copy") },
    )
    await settled()
    // No other message was confirmed since: the broker may confirm nothing at all.
    subject.outboundMessages.giveUp(1_000, 999)
    expect(subject.done).toEqual([])
    // The wait was not long enough.
    subject.outboundMessages.giveUp(999, 1_001)
    expect(subject.done).toEqual([])
    subject.outboundMessages.giveUp(1_000, 1_001)
    expect(subject.done).toEqual(["receipt given_up"])
    expect(subject.outboundMessages.count).toBe(1)
  })

  test("is not given up when the broker has confirmed only messages sent before", async () => {
    const subject = await new Subject().start()
    subject.send("q", "before")
    subject.broker.results.push("never")
    subject.outboundMessages.send(
      "q",
      Buffer.from("receipt"),
      {},
      {
        whenReturned: "final",
        whenUnconfirmed: "final",
        done: (result) => void subject.done.push(`receipt ${result}`),
      },
    )
    subject.nowMs = 1_001
    await settled()
    expect(subject.done).toEqual(["before confirmed"])
    subject.outboundMessages.giveUp(1_000, Number.NEGATIVE_INFINITY)
    // A confirm of another channel in the tick in which the receipt was sent.
    subject.outboundMessages.giveUp(1_000, 1_000)
    expect(subject.done).toEqual(["before confirmed"])
    subject.send("q", "after")
    await settled()
    subject.outboundMessages.giveUp(1_000, Number.NEGATIVE_INFINITY)
    expect(subject.done).toEqual(["before confirmed", "after confirmed", "receipt given_up"])
  })

  test("may be sent from within the end of another", async () => {
    const subject = await new Subject().start()
    const done = () => subject.send("r", "b")
    subject.outboundMessages.send("q", Buffer.from("a"), {}, { whenReturned: "again", done })
    await settled()
    expect(subject.done).toEqual(["b confirmed"])
    expect(subject.outboundMessages.count).toBe(0)
  })
})

describe("many outbound messages", () => {
  test("are in flight a bounded number at a time, and all arrive in order", async () => {
    const subject = await new Subject().start()
    const bodies = Array.from({ length: 3 * MAX_IN_FLIGHT }, (_, n) => String(n))
    for (const body of bodies) subject.send("q", body)
    expect(subject.broker.published.length).toBe(MAX_IN_FLIGHT)
    expect(subject.outboundMessages.count).toBe(bodies.length)
    for (let n = 0; n < 200; n += 1) await settled()
    expect(subject.broker.bodies()).toEqual(bodies)
    expect(subject.done).toEqual(bodies.map((body) => `${body} confirmed`))
  })

  test("to another queue than one that refuses are not repeated", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    subject.send("q", "q0")
    subject.send("r", "r0")
    subject.send("q", "q1")
    await settled()
    await subject.waitOut()
    expect(subject.broker.bodies()).toEqual(["q0", "r0", "q1", "q0"])
    expect(subject.done.sort()).toEqual(["q0 confirmed", "q1 confirmed", "r0 confirmed"])
  })

  test("that are stopped are kept, and no timer sends them", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    subject.send("q", "a")
    await settled()
    subject.outboundMessages.stop()
    await subject.waitOut()
    expect([subject.broker.bodies(), subject.outboundMessages.count]).toEqual([["a"], 1])
  })
})
