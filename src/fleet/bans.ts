/**
 * The bans of devices that connect too often, or that an operator has denied for a while. All
 * workers of the fleet know all bans.
 *
 * A ban is replaced by a later one for its device. One that is lifted is kept, so that an older
 * message does not bring it back.
 *
 * Pure: the time is passed in. Bound: `MAX_BANS`, the one that was added first makes room.
 */

import { BoundedMap } from "../structures/bounded-map.ts"

const MAX_BANS = 10_000
/** A lifted ban is kept this long: no older message about it is under way any more. */
const LIFTED_KEPT_MS = 600_000

/** Times in milliseconds since 1970. */
export interface Ban {
  readonly device_id: string
  /** When it was made or lifted. */
  readonly at: number
  /** 0 when it was lifted. */
  readonly until: number
  /** The connections that led to it; 0 when an operator has denied the device. */
  readonly connects: number
}

/** The reason for which devices with this ban are refused. */
export function reasonOf({ connects }: Ban): "denied" | "flapping" {
  return connects === 0 ? "denied" : "flapping"
}

export class Bans {
  readonly #bans = new BoundedMap<string, Ban>(MAX_BANS)

  /** @returns the device's ban; null when it has none. */
  of(deviceId: string, nowMs: number): Ban | null {
    const ban = this.#bans.get(deviceId)
    return ban !== undefined && ban.until > nowMs ? ban : null
  }

  add(deviceId: string, connects: number, banMs: number, nowMs: number): Ban {
    const at = this.#laterThanKnown(deviceId, nowMs)
    const ban = { device_id: deviceId, at, until: at + banMs, connects }
    this.#bans.add(deviceId, ban)
    return ban
  }

  /** @returns the ban and what replaces it; null when the device has none. */
  lift(deviceId: string, nowMs: number): { readonly ban: Ban; readonly ended: Ban } | null {
    const ban = this.#bans.get(deviceId)
    if (ban === undefined || ban.until <= nowMs) return null
    const ended = { ...ban, at: this.#laterThanKnown(deviceId, nowMs), until: 0 }
    this.#bans.add(deviceId, ended)
    return { ban, ended }
  }

  /**
   * Takes a ban that another worker has made or lifted, if it is later than the known one.
   * @returns whether it is.
   */
  merge(ban: Ban): boolean {
    const known = this.#bans.get(ban.device_id)
    // Of two at the same time all workers must choose the same one.
    const isLater =
      known === undefined || ban.at > known.at || (ban.at === known.at && ban.until > known.until)
    if (isLater) this.#bans.add(ban.device_id, ban)
    return isLater
  }

  /** All bans in force, and those that were lifted lately. Forgets the others. */
  all(nowMs: number): Ban[] {
    const kept: Ban[] = []
    for (const ban of [...this.#bans.values()]) {
      const isKept = ban.until === 0 ? ban.at > nowMs - LIFTED_KEPT_MS : ban.until > nowMs
      if (isKept) kept.push(ban)
      else this.#bans.delete(ban.device_id)
    }
    return kept
  }

  inForce(nowMs: number): Ban[] {
    return this.all(nowMs).filter(({ until }) => until > nowMs)
  }

  #laterThanKnown(deviceId: string, nowMs: number): number {
    // Its clock may be ahead.
    return Math.max(nowMs, (this.#bans.get(deviceId)?.at ?? 0) + 1)
  }
}
