/**
 * The bans of devices that connect too often. All workers of the fleet know all bans.
 *
 * A ban is replaced by a later one for its device. One that is lifted is kept, so that an older
 * message does not bring it back.
 *
 * Pure: the time is passed in. Bound: `MAX_BANS`, the one that was added first makes room.
 */

import { BoundedMap } from "../structures/bounded-map.ts"

const MAX_BANS = 10_000

/** Times in milliseconds since 1970. */
export interface Ban {
  readonly device_id: string
  /** When it was made or lifted. */
  readonly at: number
  /** 0 when it was lifted. */
  readonly until: number
}

export class Bans {
  readonly #bans = new BoundedMap<string, Ban>(MAX_BANS)

  /** @returns the end of the device's ban; null when it has none. */
  endOf(deviceId: string, nowMs: number): number | null {
    const until = this.#bans.get(deviceId)?.until ?? 0
    return until > nowMs ? until : null
  }

  add(deviceId: string, banMs: number, nowMs: number): Ban {
    return this.#replace(deviceId, nowMs, (at) => at + banMs)
  }

  /** @returns the lifted ban; null when the device has none. */
  lift(deviceId: string, nowMs: number): Ban | null {
    return this.endOf(deviceId, nowMs) === null ? null : this.#replace(deviceId, nowMs, () => 0)
  }

  /** Takes a ban that another worker has made or lifted, if it is later than the known one. */
  merge(ban: Ban): void {
    const known = this.#bans.get(ban.device_id)
    // Of two at the same time all workers must choose the same one.
    const isLater =
      known === undefined || ban.at > known.at || (ban.at === known.at && ban.until > known.until)
    if (isLater) this.#bans.add(ban.device_id, ban)
  }

  /** All bans in force, and those that were lifted before their time. */
  all(): Ban[] {
    return [...this.#bans.values()]
  }

  inForce(nowMs: number): Ban[] {
    return this.all().filter(({ until }) => until > nowMs)
  }

  #replace(deviceId: string, nowMs: number, untilOf: (at: number) => number): Ban {
    // Later than the known one, whose clock may be ahead.
    const at = Math.max(nowMs, (this.#bans.get(deviceId)?.at ?? 0) + 1)
    const ban = { device_id: deviceId, at, until: untilOf(at) }
    this.#bans.add(deviceId, ban)
    return ban
  }
}
