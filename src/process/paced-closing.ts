/**
 * The pace at which a draining worker closes its connections: evenly over most of the time that it
 * has, so that devices come back to other instances one after another and not all at once. NATS
 * calls this lame duck mode.
 *
 * Pure: the time is passed in.
 */

/** The rest is for confirms and the outcomes of commands. */
const SHARE_OF_TIME = 0.7
const MIN_PER_S = 50

export class PacedClosing {
  readonly #startedAtMs: number
  readonly perS: number
  #begun = 0

  /** @param timeoutMs the time that the drain may take in all. */
  constructor(connections: number, timeoutMs: number, steadyMs: number) {
    this.#startedAtMs = steadyMs
    this.perS = Math.max(MIN_PER_S, (connections / (SHARE_OF_TIME * timeoutMs)) * 1_000)
  }

  /** How many connections to close now, in addition to those of earlier calls. */
  due(steadyMs: number): number {
    const inAll = Math.ceil(((steadyMs - this.#startedAtMs) / 1_000) * this.perS)
    const due = Math.max(0, inAll - this.#begun)
    this.#begun += due
    return due
  }
}
