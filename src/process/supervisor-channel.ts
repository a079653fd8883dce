/**
 * The worker's end of the channel to its supervisor.
 *
 * Messages are kept from the start of the process until there is a handler, because a supervisor
 * that drains its workers does not know which of them are still starting. The channel closes only
 * when the supervisor has ended.
 *
 * Bounds: `MAX_GATHERINGS` unanswered questions; another question fails at once. Messages are kept
 * only during the start of the worker, when the supervisor sends few.
 */

import {
  GATHER_TIMEOUT_MS,
  type Gathered,
  type ToSupervisor,
  type ToWorker,
  type WorkerOrders,
} from "./control.ts"

/** A stopped supervisor reads no questions; they would accumulate in memory. */
const MAX_GATHERINGS = 16

export interface SupervisorOrders {
  readonly drain: () => void
  readonly message: (message: ToWorker) => void
}

export class SupervisorChannel {
  readonly #early: ToWorker[] = []
  #orders: SupervisorOrders | null = null
  #isGone = false
  readonly #gatherings = new Map<number, (gathered: Gathered) => void>()
  #unanswered = 0
  #nextId = 0

  constructor() {
    process.on("disconnect", () => {
      this.#isGone = true
      this.#orders?.drain()
    })
    process.on("message", (message: ToWorker) => this.#received(message))
  }

  /** The first message. Ends the process when the supervisor ends before it sends one. */
  async first(): Promise<WorkerOrders> {
    const { promise, resolve } = Promise.withResolvers<WorkerOrders>()
    const first = this.#early.shift()
    if (first?.kind === "serve") return first
    this.#orders = {
      drain: () => process.exit(1),
      message: (message) => {
        this.#orders = null
        if (message.kind === "serve") resolve(message)
      },
    }
    if (this.#isGone) this.#orders.drain()
    return promise
  }

  /** Passes on the kept messages after the first one, and later messages as they arrive. */
  listen(orders: SupervisorOrders): void {
    this.#orders = orders
    for (const message of this.#early.splice(0)) this.#received(message)
    if (this.#isGone) orders.drain()
  }

  send(message: ToSupervisor): void {
    if (process.connected) process.send?.(message)
  }

  /**
   * The snapshots of all processes of the instance; null when the supervisor does not answer in
   * time.
   * @param history whether its history is wanted too.
   */
  async gather(history: boolean): Promise<Gathered | null> {
    if (this.#unanswered >= MAX_GATHERINGS) return null
    const id = this.#nextId
    this.#nextId += 1
    const { promise, resolve } = Promise.withResolvers<Gathered | null>()
    const timer = setTimeout(() => resolve(null), GATHER_TIMEOUT_MS * 2)
    this.#gatherings.set(id, resolve)
    this.#unanswered += 1
    this.send({ kind: "gather", id, history })
    const gathered = await promise
    clearTimeout(timer)
    this.#gatherings.delete(id)
    return gathered
  }

  #received(message: ToWorker): void {
    if (message.kind === "gathered") {
      this.#unanswered -= 1
      this.#gatherings.get(message.id)?.(message.gathered)
    } else if (this.#orders === null) this.#early.push(message)
    else this.#orders.message(message)
  }
}
