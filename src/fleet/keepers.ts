/**
 * The keepers: which worker process keeps each shard (`shards.ts`).
 *
 * Each worker decides for itself which shards it keeps, and tells all others in its `alive`
 * messages. A few workers are chosen to keep shards, and of those the one with the highest rank for
 * a shard claims it, as far as they are known to answer. It is given up only when a worker that
 * should rather have it has claimed it, so a shard is never without a keeper because of a worker
 * that comes. Two workers may claim a shard for a moment. Registrations go to all that claim it,
 * look-ups to the first of those that answer.
 *
 *   not kept ──highest rank──► kept ──claimed by a higher rank, or leaving──► not kept
 *
 * `FLEET_SHARDS` decides how many are chosen: one for each 8 shards, at least 2. With more keepers
 * than that, fewer changes share a message, and each message costs its sender, the broker and the
 * keeper more than a change does. A worker that comes or goes changes the choice by one at most.
 * While a worker is known that chooses otherwise, as earlier versions do, all workers are chosen.
 *
 * Workers that use another number of shards, or an earlier version, keep none. While there is one,
 * `hasForeign` is true.
 *
 * Rejected: a direct exchange with the shards as routing keys, to which each keeper binds its
 * queue. It would need the permissions to declare and bind at run time, a change of bindings for
 * each worker that comes or goes, and a message for each shard. Messages to the keeper's own queue
 * carry the rows of all its shards.
 *
 * Pure. Bounds: `MAX_MEMBERS` claims with at most `FLEET_SHARDS` shards.
 */

import type { WorkerProcess } from "../device/ids.ts"
import type { Members } from "./members.ts"
import { ranksOf } from "./shards.ts"

/** The claim of a worker, as its `alive` messages tell it. */
export interface Claim {
  /** The number of shards that the worker uses. */
  readonly of: number
  /** Changes whenever the worker may have lost registrations. */
  readonly since: number
  /** Changes with `shards`. */
  readonly version: number
  readonly shards: readonly number[]
  /** How many workers are chosen to keep shards; undefined from earlier versions: all. */
  readonly keepers?: number | undefined
}

export interface Claimant {
  readonly process: WorkerProcess
  readonly since: number
  readonly shards: ReadonlySet<number>
}

export interface KeptChange {
  readonly gained: readonly number[]
  readonly lost: readonly number[]
}

interface Other extends Claimant {
  readonly version: number
  readonly choice: number | undefined
  /** For each shard, and then the one that decides whether it is chosen. */
  readonly ranks: Uint32Array
  isChosen: boolean
}

const SHARDS_OF_KEEPER = 8
const MIN_KEEPERS = 2

const NO_CHANGE: KeptChange = { gained: [], lost: [] }

export class Keepers {
  readonly self: WorkerProcess
  readonly shards: number
  readonly #members: Members
  readonly #ownRanks: Uint32Array
  /** How many workers are chosen to keep shards. */
  readonly #choice: number
  #isChosen = true
  readonly #kept = new Set<number>()
  /** Shards that this worker has lost since the last restart. */
  readonly #lost = new Set<number>()
  /** By worker id. */
  readonly #others = new Map<string, Other>()
  /** Workers with another number of shards or of an earlier version, and their incarnations. */
  readonly #foreign = new Map<string, string>()
  /** The claims of other workers by shard; null after a change. */
  #byShard: Other[][] | null = null
  #since = 0
  #version = 0
  #changes = 0

  constructor(self: WorkerProcess, shards: number, members: Members) {
    this.self = self
    this.shards = shards
    this.#members = members
    this.#ownRanks = ranksOf(self.worker, shards + 1)
    this.#choice = Math.max(MIN_KEEPERS, Math.ceil(shards / SHARDS_OF_KEEPER))
  }

  /** The shards that this worker keeps. */
  get kept(): ReadonlySet<number> {
    return this.#kept
  }

