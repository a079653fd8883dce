/** The keepers: who keeps which shard, with workers that come, go, and do not answer. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import type { WorkerProcess } from "../../src/device/ids.ts"
import { Keepers } from "../../src/fleet/keepers.ts"
import { Members } from "../../src/fleet/members.ts"
import { ranksOf, shardOf } from "../../src/fleet/shards.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

/** Enough for four keepers. */
const SHARDS = 32
const FIRST = "mb2k3f9zq7x2"
const SECOND = "mb2k3f9zq7x3"

/** Some workers, each with what it knows. All messages arrive when the test says so. */
class Workers {
  readonly all = new Map<string, { members: Members; keepers: Keepers }>()
  #shards = SHARDS

  constructor(...names: string[]) {
    for (const name of names) this.add(name)
  }

  add(worker: string): void {
    const members = new Members()
    this.all.set(worker, { members, keepers: new Keepers(process(worker), this.#shards, members) })
  }

  /** The same workers with another number of shards. */
  with(shards: number): this {
    this.#shards = shards
    for (const name of [...this.all.keys()]) this.add(name)
    return this
  }

  /** Everything that claims change has happened. */
  settle(): void {
    for (let round = 0; round < 3; round += 1) {
      this.tell()
      this.review()
    }
    this.tell()
  }

  of(worker: string): Keepers {
    return this.#get(worker).keepers
  }

  membersOf(worker: string): Members {
    return this.#get(worker).members
  }

  /** Each worker hears the claim of each other. */
  tell(): void {
    for (const [from, { keepers }] of this.all) {
      for (const [to, { members, keepers: hearing }] of this.all) {
        if (from === to) continue
        members.heard(from, FIRST, 0)
        hearing.heard(process(from), keepers.claim)
      }
    }
  }

  review(): void {
    for (const { keepers } of this.all.values()) keepers.review("serving")
  }

  /** The keepers of each shard. */
  get keepersOf(): string[][] {
    return Array.from({ length: this.#shards }, (_, shard) =>
      [...this.all].flatMap(([worker, { keepers }]) => (keepers.kept.has(shard) ? [worker] : [])),
    )
  }

  #get(worker: string) {
    const found = this.all.get(worker)
    if (found === undefined) throw new Error(`no worker ${worker}`)
    return found
  }
}

function numbered(count: number): string[] {
  return Array.from({ length: count }, (_, at) => `gw${at}.0`)
}

function process(worker: string, incarnation = FIRST): WorkerProcess {
  return { worker, incarnation }
}

describe("the shards", () => {
  test("of a device and the ranks of a worker are the same on each machine", () => {
    expect([shardOf("lock:1", 16), shardOf("lock:1", 1_024), shardOf("ü", 16)]).toEqual([
      shardOf("lock:1", 16),
      shardOf("lock:1", 1_024),
      shardOf("ü", 16),
    ])
    expect([...ranksOf("gw1.0", 3)]).toEqual([...ranksOf("gw1.0", 3)])
  })

  test("are divided evenly: no worker keeps more than three times its share of 1,024", () => {
    const ranks = Array.from({ length: 16 }, (_, at) => ranksOf(`gw${at}.0`, 1_024))
    const kept = ranks.map(() => 0)
    for (let shard = 0; shard < 1_024; shard += 1) {
      const best = ranks.reduce(
        (top, each, at) => ((each[shard] ?? 0) > (ranks[top]?.[shard] ?? 0) ? at : top),
        0,
      )
      kept[best] = (kept[best] ?? 0) + 1
    }
    expect(Math.max(...kept)).toBeLessThan(3 * 64)
    expect(Math.min(...kept)).toBeGreaterThan(64 / 3)
  })
})

describe("who keeps a shard", () => {
  test("is the only worker", () => {
    const workers = new Workers("gw1.0")
    expect(workers.of("gw1.0").review("serving").gained).toHaveLength(SHARDS)
    expect(workers.of("gw1.0").keeperOf(3)).toBe(workers.of("gw1.0").self)
  })

  test("is nobody while the worker does not know the others", () => {
    const workers = new Workers("gw1.0")
    expect(workers.of("gw1.0").review("new")).toEqual({ gained: [], lost: [] })
    expect(workers.of("gw1.0").keeperOf(3)).toBeNull()
  })

  test("is one worker, and all agree, once each has heard the others", () => {
    const names = fc.uniqueArray(fc.integer({ min: 0, max: 99 }), { minLength: 1, maxLength: 24 })
    check(
      fc.property(names, (numbers) => {
        const workers = new Workers(...numbers.map((n) => `gw${n}.0`))
        workers.tell()
        workers.review()
        workers.tell()
        for (const [shard, keepers] of workers.keepersOf.entries()) {
          expect(keepers).toHaveLength(1)
          for (const { keepers: each } of workers.all.values()) {
            expect(each.keeperOf(shard)?.worker).toBe(keepers[0] as string)
          }
        }
      }),
      CHEAP_RUNS / 10,
    )
  })

  test("does not change when a worker comes, until that worker claims its own shards", () => {
    const workers = new Workers("gw1.0", "gw2.0")
    workers.tell()
    workers.review()
    workers.tell()
    const before = workers.keepersOf
    workers.add("gw3.0")
    workers.tell()
    for (const name of ["gw1.0", "gw2.0"]) {
      expect(workers.of(name).review("serving")).toEqual({ gained: [], lost: [] })
    }
    workers.of("gw3.0").review("serving")
    workers.tell()
    workers.review()
    for (const [shard, keepers] of workers.keepersOf.entries()) {
      expect(keepers).toHaveLength(1)
      if (keepers[0] !== "gw3.0") expect(keepers).toEqual(before[shard] as string[])
    }
    expect(workers.of("gw3.0").kept.size).toBeGreaterThan(0)
  })

  test.each(["silent", "left"] as const)("is another one when a worker is %s", (how) => {
    const workers = new Workers("gw1.0", "gw2.0", "gw3.0")
    workers.tell()
    workers.review()
    workers.tell()
    const before = workers.keepersOf
    for (const name of ["gw1.0", "gw2.0"]) {
      if (how === "silent") workers.membersOf(name).missed("gw3.0")
      else workers.membersOf(name).left("gw3.0", FIRST)
      workers.of(name).review("serving")
    }
    for (const [shard, keepers] of workers.keepersOf.entries()) {
      const others = keepers.filter((name) => name !== "gw3.0")
      expect(others).toHaveLength(1)
      if (before[shard]?.[0] !== "gw3.0") expect(others).toEqual(before[shard] as string[])
    }
  })

  test("is one of two chosen workers in a larger fleet, and of more with more shards", () => {
    for (const [shards, most] of [
      [1, 2],
      [16, 2],
      [128, 16],
    ] as const) {
      const workers = new Workers(...numbered(20)).with(shards)
      workers.settle()
      const keeping = new Set(workers.keepersOf.flat())
      expect(workers.keepersOf.every((keepers) => keepers.length === 1)).toBe(true)
      expect(keeping.size).toBeLessThanOrEqual(Math.min(most, shards))
      expect(keeping.size).toBeGreaterThan(Math.min(most, shards) / 2)
    }
  })

  test("changes only to the worker that is chosen instead of one that has ended, but for its shards", () => {
    const workers = new Workers(...numbered(20))
    workers.settle()
    const before = workers.keepersOf
    const [dead = ""] = before[0] as string[]
    for (const [name, { members }] of workers.all) if (name !== dead) members.left(dead, FIRST)
    workers.all.delete(dead)
    workers.settle()
    const known = new Set(before.flat())
    const added = new Set(workers.keepersOf.flat().filter((name) => !known.has(name)))
    expect(added.size).toBeLessThanOrEqual(1)
    for (const [shard, keepers] of workers.keepersOf.entries()) {
      expect(keepers).toHaveLength(1)
      const isMoved = before[shard]?.[0] === dead || added.has(keepers[0] as string)
      if (!isMoved) expect(keepers).toEqual(before[shard] as string[])
    }
  })

  test("is any worker while one of an earlier version is known, which chooses nobody", () => {
    const workers = new Workers(...numbered(20))
    workers.settle()
    expect(new Set(workers.keepersOf.flat()).size).toBeLessThanOrEqual(4)
    const { keepers: _, ...claim } = { of: SHARDS, since: 1, version: 1, shards: [], keepers: 4 }
    const earlier = () => {
      for (const { members, keepers } of workers.all.values()) {
        members.heard("old.0", FIRST, 0)
        keepers.heard(process("old.0"), claim)
      }
    }
    earlier()
    workers.settle()
    const mixed = workers.keepersOf
    expect(new Set(mixed.flat()).size).toBeGreaterThan(4)
    // As all workers did before: the highest rank, unless that is the earlier one's.
    const ranks = new Map(
      [...workers.all.keys(), "old.0"].map((name) => [name, ranksOf(name, SHARDS)]),
    )
    for (const [shard, [keeper = ""]] of mixed.entries()) {
      const best = [...ranks].toSorted(([, a], [, b]) => (b[shard] ?? 0) - (a[shard] ?? 0))
      if (best[0]?.[0] !== "old.0") expect(keeper).toBe(best[0]?.[0] as string)
    }
    for (const { members } of workers.all.values()) members.left("old.0", FIRST)
    workers.settle()
    expect(new Set(workers.keepersOf.flat()).size).toBeLessThanOrEqual(4)
  })

  test("hears registrations although it is silent, and answers no look-up", () => {
    const workers = new Workers("gw1.0", "gw2.0")
    workers.tell()
    workers.of("gw2.0").review("serving")
    workers.of("gw1.0").review("serving")
    workers.tell()
    const [shard = -1] = workers.of("gw2.0").kept
    workers.membersOf("gw1.0").missed("gw2.0")
    expect(
      workers
        .of("gw1.0")
        .claimants(shard)
        .map((each) => each.process.worker),
    ).toEqual(["gw2.0"])
    expect(workers.of("gw1.0").keeperOf(shard)).toBeNull()
  })

  test("gives all up when it leaves", () => {
    const workers = new Workers("gw1.0")
    workers.review()
    expect(workers.of("gw1.0").review("leaving").lost).toHaveLength(SHARDS)
    expect(workers.of("gw1.0").claim.shards).toEqual([])
  })
})

describe("a claim", () => {
  const claim = { of: SHARDS, since: 5, version: 1, shards: [0, 1] }

  test("of a process that is not known is ignored", () => {
    const keepers = new Workers("gw1.0").of("gw1.0")
    keepers.heard(process("gw2.0"), claim)
    expect(keepers.claimants(0)).toEqual([])
  })

  test("ends with its process", () => {
    const workers = new Workers("gw1.0")
    const [members, keepers] = [workers.membersOf("gw1.0"), workers.of("gw1.0")]
    members.heard("gw2.0", FIRST, 0)
    keepers.heard(process("gw2.0"), claim)
    expect(keepers.claimants(0)).toHaveLength(1)
    members.heard("gw2.0", SECOND, 0)
    keepers.review("serving")
    expect(keepers.claimants(0)).toEqual([])
  })

  test("with another number of shards, or none at all, makes the worker foreign", () => {
    for (const foreign of [{ ...claim, of: 8 }, undefined]) {
      const workers = new Workers("gw1.0")
      const [members, keepers] = [workers.membersOf("gw1.0"), workers.of("gw1.0")]
      members.heard("gw2.0", FIRST, 0)
      keepers.heard(process("gw2.0"), foreign)
      expect([keepers.hasForeign, keepers.claimants(0)]).toEqual([true, []])
      // An upgraded process takes its place.
      members.heard("gw2.0", SECOND, 0)
      keepers.heard(process("gw2.0", SECOND), claim)
      expect([keepers.hasForeign, keepers.claimants(0).length]).toEqual([false, 1])
      members.left("gw2.0", SECOND)
    }
  })

  test("is new when a shard was lost and is kept again, which others may not have noticed", () => {
    const workers = new Workers("gw1.0", "gw2.0")
    const keepers = workers.of("gw1.0")
    keepers.review("serving")
    const { since } = keepers.claim
    workers.of("gw2.0").review("serving")
    workers.tell()
    expect(keepers.review("serving").lost.length).toBeGreaterThan(0)
    expect(keepers.claim.since).toBe(since)
    workers.membersOf("gw1.0").missed("gw2.0")
    expect(keepers.review("serving").gained.length).toBeGreaterThan(0)
    expect(keepers.claim.since).toBeGreaterThan(since)
  })
})
