/**
 * The fleet as one worker sees it: its members, and who keeps the shards of the directory. Plain
 * data for the HTTP API. Bounds: those of `members.ts` and `keepers.ts`.
 */

import { instanceOf } from "./device-view.ts"
import type { Keepers } from "./keepers.ts"
import type { Members, MemberView } from "./members.ts"

export interface FleetView {
  /** The worker that answers. */
  readonly worker: string
  /** Whether messages reach the other workers. */
  readonly connected: boolean
  /** The number of shards, FLEET_SHARDS. */
  readonly shards: number
  /** The shards that no known worker keeps. For a moment there may be some after a start. */
  readonly shards_without_keeper: readonly number[]
  /** Whether a member uses another FLEET_SHARDS or an earlier version. */
  readonly has_foreign: boolean
  /** Sorted by worker; this worker included. */
  readonly members: readonly (Omit<MemberView, "state"> & {
    readonly instance: string
    /** `self` for this worker. A silent one has missed an answer or its messages. */
    readonly state: MemberView["state"] | "self"
    /** The shards that it keeps. */
    readonly shards: readonly number[]
  })[]
}

export interface SelfView {
  readonly connected: boolean
  readonly held: number
  readonly admitsPerS: number
}

export function fleetView(members: Members, keepers: Keepers, self: SelfView): FleetView {
  const { worker } = keepers.self
  const shardsOf = new Map(
    [...keepers.all()].map(({ process, shards }) => [process.worker, [...shards]] as const),
  )
  const others = members.all().map((member) => ({
    ...member,
    instance: instanceOf(member.worker),
    shards: ascending(shardsOf.get(member.worker) ?? []),
  }))
  const own = {
    ...{ worker, instance: instanceOf(worker), state: "self" as const, held: self.held },
    admits_per_s: self.admitsPerS,
    shards: ascending([...keepers.kept]),
  }
  const shards = Array.from({ length: keepers.shards }, (_, shard) => shard)
  return {
    ...{ worker, connected: self.connected, shards: keepers.shards },
    shards_without_keeper: shards.filter((shard) => keepers.keeperOf(shard) === null),
    has_foreign: keepers.hasForeign,
    members: [own, ...others].sort((a, b) => (a.worker < b.worker ? -1 : 1)),
  }
}

function ascending(shards: readonly number[]): number[] {
  return shards.toSorted((a, b) => a - b)
}
