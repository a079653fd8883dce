/**
 * Queues that are declared and consumed at run time, on RabbitMQ: a failure of one queue disturbs no
 * other, and is repaired when its cause is gone.
 */

import { describe, expect, test } from "bun:test"
import { until } from "../support/wait.ts"
import {
  backEnd,
  depthOf,
  LIMIT_MS,
  LOCALHOST,
  name,
  queue,
  rabbit,
  setUpBroker,
  startProxy,
  User,
} from "./amqp-harness.ts"

setUpBroker()

/**
 * Publishes until it is confirmed. RabbitMQ refuses messages to a quorum queue for some milliseconds
 * after its declaration.
 */
function confirmed(user: User, to: string, body: string): Promise<unknown> {
  return until(async () => (await user.publish(to, body)) === "confirmed", {
    what: `${to} to take ${body}`,
  })
}

/** A user with one queue of its setup and a delivery of it that is not acknowledged. */
async function userWithDelivery(url = rabbit.url, clientName?: string) {
  const steady = queue("steady")
  const user = new User(url, clientName)
  user.onDelivery = () => undefined
  user.start([steady], [steady])
  await user.ready()
  await confirmed(user, steady.name, "steady")
  await user.delivered(1)
  /** The other subscription still works, and its connection was never lost. */
  const isUndisturbed = async () => {
    await user.publish(steady.name, "still steady")
    await until(() => user.bodies().includes("still steady"), { what: "another delivery" })
    expect(user.deliveries[0]?.lost).toBe(false)
    expect(user.deliveries.some(({ redelivered }) => redelivered)).toBe(false)
    expect(user.states.map(({ kind }) => kind)).toEqual(["ready"])
  }
  return { user, isUndisturbed }
}

