/**
 * What `src/broker/broker.ts` promises about queues that are declared and consumed at run time, for
 * each broker; with several clients and lost connections for those that have them.
 */

import { describe, expect, test } from "bun:test"
import { until, within } from "../../support/wait.ts"
import {
  AMQP,
  contents,
  EMBEDDED,
  LIMIT_MS,
  message,
  queue,
  type SharedWorld,
  SIMULATED,
  text,
  User,
  useBrokers,
  withNewNames,
} from "./harness.ts"

useBrokers()

/** RabbitMQ refuses messages to a quorum queue for some milliseconds after its declaration. */
async function publish(user: User, to: string, bodies: readonly string[]): Promise<void> {
  for (const body of bodies) {
    const isConfirmed = async () =>
      (await user.publish(message(to, { body: text(body) }))) === "confirmed"
    await until(isConfirmed, { what: `${to} to take ${body}` })
  }
}

describe.each([EMBEDDED, AMQP, SIMULATED])("the $kind broker, at run time", (world) => {
  const depth = "depth" in world ? (world as SharedWorld).depth : null
  const fresh = withNewNames(`contract.run-time.${world.kind}`)
  const start = async (
    queues: Parameters<User["start"]>[0] = [],
    subscribed: Record<string, number> = {},
  ) => {
    const user = new User(world.make())
    user.start(queues, subscribed)
    return user.ready()
  }
  /** A queue that is subscribed when this resolves. */
  const subscribed = async (user: User, noun = "inbox", prefetch = 100) => {
    const inbox = queue(noun)
    user.subscribe(inbox, { prefetch })
    await until(() => user.broker.exists(inbox.name), { what: `the queue ${inbox.name}` })
    return inbox
  }

  test(
    "declares and consumes a queue, with the prefetch of its subscription",
    fresh(async () => {
      const fence = queue("fence")
      const user = await start([fence], { [fence.name]: 1 })
      const inbox = await subscribed(user, "inbox", 2)
      await publish(user, inbox.name, ["a", "b", "c"])
      await user.delivered(2, inbox.name)
      await user.roundTrip(fence.name)
      expect(contents(user.from(inbox.name))).toEqual(["a", "b"])
      user.from(inbox.name)[0]?.acknowledge()
      expect(contents(await user.delivered(3, inbox.name))).toEqual(["a", "b", "c"])
    }),
    LIMIT_MS,
  )

  test(
    "consumes a queue of the setup, and one that was subscribed before the start",
    fresh(async () => {
      const [known, early] = [queue("known"), queue("early")]
      const user = new User(world.make())
      user.subscribe(early)
      user.subscribe(known)
      user.start([known])
      await user.ready()
      await until(() => user.broker.exists(early.name), { what: "the early queue" })
      await publish(user, known.name, ["a"])
      await publish(user, early.name, ["b"])
      expect(contents(await user.delivered(1, known.name))).toEqual(["a"])
      expect(contents(await user.delivered(1, early.name))).toEqual(["b"])
    }),
    LIMIT_MS,
  )

  test(
    "refuses a second subscription of the same queue",
    fresh(async () => {
      const user = await start()
      const inbox = await subscribed(user)
      expect(() => user.subscribe(inbox)).toThrow(inbox.name)
      user.broker.unsubscribe(queue("other").name)
    }),
    LIMIT_MS,
  )

  test(
    "unsubscribes: deliveries are lost once, nothing more comes, and the state does not change",
    fresh(async () => {
      const fence = queue("fence")
      const user = await start([fence], { [fence.name]: 1 })
      const inbox = await subscribed(user)
      await publish(user, inbox.name, ["a", "b", "c"])
      const deliveries = [...(await user.delivered(3, inbox.name))]
      deliveries[0]?.acknowledge()
      await until(() => deliveries[0]?.settled, { what: "the broker to have the acknowledgement" })
      const states = user.states.length
      user.broker.unsubscribe(inbox.name)
      user.broker.unsubscribe(inbox.name)
      expect(user.losses).toEqual([])
      expect(deliveries.map(({ lost }) => lost)).toEqual([true, true, true])
      deliveries[1]?.acknowledge()
      await publish(user, inbox.name, ["d"])
      await user.roundTrip(fence.name)
      expect(user.losses).toEqual([{ queue: inbox.name, deliveries: 3, lost: true }])
      expect(user.from(inbox.name).length).toBe(3)
      expect(deliveries.map(({ settled }) => settled)).toEqual([true, false, false])
      expect(user.states.length).toBe(states)
      if (depth !== null) {
        await until(async () => (await depth(inbox.name)) === 3, { what: "three in the queue" })
      }
    }),
    LIMIT_MS,
  )

  test(
    "subscribes again right after, with another prefetch, and gets what was not acknowledged first",
    fresh(async () => {
      const user = await start()
      const inbox = queue("inbox")
      user.subscribe(inbox, { exclusive: true, prefetch: 2 })
      await until(() => user.broker.exists(inbox.name), { what: "the queue" })
      await publish(user, inbox.name, ["a", "b", "c", "d"])
      const before = [...(await user.delivered(2, inbox.name))]
      user.broker.unsubscribe(inbox.name)
      user.subscribe(inbox, { exclusive: true, prefetch: 3 })
      const again = (await user.delivered(5, inbox.name)).slice(2)
      expect(contents(again)).toEqual(["a", "b", "c"])
      expect(again.map(({ redelivered }) => redelivered).slice(0, 2)).toEqual([true, true])
      expect(before.map(({ lost }) => lost)).toEqual([true, true])
      expect(again.map(({ lost }) => lost)).toEqual([false, false, false])
      for (const delivery of again) delivery.acknowledge()
      expect(contents((await user.delivered(6, inbox.name)).slice(5))).toEqual(["d"])
      expect(user.losses.length).toBe(1)
    }),
    LIMIT_MS,
  )

  test(
    "unsubscribes before the subscription is made",
    fresh(async () => {
      const fence = queue("fence")
      const user = await start([fence], { [fence.name]: 1 })
      const inbox = queue("inbox")
      await user.broker.declare(inbox)
      user.subscribe(inbox)
      user.broker.unsubscribe(inbox.name)
      await publish(user, inbox.name, ["a"])
      await user.roundTrip(fence.name)
      expect(user.from(inbox.name)).toEqual([])
      if (depth !== null) {
        await until(async () => (await depth(inbox.name)) === 1, { what: "one in the queue" })
      }
    }),
    LIMIT_MS,
  )

  test(
    "knows which queues exist, and declares one",
    fresh(async () => {
      const [absent, late] = [queue("absent"), queue("late")]
      const user = new User(world.make())
      const { broker } = user
      await expect(broker.exists(late.name)).rejects.toThrow("not connected")
      await expect(broker.declare(late)).rejects.toThrow("not connected")
      user.start([])
      await user.ready()
      await within(broker.declare(late), { what: "the declaration" })
      await broker.declare(late)
      expect(await broker.exists(late.name)).toBe(true)
      expect(await broker.exists(absent.name)).toBe(false)
      await publish(user, late.name, ["a"])
      expect(await user.publish(message(absent.name))).toBe("returned")
      await broker.close()
      await expect(broker.exists(late.name)).rejects.toThrow("not connected")
    }),
    LIMIT_MS,
  )

  test(
    "delivers nothing while paused, and everything when resumed",
    fresh(async () => {
      const user = await start()
      const inbox = await subscribed(user)
      const late = queue("late")
      await user.broker.declare(late)
      await publish(user, inbox.name, ["first"])
      await user.delivered(1, inbox.name)
      user.broker.pauseConsuming()
      user.subscribe(late)
      await publish(user, inbox.name, ["a"])
      await publish(user, late.name, ["b"])
      expect(await user.broker.exists(late.name)).toBe(true)
      expect(user.deliveries.length).toBe(1)
      user.broker.resumeConsuming()
      await user.delivered(2, inbox.name)
      expect(contents(await user.delivered(1, late.name))).toEqual(["b"])
    }),
    LIMIT_MS,
  )

  test(
    "stops with the others, and consumes no queue that is subscribed later but until close",
    fresh(async () => {
      const user = await start()
      const inbox = await subscribed(user)
      await publish(user, inbox.name, ["a"])
      const [delivery] = await user.delivered(1, inbox.name)
      await within(user.broker.stopConsuming(), { what: "stopConsuming" })
      const [late, lasting] = [queue("late"), queue("lasting")]
      await user.broker.declare(late)
      user.subscribe(late)
      user.subscribe(lasting, { untilClose: true })
      await until(() => user.broker.exists(lasting.name), { what: "the last queue" })
      delivery?.acknowledge()
      await until(() => delivery?.settled, { what: "the acknowledgement" })
      await publish(user, inbox.name, ["b"])
      await publish(user, late.name, ["c"])
      await publish(user, lasting.name, ["d"])
      expect(contents(await user.delivered(1, lasting.name))).toEqual(["d"])
      expect(contents(user.from(inbox.name))).toEqual(["a"])
      expect(user.from(late.name)).toEqual([])
    }),
    LIMIT_MS,
  )
})

