/**
 * The doctor with a real broker, and beside running gateways: what it finds, that it changes nothing
 * on the broker, and that it shows no secret.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { join } from "node:path"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { loadConfig } from "../../src/config/config.ts"
import { measureCosts } from "../../src/ops/doctor/cost.ts"
import type { Finding, Level } from "../../src/ops/doctor/finding.ts"
import { certificateFiles, startGateway } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq } from "../support/rabbitmq.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 120_000
const MAIN_FILE = join(import.meta.dir, "../../src/main.ts")
const PASSWORD = "s3cret-p%40ssword"
const SECRETS = [PASSWORD, decodeURIComponent(PASSWORD)]
let broker: PrivateBroker
let vhosts = 0

beforeAll(async () => {
  broker = await startRabbitMq({ plugins: ["rabbitmq_management"] })
  await broker.ctl("add_user", "user", decodeURIComponent(PASSWORD))
  await broker.ctl("set_user_tags", "user", "management")
}, LIMIT_MS)

afterAll(() => broker?.dispose(), LIMIT_MS)

/** A new virtual host with these permissions of the user. */
async function virtualHost(...permissions: string[]): Promise<{ vhost: string; url: string }> {
  vhosts += 1
  const vhost = `doctor-${vhosts}`
  await broker.ctl("add_vhost", vhost)
  await broker.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
  const given = permissions.length === 0 ? [".*", ".*", ".*"] : permissions
  await broker.ctl("set_permissions", "-p", vhost, "user", ...given)
  return { vhost, url: `amqp://user:${PASSWORD}@127.0.0.1:${broker.port}/${vhost}` }
}

const management = () => ["--management", `http://127.0.0.1:${broker.managementPort}`]

interface Report {
  readonly status: number
  readonly findings: readonly Finding[]
  /** The levels of the findings of a check, and their texts. */
  readonly of: (check: Finding["check"]) => { levels: Level[]; text: string }
}

async function doctor(environment: Record<string, string>, ...args: string[]): Promise<Report> {
  const child = Bun.spawn([process.execPath, MAIN_FILE, "doctor", "--json", ...args], {
    env: {
      PATH: process.env["PATH"] ?? "",
      INSTANCE_ID: "doctor-test",
      ...certificateFiles(),
      ...environment,
    },
    stdio: ["ignore", "pipe", "pipe"],
  })
  const [output, error] = await Promise.all([child.stdout.text(), child.stderr.text()])
  for (const secret of SECRETS) expect(output + error).not.toContain(secret)
  expect(error).toBe("")
  const { status, findings } = JSON.parse(output) as { status: number; findings: Finding[] }
  expect(await child.exited).toBe(status)
  const of = (check: Finding["check"]) => {
    const found = findings.filter((finding) => finding.check === check)
    return {
      levels: found.map(({ level }) => level),
      text: found.map(({ message, advice }) => `${message} (${advice})`).join("\n"),
    }
  }
  return { status, findings, of }
}

/** The queues, exchanges and bindings of a virtual host. */
async function contents(vhost: string): Promise<string> {
  const queues = await broker.ctl("list_queues", "-p", vhost, "name", "arguments")
  const exchanges = await broker.ctl("list_exchanges", "-p", vhost, "name", "type")
  const bindings = await broker.ctl("list_bindings", "-p", vhost)
  return [queues, exchanges, bindings].map((text) => text.split("\n").sort().join("\n")).join("---")
}

