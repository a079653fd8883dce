/**
 * The queues as RabbitMQ must be asked for them. Not their behaviour: whether a broker keeps to
 * these arguments is for the tests with a real one.
 */

import { describe, expect, test } from "bun:test"
import {
  BROADCAST_EXCHANGE,
  BROADCASTS,
  broadcastsQueue,
  COMMANDS_EXCHANGE,
  DEAD_LETTERS,
  EXCHANGES,
  FLEET_EXCHANGE,
  fleetQueue,
  isGatewayQueue,
  isWorkerQueue,
  PRESENCE_EXCHANGE,
  queueDeclarations,
  WORKER_QUEUE_TTL_MS,
  workerQueue,
} from "../../src/broker/topology.ts"
import { incarnation, workerId } from "../../src/device/ids.ts"

const NAMES = {
  fromDeviceQueue: "from_device",
  toDeviceQueue: "to_device",
  undeliveredQueue: "to_device.undelivered",
}
const WORKER = workerId("gw1", 0)
const SELF = { worker: WORKER, incarnation: incarnation(1_770_000_000_000, 0.5) }
const FLEET_QUEUE = fleetQueue(SELF)

function declared(queueType: "quorum" | "classic", fromDevicePartitions = 1) {
  const all = queueDeclarations({ ...NAMES, fromDevicePartitions, queueType }, SELF)
  return new Map(all.map((queue) => [queue.name, queue]))
}

describe.each(["quorum", "classic"] as const)("%s queues", (queueType) => {
  const queues = declared(queueType)
  const commands = [...queues.values()].filter(({ name }) => name !== FLEET_QUEUE)

  test("each name once: the contract's three, the worker's own, dead letters, the fleet's", () => {
    expect([...queues.keys()].sort()).toEqual(
      [...Object.values(NAMES), DEAD_LETTERS, workerQueue(WORKER), FLEET_QUEUE].sort(),
    )
  })

  test("all but the fleet's are durable and of that type", () => {
    for (const { durable, arguments: args } of commands) {
      expect([durable, args["x-queue-type"]]).toEqual([true, queueType])
    }
  })

  test("the fleet's: classic, bounded in bytes and time, gone some time after its worker and with its node", () => {
    const { boundTo, durable, transient, arguments: args } = queues.get(FLEET_QUEUE) ?? {}
    expect(boundTo).toEqual([{ exchange: FLEET_EXCHANGE, routingKey: "" }])
    expect([durable, transient]).toEqual([false, true])
    expect(args?.["x-queue-type"]).toBe("classic")
    expect(Number(args?.["x-message-ttl"])).toBeLessThanOrEqual(60_000)
    expect(Number(args?.["x-expires"])).toBeLessThanOrEqual(60_000)
    expect(Number(args?.["x-max-length-bytes"])).toBeGreaterThan(0)
  })

  test("commands that the broker gives up go to the dead letters, from both queues they wait in", () => {
    for (const name of [NAMES.toDeviceQueue, workerQueue(WORKER)]) {
      expect(queues.get(name)?.arguments).toMatchObject({
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": DEAD_LETTERS,
      })
    }
  })

  test("lines, undelivered commands and dead letters neither expire nor overflow", () => {
    for (const name of [NAMES.fromDeviceQueue, NAMES.undeliveredQueue, DEAD_LETTERS]) {
      expect(queues.get(name)?.arguments).toEqual({ "x-queue-type": queueType })
    }
  })

  test("a worker's queue goes when it is unused, after what it held became dead letters", () => {
    const args = queues.get(workerQueue(WORKER))?.arguments
    expect(args?.["x-message-ttl"]).toBe(WORKER_QUEUE_TTL_MS)
    expect(Number(args?.["x-expires"])).toBeGreaterThan(WORKER_QUEUE_TTL_MS)
  })
})

test("quorum queues dead-letter at least once, which needs them to reject what overflows", () => {
  const args = declared("quorum").get(NAMES.toDeviceQueue)?.arguments
  expect(args).toMatchObject({
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
  })
  expect(declared("classic").get(NAMES.toDeviceQueue)?.arguments).not.toHaveProperty("x-overflow")
})

test("a worker's queue is known by its name, with the longest ids too, in 255 bytes", () => {
  const longest = workerId("x".repeat(32), 255)
  expect(isWorkerQueue(workerQueue(longest))).toBe(true)
  expect(workerQueue(longest).length).toBeLessThanOrEqual(255)
  expect(fleetQueue({ ...SELF, worker: longest }).length).toBeLessThanOrEqual(255)
  for (const name of [...Object.values(NAMES), DEAD_LETTERS, FLEET_QUEUE]) {
    expect(isWorkerQueue(name)).toBe(false)
  }
})

test("two incarnations of a worker have two fleet queues", () => {
  const later = { worker: WORKER, incarnation: incarnation(1_770_000_000_001, 0.5) }
  expect(fleetQueue(later)).not.toBe(FLEET_QUEUE)
})

test("the fleet's exchange goes to all, presence is by topic, commands go by the name of their queue", () => {
  expect(EXCHANGES).toEqual([
    { name: FLEET_EXCHANGE, type: "fanout" },
    { name: PRESENCE_EXCHANGE, type: "topic" },
    { name: COMMANDS_EXCHANGE, type: "direct", optional: true },
    { name: BROADCAST_EXCHANGE, type: "fanout", optional: true },
  ])
})

test.each([NAMES.toDeviceQueue, workerQueue(WORKER)])(
  "commands for %s reach it by the commands' exchange, under its name",
  (name) => {
    expect(declared("quorum").get(name)?.boundTo).toEqual([
      { exchange: COMMANDS_EXCHANGE, routingKey: name, optional: true },
    ])
  },
)

test("broadcasts come by their exchange only, and neither expire nor overflow", () => {
  expect(broadcastsQueue({ queueType: "quorum" })).toEqual({
    name: BROADCASTS,
    boundTo: [{ exchange: BROADCAST_EXCHANGE, routingKey: "", optional: true }],
    durable: true,
    arguments: { "x-queue-type": "quorum" },
  })
})

test("partitions take the place of the queue of lines, each with one active consumer", () => {
  const queues = declared("quorum", 3)
  const partitions = ["from_device.0", "from_device.1", "from_device.2"]
  const lines = [...queues.keys()].filter((name) => name.startsWith(NAMES.fromDeviceQueue))
  expect(lines).toEqual(partitions)
  for (const name of partitions) {
    expect(queues.get(name)).toEqual({
      name,
      durable: true,
      arguments: { "x-queue-type": "quorum", "x-single-active-consumer": true },
    })
  }
})

test("the gateway's queues are those of the settings, partitions, and all whose names begin with its prefix", () => {
  const names = { ...NAMES, fromDevicePartitions: 1, queueType: "quorum" } as const
  const partitions = ["from_device.0", "from_device.63"]
  const others = [DEAD_LETTERS, workerQueue("another.0"), "owsla.later"]
  for (const queue of [...Object.values(NAMES), ...partitions, ...others]) {
    expect(isGatewayQueue(names, queue)).toBe(true)
  }
  const foreign = ["replies", "", "to_device.replies", "owsla", "from_device.", "from_device.a1"]
  for (const queue of [...foreign, "from_device.1.replies", "from_device0", "to_device.1"]) {
    expect(isGatewayQueue(names, queue)).toBe(false)
  }
})
