/**
 * The partition of a device: the values that the documents give to back-ends, and an even division
 * of ids of any form.
 */

import { describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import fc from "fast-check"
import { partitionOf, queueByDevice } from "../../src/lines/partitions.ts"
import { check } from "../support/property.ts"

const PROTOCOL = readFileSync(join(import.meta.dir, "../../docs/PROTOCOL.md"), "utf8")

describe("the partition of a device", () => {
  const columns = [2, 4, 8, 64]
  const vectors: [string, number, ...number[]][] = [
    ["a", 3_398_926_610, 0, 2, 2, 18],
    ["lock-1", 1_038_412_909, 1, 1, 5, 45],
    ["Lock-1", 3_933_022_939, 1, 3, 3, 27],
    ["thermostat:7", 2_977_221_977, 1, 1, 1, 25],
    ["gw1.0.mb2k3f9zq7x2.1", 4_128_560_119, 1, 3, 7, 55],
  ]

  test.each(vectors)("%s is that of its hash", (deviceId, hash, ...partitions) => {
    expect(partitionOf(deviceId, 2 ** 32)).toBe(hash)
    expect(columns.map((count) => partitionOf(deviceId, count))).toEqual(partitions)
  })

  test("is in docs/PROTOCOL.md for these ids", () => {
    const rows = vectors.map(([deviceId, ...numbers]) =>
      [`| \`${deviceId}\``, ...numbers.map(String)].join(" | "),
    )
    expect(rows.filter((row) => !PROTOCOL.includes(`${row} |`))).toEqual([])
  })

  const ID = fc.stringMatching(/^[A-Za-z0-9._:-]{1,128}$/)

  test("depends on the id only, and is one of the partitions", () => {
    check(
      fc.property(ID, fc.integer({ min: 1, max: 64 }), (deviceId, partitions) => {
        const partition = partitionOf(deviceId, partitions)
        expect(partition).toBeWithin(0, partitions)
        expect(partitionOf(deviceId, partitions)).toBe(partition)
      }),
    )
  })

  test("is as likely as any other, also for ids that are numbered in steps", () => {
    const count = 6_400
    const options = {
      prefix: fc.stringMatching(/^[a-z:.-]{0,20}$/),
      step: fc.integer({ min: 1, max: 4_096 }),
      digits: fc.integer({ min: 1, max: 12 }),
      partitions: fc.integer({ min: 2, max: 64 }),
    }
    check(
      fc.property(fc.record(options), ({ prefix, step, digits, partitions }) => {
        const counts = new Array<number>(partitions).fill(0)
        for (let n = 0; n < count; n += 1) {
          const deviceId = prefix + String(n * step).padStart(digits, "0")
          const partition = partitionOf(deviceId, partitions)
          counts[partition] = (counts[partition] ?? 0) + 1
        }
        // Eight standard deviations: no division by chance is outside.
        const mean = count / partitions
        const deviation = Math.sqrt(mean)
        expect(Math.max(...counts)).toBeLessThan(mean + 8 * deviation)
        expect(Math.min(...counts)).toBeGreaterThan(mean - 8 * deviation)
      }),
      20,
    )
  })
})

describe("the queue of a connection", () => {
  const recipient = (deviceId: string) => ({ connectionId: "gw.0.x.1", deviceId, epoch: 1 })

  test("is the only one without partitions", () => {
    const queueOf = queueByDevice(["from_device"])
    for (const deviceId of ["a", "b", "c"]) expect(queueOf(recipient(deviceId))).toBe("from_device")
  })

  test("is that of its device, for all its connections", () => {
    const queueOf = queueByDevice(["q.0", "q.1", "q.2", "q.3"])
    const first = recipient("lock-1")
    expect([queueOf(first), queueOf(first), queueOf(recipient("lock-1"))]).toEqual([
      "q.1",
      "q.1",
      "q.1",
    ])
    expect(queueOf(recipient("a"))).toBe("q.2")
  })
})
