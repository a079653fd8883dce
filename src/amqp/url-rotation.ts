/**
 * Chooses the next URL of a broker: each URL once in random order, then each again in another
 * order.
 *
 * The order is random, so that the connections of a fleet spread over the nodes of a cluster, and
 * over the other nodes when one fails. Pure.
 */

export class UrlRotation {
  readonly #urls: readonly string[]
  readonly #random: () => number
  /** Not yet tried in this round. */
  #left: string[] = []
  #taken = ""

  /** @param urls at least one. @param random in [0, 1). */
  constructor(urls: readonly string[], random: () => number) {
    this.#urls = urls
    this.#random = random
  }

  /** Whether all have been tried in this round. */
  get exhausted(): boolean {
    return this.#left.length === 0
  }

  take(): string {
    if (this.#left.length === 0) this.#left = this.#shuffled(this.#urls)
    this.#taken = this.#left.pop() ?? ""
    return this.#taken
  }

  /**
   * Starts a round without the URL that was taken last, because its connection worked and was lost.
   */
  avoidTaken(): void {
    this.#left = this.#shuffled(this.#urls.filter((url) => url !== this.#taken))
  }

  /** Fisher and Yates. */
  #shuffled(urls: readonly string[]): string[] {
    const shuffled = [...urls]
    for (let last = shuffled.length - 1; last > 0; last -= 1) {
      const other = Math.floor(this.#random() * (last + 1))
      const moved = shuffled[last] as string
      shuffled[last] = shuffled[other] as string
      shuffled[other] = moved
    }
    return shuffled
  }
}
