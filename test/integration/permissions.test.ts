/**
 * What an instance needs of its broker according to docs/OPERATING.md: lines and commands go
 * through with these permissions and no more, and the instance has these numbers of connections,
 * channels and queues. And what a back-end can and cannot do with those that docs/PROTOCOL.md
 * names.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { type AMQPChannel, AMQPClient, type AMQPMessage } from "@cloudamqp/amqp-client"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { pikaConsume, pikaPublish } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const WORKERS = 2
const name = uniqueNames("permissions")
const [OPERATING = "", PROTOCOL = ""] = ["OPERATING", "PROTOCOL"].map((page) =>
  readFileSync(join(import.meta.dir, `../../docs/${page}.md`), "utf8"),
)
/** A virtual host of its own, since the names are those of the defaults. */
const vhost = name("vhost")
let broker: PrivateBroker
let gateway: TestGateway | null = null

beforeAll(async () => {
  broker = await startRabbitMq()
  await broker.ctl("add_vhost", vhost)
  await broker.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
}, LIMIT_MS)

afterAll(async () => {
  await gateway?.stop()
  await broker?.dispose()
}, LIMIT_MS)

/** The permissions in this row of the documentation: configure, write, read. */
function documented(row: string, page = OPERATING): string[] {
  const line = page.split("\n").find((line) => line.startsWith(`| ${row} |`)) ?? ""
  return [...line.matchAll(/`([^`]+)`/g)].map(
    ([, pattern]) => pattern?.replaceAll("\\|", "|") ?? "",
  )
}

function urlFor(user: string): string {
  return `amqp://${user}@127.0.0.1:${broker.port}/${encodeURIComponent(vhost)}`
}

/** One line, and one command that a worker forwards and one that it does not. */
async function goesThrough(running: TestGateway): Promise<void> {
  await running.ready()
  const url = urlFor("guest:guest")
  const device = await connectDevice({ port: running.devicePort })
  await device.send("hello")
  const [line] = await pikaConsume({ url, queue: "from_device", count: 1 })
  const headers = { connection_id: line?.headers["connection_id"] }
  const bodies = Array.from({ length: 20 }, (_, n) => `command ${n}`)
  const messages = bodies.map((body) => ({ routingKey: "to_device", body, headers }))
  await pikaPublish({ url, messages })
  await device.waitLines(bodies.length)
  expect(device.lines.map(String).toSorted()).toEqual(bodies.toSorted())
  expect(await running.metric("owsla_commands_forwarded_total")).toBeGreaterThan(0)
  // Kept, with the permissions that this takes.
  const lost = { connection_id: "nobody.0.0000000000.1" }
  await pikaPublish({ url, messages: [{ routingKey: "to_device", body: "lost", headers: lost }] })
  expect(await pikaConsume({ url, queue: "to_device.undelivered", count: 1 })).toHaveLength(1)
  device.end()
}

async function start(row: string): Promise<TestGateway> {
  const user = name(row.replaceAll(" ", "-"))
  const permissions = documented(row)
  expect(permissions).toHaveLength(3)
  await broker.ctl("add_user", user, "a-password")
  await broker.ctl("set_permissions", "-p", vhost, user, ...permissions)
  gateway = await startGateway({
    AMQP_URL: urlFor(`${user}:a-password`),
    WORKERS: String(WORKERS),
  })
  return gateway
}

const warningsIn = ({ log }: TestGateway) =>
  log.filter(({ level }) => level === "warn" || level === 40)

test(
  "an instance that declares its queues works with the permissions of the documentation",
  async () => {
    const running = await start("declares its queues")
    await goesThrough(running)
    const connections = (await broker.ctl("list_connections", "vhost", "channels"))
      .split("\n")
      .filter((row) => row.startsWith(`${vhost}\t`))
      .map((row) => Number(row.split("\t")[1]))
    const queues = (await broker.ctl("list_queues", "-p", vhost, "name")).trim().split("\n")
    const said = (what: string) =>
      Number(new RegExp(`(\\d+) ${what}`).exec(OPERATING)?.[1] ?? Number.NaN)
    expect(connections).toHaveLength(said("connections for each worker") * WORKERS)
    expect(connections.reduce((sum, channels) => sum + channels, 0)).toBe(
      said("channels for each worker") * WORKERS,
    )
    expect(queues).toHaveLength(
      said("queues for the fleet") + said("queues for each worker") * WORKERS,
    )
    expect(await running.stop()).toBe(0)
  },
  LIMIT_MS,
)

