/** How a limit on unacknowledged messages is divided over subscriptions, and lowered. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { divided, lowerLimit } from "../../src/broker/prefetch.ts"
import { brokerSetup, heldPrefetch } from "../../src/broker/setup.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

describe("a limit on unacknowledged messages", () => {
  test("is kept by the shares together, each of which is at least 1", () => {
    const weights = fc.array(fc.integer({ min: 1, max: 65_535 }), { minLength: 1, maxLength: 8 })
    check(
      fc.property(weights, fc.integer({ min: 1, max: 65_535 }), (weights, total) => {
        const shares = divided(total, weights)
        expect(shares).toHaveLength(weights.length)
        expect(Math.min(...shares)).toBeGreaterThanOrEqual(1)
        const sum = shares.reduce((all, share) => all + share, 0)
        expect(sum).toBeLessThanOrEqual(Math.max(total, weights.length))
        // Nothing but fractions is given away.
        expect(sum).toBeGreaterThan(total - weights.length)
      }),
      CHEAP_RUNS,
    )
  })

  test.each<[number, number | null, number]>([
    [8_192, 1_000, 1_000],
    [900, 500, 500],
    [900, 1_000, 450],
    [900, 900, 450],
    [900, null, 450],
    [1, null, 1],
  ])("of %d, for which the broker names %p, becomes %d", (total, named, expected) => {
    expect(lowerLimit(total, named)).toBe(expected)
  })

  test.each([4, 5, 100, 900, 65_535])("PREFETCH=%d is divided over the queues", (prefetch) => {
    const queues = { fromDeviceQueue: "f", toDeviceQueue: "t", undeliveredQueue: "u" }
    const ignore = () => undefined
    const { subscriptions } = brokerSetup(
      { ...queues, fromDevicePartitions: 1, queueType: "quorum", prefetch, shards: 16 },
      { worker: "i.0", incarnation: "x" },
      {
        consumer: { deliver: ignore, deliverDeadLetter: ignore, deliverHeld: ignore },
        unacknowledged: { lost: ignore },
        fleet: { deliver: ignore },
        receipts: { deliverReceipt: ignore },
        fault: ignore,
      },
    )
    const shares = subscriptions.map((subscription) => subscription.prefetch)
    expect(Math.min(...shares)).toBeGreaterThanOrEqual(1)
    // With the logs of held commands, one for each shard.
    const held = 16 * heldPrefetch(prefetch, 16)
    const all = shares.reduce((sum, share) => sum + share, held)
    expect(all).toBeLessThanOrEqual(Math.max(prefetch, 20))
    // Larger shares for the queues whose commands wait for devices.
    const ofQueue = (queue: string) =>
      subscriptions.find((each) => each.queue === queue)?.prefetch ?? 0
    const [toDevice, worker, deadLetters] = ["t", "owsla.worker.i.0", "owsla.dead_letters"].map(
      ofQueue,
    )
    expect([toDevice, worker, deadLetters]).toEqual(
      [toDevice, worker, deadLetters].toSorted((a = 0, b = 0) => b - a),
    )
  })
})
