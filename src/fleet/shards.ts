/**
 * Shards: each named device belongs to one of `FLEET_SHARDS` shards by a hash of its device id, and
 * one worker keeps each shard. Which one, rendezvous hashing says: of all workers the one with the
 * highest rank for the shard. So a worker that comes or goes moves only its own shards. Pure.
 *
 * Sources: xxHash32 of the UTF-8 bytes (seed 0), and the finalizer of MurmurHash3. Both are the
 * same on each machine and with each version of Bun.
 */

/** The most shards that `FLEET_SHARDS` allows. */
export const MAX_SHARDS = 4_096

/** From 0 to `shards` - 1. */
export function shardOf(deviceId: string, shards: number): number {
  return Bun.hash.xxHash32(deviceId) % shards
}

/** The ranks of a worker for the shards 0 to `shards` - 1. */
export function ranksOf(worker: string, shards: number): Uint32Array {
  const seed = Bun.hash.xxHash32(worker)
  return Uint32Array.from({ length: shards }, (_, shard) =>
    mixed(seed ^ Math.imul(shard + 1, 0x9e3779b1)),
  )
}

function mixed(value: number): number {
  let bits = value
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b)
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35)
  return (bits ^ (bits >>> 16)) >>> 0
}