test(
  "an instance that finds its queues works without the permission to declare them",
  async () => {
    const running = await start("finds its queues")
    await goesThrough(running)
    // The first instance has bound to_device to owsla.commands; this one may not do it again.
    const warnings = warningsIn(running).map(({ msg }) => msg)
    const unexpected = warnings.filter((text) => /permission|declare/.test(text))
    expect(unexpected.every((text) => text.includes("owsla.commands"))).toBe(true)
    expect(await running.stop()).toBe(0)
  },
  LIMIT_MS,
)

test(
  "an instance that finds no queue of broadcasts works without it, and says so",
  async () => {
    await broker.ctl("delete_queue", "-p", vhost, "owsla.broadcasts")
    const user = name("finds-its-queues")
    gateway = await startGateway({
      AMQP_URL: urlFor(`${user}:a-password`),
      WORKERS: String(WORKERS),
    })
    await goesThrough(gateway)
    const says = /^owsla\.broadcasts is not consumed.* queue owsla\.broadcasts does not exist/
    expect(warningsIn(gateway).map(({ msg }) => msg)).toContainEqual(expect.stringMatching(says))
    expect(await gateway.stop()).toBe(0)
  },
  LIMIT_MS,
)

test(
  "one that finds none says which is missing, with the permission",
  async () => {
    await broker.ctl("delete_queue", "-p", vhost, "to_device")
    const user = name("finds-its-queues")
    gateway = await startGateway({ AMQP_URL: urlFor(`${user}:a-password`), WORKERS: "1" })
    const { log } = gateway
    const says = /queue to_device does not exist.*permission "configure" or "read" on to_device is/
    await until(() => log.some((line) => says.test(String(line["reason"]))), {
      what: "the reason in the log",
      timeoutMs: 20_000,
    })
  },
  LIMIT_MS,
)