describe.each([AMQP, SIMULATED])("several clients of the $kind broker, at run time", (world) => {
  const fresh = withNewNames(`contract.run-time.two.${world.kind}`)
  const start = async (make = () => world.make()) => {
    const user = new User(make())
    user.start([])
    return user.ready()
  }

  test(
    "an exclusive queue goes to the second when the first unsubscribes, in order",
    fresh(async () => {
      const [first, second] = [await start(), await start()]
      const inbox = queue("inbox")
      await first.broker.declare(inbox)
      await publish(first, inbox.name, ["a", "b", "c", "d"])
      first.subscribe(inbox, { exclusive: true, prefetch: 3 })
      const before = [...(await first.delivered(3, inbox.name))]
      second.subscribe(inbox, { exclusive: true })
      before[0]?.acknowledge()
      await until(() => before[0]?.settled, { what: "the acknowledgement" })
      await first.delivered(4, inbox.name)
      expect(second.deliveries).toEqual([])
      first.broker.unsubscribe(inbox.name)
      const after = await second.delivered(3, inbox.name)
      expect(contents(after)).toEqual(["b", "c", "d"])
      expect(after.map(({ redelivered }) => redelivered)).toEqual([true, true, true])
      await publish(first, inbox.name, ["e"])
      expect(contents(await second.delivered(4, inbox.name))).toEqual(["b", "c", "d", "e"])
      // While it waited for the queue, the second was ready.
      expect(second.states).toEqual(["ready"])
    }),
    LIMIT_MS,
  )

  test(
    "a subscription comes back after a lost connection, until it is unsubscribed",
    fresh(async () => {
      const user = await start(() => world.makeLosable())
      const [inbox, other] = [queue("inbox"), queue("other")]
      user.subscribe(inbox)
      user.subscribe(other)
      await until(() => user.broker.exists(other.name), { what: "both queues" })
      await publish(user, inbox.name, ["a", "b"])
      await publish(user, other.name, ["c"])
      await user.delivered(2, inbox.name)
      await user.delivered(1, other.name)
      world.lose()
      user.broker.unsubscribe(other.name)
      const deliveries = await user.delivered(4, inbox.name)
      expect(contents(deliveries)).toEqual(["a", "b", "a", "b"])
      expect(deliveries.map(({ lost }) => lost)).toEqual([true, true, false, false])
      await until(async () => (await world.depth(other.name)) === 1, { what: "one in the other" })
      expect(user.from(other.name).length).toBe(1)
      expect(user.losses.length).toBe(2)
    }),
    LIMIT_MS,
  )

  test(
    "a subscription that is made while away begins on the next connection",
    fresh(async () => {
      const user = await start(() => world.makeLosable())
      const inbox = queue("inbox")
      world.lose()
      await until(() => user.broker.state.kind === "away", { what: "the loss" })
      const asked = user.broker.exists(inbox.name).catch((error: unknown) => String(error))
      expect(await asked).toContain("not connected")
      user.subscribe(inbox)
      await user.ready()
      await until(() => user.broker.exists(inbox.name), { what: "the queue" })
      await publish(user, inbox.name, ["a"])
      expect(contents(await user.delivered(1, inbox.name))).toEqual(["a"])
    }),
    LIMIT_MS,
  )
})
