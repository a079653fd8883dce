/** RabbitMQ behind the broker port: closed connections, queues of others, alarms and resets. */

import { describe, expect, test } from "bun:test"
import type { PublishResult, QueueDeclaration } from "../../src/broker/broker.ts"
import { until } from "../support/wait.ts"
import {
  backEnd,
  connectBackEnd,
  depthOf,
  FRAME,
  frame,
  is,
  LIMIT_MS,
  name,
  queue,
  rabbit,
  setUpBroker,
  startProxy,
  User,
} from "./amqp-harness.ts"

setUpBroker()

describe("a connection that the broker closes", () => {
  test(
    "makes the acknowledgement of an earlier delivery do nothing, whatever its tag is now",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.onDelivery = () => undefined
      user.start([inbox], [inbox])
      await user.ready()
      for (const body of ["a", "b", "c"]) await user.publish(inbox.name, body)
      const old = [...(await user.delivered(3))]

      await rabbit.closeAllConnections("a test")
      const again = (await user.delivered(6)).slice(3)
      expect(again.map(({ redelivered }) => redelivered)).toEqual([true, true, true])
      for (const delivery of old) delivery.acknowledge()
      await user.ready()
      expect(await user.publish(inbox.name, "d")).toBe("confirmed")
      await user.delivered(7)
      await user.broker.close()
      await connectBackEnd()
      await until(async () => (await rabbit.queueDepth(inbox.name)) === 4, {
        what: "all four to be in the queue still",
      })
    },
    LIMIT_MS,
  )

  test(
    "does not end a pause: nothing is delivered until it is resumed",
    async () => {
      const inbox = queue("inbox")
      const proxy = startProxy()
      const user = new User(proxy.url)
      user.onDelivery = () => undefined
      user.start([inbox], [inbox])
      await user.ready()
      user.broker.pauseConsuming()
      proxy.cut()
      await until(() => user.states.some(({ kind }) => kind === "away"), { what: "the loss" })
      await until(() => proxy.connections() >= 4, { what: "two new connections" })
      await user.ready()
      for (const body of ["a", "b"]) await backEnd.publish(inbox.name, body)
      // Two round trips are longer than a delivery takes.
      await rabbit.queueDepth(inbox.name)
      await rabbit.queueDepth(inbox.name)
      expect(user.bodies()).toEqual([])
      user.broker.resumeConsuming()
      await user.delivered(2)
      expect(user.bodies()).toEqual(["a", "b"])
    },
    LIMIT_MS,
  )
})

describe("a connection that only the gateway knows to be lost", () => {
  test(
    "leaves what is exclusive to it locked, and holds up no other subscription",
    async () => {
      const [shared, own] = [queue("shared"), queue("own")]
      const exclusive = { name: name("replies"), durable: false, exclusive: true, arguments: {} }
      const proxy = startProxy()
      const user = new User(proxy.url)
      user.start([shared, own, exclusive], [shared, { ...own, exclusive: true }, exclusive])
      await user.ready()
      // The broker notices by its heartbeats alone, which takes it half a minute.
      proxy.cut({ halfOpen: true })
      await until(() => user.states.some(({ kind }) => kind === "away"), { what: "the loss" })
      await until(() => user.warnings.length > 0, { what: "the queue to be found locked" })
      // One of them goes to the connection that the broker still believes in.
      await backEnd.publish(shared.name, "after")
      await backEnd.publish(shared.name, "after")
      await until(() => user.bodies().includes("after"), {
        what: "a delivery of a queue that is not exclusive",
        // Less than the broker needs to detect the loss, with room for a busy machine.
        timeoutMs: 15_000,
      })
    },
    LIMIT_MS,
  )
})

describe("a queue that somebody else consumes exclusively", () => {
  test(
    "is tried again until it is free, and no try leaves a channel behind",
    async () => {
      const own = { ...queue("own"), exclusive: true }
      await backEnd.declare(own)
      const [first, second] = [
        new User(rabbit.url, name("first")),
        new User(rabbit.url, name("second")),
      ]
      first.start([], [own])
      await first.ready()
      second.start([], [own])
      await until(() => second.warnings.length > 0, { what: "the second to be told" })
      expect(second.broker.state.kind).toBe("away")
      expect(second.warnings).toEqual([expect.stringContaining(own.name)])
      await first.broker.close()
      await second.ready()
      await backEnd.publish(own.name, "free")
      await second.delivered(1)
      // One for the publish channel, one for the subscription.
      await until(async () => (await channelsOf(name("second"))) === 2, {
        what: "two channels and no more",
        timeoutMs: LIMIT_MS,
      })
    },
    LIMIT_MS,
  )
})