describe("with the permissions of the protocol's documentation", () => {
  let running: TestGateway
  const clients = new Map<string, AMQPClient>()
  const users = new Set<string>()

  beforeAll(async () => {
    await gateway?.stop()
    running = await startGateway({ AMQP_URL: urlFor("guest:guest"), WORKERS: String(WORKERS) })
    gateway = running
    await running.ready()
  }, LIMIT_MS)

  afterEach(async () => {
    for (const client of clients.values()) await client.close().catch(() => undefined)
    clients.clear()
  })

  /** A channel for a user with the permissions of this row. */
  async function channelOf(row: string): Promise<AMQPChannel> {
    const user = name(row.replaceAll(" ", "-"))
    if (!users.has(user)) {
      users.add(user)
      const permissions = documented(row, PROTOCOL)
      expect(permissions).toHaveLength(3)
      await broker.ctl("add_user", user, "a-password")
      await broker.ctl("set_permissions", "-p", vhost, user, ...permissions)
    }
    const client = clients.get(user) ?? new AMQPClient(urlFor(`${user}:a-password`))
    if (!clients.has(user)) await client.connect()
    clients.set(user, client)
    const channel = await client.channel()
    channel.onerror = () => undefined
    await channel.confirmSelect()
    return channel
  }

  async function consume(channel: AMQPChannel, queue: string): Promise<AMQPMessage[]> {
    const messages: AMQPMessage[] = []
    await channel.basicConsume(queue, { noAck: true }, (message) => void messages.push(message))
    return messages
  }

  test.each([
    ["a back-end", "owsla.commands"],
    ["a back-end that publishes to the default exchange", ""],
  ])(
    "%s takes lines, publishes commands, gets its receipts and follows presence",
    async (row, exchange) => {
      const channel = await channelOf(row)
      for (const queue of ["backend.receipts", "backend.presence"]) {
        await channel.queueDeclare(queue, { durable: true })
      }
      await channel.queueBind("backend.presence", "owsla.presence", "device.#")
      const presence = await consume(channel, "backend.presence")
      const receipts = await consume(channel, "backend.receipts")
      const lines = await consume(channel, "from_device")
      const device = await connectDevice({ port: running.devicePort })
      await device.send("hello")
      await until(() => lines.some((line) => line.bodyString() === "hello"), { what: "the line" })
      const { headers, replyTo = "" } = lines.at(-1)?.properties ?? {}
      const command = {
        headers: { connection_id: String(headers?.["connection_id"]) },
        replyTo: "backend.receipts",
      }
      for (const routingKey of ["to_device", replyTo]) {
        await channel.basicPublish(exchange, routingKey, `by ${routingKey}`, command, true)
      }
      await device.waitLines(2)
      expect(device.lines.toSorted()).toEqual([`by ${replyTo}`, "by to_device"].toSorted())
      await until(() => receipts.length === 2 && presence.length > 0, {
        what: "receipts and presence",
      })
      device.end()
      await channel.queueDelete("backend.receipts")
      await channel.queueDelete("backend.presence")
    },
    LIMIT_MS,
  )

  test(
    "a back-end can neither take others' commands nor speak for a worker",
    async () => {
      const queues = (await broker.ctl("list_queues", "-p", vhost, "name")).trim().split("\n")
      const own = queues.filter((queue) => queue !== "from_device")
      expect(own.length).toBeGreaterThanOrEqual(7)
      const refused = async (act: (channel: AMQPChannel) => Promise<unknown>) => {
        const channel = await channelOf("a back-end")
        const refusal = await act(channel).then(
          () => "allowed",
          (error: Error) => error.message,
        )
        expect(refusal).toMatch(/ACCESS_REFUSED|access_refused|403/)
      }
      for (const queue of own) {
        await refused((channel) => channel.basicConsume(queue, { noAck: true }, () => undefined))
        await refused((channel) => channel.basicPublish("", queue, "forged"))
        await refused((channel) => channel.queuePurge(queue))
        await refused((channel) => channel.queueDelete(queue))
      }
      await refused((channel) => channel.basicPublish("", "from_device", "a forged line"))
      await refused((channel) => channel.basicPublish("owsla.fleet", "", "forged"))
      await refused((channel) => channel.basicPublish("owsla.broadcast", "", "forged"))
      await refused((channel) => channel.basicPublish("owsla.presence", "device.connected", "{}"))
      await refused((channel) => channel.queueDeclare("owsla.worker.evil.0", { durable: true }))
    },
    LIMIT_MS,
  )

  test(
    "a back-end that may send broadcasts sends one, and gets its receipt",
    async () => {
      const channel = await channelOf("a back-end that may send broadcasts")
      await channel.queueDeclare("backend.counts", { durable: true })
      const receipts = await consume(channel, "backend.counts")
      const device = await connectDevice({ port: running.devicePort })
      const admitted = async () => {
        const { total } = (await (await running.fetch("/devices")).json()) as { total: number }
        return total === 1
      }
      await until(admitted, { what: "one device" })
      const headers = { to: "all" }
      const properties = { headers, replyTo: "backend.counts" }
      await channel.basicPublish("owsla.broadcast", "", "to all", properties, true)
      await device.waitLines(1)
      expect(device.lines.map(String)).toEqual(["to all"])
      await until(() => receipts.length === 1, { what: "the receipt" })
      expect(JSON.parse(receipts[0]?.bodyString() ?? "")).toMatchObject({ matched: 1 })
      device.end()
      await channel.queueDelete("backend.counts")
    },
    LIMIT_MS,
  )

  test(
    "a back-end that only reads lines, and an operator, read their one queue",
    async () => {
      const lines = await consume(
        await channelOf("a back-end that only reads lines"),
        "from_device",
      )
      const device = await connectDevice({ port: running.devicePort })
      await device.send("for a reader")
      await until(() => lines.some((line) => line.bodyString() === "for a reader"), {
        what: "the line",
      })
      device.end()
      const row = "an operator who looks at undelivered commands"
      await consume(await channelOf(row), "to_device.undelivered")
    },
    LIMIT_MS,
  )
})
