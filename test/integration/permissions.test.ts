/**
 * What an instance needs of its broker according to docs/OPERATING.md: lines and commands go through with these permissions
 * and no more, and the instance has these numbers of connections, channels and queues.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { pikaConsume, pikaPublish } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const WORKERS = 2
const name = uniqueNames("permissions")
const OPERATING = readFileSync(join(import.meta.dir, "../../docs/OPERATING.md"), "utf8")
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
function documented(row: string): string[] {
  const line = OPERATING.split("\n").find((line) => line.startsWith(`| ${row} |`)) ?? ""
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
    expect(warningsIn(running).filter(({ msg }) => /permission|declare/.test(msg))).toEqual([])
    expect(await running.stop()).toBe(0)
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
