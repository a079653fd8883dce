/**
 * Look-ups of devices at the keepers of their shards, many devices in a message.
 *
 *   find ─► gathered in the tick ─┬─ kept here ───► directory
 *                                 ├─ a keeper ────► find ─► found
 *                                 └─ no keeper ───► all workers must be asked
 *
 *   a registration ─► that worker        no worker holds it ─► nowhere
 *   the keeper does not know, does not answer within `FIND_TIMEOUT_MS`, or has ended ─► all workers must be asked
 *
 * A registration waits up to `GATHER_MS` and then takes some milliseconds to reach the keeper.
 * Until then "not connected to any worker" is wrong for a device that has just connected. In a
 * fleet of up to `SMALL_FLEET` workers it is checked by asking all. In a larger one the keeper is
 * asked again after `ABSENT_MS`.
 *
 * Bounds: `MAX_ASKS` unanswered messages with `MAX_ROWS` devices each, beyond which all workers
 * must be asked.
 */

import { processOfConnection, type WorkerProcess } from "../device/ids.ts"
import type { Channel } from "./channel.ts"
import { keyOf } from "./directory.ts"
import type { Keeper } from "./keeper.ts"
import type { Keepers } from "./keepers.ts"
import type { LocationCache } from "./location-cache.ts"
import type { Located } from "./locator.ts"
import type { Members } from "./members.ts"
import { type FleetMessage, MAX_ROWS } from "./messages.ts"
import type { Registration } from "./registration.ts"
import { shardOf } from "./shards.ts"

const FIND_TIMEOUT_MS = 250
const MAX_ASKS = 1_000
const SMALL_FLEET = 32
const ABSENT_MS = 200

type Found = (place: Located | null) => void

interface Question {
  readonly keeper: WorkerProcess
  readonly devices: ReadonlyMap<string, LookUp>
  readonly deadlineMs: number
}

interface LookUp {
  readonly found: Found
  /** The keeper has said once that no worker holds the device. */
  readonly wasAbsent: boolean
}

export class KeeperLookUps {
  readonly #channel: Channel
  readonly #members: Members
  readonly #keepers: Keepers
  readonly #keeper: Keeper
  readonly #locationCache: LocationCache
  readonly #steadyMs: () => number
  readonly #wanted = new Map<string, LookUp>()
  readonly #questions = new Map<number, Question>()
  #scheduled = false
  #nextAsk = 0

  /** @param steadyMs milliseconds of a monotonic clock. */
  constructor(
    channel: Channel,
    members: Members,
    keepers: Keepers,
    keeper: Keeper,
    locationCache: LocationCache,
    steadyMs: () => number,
  ) {
    this.#channel = channel
    this.#members = members
    this.#keepers = keepers
    this.#keeper = keeper
    this.#locationCache = locationCache
    this.#steadyMs = steadyMs
  }

  /**
   * To be called once at a time for each device.
   * @param found called once, never before the call returns; null when all workers must be asked.
   */
  find(deviceId: string, found: Found): void {
    this.#want(deviceId, { found, wasAbsent: false })
  }

  /** Handles the answer of a keeper. */
  answered({
    from,
    incarnation,
    ask,
    devices,
    absent,
  }: Extract<FleetMessage, { type: "found" }>): void {
    const question = this.#questions.get(ask)
    const isKeeper =
      question !== undefined && keyOf(question.keeper) === keyOf({ worker: from, incarnation })
    if (!isKeeper) return
    this.#questions.delete(ask)
    this.#conclude(question.devices, devices, absent)
  }

  /** To be called periodically. */
  sweep(): void {
    const steadyMs = this.#steadyMs()
    for (const [ask, { keeper, deadlineMs }] of this.#questions) {
      if (steadyMs < deadlineMs) return
      this.#members.wasSlow(keeper.worker, steadyMs)
      this.#giveUp(ask)
    }
  }

  #want(deviceId: string, lookUp: LookUp): void {
    this.#wanted.set(deviceId, lookUp)
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      this.#ask()
    })
  }

  #ask(): void {
    const here = new Map<string, LookUp>()
    const elsewhere = new Map<string, { keeper: WorkerProcess; devices: Map<string, LookUp> }>()
    const nobody: LookUp[] = []
    for (const [deviceId, lookUp] of this.#wanted) {
      const keeper = this.#keepers.keeperOf(shardOf(deviceId, this.#keepers.shards))
      if (keeper === null || !this.#channel.open) nobody.push(lookUp)
      else if (keeper === this.#keepers.self) here.set(deviceId, lookUp)
      else {
        const key = keyOf(keeper)
        const asked = elsewhere.get(key) ?? { keeper, devices: new Map() }
        asked.devices.set(deviceId, lookUp)
        elsewhere.set(key, asked)
      }
    }
    this.#wanted.clear()
    for (const { found } of nobody) found(null)
    if (here.size > 0) {
      const { devices, absent } = this.#keeper.find([...here.keys()])
      this.#conclude(here, devices, absent)
    }
    for (const { keeper, devices } of elsewhere.values()) {
      const rows = [...devices]
      for (let from = 0; from < rows.length; from += MAX_ROWS) {
        this.#askKeeper(keeper, new Map(rows.slice(from, from + MAX_ROWS)))
      }
    }
  }

  #askKeeper(keeper: WorkerProcess, devices: ReadonlyMap<string, LookUp>): void {
    const ask = this.#nextAsk
    this.#nextAsk += 1
    const deadlineMs = this.#steadyMs() + FIND_TIMEOUT_MS
    this.#questions.set(ask, { keeper, devices, deadlineMs })
    if (this.#questions.size > MAX_ASKS) {
      this.#giveUp(ask)
      return
    }
    this.#channel.tell(keeper, { type: "find", ask, devices: [...devices.keys()] }, (result) => {
      if (result === "returned") this.#members.missed(keeper.worker)
      if (result !== "confirmed") this.#giveUp(ask)
    })
  }

  #giveUp(ask: number): void {
    const devices = this.#questions.get(ask)?.devices ?? new Map<string, LookUp>()
    this.#questions.delete(ask)
    for (const { found } of devices.values()) found(null)
  }

  #conclude(
    lookUps: ReadonlyMap<string, LookUp>,
    registrations: readonly Registration[],
    absent: readonly string[],
  ): void {
    const left = new Map(lookUps)
    for (const registration of registrations) {
      const [deviceId, connectionId] = registration
      const holder = processOfConnection(connectionId)
      const lookUp = left.get(deviceId)
      // A registration of this worker is outdated: it has looked among its own devices.
      if (lookUp === undefined || holder === null || holder.worker === this.#keepers.self.worker)
        continue
      left.delete(deviceId)
      this.#locationCache.add(registration, this.#steadyMs())
      lookUp.found({ kind: "worker", worker: holder.worker, connectionId })
    }
    const isSmall = this.#members.count < SMALL_FLEET
    for (const deviceId of absent) {
      const lookUp = left.get(deviceId)
      if (lookUp === undefined || isSmall) continue
      left.delete(deviceId)
      if (lookUp.wasAbsent) lookUp.found({ kind: "nowhere", detail: "not connected to any worker" })
      else setTimeout(() => this.#want(deviceId, { ...lookUp, wasAbsent: true }), ABSENT_MS)
    }
    for (const { found } of left.values()) found(null)
  }
}
