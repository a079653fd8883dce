/**
 * Lost connections to a broker, and what is delivered again. Not for the embedded broker, which has
 * no connections.
 */

import { describe, expect, test } from "bun:test"
import type { QueueDeclaration } from "../../../src/broker/broker.ts"
import { readDeath } from "../../../src/commands/command-message.ts"
import { until, within } from "../../support/wait.ts"
import {
  AMQP,
  contents,
  deadLetteringTo,
  LIMIT_MS,
  message,
  queue,
  SIMULATED,
  text,
  User,
  useBrokers,
  withNewNames,
} from "./harness.ts"

useBrokers()

describe.each([AMQP, SIMULATED])("when the connections of the $kind broker are lost", (world) => {
  const { kind } = world
  const fresh = withNewNames(`contract.lost.${kind}`)
  const start = async (queues: QueueDeclaration[], subscribed: Record<string, number>) => {
    const user = new User(world.makeLosable())
    user.start(queues, subscribed)
    return user.ready()
  }

  test(
    "what was not acknowledged is lost, and is delivered again, first and marked",
    fresh(async () => {
      const inbox = queue("inbox")
      const user = await start([inbox], { [inbox.name]: 10 })
      for (const body of ["a", "b", "c"]) {
        await user.publish(message(inbox.name, { body: text(body) }))
      }
      const before = [...(await user.delivered(3, inbox.name))]
      expect(before.map(({ lost }) => lost)).toEqual([false, false, false])
      before[1]?.acknowledge()
      await until(() => before[1]?.settled, { what: "the broker to have the acknowledgement" })
      world.lose()
      const again = (await user.delivered(5, inbox.name)).slice(3)
      expect(before.map(({ lost }) => lost)).toEqual([true, true, true])
      expect(contents(again)).toEqual(["a", "c"])
      expect(again.map(({ redelivered, lost }) => [redelivered, lost])).toEqual([
        [true, false],
        [true, false],
      ])
      // A lost delivery cannot be acknowledged any more; an acknowledged one stays acknowledged.
      for (const delivery of [...before, ...again]) delivery.acknowledge()
      await until(() => again.every(({ settled }) => settled), { what: "both to be settled" })
      expect(before.map(({ settled }) => settled)).toEqual([false, true, false])
    }),
    LIMIT_MS,
  )

  test(
    "each subscription is told once, after its deliveries are lost and before any comes again",
    fresh(async () => {
      const [inbox, idle] = [queue("inbox"), queue("idle")]
      const user = await start([inbox, idle], { [inbox.name]: 10, [idle.name]: 10 })
      for (let n = 0; n < 3; n += 1) await user.publish(message(inbox.name))
      await user.delivered(3, inbox.name)
      world.lose()
      await user.delivered(6, inbox.name)
      expect(user.losses.toSorted((a, b) => (a.queue < b.queue ? -1 : 1))).toEqual([
        { queue: idle.name, deliveries: 0, lost: true },
        { queue: inbox.name, deliveries: 3, lost: true },
      ])
    }),
    LIMIT_MS,
  )

  test(
    "a subscription that lasts until the broker is closed comes back though the others are stopped",
    fresh(async () => {
      const [inbox, lasting] = [queue("inbox"), queue("lasting")]
      const user = new User(world.makeLosable())
      user.start([inbox, lasting], { [inbox.name]: 10, [lasting.name]: 10 }, [lasting.name])
      await user.ready()
      await within(user.broker.stopConsuming(), { what: "stopConsuming" })
      world.lose()
      await until(() => user.states.at(-1) === "ready" && user.states.length > 2, {
        what: "the broker to be back",
      })
      await user.publish(message(inbox.name))
      await user.publish(message(lasting.name, { body: text("after") }))
      expect(contents(await user.delivered(1, lasting.name))).toEqual(["after"])
      expect(user.from(inbox.name)).toEqual([])
    }),
    LIMIT_MS,
  )

  test(
    "another client may be given what was delivered before",
    fresh(async () => {
      const inbox = queue("inbox")
      const user = await start([inbox], { [inbox.name]: 10 })
      await user.publish(message(inbox.name, { body: text("a") }))
      await user.delivered(1, inbox.name)
      const other = new User(world.make())
      other.start([inbox], { [inbox.name]: 10 })
      await other.ready()
      await user.broker.stopConsuming()
      world.lose()
      const [delivery] = await other.delivered(1, inbox.name)
      expect([contents(delivery ? [delivery] : []), delivery?.redelivered]).toEqual([["a"], true])
    }),
    LIMIT_MS,
  )

  test(
    "what was returned to its queue more often than the limit is dead-lettered as delivery_limit",
    fresh(async () => {
      const dead = queue("dead")
      const inbox = queue("inbox", { ...deadLetteringTo(dead), "x-delivery-limit": 1 })
      const user = await start([dead, inbox], { [dead.name]: 10, [inbox.name]: 10 })
      const properties = { messageId: "m", headers: { device_id: "d" } }
      await user.publish(message(inbox.name, { body: text("a"), properties }))
      await user.delivered(1, inbox.name)
      world.lose()
      const [, again] = await user.delivered(2, inbox.name)
      expect(Number(again?.properties.headers?.["x-delivery-count"])).toBe(1)
      world.lose()
      const [delivery] = await user.delivered(1, dead.name)
      expect(readDeath(delivery?.properties ?? {})).toEqual({
        reason: "delivery_limit",
        queue: inbox.name,
        expiration: null,
      })
      expect(delivery?.properties.messageId).toBe("m")
      expect(user.from(inbox.name).length).toBe(2)
    }),
    LIMIT_MS,
  )

  test(
    "what comes back after its time is dead-lettered as expired",
    fresh(async () => {
      const dead = queue("dead")
      const inbox = queue("inbox", deadLetteringTo(dead))
      const user = await start([dead, inbox], { [dead.name]: 10, [inbox.name]: 10 })
      const sentAtMs = performance.now()
      const properties = { expiration: "300" }
      await user.publish(message(inbox.name, { body: text("a"), properties }))
      await user.delivered(1, inbox.name)
      await until(() => performance.now() - sentAtMs > 400, { what: "its time to be over" })
      world.lose()
      const [delivery] = await user.delivered(1, dead.name)
      expect(readDeath(delivery?.properties ?? {})?.reason).toBe("expired")
      expect(user.from(inbox.name).length).toBe(1)
    }),
    LIMIT_MS,
  )

  test(
    "a queue that holds more than its length dead-letters the oldest as maxlen",
    fresh(async () => {
      const dead = queue("dead")
      const inbox = queue("inbox", { ...deadLetteringTo(dead), "x-max-length": 2 })
      const user = await start([dead, inbox], { [dead.name]: 10 })
      for (const body of ["a", "b", "c"]) {
        await user.publish(message(inbox.name, { body: text(body) }))
      }
      const deliveries = await user.delivered(1, dead.name)
      expect(contents(deliveries)).toEqual(["a"])
      expect(readDeath(deliveries[0]?.properties ?? {})?.reason).toBe("maxlen")
    }),
    LIMIT_MS,
  )
})
