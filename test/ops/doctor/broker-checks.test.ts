/**
 * What the doctor finds about settings, hosted brokers, policies and the fleet, from data. The
 * broker itself is asked in `test/integration/doctor.test.ts`.
 */

import { describe, expect, test } from "bun:test"
import { inspectConfig, loadConfig } from "../../../src/config/config.ts"
import { checkBrokerLimits } from "../../../src/ops/doctor/broker-limits.ts"
import { policyFindings } from "../../../src/ops/doctor/broker-policies.ts"
import { placeOf } from "../../../src/ops/doctor/broker-urls.ts"
import { checkConfiguration } from "../../../src/ops/doctor/configuration.ts"
import type { Level } from "../../../src/ops/doctor/finding.ts"
import { HeardFleet } from "../../../src/ops/doctor/fleet.ts"

const URL = "amqp://u:a-password@b"
const config = (environment: Record<string, string> = {}) =>
  loadConfig({ AMQP_URL: URL, WORKERS: "2", INSTANCE_ID: "gw1", ...environment })

describe("the configuration", () => {
  const levels = (environment: Record<string, string>) =>
    checkConfiguration(inspectConfig(environment, () => null)).map(({ level }) => level)
  const safe = { AMQP_URL: URL, DEVICE_HOST: "127.0.0.1" }

  test("without faults is ok", () => {
    expect(levels(safe)).toEqual(["ok"])
  })

  test("has each fault as a failure, and is checked further", () => {
    const findings = checkConfiguration(
      inspectConfig({ DEVICE_PORT: "no", WORKERS: "0", QUEUE_TYPE: "classic", ...safe }),
    )
    expect(findings.map(({ level }) => level)).toEqual(["failure", "failure", "warning"])
    expect(findings[0]?.message).toStartWith("WORKERS: must be")
    expect(findings[1]?.message).toStartWith("DEVICE_PORT: must be")
  })

  test.each<[string, Record<string, string>]>([
    ["the embedded broker", { DEVICE_HOST: "127.0.0.1" }],
    ["devices without a proof on the network", { AMQP_URL: URL }],
    ["the default password", { ...safe, AMQP_URL: "amqp://guest:guest@b" }],
    ["classic queues", { ...safe, QUEUE_TYPE: "classic" }],
    ["bans of devices without names", { ...safe, FLAP_LIMIT: "10" }],
    ["a denylist for devices without names", { ...safe, DENYLIST_FILE: "denied" }],
  ])("warns of %s", (_, environment) => {
    expect(levels(environment)).toEqual(["ok", "warning"])
  })

  test("a setting that is not valid has its default in the rest of the checks", () => {
    const inspection = inspectConfig({ DEVICE_PORT: "no", AMQP_URL: "http://b" })
    expect(inspection).toMatchObject({ invalid: ["AMQP_URL", "DEVICE_PORT"] })
    expect(inspection.config.device.port).toBe(8443)
    expect(inspection.config.amqp).toBeNull()
  })
})

test.each<[string, Record<string, string>, Level[]]>([
  ["another host", { PREFETCH: "5000" }, ["ok"]],
  ["CloudAMQP", { AMQP_URL: "amqps://u:p@dog.rmq.cloudamqp.com/v" }, ["ok"]],
  [
    "CloudAMQP with a large prefetch and many workers",
    { AMQP_URL: "amqps://u:p@dog.rmq.cloudamqp.com/v", PREFETCH: "1000", WORKERS: "11" },
    ["failure", "warning"],
  ],
])("the limits of %s", (_, environment, levels) => {
  expect(checkBrokerLimits(config(environment)).map(({ level }) => level)).toEqual(levels)
})

test("a URL is named without user and password", () => {
  expect(placeOf("amqps://user:secret@b/v")).toBe("b:5671/v")
  expect(placeOf("amqp://user:secret@[::1]:99")).toBe("[::1]:99")
  expect(placeOf("amqp://b/")).toBe("b:5672")
})

