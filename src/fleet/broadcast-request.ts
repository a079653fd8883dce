/**
 * A broadcast: one line for all devices that are connected now, or for some of them. Its limits,
 * and its result. Pure.
 */

export const MAX_BROADCAST_IDS = 10_000
/** Of all broadcasts that the fleet writes at a time. */
export const MAX_BROADCASTS = 16
/** Lines a second of the whole fleet. */
export const DEFAULT_PER_S = 1_000
export const MAX_PER_S = 100_000
/**
 * The longest time that a broadcast may need at its rate. RabbitMQ closes a channel that leaves a
 * delivery unacknowledged for 30 minutes.
 */
export const MAX_PACED_MS = 1_200_000

/** The connected devices that get the line. */
export type Audience =
  | { readonly kind: "all" }
  /** Devices whose ids start with this. */
  | { readonly kind: "prefix"; readonly prefix: string }
  /** Device or connection ids. */
  | { readonly kind: "ids"; readonly ids: readonly string[] }

export interface BroadcastRequest {
  readonly audience: Audience
  /** Without LF or length; it was validated. */
  readonly line: Uint8Array
  /** Lines a second of the whole fleet. */
  readonly perS: number
  /** See `Command`. */
  readonly supersedeKey: string | null
}

/** Lines by outcome. A worker of a later version may have outcomes that this one does not know. */
export type LineCounts = Readonly<Record<string, number>>

/** Of the devices that matched, each is in `outcomes` or in `unfinished`. */
export interface BroadcastCounts {
  readonly kind: "counts"
  /** The workers that took part. */
  readonly workers: number
  readonly matched: number
  readonly outcomes: LineCounts
  /** Devices whose outcome is not known (yet). */
  readonly unfinished: number
}

export type BroadcastResult =
  | BroadcastCounts
  /** `MAX_BROADCASTS` are being written, or this worker stops. Nothing was written. */
  | { readonly kind: "busy" }
  /** The broker is not available. Nothing was written. */
  | { readonly kind: "unreachable" }
  /** It would take longer than `MAX_PACED_MS`. Nothing was written. */
  | { readonly kind: "invalid"; readonly detail: string }

export function sumOf(counts: LineCounts): number {
  return Object.values(counts).reduce((sum, count) => sum + count, 0)
}

/** The counts as a caller gets them. */
export function shownCounts({ workers, matched, outcomes, unfinished }: BroadcastCounts) {
  return { workers, matched, outcomes, ...(unfinished === 0 ? {} : { unfinished }) }
}