test(
  "a new virtual host: the start may declare everything, and nothing is changed",
  async () => {
    const { vhost, url } = await virtualHost()
    const before = await contents(vhost)
    const { of } = await doctor({ AMQP_URL: url }, ...management())
    expect(of("broker")).toMatchObject({ levels: ["ok"] })
    expect(of("broker").text).toContain(`127.0.0.1:${broker.port}/${vhost}: RabbitMQ 3`)
    expect(of("queues")).toMatchObject({ levels: ["ok"] })
    expect(of("queues").text).toContain("from_device, to_device, owsla.broadcasts do not exist yet")
    expect(of("permissions")).toMatchObject({ levels: ["ok"] })
    expect(of("confirms").text).toMatch(/p50 [\d.]+ ms, p99 [\d.]+ ms/)
    expect(of("alarms").levels).toEqual(["ok"])
    expect(of("policies").levels).toEqual(["ok"])
    expect(of("fleet").text).toContain("no instance has run")
    expect(of("clock").text).toContain("the broker's clock agrees")
    expect(of("handshake").levels).toEqual(["ok"])
    expect(await contents(vhost)).toBe(before)
  },
  LIMIT_MS,
)

test(
  "beside running instances: their number, and nothing is changed or consumed",
  async () => {
    const { vhost, url } = await virtualHost()
    const settings = { AMQP_URL: url, WORKERS: "1" }
    const one = await startGateway({ ...settings, INSTANCE_ID: "one" })
    const other = { INSTANCE_ID: "two", FLEET_SHARDS: "4", DEVICE_FRAMING: "u16" }
    const two = await startGateway({ ...settings, ...other })
    await one.ready()
    await two.ready()
    const client = new AMQPClient(url)
    await client.connect()
    const channel = await client.channel()
    await channel.confirmSelect()
    for (const queue of ["from_device", "to_device.undelivered"]) {
      await channel.basicPublish("", queue, "kept")
    }
    const before = await contents(vhost)
    const { of, status } = await doctor({ AMQP_URL: url })
    expect(of("queues").text).toContain("5 queue(s) exist as wanted")
    expect(of("queues").levels).toEqual(["ok"])
    expect(of("permissions").levels).toEqual(["ok"])
    expect(of("fleet").levels).toEqual(["ok", "failure", "failure"])
    expect(of("fleet").text).toContain("DEVICE_FRAMING is line here and u16 on two (")
    expect(of("fleet").text).toContain("2 worker(s) of 2 instance(s) heard: one, two")
    expect(of("fleet").text).toContain("FLEET_SHARDS is 16 here and 4 on two.0")
    expect(of("clock").text).toContain("the one instance's clock agrees")
    expect(of("clock").text).toContain("the two instance's clock agrees")
    expect(status).toBe(2)
    expect(await contents(vhost)).toBe(before)
    for (const queue of ["from_device", "to_device.undelivered"]) {
      const { messageCount } = await channel.queueDeclare(queue, { passive: true })
      expect(messageCount).toBe(1)
      expect(await channel.basicGet(queue)).toMatchObject({ redelivered: false })
    }

    const secret = { FLEET_SECRET: "0123456789abcdefghijklmnopqrstuvwxyz" }
    const unverified = await doctor({ AMQP_URL: url, ...secret })
    expect(unverified.of("fleet").text).toContain("a different FLEET_SECRET")
    expect(unverified.of("fleet").levels[0]).toBe("failure")
    await client.close()
    expect(await one.stop()).toBe(0)
    expect(await two.stop()).toBe(0)
  },
  LIMIT_MS,
)

test(
  "queues with other arguments are named",
  async () => {
    const { url } = await virtualHost()
    const client = new AMQPClient(url)
    await client.connect()
    const channel = await client.channel()
    for (const queue of ["from_device", "owsla.held.3"]) {
      await channel.queueDeclare(queue, { durable: true }, { "x-queue-type": "classic" })
    }
    await channel.queueDeclare("owsla.held.0", { durable: true }, { "x-queue-type": "quorum" })
    await client.close()
    const { of } = await doctor({ AMQP_URL: url })
    expect(of("queues").levels).toEqual(["ok", "warning", "warning", "ok"])
    expect(of("queues").text).toContain("1 queue(s) exist as wanted")
    expect(of("queues").text).toContain("queue owsla.held.3 exists with other arguments")
    expect(of("queues").text).not.toContain("owsla.held.1")
    expect(of("queues").text).toContain("queue from_device exists with other arguments")
    expect(of("queues").text).toContain("set QUEUE_TYPE to its type")
  },
  LIMIT_MS,
)