describe("a policy", () => {
  type Table = Record<string, unknown>
  const findings = (name: string, policy: Table | null, args: Table | null = {}) =>
    policyFindings(
      {
        ...{ name, type: "quorum", policy: policy === null ? null : "p" },
        ...{ arguments: args, effective_policy_definition: policy },
      },
      config(),
    )

  test.each<[string, string, Table, Level[]]>([
    ["a limit that drops lines", "from_device", { "max-length": 10 }, ["failure"]],
    ["a limit in bytes", "to_device", { "max-length-bytes": 10 }, ["failure"]],
    ["a limit that refuses", "from_device", { "max-length": 10, overflow: "reject-publish" }, []],
    ["a bounded undelivered queue", "to_device.undelivered", { "max-length": 10 }, []],
    ["a TTL of lines", "from_device", { "message-ttl": 1_000 }, ["failure"]],
    ["a TTL of commands that would get no outcome", "to_device", { "message-ttl": 9 }, ["failure"]],
    [
      "a TTL that dead-letters",
      "from_device",
      { "message-ttl": 9, "dead-letter-exchange": "" },
      [],
    ],
    ["a queue that expires", "from_device", { expires: 1_000 }, ["failure"]],
    ["a delivery limit", "from_device", { "delivery-limit": 20 }, ["warning"]],
    ["no delivery limit", "from_device", { "delivery-limit": -1 }, []],
    ["a short consumer timeout", "to_device", { "consumer-timeout": 60_000 }, ["warning"]],
    ["a long consumer timeout", "to_device", { "consumer-timeout": 1_800_000 }, []],
    [
      "a short consumer timeout of a worker's queue",
      "owsla.worker.gw1.1",
      { "consumer-timeout": 60_000 },
      ["warning"],
    ],
    ["a consumer timeout of held commands", "owsla.held.0", { "consumer-timeout": 60_000 }, []],
    [
      "a worker's queue that expires after its commands",
      "owsla.worker.gw1.0",
      { expires: 15_001 },
      [],
    ],
    [
      "a worker's queue that expires with them",
      "owsla.worker.gw1.0",
      { expires: 15_000 },
      ["failure"],
    ],
    ["a consumer timeout of back-ends", "from_device", { "consumer-timeout": 60_000 }, []],
    ["nothing", "from_device", {}, []],
  ])("with %s", (_, name, policy, levels) => {
    expect(findings(name, policy).map(({ level }) => level)).toEqual(levels)
  })

  test("counts together with the arguments of the queue", () => {
    const overflow = { "x-overflow": "reject-publish" }
    expect(findings("to_device", { "max-length": 10 }, overflow)).toEqual([])
    const deadLettered = { "x-dead-letter-exchange": "" }
    expect(findings("to_device", { "message-ttl": 1_000 }, deadLettered)).toEqual([])
    expect(findings("from_device", null, { "x-max-length": 10 })).toMatchObject([
      {
        level: "failure",
        message: "from_device has a length limit that drops its oldest messages",
      },
    ])
  })
})

describe("the fleet", () => {
  const NOW_MS = 1_800_000_000_000
  const alive = (from: string, over: Record<string, unknown> = {}) => ({
    ...{ type: "alive" as const, from, incarnation: "a", asks: false, sent_at: NOW_MS },
    ...{ keeps: { of: 16, since: 0, version: 0, shards: [] } },
    ...over,
  })
  const heard = (...messages: ReturnType<typeof alive>[]) => {
    const fleet = new HeardFleet()
    for (const message of messages) fleet.heard(message, NOW_MS)
    return fleet
  }
  const levels = (fleet: HeardFleet) => fleet.findings(config()).map(({ level }) => level)

  test("of no other worker", () => {
    expect(heard().findings(config())).toMatchObject([
      { level: "ok", message: "no worker was heard: this is the first instance on the broker" },
    ])
  })

  test("has the instances, and compares the clock of each", () => {
    const fleet = heard(alive("gw2.0"), alive("gw2.1"), alive("my.gw.0"))
    const [members, ...clocks] = fleet.findings(config())
    expect(members?.message).toBe("3 worker(s) of 2 instance(s) heard: gw2, my.gw")
    expect(clocks).toMatchObject([{ check: "clock" }, { check: "clock" }])
    expect(levels(fleet)).toEqual(["ok", "ok", "ok"])
  })

  test("with this machine's INSTANCE_ID is named", () => {
    const [members] = heard(alive("gw1.0")).findings(config())
    expect(members?.message).toContain("gw1 is this machine's INSTANCE_ID")
  })

  test.each<[string, Record<string, unknown>, Level[]]>([
    [
      "another FLEET_SHARDS",
      { keeps: { of: 64, since: 0, version: 0, shards: [] } },
      ["ok", "failure", "ok"],
    ],
    ["a clock that is behind", { sent_at: NOW_MS - 5_000 }, ["ok", "warning"]],
    [
      "the same settings, and one of a later version",
      {
        settings: { DEVICE_FRAMING: "line", MAX_HOLD_MS: config().hold.maxHoldMs, NEW_SETTING: 1 },
      },
      ["ok", "ok"],
    ],
    [
      "a setting that must be equal, and one that should be",
      { settings: { FROM_DEVICE_PARTITIONS: 8, MAX_REPLY_MS: 1_000 } },
      ["ok", "failure", "warning", "ok"],
    ],
    [
      "an earlier version, without time, shards and settings",
      { sent_at: undefined, keeps: undefined },
      ["ok"],
    ],
  ])("with %s", (_, over, expected) => {
    expect(levels(heard(alive("gw2.0", over)))).toEqual(expected)
  })

  test("names a setting that differs, its values and the instances", () => {
    const settings = { TO_DEVICE_QUEUE: "commands" }
    const other = { settings: { TO_DEVICE_QUEUE: "orders" } }
    const fleet = heard(
      ...[alive("gw3.0", { settings }), alive("gw2.0", { settings }), alive("gw2.1", { settings })],
      ...[alive("gw4.0", other), alive("gw5.0")],
    )
    expect(fleet.findings(config())[1]).toMatchObject({
      level: "failure",
      message: "TO_DEVICE_QUEUE is to_device here and commands on gw2, gw3 and orders on gw4",
      advice: "set the same TO_DEVICE_QUEUE on all instances",
    })
  })

  test("with two processes of one worker id is a warning", () => {
    const fleet = heard(alive("gw2.0"), alive("gw2.0", { incarnation: "b" }))
    expect(fleet.findings(config())).toMatchObject([
      { level: "ok" },
      { level: "warning", message: "several processes use the same worker id: gw2.0" },
      { level: "ok" },
    ])
  })

  test("with messages that do not verify is a failure", () => {
    const fleet = heard()
    fleet.unverified()
    expect(levels(fleet)).toEqual(["failure", "ok"])
  })
})