describe("a subscription at run time that fails", () => {
  test(
    "for a missing permission is named in a warning, and begins when the permission is there",
    async () => {
      const [vhost, login] = [name("vhost"), name("user")]
      await rabbit.ctl("add_vhost", vhost)
      await rabbit.ctl("add_user", login, "a-password")
      await rabbit.ctl("set_permissions", "-p", vhost, login, "steady", ".*", "steady")
      const url = `amqp://${login}:a-password@${LOCALHOST}:${rabbit.port}/${vhost}`
      const { user, isUndisturbed } = await userWithDelivery(url)
      const inbox = queue("inbox")
      user.subscribe(inbox)
      await until(() => user.warnings.length > 0, { what: "a warning" })
      expect(user.warnings[0]).toContain(
        `queue ${inbox.name} does not exist and cannot be declared`,
      )
      await expect(user.broker.declare(inbox)).rejects.toThrow('permission "configure"')
      expect(await user.broker.exists(inbox.name)).toBe(false)
      await isUndisturbed()
      await rabbit.ctl("set_permissions", "-p", vhost, login, ".*", ".*", ".*")
      await until(() => user.broker.exists(inbox.name), { what: "the queue" })
      await confirmed(user, inbox.name, "allowed")
      await until(() => user.bodies().includes("allowed"), { what: "the delivery" })
      await isUndisturbed()
      expect(user.warnings.length).toBe(1)
    },
    LIMIT_MS,
  )

  test(
    "because its queue is deleted declares the queue again",
    async () => {
      const { user, isUndisturbed } = await userWithDelivery()
      const inbox = queue("inbox")
      const losses: boolean[] = []
      const lost = () => void losses.push(user.deliveries.at(-1)?.lost === true)
      user.subscribe(inbox, { lost })
      await until(() => user.broker.exists(inbox.name), { what: "the queue" })
      await confirmed(user, inbox.name, "before")
      await until(() => user.bodies().includes("before"), { what: "the delivery" })
      await backEnd.delete(inbox)
      await confirmed(user, inbox.name, "after")
      await until(() => user.bodies().includes("after"), { what: "its consumer" })
      expect(losses).toEqual([true])
      expect(user.warnings).toEqual([expect.stringContaining(inbox.name)])
      await isUndisturbed()
    },
    LIMIT_MS,
  )

  test(
    "because another client consumes exclusively waits for it, with a warning and no spare channel",
    async () => {
      const clientName = name("second")
      const { user, isUndisturbed } = await userWithDelivery(rabbit.url, clientName)
      const classic = { ...queue("inbox"), arguments: {} }
      const other = new User(rabbit.url)
      other.start([classic], [{ ...classic, exclusive: true }])
      await other.ready()
      user.subscribe(classic, { exclusive: true })
      await until(() => user.warnings.length > 0, { what: "a warning" })
      expect(user.warnings).toEqual([expect.stringContaining("another connection uses it")])
      await isUndisturbed()
      await other.broker.close()
      await backEnd.publish(classic.name, "free")
      await until(() => user.bodies().includes("free"), { what: "the delivery" })
      // One for the publish channel, one for each subscription.
      await until(async () => (await channelsOf(clientName)) === 3, { what: "three channels" })
      user.broker.unsubscribe(classic.name)
      await until(async () => (await channelsOf(clientName)) === 2, { what: "two channels" })
      await isUndisturbed()
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

describe("queues that are declared at run time", () => {
  test(
    "are declared again when a message is returned, and on the next connection",
    async () => {
      const proxy = startProxy()
      const user = new User(proxy.url)
      user.start([])
      await user.ready()
      const [declared, consumed] = [queue("declared"), queue("consumed")]
      await user.broker.declare(declared)
      user.subscribe(consumed)
      await until(() => user.broker.exists(consumed.name), { what: "the consumed queue" })
      await backEnd.delete(declared)
      expect(await user.publish(declared.name)).toBe("returned")
      user.broker.redeclare()
      await depthOf(declared.name, 0)
      await backEnd.delete(declared)
      user.broker.reset("a test")
      await user.ready()
      await depthOf(declared.name, 0)
      // An unsubscribed queue is not declared again.
      user.broker.unsubscribe(consumed.name)
      await backEnd.delete(consumed)
      proxy.cut()
      await until(() => user.broker.state.kind === "away", { what: "the loss" })
      await user.ready()
      expect(await user.broker.exists(consumed.name)).toBe(false)
      expect(user.warnings).toEqual([])
    },
    LIMIT_MS,
  )

  test(
    "are used as they are when they exist with other arguments",
    async () => {
      const inbox = queue("inbox")
      await backEnd.declare({ ...inbox, arguments: { "x-queue-type": "classic" } })
      const { user, isUndisturbed } = await userWithDelivery()
      user.subscribe(inbox)
      await backEnd.publish(inbox.name, "classic")
      await until(() => user.bodies().includes("classic"), { what: "the delivery" })
      expect(user.warnings).toEqual([expect.stringContaining("exists with other arguments")])
      await isUndisturbed()
    },
    LIMIT_MS,
  )

  test(
    "are consumed on a connection that was made while paused once it is resumed",
    async () => {
      const proxy = startProxy()
      const user = new User(proxy.url)
      user.start([])
      await user.ready()
      const [inbox, late] = [queue("inbox"), queue("late")]
      user.subscribe(inbox)
      await until(() => user.broker.exists(inbox.name), { what: "the queue" })
      await user.broker.declare(late)
      user.broker.pauseConsuming()
      proxy.cut()
      await until(() => user.states.some(({ kind }) => kind === "away"), { what: "the loss" })
      await until(() => proxy.connections() >= 4, { what: "two new connections" })
      await user.ready()
      user.subscribe(late)
      for (const { name } of [inbox, late]) await backEnd.publish(name, name)
      // Two round trips are longer than a delivery takes.
      await rabbit.queueDepth(inbox.name)
      await rabbit.queueDepth(late.name)
      expect(user.bodies()).toEqual([])
      user.broker.resumeConsuming()
      await user.delivered(2)
      expect(user.bodies().toSorted()).toEqual([inbox.name, late.name].toSorted())
    },
    LIMIT_MS,
  )
})