  /** This worker's claim, for its next `alive` message. */
  get claim(): Claim {
    const shards = [...this.#kept]
    const keepers = this.#choice
    return { of: this.shards, since: this.#since, version: this.#version, shards, keepers }
  }

  /** Differs after a change of the claims of other workers. */
  get changes(): number {
    return this.#changes
  }

  /** Whether a member can neither keep shards nor find the keepers of this worker's shards. */
  get hasForeign(): boolean {
    return this.#foreign.size > 0
  }

  /** This worker may have lost registrations: all workers register their devices again. */
  restart(nowMs: number): void {
    this.#lost.clear()
    this.#since = Math.max(nowMs, this.#since + 1)
  }

  /**
   * Handles the claim in an `alive` message; undefined when it has none.
   * @returns whether it differs from what was known.
   */
  heard(process: WorkerProcess, claim: Claim | undefined): boolean {
    const { worker, incarnation } = process
    if (!this.#members.knows(process)) return false
    if (claim === undefined || claim.of !== this.shards) {
      const isKnown = this.#foreign.get(worker) === incarnation
      this.#foreign.set(worker, incarnation)
      this.#remove(worker)
      return !isKnown
    }
    this.#foreign.delete(worker)
    const before = this.#others.get(worker)
    const isSame =
      before?.process.incarnation === incarnation &&
      before.since === claim.since &&
      before.version === claim.version
    if (isSame) return false
    const ranks = before?.ranks ?? ranksOf(worker, this.shards + 1)
    const shards = new Set(claim.shards.filter((shard) => shard < this.shards))
    const { since, version, keepers: choice } = claim
    const isChosen = before?.isChosen ?? false
    this.#others.set(worker, { process, since, version, shards, choice, ranks, isChosen })
    this.#changed()
    return true
  }

  /**
   * Decides again which shards this worker keeps. To be called periodically, and after `heard`.
   * @param state "new" while the worker does not know the others yet: it takes no more shards.
   */
  review(state: "new" | "serving" | "leaving"): KeptChange {
    for (const [worker, { process }] of this.#others) {
      if (!this.#members.knows(process)) this.#remove(worker)
    }
    for (const [worker, incarnation] of this.#foreign) {
      if (!this.#members.knows({ worker, incarnation })) this.#foreign.delete(worker)
    }
    this.#choose()
    /** Shards that another worker that answers should keep, and those that it keeps. */
    const isBeaten = new Uint8Array(this.shards)
    const isTaken = new Uint8Array(this.shards)
    for (const other of this.#others.values()) {
      if (!this.#members.answers(other.process)) continue
      if (this.#isChosen && !other.isChosen) continue
      for (let shard = 0; shard < this.shards; shard += 1) {
        if (!this.#isBelow(other, shard)) continue
        isBeaten[shard] = 1
        if (other.shards.has(shard)) isTaken[shard] = 1
      }
    }
    const gained: number[] = []
    const lost: number[] = []
    for (let shard = 0; shard < this.shards; shard += 1) {
      if (this.#kept.has(shard)) {
        if (isTaken[shard] === 1 || state === "leaving") lost.push(shard)
      } else if (state === "serving" && isBeaten[shard] === 0) gained.push(shard)
    }
    if (gained.length + lost.length === 0) return NO_CHANGE
    for (const shard of lost) {
      this.#kept.delete(shard)
      this.#lost.add(shard)
    }
    // Other workers may not have noticed that it was lost.
    if (gained.some((shard) => this.#lost.has(shard))) this.restart(this.#since)
    for (const shard of gained) this.#kept.add(shard)
    this.#version += 1
    return { gained, lost }
  }

  /** The other workers that claim a shard, also those that do not answer. */
  claimants(shard: number): readonly Claimant[] {
    this.#byShard ??= this.#sorted()
    return this.#byShard[shard] ?? []
  }

  /** All other workers that claim shards. */
  all(): Iterable<Claimant> {
    return this.#others.values()
  }

  /** The process that look-ups in a shard go to, perhaps this one; null when none is known. */
  keeperOf(shard: number): WorkerProcess | null {
    this.#byShard ??= this.#sorted()
    const other = this.#byShard[shard]?.find(({ process }) => this.#members.answers(process))
    if (!this.#kept.has(shard)) return other?.process ?? null
    return other !== undefined && this.#isBelow(other, shard) ? other.process : this.self
  }

  /** Chooses the workers that keep shards, of those that are known to answer. */
  #choose(): void {
    const others = [...this.#others.values()]
    const isMixed = others.some(({ choice }) => choice !== this.#choice)
    const most = isMixed ? Number.POSITIVE_INFINITY : this.#choice
    const answering = others.filter(({ process }) => this.#members.answers(process))
    const above = answering.filter((other) => this.#hasRankBelow(other, this.shards))
    this.#isChosen = above.length < most
    const first = answering.toSorted((a, b) => compareRanks(a, b, this.shards))
    const chosen = new Set(first.slice(0, this.#isChosen ? most - 1 : most))
    for (const other of others) {
      if (other.isChosen === chosen.has(other)) continue
      other.isChosen = chosen.has(other)
      this.#byShard = null
    }
  }

  /** Whether another worker should keep the shard rather than this one. */
  #isBelow(other: Other, shard: number): boolean {
    if (other.isChosen !== this.#isChosen) return other.isChosen
    return this.#hasRankBelow(other, shard)
  }

  #hasRankBelow(other: Other, shard: number): boolean {
    const { worker } = other.process
    return isAbove(other.ranks[shard] ?? 0, worker, this.#ownRanks[shard] ?? 0, this.self.worker)
  }

  #remove(worker: string): void {
    if (this.#others.delete(worker)) this.#changed()
  }

  #changed(): void {
    this.#byShard = null
    this.#changes += 1
  }

  /** The claims of each shard: those of chosen workers first, then the highest rank. */
  #sorted(): Other[][] {
    const byShard: Other[][] = Array.from({ length: this.shards }, () => [])
    for (const other of this.#others.values()) {
      for (const shard of other.shards) byShard[shard]?.push(other)
    }
    for (const [shard, claimants] of byShard.entries()) {
      claimants.sort((a, b) => Number(b.isChosen) - Number(a.isChosen) || compareRanks(a, b, shard))
    }
    return byShard
  }
}

/** The highest rank first. */
function compareRanks(a: Other, b: Other, shard: number): number {
  const [rankOfA, rankOfB] = [a.ranks[shard] ?? 0, b.ranks[shard] ?? 0]
  return isAbove(rankOfA, a.process.worker, rankOfB, b.process.worker) ? -1 : 1
}

/** Worker ids differ, so one of two workers is always above the other. */
function isAbove(rankOfA: number, workerA: string, rankOfB: number, workerB: string): boolean {
  return rankOfA === rankOfB ? workerA > workerB : rankOfA > rankOfB
}
