/**
 * The queues as RabbitMQ must be asked for them. Not their behaviour: whether a broker keeps to these
 * arguments is for the tests with a real one.
 */

import { describe, expect, test } from "bun:test"
import {
  DEAD_LETTERS,
  isWorkerQueue,
  queueDeclarations,
  replyQueue,
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
const INCARNATION = incarnation(1_770_000_000_000, 0.5)

function declared(queueType: "quorum" | "classic") {
  const all = queueDeclarations({ ...NAMES, queueType }, WORKER, INCARNATION)
  return new Map(all.map((queue) => [queue.name, queue]))
}

describe.each(["quorum", "classic"] as const)("%s queues", (queueType) => {
  const queues = declared(queueType)
  const shared = [...queues.values()].filter(({ exclusive }) => exclusive !== true)

  test("each name once: the contract's three, the worker's own, dead letters and replies", () => {
    expect([...queues.keys()].sort()).toEqual(
      [
        ...Object.values(NAMES),
        DEAD_LETTERS,
        workerQueue(WORKER),
        replyQueue(WORKER, INCARNATION),
      ].sort(),
    )
  })

  test("all but the replies' are durable and of that type", () => {
    for (const { durable, arguments: args } of shared) {
      expect([durable, args["x-queue-type"]]).toEqual([true, queueType])
    }
  })

  test("replies: gone with the connection, in no type that could outlive it", () => {
    expect(queues.get(replyQueue(WORKER, INCARNATION))).toEqual({
      name: replyQueue(WORKER, INCARNATION),
      durable: false,
      exclusive: true,
      arguments: {},
    })
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
  expect(replyQueue(longest, INCARNATION).length).toBeLessThanOrEqual(255)
  for (const name of [...Object.values(NAMES), DEAD_LETTERS, replyQueue(WORKER, INCARNATION)]) {
    expect(isWorkerQueue(name)).toBe(false)
  }
})

test("replies of two incarnations of a worker have two queues", () => {
  const later = incarnation(1_770_000_000_001, 0.5)
  expect(replyQueue(WORKER, INCARNATION)).not.toBe(replyQueue(WORKER, later))
})