describe("permissions", () => {
  test.each<[string, [string, string, string], Level[], string]>([
    [
      "of the documentation are enough",
      [
        "^(from_device|to_device(\\.undelivered)?|owsla\\..*)$",
        "^(amq\\.default|to_device|owsla\\..*)$",
        "^(to_device|owsla\\..*)$",
      ],
      ["ok"],
      "permissions that an instance needs",
    ],
    [
      "to configure are missing",
      ["^owsla\\..*$", ".*", ".*"],
      ["failure"],
      "no configure permission on to_device.undelivered, from_device, to_device",
    ],
    [
      "to write are missing",
      [".*", "^(to_device|owsla\\.(worker|held).*)$", ".*"],
      ["failure", "warning"],
      "no write permission on amq.default, owsla.fleet, owsla.presence, owsla.fleet.doctor-test.0.doctor",
    ],
    [
      "to read are missing",
      [".*", ".*", "^owsla\\.(worker|fleet)\\..*$"],
      ["failure", "warning", "warning", "warning", "warning"],
      "no read permission on to_device, owsla.dead_letters, owsla.fleet (",
    ],
    [
      "to bind to the optional exchanges are missing",
      [".*", "^(amq\\.default|owsla\\..*)$", "^(to_device|owsla\\.(?!commands$|broadcast$).*)$"],
      ["warning", "warning", "warning"],
      "no write permission on to_device: without it there are no commands through the exchange owsla.commands, unless",
    ],
  ])(
    "%s",
    async (_, permissions, levels, text) => {
      const { vhost, url } = await virtualHost(...permissions)
      const before = await contents(vhost)
      const { of } = await doctor({ AMQP_URL: url })
      expect(of("permissions").levels).toEqual(levels)
      expect(of("permissions").text).toContain(text)
      expect(await contents(vhost)).toBe(before)
    },
    LIMIT_MS,
  )
})

test(
  "the fleet cannot be heard without read permission on its exchange",
  async () => {
    const { vhost, url } = await virtualHost(".*", ".*", "^owsla\\.fleet\\..*$")
    const client = new AMQPClient(url)
    await client.connect()
    await (await client.channel()).exchangeDeclare("owsla.fleet", "fanout", { durable: true })
    await client.close()
    const before = await contents(vhost)
    const { of, status } = await doctor({ AMQP_URL: url })
    expect(of("fleet").levels).toEqual(["failure"])
    expect(of("fleet").text).toContain("the user has no read permission on owsla.fleet: ")
    expect(status).toBe(2)
    expect(await contents(vhost)).toBe(before)
  },
  LIMIT_MS,
)

describe("a broker that cannot be used", () => {
  const free = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } })
  const closedPort = free.port
  free.stop(true)

  test.each<[string, () => string, string]>([
    ["nobody listens", () => `amqp://user:${PASSWORD}@127.0.0.1:${closedPort}`, "start the broker"],
    [
      "the password is wrong",
      () => `amqp://user:${PASSWORD}x@127.0.0.1:${broker.port}`,
      "correct the user and the password",
    ],
    [
      "the virtual host does not exist",
      () => `amqp://user:${PASSWORD}@127.0.0.1:${broker.port}/nowhere`,
      "correct the virtual host",
    ],
    [
      "it is no broker",
      () => `amqp://user:${PASSWORD}@127.0.0.1:${broker.managementPort}`,
      "check that a broker listens there",
    ],
  ])(
    "because %s: the rest is checked, and what needs it is skipped",
    async (_, url, advice) => {
      const { of, status } = await doctor({ AMQP_URL: url() })
      expect(of("broker").levels).toEqual(["failure"])
      expect(of("broker").text).toContain(advice)
      for (const check of ["queues", "permissions", "confirms", "fleet"] as const) {
        expect(of(check).levels).toEqual(["skipped"])
      }
      expect(of("handshake").levels).toEqual(["ok"])
      expect(status).toBe(2)
    },
    LIMIT_MS,
  )

  test(
    "one URL of several is a warning",
    async () => {
      const { url } = await virtualHost()
      const away = `amqp://user:${PASSWORD}@127.0.0.1:${closedPort}`
      const { of } = await doctor({ AMQP_URL: `${away},${url}` })
      expect(of("broker").levels).toEqual(["warning", "ok"])
      expect(of("permissions").levels).toEqual(["ok"])
    },
    LIMIT_MS,
  )
})