describe("a queue whose messages may repeat", () => {
  test(
    "gives many more messages than its prefetch, and the broker keeps none of them",
    async () => {
      const own = queue("repeating")
      const user = new User(rabbit.url, name("user"))
      user.start([own])
      await user.ready()
      user.subscribe(own, { prefetch: 8, mayRepeat: true })
      await Promise.all(Array.from({ length: 200 }, (_, n) => user.publish(own.name, `${n}`)))
      await user.delivered(200)
      expect(user.bodies()).toEqual(Array.from({ length: 200 }, (_, n) => `${n}`))
      const unacknowledged = async () => {
        const listed = await rabbit.ctl("list_queues", "name", "messages")
        return listed.split("\n").find((line) => line.startsWith(own.name))
      }
      await until(async () => (await unacknowledged())?.endsWith("\t0") === true, {
        what: "no message to be left",
        timeoutMs: LIMIT_MS,
      })
    },
    LIMIT_MS,
  )
})

/** How many channels RabbitMQ counts on the connections of one client. */
async function channelsOf(clientName: string): Promise<number> {
  const listed = await rabbit.ctl("list_connections", "channels", "client_properties")
  const ours = listed.split("\n").filter((line) => line.includes(clientName))
  return ours.reduce((sum, line) => sum + Number.parseInt(line, 10), 0)
}

describe("reset", () => {
  test(
    "cuts what is in flight, opens the publish channel again, and disturbs no subscription",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.onDelivery = () => undefined
      user.start([inbox], [inbox])
      await user.ready()
      await user.publish(inbox.name, "before")
      await user.delivered(1)
      const results = Array.from({ length: 100 }, () => user.publish(inbox.name, "x"))
      user.broker.reset("the broker is mute")
      expect(user.publishChannel.state).toBe("closed")
      expect(user.broker.state).toEqual({ kind: "away", reason: "the broker is mute" })
      expect(new Set(await Promise.all(results))).toEqual(new Set<PublishResult>(["cut"]))
      await user.ready()
      expect(user.openings).toBe(2)
      expect(await user.publish(inbox.name, "after")).toBe("confirmed")
      await until(() => user.bodies().includes("after"), { what: "a delivery" })
      expect(user.deliveries.some(({ redelivered }) => redelivered)).toBe(false)
    },
    LIMIT_MS,
  )
})

describe("a queue that exists with other arguments", () => {
  test(
    "is used as it is, with one warning, and the others work too",
    async () => {
      const [other, plain, third] = [queue("other"), queue("plain"), queue("third")]
      await backEnd.declare({ ...other, arguments: { "x-queue-type": "classic" } })
      await backEnd.declare({ ...third, arguments: { "x-message-ttl": 600_000 } })
      const user = new User(rabbit.url)
      user.start([other, plain, third], [other, plain, third])
      await user.ready()
      for (const { name } of [other, plain, third]) {
        expect(await user.publish(name, name)).toBe("confirmed")
      }
      await user.delivered(3)
      expect(user.bodies().sort()).toEqual([other.name, plain.name, third.name].sort())
      const told = (queue: QueueDeclaration) =>
        user.warnings.filter((warning) => warning.includes(queue.name)).length
      expect([told(other), told(plain), told(third)]).toEqual([1, 0, 1])
    },
    LIMIT_MS,
  )

  test(
    "is warned of once, however often the queues are declared",
    async () => {
      const [other, late] = [queue("other"), queue("late")]
      await backEnd.declare({ ...other, arguments: { "x-queue-type": "classic" } })
      const user = new User(rabbit.url)
      user.start([other, late])
      await user.ready()
      expect(user.warnings.length).toBe(1)
      await backEnd.delete(late)
      user.broker.redeclare()
      // Declared last, so the declaration is complete when it is there.
      await until(async () => (await rabbit.queueDepth(late.name)) === 0, { what: "the queue" })
      user.broker.reset("a test")
      await user.ready()
      expect(user.warnings).toEqual(user.warnings.slice(0, 1))
    },
    LIMIT_MS,
  )
})

