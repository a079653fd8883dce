/** The directory: what it has of each device, and when it is complete. */

import { describe, expect, test } from "bun:test"
import { Directory } from "../../src/fleet/directory.ts"
import { shardOf } from "../../src/fleet/shards.ts"

const SHARDS = 4
const NAMES = Array.from({ length: 40 }, (_, at) => `lock:${at}`)
const ONE = { worker: "gw1.0", incarnation: "mb2k3f9zq7x2" }
const TWO = { worker: "gw2.0", incarnation: "mb2k3f9zq7x3" }
const AT_ONE = "gw1.0.mb2k3f9zq7x2.1"
const AT_TWO = "gw2.0.mb2k3f9zq7x3.1"
/** A device of shard 0, and one of another shard. */
const DEVICE = NAMES.find((name) => shardOf(name, SHARDS) === 0) as string
const OTHER = NAMES.find((name) => shardOf(name, SHARDS) !== 0) as string

function keeping(...shards: number[]): Directory {
  const directory = new Directory(SHARDS)
  for (const shard of shards) directory.gain(shard)
  return directory
}

describe("a registration", () => {
  test("is found until it is removed", () => {
    const directory = keeping(0)
    directory.set([DEVICE, AT_ONE, 5], 100)
    expect(directory.find(DEVICE)).toEqual({ registration: [DEVICE, AT_ONE, 5], atMs: 100 })
    directory.remove(OTHER)
    expect(directory.count).toBe(1)
    directory.remove(DEVICE)
    expect([directory.find(DEVICE), directory.count]).toEqual([undefined, 0])
  })

  test("is removed when its process has no connection of the device any more", () => {
    const directory = keeping(0)
    directory.set([DEVICE, "gw1.0.mb2k3f9zq7x2.z", 5], 100)
    // Of another process or incarnation, or reported late.
    for (const other of [
      "gw2.0.mb2k3f9zq7x2.10",
      "gw1.0.mb2k3f9zq7x3.10",
      "gw1.0.mb2k3f9zq7x2.y",
    ]) {
      directory.gone(DEVICE, other)
      expect([other, directory.count]).toEqual([other, 1])
    }
    directory.gone(DEVICE, "gw1.0.mb2k3f9zq7x2.10")
    expect(directory.count).toBe(0)
    directory.gone(DEVICE, AT_ONE)
    directory.gone(OTHER, AT_ONE)
  })

  test("keeps the time at which its connection came, also with another epoch", () => {
    const directory = keeping(0)
    directory.set([DEVICE, AT_ONE, 5], 100)
    directory.set([DEVICE, AT_ONE, 9], 200)
    expect(directory.find(DEVICE)).toEqual({ registration: [DEVICE, AT_ONE, 9], atMs: 100 })
    directory.set([DEVICE, AT_TWO, 10], 300)
    expect(directory.find(DEVICE)?.atMs).toBe(300)
  })

  test("in a shard that is not kept has no effect", () => {
    const directory = keeping(0)
    directory.set([OTHER, AT_ONE, 5], 100)
    directory.remove(OTHER)
    expect([directory.keeps(OTHER), directory.find(OTHER), directory.count]).toEqual([
      false,
      undefined,
      0,
    ])
  })

  test("is gone with its shard", () => {
    const directory = keeping(0)
    directory.set([DEVICE, AT_ONE, 5], 100)
    directory.lose(0)
    directory.gain(0)
    expect(directory.find(DEVICE)).toBeUndefined()
  })

  test("is purged when its process has ended", () => {
    const directory = keeping(0)
    directory.set([DEVICE, AT_ONE, 5], 100)
    directory.purge(({ worker }) => worker === TWO.worker)
    expect(directory.count).toBe(1)
    directory.purge(({ worker }) => worker === ONE.worker)
    expect(directory.count).toBe(0)
  })
})

describe("a shard is complete", () => {
  test("when each process has told all its devices since it was gained", () => {
    const directory = keeping(0)
    expect(directory.isComplete(DEVICE, [])).toBe(true)
    expect(directory.isComplete(DEVICE, [ONE, TWO])).toBe(false)
    directory.hasTold(0, ONE)
    expect(directory.isComplete(DEVICE, [ONE, TWO])).toBe(false)
    directory.hasTold(0, TWO)
    expect(directory.isComplete(DEVICE, [ONE, TWO])).toBe(true)
    expect(directory.isComplete(DEVICE, [{ ...ONE, incarnation: TWO.incarnation }])).toBe(false)
    directory.restart()
    expect(directory.isComplete(DEVICE, [ONE])).toBe(false)
  })

  test("never, when it is not kept", () => {
    expect(keeping(0).isComplete(OTHER, [])).toBe(false)
  })

  test("not while a process tells its devices again, which replaces what it told before", () => {
    const directory = keeping(0)
    directory.set([DEVICE, AT_ONE, 5], 100)
    directory.hasTold(0, ONE)
    directory.tells(0, ONE)
    expect([directory.isComplete(DEVICE, [ONE]), directory.count]).toEqual([false, 0])
    directory.set([DEVICE, AT_TWO, 5], 100)
    directory.tells(0, ONE)
    expect(directory.count).toBe(1)
  })
})
