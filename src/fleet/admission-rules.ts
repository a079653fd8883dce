/**
 * The rules by which the whole fleet refuses devices that have proven their identity: the gate and
 * bans. Each worker knows all of them. They are held in memory: they are gone when all workers of
 * the fleet end at the same time.
 *
 *   a device identifies itself ─► gate, bans, flapping ─┬─ null: admitted
 *                                                       └─ refused: gated, denied, flapping
 *   set here ─► sent to all workers              a worker joins ─► all are sent to it
 *   set here or heard ─► the supervisor keeps them ─► a worker that is replaced
 *
 * All are sent again after a message was dropped, or the broker connection was lost (`fleet.ts`).
 * Bounds: those of `bans.ts` and `flapping.ts`.
 */

import type { AdmissionRefusal } from "../device/admitter.ts"
import { type Ban, Bans, reasonOf } from "./bans.ts"
import { Flapping, type FlappingLimits } from "./flapping.ts"
import { Gate, type GateRequest, type GateState } from "./gate.ts"
import { MAX_ROWS } from "./messages.ts"

export type RulesContent =
  | { readonly type: "gate"; readonly gate: GateState }
  | { readonly type: "bans"; readonly bans: readonly Ban[] }

export interface FlappingRule extends FlappingLimits {
  readonly banMs: number
}

export interface AdmissionRulesOptions {
  /** Null when devices may connect as often as they like. */
  readonly flapping: FlappingRule | null
  readonly worker: string
  readonly nowMs: () => number
  /** Sends it to all workers. */
  readonly broadcast: (content: RulesContent) => void
  /**
   * Another worker has refused the device, or an operator has denied it. Its connection to this
   * worker must end, if there is one.
   */
  readonly banned: (
    deviceId: string,
    retryAfterMs: number,
    reason: ReturnType<typeof reasonOf>,
  ) => void
  /** The gate or a ban was set, here or elsewhere. */
  readonly changed: () => void
}

export class AdmissionRules {
  readonly #options: AdmissionRulesOptions
  readonly #gate = new Gate()
  readonly #bans = new Bans()
  readonly #flapping: Flapping | null

  constructor(options: AdmissionRulesOptions) {
    this.#options = options
    this.#flapping = options.flapping && new Flapping(options.flapping)
  }

  get gate(): GateState {
    return this.#gate.state
  }

  /** Whether no device is admitted. */
  get isShut(): boolean {
    return this.#gate.isShut
  }

  bans(): Ban[] {
    return this.#bans.inForce(this.#options.nowMs())
  }

  /**
   * Why the device is refused now; null when it is admitted. Counts the connection.
   * @param isNamed whether the device id is more than the id of this connection.
   */
  refusalOf(deviceId: string, isNamed: boolean): AdmissionRefusal | null {
    const nowMs = this.#options.nowMs()
    if (!this.#gate.admits(deviceId)) {
      const { prefix, retry_after_ms: retryAfterMs } = this.#gate.state
      const whom = prefix === "" ? "" : ` for ids that start with ${prefix}`
      return { reason: "gated", detail: `the gate is closed${whom}`, retryAfterMs }
    }
    if (!isNamed) return null
    const { flapping } = this.#options
    let ban = this.#bans.of(deviceId, nowMs)
    // Refused connections do not count: a device that goes on trying is refused for the ban only.
    if (ban === null && flapping !== null && this.#flapping?.connectedHere(deviceId, nowMs)) {
      ban = this.#ban(deviceId, flapping)
    }
    if (ban === null) return null
    const reason = reasonOf(ban)
    const detail =
      reason === "denied"
        ? `an operator has denied ${deviceId} (PUT /bans/${deviceId})`
        : `${deviceId} connected ${ban.connects} times within FLAP_WINDOW_MS, more than FLAP_LIMIT`
    return { reason, detail, retryAfterMs: ban.until - nowMs }
  }

  /** A device, whose shard this worker keeps, has connected to another worker. */
  connectedElsewhere(deviceId: string, epoch: number): void {
    const { flapping, nowMs } = this.#options
    if (flapping === null || this.#bans.of(deviceId, nowMs()) !== null) return
    if (this.#flapping?.connectedElsewhere(deviceId, epoch)) this.#ban(deviceId, flapping)
  }

  setGate(request: GateRequest): GateState {
    this.#gate.set(request, this.#options.worker, this.#options.nowMs())
    this.#tell({ type: "gate", gate: this.#gate.state })
    return this.#gate.state
  }

  /** Refuses the device for so long, and closes its connection. */
  deny(deviceId: string, forMs: number): Ban {
    const ban = this.#add(deviceId, 0, forMs)
    this.#options.banned(deviceId, forMs, reasonOf(ban))
    return ban
  }

  /** @returns the ban that was lifted; null when the device has none. */
  lift(deviceId: string): Ban | null {
    const lifted = this.#bans.lift(deviceId, this.#options.nowMs())
    if (lifted === null) return null
    this.#flapping?.forget(deviceId)
    this.#tell({ type: "bans", bans: [lifted.ended] })
    return lifted.ban
  }

  /** Applies a message of another worker. */
  heard(content: RulesContent): void {
    const isChanged =
      content.type === "gate" ? this.#gate.merge(content.gate) : this.#mergeBans(content.bans)
    // Not for what was known: each worker sends all rules to a worker that joins.
    if (isChanged) this.#options.changed()
  }

  #ban(deviceId: string, { limit, banMs }: FlappingRule): Ban {
    return this.#add(deviceId, limit + 1, banMs)
  }

  #add(deviceId: string, connects: number, forMs: number): Ban {
    const ban = this.#bans.add(deviceId, connects, forMs, this.#options.nowMs())
    this.#flapping?.forget(deviceId)
    this.#tell({ type: "bans", bans: [ban] })
    return ban
  }

  #mergeBans(bans: readonly Ban[]): boolean {
    const later = bans.filter((ban) => this.#bans.merge(ban))
    // Counting starts again with the ban, and when it is lifted.
    for (const ban of later) {
      this.#flapping?.forget(ban.device_id)
      const leftMs = ban.until - this.#options.nowMs()
      if (leftMs > 0) this.#options.banned(ban.device_id, leftMs, reasonOf(ban))
    }
    return later.length > 0
  }

  /** The messages for a worker that joins the fleet. */
  all(): RulesContent[] {
    const contents: RulesContent[] = []
    if (this.#gate.state.set_at > 0) contents.push({ type: "gate", gate: this.#gate.state })
    const bans = this.#bans.all(this.#options.nowMs())
    for (let from = 0; from < bans.length; from += MAX_ROWS) {
      contents.push({ type: "bans", bans: bans.slice(from, from + MAX_ROWS) })
    }
    return contents
  }

  #tell(content: RulesContent): void {
    this.#options.broadcast(content)
    this.#options.changed()
  }
}