describe("a queue that is deleted", () => {
  test(
    "while it is consumed comes back with its consumer",
    async () => {
      const [inbox, untouched] = [queue("inbox"), queue("untouched")]
      const user = new User(rabbit.url)
      user.start([inbox, untouched], [inbox, untouched])
      await user.ready()
      await backEnd.delete(inbox)
      await until(async () => (await user.publish(inbox.name, "again")) === "confirmed", {
        what: "the queue to be back",
      })
      expect(await user.publish(untouched.name, "untouched")).toBe("confirmed")
      await until(() => user.bodies().includes("again") && user.bodies().includes("untouched"), {
        what: "both consumers",
      })
    },
    LIMIT_MS,
  )

  test(
    "while others are still being subscribed to comes back with its consumer too",
    async () => {
      const queues = Array.from({ length: 30 }, (_, n) => queue(`inbox.${n}`))
      for (const each of queues) await backEnd.declare(each)
      const [first, ...others] = queues as [QueueDeclaration, ...QueueDeclaration[]]
      await backEnd.publish(first.name, "the first")
      const user = new User(rabbit.url)
      const deleted = Promise.withResolvers<unknown>()
      user.onDelivery = (delivery) => {
        delivery.acknowledge()
        if (user.deliveries.length === 1) deleted.resolve(backEnd.delete(first))
      }
      user.start(queues, [first, ...others])
      await deleted.promise
      await user.ready()
      await until(
        async () => {
          const result = await user.publish(first.name, "again")
          if (result === "returned") user.broker.redeclare()
          return result === "confirmed"
        },
        { what: "the queue to be back" },
      )
      await until(() => user.bodies().includes("again"), { what: "its consumer" })
    },
    LIMIT_MS,
  )
})

describe("a memory alarm", () => {
  test(
    "blocks the publish channel and not the deliveries, and lets both go on when it is over",
    async () => {
      const [outbox, inbox] = [queue("outbox"), queue("inbox")]
      const user = new User(rabbit.url)
      user.onDelivery = () => undefined
      user.start([outbox, inbox], [inbox], 1)
      await user.ready()
      for (const body of ["a", "b", "c"]) await user.publish(inbox.name, body)
      const [first] = await user.delivered(1)
      const results: Promise<PublishResult>[] = []
      await rabbit.ctl("set_vm_memory_high_watermark", "0")
      try {
        // The broker blocks a connection when it publishes, and not before.
        await until(
          () => {
            if (user.publishChannel.state === "open") results.push(user.publish(outbox.name))
            return user.publishChannel.state === "blocked"
          },
          { what: "the publish channel to be blocked" },
        )
        expect(user.broker.state.kind).toBe("blocked")
        expect(user.states.map(is)).toEqual(["ready", "blocked"])
        first?.acknowledge()
        ;(await user.delivered(2))[1]?.acknowledge()
        await user.delivered(3)
        expect(user.bodies()).toEqual(["a", "b", "c"])
        expect(user.openings).toBe(1)
      } finally {
        await rabbit.ctl("set_vm_memory_high_watermark", "0.4")
      }
      await user.ready()
      expect(user.states.map(is)).toEqual(["ready", "blocked", "ready"])
      expect([user.publishChannel.state, user.openings]).toEqual(["open", 2])
      expect(new Set(await Promise.all(results))).toEqual(new Set<PublishResult>(["confirmed"]))
      expect(await user.publish(outbox.name)).toBe("confirmed")
      await depthOf(outbox.name, results.length + 1)
    },
    LIMIT_MS,
  )

  test(
    "that is told while the publish channels are being opened leaves them blocked",
    async () => {
      const blocked = frame(FRAME.method, 0, (view) => {
        const [connectionClass, blockedMethod] = [10, 60]
        view.setUint16(0, connectionClass)
        view.setUint16(2, blockedMethod)
        return 4 + view.setShortString(4, "low on memory")
      })
      const user = new User(startProxy(blocked).url)
      user.start([queue("any")])
      await until(() => user.openings > 0 || user.broker.state.kind === "blocked", {
        what: "the connection",
      })
      await until(() => user.broker.state.kind === "blocked", { what: "the state" })
      expect(user.publishChannel.state).toBe("blocked")
    },
    LIMIT_MS,
  )
})
