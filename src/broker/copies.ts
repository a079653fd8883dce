/**
 * The copies of forwarded commands: a worker that loses the broker while it forwards publishes again, and
 * the broker hands out again what was not acknowledged. Either way the command has one outcome.
 *
 *   new ──► in hand ──acknowledged──► ended
 *              ├──its delivery lost, came again──► in hand, by the new delivery
 *              └──dropped──► new
 *
 * A copy of what is in hand or has ended is acknowledged and otherwise ignored. Pure. Bounds: the
 * deliveries in hand; the last `REMEMBERED_ENDS` ends.
 */

import type { Delivery, MessageProperties } from "./broker.ts"

/** More than all workers together have on their way to one when a connection is lost. */
const REMEMBERED_ENDS = 65_536

export class Copies {
  readonly #inHand = new Map<string, HeldDelivery>()
  readonly #ended = new Set<string>()
  /** The same in the order of their ends: a Set whose first is deleted again and again is slow to find its first. */
  readonly #endings: string[] = []
  #oldest = 0

  /**
   * The delivery to go on with; null when it was a copy, which is taken care of.
   *
   * @param hops a command that follows its device may come by here twice, and is then no copy.
   */
  take(commandId: string, hops: number, delivery: Delivery): Delivery | null {
    // Most are forwarded once, and a text less is made for them.
    const key = hops === 1 ? commandId : `${commandId} ${hops}`
    const held = this.#inHand.get(key)
    if (held?.lost === true) held.replaceBy(delivery)
    else if (held !== undefined || this.#ended.has(key)) delivery.acknowledge()
    else return this.#hold(key, delivery)
    return null
  }

  /** Nothing was done with a delivery that was lost: when it comes again, that begins anew. */
  drop(delivery: Delivery): void {
    if (delivery instanceof HeldDelivery) this.#inHand.delete(delivery.key)
  }

  #hold(key: string, delivery: Delivery): Delivery {
    const held = new HeldDelivery(key, delivery, () => {
      this.#inHand.delete(key)
      this.#remember(key)
    })
    this.#inHand.set(key, held)
    return held
  }

  #remember(key: string): void {
    const oldest = this.#endings[this.#oldest]
    if (oldest !== undefined) this.#ended.delete(oldest)
    this.#ended.add(key)
    this.#endings[this.#oldest] = key
    this.#oldest = (this.#oldest + 1) % REMEMBERED_ENDS
  }
}

class HeldDelivery implements Delivery {
  readonly key: string
  readonly queue: string
  readonly body: Uint8Array
  readonly properties: MessageProperties
  readonly redelivered: boolean
  readonly #ended: () => void
  #current: Delivery

  constructor(key: string, delivery: Delivery, ended: () => void) {
    const { queue, body, properties, redelivered } = delivery
    this.key = key
    this.queue = queue
    this.body = body
    this.properties = properties
    this.redelivered = redelivered
    this.#current = delivery
    this.#ended = ended
  }

  get lost(): boolean {
    return this.#current.lost
  }

  replaceBy(delivery: Delivery): void {
    this.#current = delivery
  }

  acknowledge(): void {
    this.#current.acknowledge()
    this.#ended()
  }
}
