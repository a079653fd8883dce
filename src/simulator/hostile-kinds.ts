/** The ways in which devices of the simulator misbehave; see `hostile.ts`. */

export const HOSTILE_KINDS = [
  "silent",
  "half-handshake",
  "slow-reader",
  "byte-at-a-time",
  "endless-line",
  "garbage",
  "duplicate-id",
  "flapping",
] as const
export type HostileKind = (typeof HOSTILE_KINDS)[number]

/** Devices of one kind. A few show how the gateway reacts; many would be a second herd. */
export const HOSTILE_MAX = 1_000
