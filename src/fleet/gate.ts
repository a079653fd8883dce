/**
 * The gate: whether new devices are admitted, on the whole fleet. An operator closes it for all
 * devices or for those whose ids start with a prefix. Connected devices stay.
 *
 * All workers know the gate that was set last, by the time in it; of two at the same time the one
 * of the larger worker id. Pure: the time is passed in.
 */

export interface GateState {
  readonly open: boolean
  /** Of device ids. Empty for all devices. */
  readonly prefix: string
  /** When refused devices should come back; null for the goodbye line's own times. */
  readonly retry_after_ms: number | null
  /** Milliseconds since 1970; 0 when it was never set. */
  readonly set_at: number
  /** The worker that set it. */
  readonly set_by: string
}

export type GateRequest = Pick<GateState, "open" | "prefix" | "retry_after_ms">

export class Gate {
  #state: GateState = { open: true, prefix: "", retry_after_ms: null, set_at: 0, set_by: "" }

  get state(): GateState {
    return this.#state
  }

  /** Whether it is closed for all devices. */
  get isShut(): boolean {
    return !this.#state.open && this.#state.prefix === ""
  }

  set(request: GateRequest, worker: string, nowMs: number): void {
    // The clock of the worker that set the gate before may be ahead.
    const setAt = Math.max(nowMs, this.#state.set_at + 1)
    this.#state = { ...request, set_at: setAt, set_by: worker }
  }

  /**
   * Takes the state that another worker knows, if it was set later.
   * @returns whether it was.
   */
  merge(other: GateState): boolean {
    const { set_at, set_by } = this.#state
    if (other.set_at < set_at || (other.set_at === set_at && other.set_by <= set_by)) return false
    this.#state = other
    return true
  }

  admits(deviceId: string): boolean {
    return this.#state.open || !deviceId.startsWith(this.#state.prefix)
  }
}
