/**
 * Several clients of one broker. Not for the embedded broker, whose queues belong to its one
 * object: these tests need a second client of the same queues, or have to see what is left in them.
 */

import { describe, expect, test } from "bun:test"
import type { QueueDeclaration } from "../../../src/broker/broker.ts"
import { until, within } from "../../support/wait.ts"
import {
  AMQP,
  contents,
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

describe.each([AMQP, SIMULATED])("several clients of the $kind broker", ({ kind, make, depth }) => {
  const start = async (queues: QueueDeclaration[], subscribed: Record<string, number>) => {
    const user = new User(make())
    user.start(queues, subscribed)
    return user.ready()
  }
  const fresh = withNewNames(`contract.two.${kind}`)

  test(
    "delivers again, to another, what was not acknowledged before close, and nothing else",
    fresh(async () => {
      const inbox = queue("inbox")
      const first = await start([inbox], { [inbox.name]: 10 })
      for (const body of ["a", "b", "c", "d"]) {
        await first.publish(message(inbox.name, { body: text(body) }))
      }
      const deliveries = await first.delivered(4, inbox.name)
      deliveries[0]?.acknowledge()
      deliveries[2]?.acknowledge()
      await first.broker.close()
      deliveries[1]?.acknowledge()

      const second = await start([inbox], { [inbox.name]: 10 })
      const again = await second.delivered(2, inbox.name)
      expect(contents(again)).toEqual(["b", "d"])
      expect(again.map(({ redelivered }) => redelivered)).toEqual([true, true])
    }),
    LIMIT_MS,
  )

  test(
    "hands over every acknowledgement that was given before close",
    fresh(async () => {
      const inbox = queue("inbox")
      const user = await start([inbox], { [inbox.name]: 1_000 })
      const published = Array.from({ length: 500 }, () => user.publish(message(inbox.name)))
      await Promise.all(published)
      for (const delivery of await user.delivered(500, inbox.name)) delivery.acknowledge()
      await user.broker.close()

      const other = await start([inbox], { [inbox.name]: 1_000 })
      await other.publish(message(inbox.name, { body: text("a new one") }))
      // What comes again comes first.
      expect(contents((await other.delivered(1, inbox.name)).slice(0, 1))).toEqual(["a new one"])
    }),
    LIMIT_MS,
  )

  test(
    "delivers nothing that came while it was paused, however long, until it is resumed",
    fresh(async () => {
      const inbox = queue("inbox")
      const user = await start([inbox], { [inbox.name]: 10 })
      user.broker.pauseConsuming()
      for (const body of ["a", "b", "c"]) {
        await user.publish(message(inbox.name, { body: text(body) }))
      }
      const handedOver = async () => (await depth(inbox.name)) === 0
      await until(handedOver, { what: "the broker to hand them over" })
      expect(user.deliveries).toEqual([])
      user.broker.resumeConsuming()
      expect(contents(await user.delivered(3, inbox.name))).toEqual(["a", "b", "c"])
    }),
    LIMIT_MS,
  )

  test(
    "delivers nothing more once stopped in the middle of subscribing",
    fresh(async () => {
      const queues = Array.from({ length: 12 }, (_, n) => queue(`inbox.${n}`))
      const feeder = await start(queues, {})
      for (const { name } of queues) await feeder.publish(message(name))

      const user = new User(make())
      const stopped = Promise.withResolvers<void>()
      user.onDelivery = () => {
        user.onDelivery = () => undefined
        stopped.resolve(user.broker.stopConsuming())
      }
      user.start(queues, Object.fromEntries(queues.map(({ name }) => [name, 10])))
      await within(stopped.promise, { what: "stopConsuming" })
      const before = user.deliveries.length
      await user.ready()
      // The last to be subscribed to: its first message, and one that came long after the stop.
      const last = queues.at(-1)?.name ?? ""
      expect(await user.publish(message(last))).toBe("confirmed")
      await until(async () => (await depth(last)) === 2, {
        what: `both messages to stay in ${last}`,
        timeoutMs: 2_000,
      })
      expect(user.deliveries.length).toBe(before)
    }),
    LIMIT_MS,
  )

  test(
    "gives each of two users of one queue its share",
    fresh(async () => {
      const inbox = queue("inbox")
      const first = await start([inbox], { [inbox.name]: 2 })
      const second = await start([inbox], { [inbox.name]: 2 })
      const published = Array.from({ length: 6 }, () => first.publish(message(inbox.name)))
      await Promise.all(published)
      await first.delivered(2, inbox.name)
      await second.delivered(2, inbox.name)
      await until(async () => (await depth(inbox.name)) === 2, { what: "two waiting" })
    }),
    LIMIT_MS,
  )
})
