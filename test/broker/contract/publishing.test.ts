/**
 * What `src/broker/broker.ts` promises to publishers, sentence by sentence, for each broker: its
 * state, publish channels, the properties of messages, and messages that no queue takes.
 */

import { describe, expect, test } from "bun:test"
import { PUBLISH_ID_HEADER, type PublishResult } from "../../../src/broker/broker.ts"
import { until, within } from "../../support/wait.ts"
import {
  AMQP,
  contents,
  EMBEDDED,
  LIMIT_MS,
  message,
  name,
  queue,
  SIMULATED,
  text,
  User,
  useBrokers,
  userOf,
  withNewNames,
} from "./harness.ts"

useBrokers()

describe.each([EMBEDDED, AMQP, SIMULATED])("the $kind broker", (world) => {
  const make = () => world.make()
  const fresh = withNewNames(`contract.${world.kind}`)

  describe("its state", () => {
    test(
      "is away, then ready, then closed, and each change is told once",
      fresh(async () => {
        const user = new User(make())
        expect(user.broker.state.kind).toBe("away")
        user.start([])
        expect(user.states).toEqual([])
        await user.ready()
        expect(user.states).toEqual(["ready"])
        await user.broker.close()
        expect(user.broker.state.kind).toBe("closed")
        expect(user.states).toEqual(["ready", "closed"])
      }),
      LIMIT_MS,
    )

    test(
      "is closed once when it is closed twice, and neither call waits for a time-out",
      fresh(async () => {
        const user = new User(make())
        user.start([])
        await user.ready()
        const closed = Promise.all([user.broker.close(), user.broker.close()])
        await within(closed, { what: "close, twice", timeoutMs: 1_000 })
        await within(user.broker.close(), { what: "a third close", timeoutMs: 1_000 })
        expect(user.states).toEqual(["ready", "closed"])
      }),
      LIMIT_MS,
    )

    test(
      "stays closed when it is closed while it starts",
      fresh(async () => {
        const user = new User(make())
        user.start([queue("any")])
        await within(user.broker.close(), { what: "close" })
        expect(user.broker.state.kind).toBe("closed")
        expect(user.publishChannel.state).toBe("closed")
        expect(user.states.at(-1)).toBe("closed")
      }),
      LIMIT_MS,
    )
  })

  describe("a publish channel", () => {
    test(
      "opens after start has returned, and tells its listener when it is open",
      fresh(async () => {
        const user = new User(make())
        expect(user.publishChannel.state).toBe("closed")
        user.start([queue("any")])
        expect(user.openings).toEqual([])
        await user.ready()
        expect(user.openings).toEqual(["open"])
        expect(user.publishChannel.state).toBe("open")
      }),
      LIMIT_MS,
    )

    test(
      "is one of several, and each opens and confirms its own",
      fresh(async () => {
        const inbox = queue("inbox")
        const broker = make()
        const [first, second] = [new User(broker), new User(broker)]
        first.start([inbox], { [inbox.name]: 10 })
        await first.ready()
        expect(second.openings).toEqual(["open"])
        const results = [
          first.publish(message(inbox.name, { id: "same" })),
          second.publish(message(name("nowhere"), { id: "same" })),
        ]
        expect(await Promise.all(results)).toEqual(["confirmed", "returned"])
        await first.delivered(1, inbox.name)
      }),
      LIMIT_MS,
    )

    test(
      "is closed once the broker is closed",
      fresh(async () => {
        const { user } = await userOf(make())
        await user.broker.close()
        expect(user.publishChannel.state).toBe("closed")
      }),
      LIMIT_MS,
    )

    test(
      "settles each publish exactly once and never before publish has returned",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const resultsOf = new Map<number, PublishResult[]>()
        const early: number[] = []
        for (let n = 0; n < 300; n += 1) {
          let returned = false
          const results: PublishResult[] = []
          resultsOf.set(n, results)
          const settled = (result: PublishResult) => {
            if (!returned) early.push(n)
            results.push(result)
          }
          const published = message(n % 3 === 0 ? name("nowhere") : inbox)
          user.publishChannel.publish(published, { id: published.id, settled })
          returned = true
        }
        const allSettled = () => [...resultsOf.values()].every((results) => results.length > 0)
        await until(allSettled, { what: "300 results" })
        // Nothing is in flight after this one, so nothing is left that could be told twice.
        expect(await user.publish(message(inbox))).toBe("confirmed")
        expect(early).toEqual([])
        for (const [n, results] of resultsOf) {
          expect(results).toEqual([n % 3 === 0 ? "returned" : "confirmed"])
        }
      }),
      LIMIT_MS,
    )

    test(
      "settles what is in flight when the broker is closed",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const results: PublishResult[] = []
        for (let n = 0; n < 200; n += 1) {
          const published = message(inbox)
          user.publishChannel.publish(published, {
            id: published.id,
            settled: (result) => void results.push(result),
          })
        }
        await user.broker.close()
        await until(() => results.length === 200, { what: "200 results" })
        expect([...new Set(results)].filter((result) => !/^(confirmed|cut)$/.test(result))).toEqual(
          [],
        )
      }),
      LIMIT_MS,
    )

    test(
      "keeps the order of 2,000 messages",
      fresh(async () => {
        const { user, inbox } = await userOf(make(), 500)
        user.onDelivery = (delivery) => delivery.acknowledge()
        const sent = Array.from({ length: 2_000 }, (_, n) => String(n))
        const settled = sent.map((n) => user.publish(message(inbox, { body: text(n) })))
        expect(new Set(await Promise.all(settled))).toEqual(new Set(["confirmed"]))
        expect(contents(await user.delivered(2_000, inbox))).toEqual(sent)
      }),
      LIMIT_MS,
    )
  })

  describe("a message", () => {
    test(
      "is confirmed and delivered with all its properties",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const timestamp = new Date(1_750_000_000_000)
        const properties = {
          contentType: "text/plain",
          contentEncoding: "utf-8",
          deliveryMode: 2,
          priority: 5,
          correlationId: "correlation 1",
          replyTo: "somewhere",
          expiration: "600000",
          messageId: "message 1",
          timestamp,
          type: "some.type",
          appId: "owsla",
        }
        const headers = {
          text: "zwölf",
          empty: "",
          large: 2n ** 53n - 1n,
          negative: -(2n ** 40n),
          zero: 0n,
          yes: true,
          no: false,
          nothing: null,
          bytes: new Uint8Array([0, 255, 10, 13]),
        }
        const body = new Uint8Array([0, 1, 254, 255])
        const sent = message(inbox, { body, properties: { ...properties, headers } })
        expect(await user.publish(sent)).toBe("confirmed")

        const [delivery] = await user.delivered(1, inbox)
        expect(delivery?.queue).toBe(inbox)
        expect(delivery?.redelivered).toBe(false)
        expect(new Uint8Array(delivery?.body ?? [])).toEqual(body)
        const { headers: received = {}, ...others } = delivery?.properties ?? {}
        expect(others).toEqual(properties)
        const { large, negative, zero, bytes, ...rest } = received
        // A 64-bit integer comes as a number or as a bigint.
        expect([large, negative, zero].map((value) => BigInt(value as bigint))).toEqual([
          headers.large,
          headers.negative,
          headers.zero,
        ])
        expect(bytes).toBeInstanceOf(Uint8Array)
        expect(Array.from(bytes as Uint8Array)).toEqual([0, 255, 10, 13])
        expect(rest).toEqual({ text: "zwölf", empty: "", yes: true, no: false, nothing: null })
      }),
      LIMIT_MS,
    )

    test(
      "without properties is delivered without any",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        expect(await user.publish(message(inbox, { properties: {} }))).toBe("confirmed")
        const [delivery] = await user.delivered(1, inbox)
        const { headers = {}, ...others } = delivery?.properties ?? {}
        expect({ headers, others }).toEqual({ headers: {}, others: {} })
      }),
      LIMIT_MS,
    )

    test(
      "has its properties read before publish returns, so the caller may fill one object anew",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const headers = { n: "", bytes: new Uint8Array(1) }
        const timestamp = new Date(0)
        const properties = { headers, messageId: "", timestamp }
        const results: Promise<PublishResult>[] = []
        for (let n = 1; n <= 3; n += 1) {
          headers.n = String(n)
          headers.bytes[0] = n
          properties.messageId = `m${n}`
          timestamp.setTime(n * 1000)
          results.push(user.publish(message(inbox, { id: `m${n}`, properties })))
        }
        expect(await Promise.all(results)).toEqual(["confirmed", "confirmed", "confirmed"])
        const deliveries = await user.delivered(3, inbox)
        const received = deliveries.map(({ properties: { headers, messageId, timestamp } }) => ({
          n: headers?.["n"],
          bytes: Array.from(headers?.["bytes"] as Uint8Array),
          messageId,
          seconds: (timestamp?.getTime() ?? 0) / 1000,
        }))
        expect(received).toEqual(
          [1, 2, 3].map((n) => ({ n: `${n}`, bytes: [n], messageId: `m${n}`, seconds: n })),
        )
      }),
      LIMIT_MS,
    )

    test(
      "may have an empty body",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        expect(await user.publish(message(inbox))).toBe("confirmed")
        expect((await user.delivered(1, inbox))[0]?.body.length).toBe(0)
      }),
      LIMIT_MS,
    )

    test(
      "may have a body of 1 MB, and small ones before and after it",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const large = new Uint8Array(1_048_576)
        for (let n = 0; n < large.length; n += 1) large[n] = (n * 31) >> 3
        const bodies = [text("before"), large, text("after")]
        const results = bodies.map((body) => user.publish(message(inbox, { body })))
        expect(await Promise.all(results)).toEqual(["confirmed", "confirmed", "confirmed"])
        const deliveries = await user.delivered(3, inbox)
        expect(deliveries.map(({ body }) => body.length)).toEqual([6, large.length, 5])
        expect(Buffer.compare(deliveries[1]?.body ?? text(""), large)).toBe(0)
      }),
      LIMIT_MS,
    )
  })

  describe("a message that no queue takes", () => {
    test(
      "is returned, known by its message_id",
      fresh(async () => {
        const { user } = await userOf(make())
        expect(await user.publish(message(name("nowhere")))).toBe("returned")
      }),
      LIMIT_MS,
    )

    test(
      "is returned, known by owsla-publish-id when its message_id is another's",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const post = (id: string, to: string) => {
          const properties = { messageId: "shared", headers: { [PUBLISH_ID_HEADER]: id } }
          return user.publish(message(to, { id, properties }))
        }
        const nowhere = name("nowhere")
        const results = [post("1", inbox), post("2", nowhere), post("3", inbox), post("4", nowhere)]
        expect(await Promise.all(results)).toEqual([
          "confirmed",
          "returned",
          "confirmed",
          "returned",
        ])
      }),
      LIMIT_MS,
    )

    test(
      "is told from 500 others on the publish channel, whichever way it is known",
      fresh(async () => {
        const { user, inbox } = await userOf(make(), 1_000)
        const wanted: PublishResult[] = []
        const results = Array.from({ length: 500 }, (_, n) => {
          const lost = n % 7 === 3
          wanted.push(lost ? "returned" : "confirmed")
          const id = `n${n}`
          const properties =
            n % 2 === 0 ? { messageId: id } : { headers: { [PUBLISH_ID_HEADER]: id, n: BigInt(n) } }
          return user.publish(message(lost ? name("nowhere") : inbox, { id, properties }))
        })
        expect(await Promise.all(results)).toEqual(wanted)
      }),
      LIMIT_MS,
    )

    test(
      "is confirmed under the same id once its queue takes it",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        expect(await user.publish(message(name("nowhere"), { id: "x" }))).toBe("returned")
        expect(await user.publish(message(inbox, { id: "x" }))).toBe("confirmed")
      }),
      LIMIT_MS,
    )

    test(
      "is one to an exchange without queues too",
      fresh(async () => {
        const { user } = await userOf(make())
        const sent = message(name("nowhere"), { exchange: "amq.topic" })
        expect(await user.publish(sent)).toBe("returned")
      }),
      LIMIT_MS,
    )
  })
})