test(
  "a faulty configuration: each fault, and the rest of the checks",
  async () => {
    const wrong = await doctor({ AMQP_URL: "http://b", DEVICE_PORT: "no" })
    expect(wrong.of("configuration").levels.slice(0, 2)).toEqual(["failure", "failure"])
    expect(wrong.of("broker")).toMatchObject({ levels: ["skipped"] })
    expect(wrong.of("broker").text).toContain("AMQP_URL is not valid")
    expect(wrong.of("handshake").levels).toEqual(["ok"])
    expect(wrong.status).toBe(2)
  },
  LIMIT_MS,
)

test(
  "policies that delete messages, from the management API",
  async () => {
    const { vhost, url } = await virtualHost()
    const gateway = await startGateway({ AMQP_URL: url, WORKERS: "1", INSTANCE_ID: "one" })
    await gateway.ready()
    const policy = ["set_policy", "-p", vhost, "short", "^from_device$"]
    await broker.ctl(...policy, '{"max-length": 10, "message-ttl": 1000}', "--apply-to", "queues")
    // RabbitMQ collects statistics of queues every few seconds.
    const { of } = await until(
      async () => {
        const report = await doctor({ AMQP_URL: url }, ...management())
        return report.of("policies").text.includes("policy short") ? report : null
      },
      { what: "the policy to be shown", timeoutMs: 60_000 },
    )
    expect(of("policies").levels.filter((level) => level !== "skipped")).toEqual([
      "failure",
      "failure",
    ])
    expect(of("policies").text).toContain("drops its oldest messages (policy short)")
    expect(of("policies").text).toContain("from_device deletes lines after 1000 ms (policy short)")
    const blind = await doctor({ AMQP_URL: url })
    expect(blind.of("policies").levels).toEqual(["skipped"])
    await broker.ctl("set_user_tags", "user")
    const untagged = await doctor({ AMQP_URL: url }, ...management())
    expect(untagged.of("policies").levels).toEqual(["failure"])
    expect(untagged.of("policies").text).toContain("give the user the tag management")
    await broker.ctl("set_user_tags", "user", "management")
    expect(await gateway.stop()).toBe(0)
  },
  LIMIT_MS,
)

test(
  "an alarm of the broker is found by publishing",
  async () => {
    const { url } = await virtualHost()
    await broker.ctl("set_vm_memory_high_watermark", "0")
    try {
      const { of, status } = await doctor({ AMQP_URL: url })
      expect(of("alarms").levels).toEqual(["failure"])
      expect(of("confirms").levels).toEqual(["skipped"])
      expect(status).toBe(2)
    } finally {
      await broker.ctl("set_vm_memory_high_watermark", "0.4")
    }
  },
  LIMIT_MS,
)

test(
  "the cost of a connection and a line is measured, and the broker is left as it was",
  async () => {
    const { vhost, url } = await virtualHost()
    const before = await contents(vhost)
    const { connectionUs, lineUs } = await measureCosts({
      config: loadConfig({ AMQP_URL: url, INSTANCE_ID: "one", ...certificateFiles() }),
      ...{ devicesOfWorker: 100, memoryBytes: null },
      ...{ connections: 20, lineDevices: 5, linesEach: 500 },
    })
    expect(connectionUs).toBeGreaterThan(0)
    expect(lineUs).toBeGreaterThanOrEqual(0)
    expect(await contents(vhost)).toBe(before)
  },
  LIMIT_MS,
)
