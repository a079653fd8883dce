/**
 * What `src/broker/broker.ts` promises to consumers, sentence by sentence, for each broker:
 * subscriptions, deliveries, and messages that expire.
 */

import { describe, expect, test } from "bun:test"
import { readDeath } from "../../../src/commands/command-message.ts"
import { until, within } from "../../support/wait.ts"
import {
  AMQP,
  contents,
  deadLetteringTo,
  EMBEDDED,
  LIMIT_MS,
  message,
  queue,
  type SharedWorld,
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
  // The embedded broker does not show how many messages wait in a queue.
  const depth = "depth" in world ? (world as SharedWorld).depth : null
  const fresh = withNewNames(`contract.${world.kind}`)

  describe("a subscription", () => {
    test(
      "has no more deliveries unacknowledged than its prefetch",
      fresh(async () => {
        const [inbox, fence] = [queue("inbox"), queue("fence")]
        const user = new User(make())
        user.start([inbox, fence], { [inbox.name]: 3, [fence.name]: 1 })
        await user.ready()
        for (let n = 0; n < 10; n += 1) {
          await user.publish(message(inbox.name, { body: text(String(n)) }))
        }
        await user.delivered(3, inbox.name)
        await user.roundTrip(fence.name)
        expect(contents(user.from(inbox.name))).toEqual(["0", "1", "2"])
        user.from(inbox.name)[1]?.acknowledge()
        // A second time is not a second acknowledgement.
        user.from(inbox.name)[1]?.acknowledge()
        await user.delivered(4, inbox.name)
        await user.roundTrip(fence.name)
        expect(contents(user.from(inbox.name))).toEqual(["0", "1", "2", "3"])
        user.onDelivery = (delivery) => delivery.acknowledge()
        for (const delivery of user.from(inbox.name)) delivery.acknowledge()
        expect(contents(await user.delivered(10, inbox.name))).toEqual([..."0123456789"])
      }),
      LIMIT_MS,
    )

    test(
      "that was stopped delivers no more, and what it delivered can still be acknowledged",
      fresh(async () => {
        const { user, inbox } = await userOf(make(), 10)
        for (const body of ["a", "b", "c"]) await user.publish(message(inbox, { body: text(body) }))
        const deliveries = [...(await user.delivered(3, inbox))]
        await within(user.broker.stopConsuming(), { what: "stopConsuming" })
        for (const body of ["d", "e"]) {
          expect(await user.publish(message(inbox, { body: text(body) }))).toBe("confirmed")
        }
        for (const delivery of deliveries) delivery.acknowledge()
        expect(await user.publish(message(inbox, { body: text("f") }))).toBe("confirmed")
        expect(contents(user.from(inbox))).toEqual(["a", "b", "c"])
        if (depth !== null) {
          await until(async () => (await depth(inbox)) === 3, { what: "three left" })
          await user.broker.close()
          expect(await depth(inbox)).toBe(3)
          expect(contents(user.from(inbox))).toEqual(["a", "b", "c"])
        }
      }),
      LIMIT_MS,
    )

    test(
      "that lasts until the broker is closed goes on when the others are stopped",
      fresh(async () => {
        const [inbox, lasting] = [queue("inbox"), queue("lasting")]
        const user = new User(make())
        user.start([inbox, lasting], { [inbox.name]: 10, [lasting.name]: 10 }, [lasting.name])
        await user.ready()
        await user.publish(message(lasting.name, { body: text("before") }))
        const [before] = await user.delivered(1, lasting.name)
        await within(user.broker.stopConsuming(), { what: "stopConsuming" })
        before?.acknowledge()
        await user.publish(message(inbox.name))
        await user.publish(message(lasting.name, { body: text("after") }))
        expect(contents(await user.delivered(2, lasting.name))).toEqual(["before", "after"])
        expect(user.from(inbox.name)).toEqual([])
      }),
      LIMIT_MS,
    )

    test(
      "that is stopped before the broker is there delivers nothing",
      fresh(async () => {
        const inbox = queue("inbox")
        const user = new User(make())
        user.start([inbox], { [inbox.name]: 10 })
        await within(user.broker.stopConsuming(), { what: "stopConsuming" })
        await user.ready()
        expect(await user.publish(message(inbox.name))).toBe("confirmed")
        if (depth !== null) {
          await until(async () => (await depth(inbox.name)) === 1, { what: "one left" })
        }
        expect(user.deliveries).toEqual([])
      }),
      LIMIT_MS,
    )

    test(
      "that was paused and resumed has lost and repeated nothing",
      fresh(async () => {
        const { user, inbox } = await userOf(make(), 100)
        user.broker.pauseConsuming()
        const sent = Array.from({ length: 20 }, (_, n) => String(n))
        for (const body of sent) {
          expect(await user.publish(message(inbox, { body: text(body) }))).toBe("confirmed")
        }
        user.broker.resumeConsuming()
        const deliveries = await user.delivered(20, inbox)
        expect(contents(deliveries)).toEqual(sent)
        expect(deliveries.some(({ redelivered }) => redelivered)).toBe(false)
        // As often as one likes, and in any order.
        user.broker.resumeConsuming()
        user.broker.pauseConsuming()
        user.broker.pauseConsuming()
        user.broker.resumeConsuming()
        await user.publish(message(inbox, { body: text("last") }))
        await user.delivered(21, inbox)
      }),
      LIMIT_MS,
    )

    test(
      "can be paused and stopped without waiting for each other",
      fresh(async () => {
        const { user, inbox } = await userOf(make(), 100)
        await user.publish(message(inbox))
        const [delivery] = await user.delivered(1, inbox)
        user.broker.pauseConsuming()
        try {
          const stopped = user.broker.stopConsuming()
          await within(stopped, { what: "stopConsuming while paused", timeoutMs: 2_000 })
        } finally {
          user.broker.resumeConsuming()
        }
        delivery?.acknowledge()
      }),
      LIMIT_MS,
    )
  })

  describe("a delivery", () => {
    test(
      "that is acknowledged after close does nothing",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        await user.publish(message(inbox))
        const [delivery] = await user.delivered(1, inbox)
        await user.broker.close()
        delivery?.acknowledge()
        delivery?.acknowledge()
        if (depth !== null) {
          await until(async () => (await depth(inbox)) === 1, { what: "it to be back" })
        }
      }),
      LIMIT_MS,
    )

    test(
      "stays as it was while others come",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const filled = (n: number) => new Uint8Array(30_000).fill(n)
        for (let n = 0; n < 20; n += 1) {
          await user.publish(message(inbox, { body: filled(n), properties: { messageId: `${n}` } }))
        }
        const deliveries = await user.delivered(20, inbox)
        for (const [n, { body, properties }] of deliveries.entries()) {
          expect(properties.messageId).toBe(`${n}`)
          expect(Buffer.compare(body, filled(n))).toBe(0)
        }
      }),
      LIMIT_MS,
    )
  })

  describe("a message whose time is over", () => {
    test(
      "is dead-lettered with the reason, its queue and its own expiration",
      fresh(async () => {
        const dead = queue("dead")
        const mortal = queue("mortal", deadLetteringTo(dead))
        const user = new User(make())
        user.start([dead, mortal], { [dead.name]: 10 })
        await user.ready()
        const properties = { expiration: "30", messageId: "m", headers: { device_id: "d" } }
        const sent = message(mortal.name, { body: text("late"), properties })
        expect(await user.publish(sent)).toBe("confirmed")

        const [delivery] = await user.delivered(1, dead.name)
        expect(contents(delivery === undefined ? [] : [delivery])).toEqual(["late"])
        expect(readDeath(delivery?.properties ?? {})).toEqual({
          reason: "expired",
          queue: mortal.name,
          expiration: "30",
        })
        // Kept, it would let the broker drop the dead letter too.
        expect(delivery?.properties.expiration).toBeUndefined()
        expect(delivery?.properties.messageId).toBe("m")
        expect(delivery?.properties.headers?.["device_id"]).toBe("d")
      }),
      LIMIT_MS,
    )

    test(
      "is dead-lettered by its queue's x-message-ttl, with or without an expiration of its own",
      fresh(async () => {
        const dead = queue("dead")
        const mortal = queue("mortal", { ...deadLetteringTo(dead), "x-message-ttl": 30 })
        const user = new User(make())
        user.start([dead, mortal], { [dead.name]: 10 })
        await user.ready()
        await user.publish(message(mortal.name))
        await user.publish(message(mortal.name, { properties: { expiration: "600000" } }))

        const deaths = (await user.delivered(2, dead.name)).map((d) => readDeath(d.properties))
        const because = { reason: "expired", queue: mortal.name }
        expect(deaths).toEqual([
          { ...because, expiration: null },
          { ...because, expiration: "600000" },
        ])
      }),
      LIMIT_MS,
    )

    test(
      "is not delivered after it, and no other is held up by it",
      fresh(async () => {
        const dead = queue("dead")
        const inbox = queue("inbox", deadLetteringTo(dead))
        const user = new User(make())
        user.start([dead, inbox], { [dead.name]: 10, [inbox.name]: 1 })
        await user.ready()
        await user.publish(message(inbox.name, { body: text("first") }))
        const [first] = await user.delivered(1, inbox.name)
        const properties = { expiration: "30" }
        await user.publish(message(inbox.name, { body: text("mortal"), properties }))
        await user.publish(message(inbox.name, { body: text("second") }))
        await user.delivered(1, dead.name)
        first?.acknowledge()
        expect(contents(await user.delivered(2, inbox.name))).toEqual(["first", "second"])
        expect(contents(user.from(dead.name))).toEqual(["mortal"])
      }),
      LIMIT_MS,
    )
  })
})
