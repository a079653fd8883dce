/**
 * The flushes that are due: one write a tick for each connection, whatever the number of commands that
 * were offered to it. Bound: the connections of the worker.
 */

import type { Connection } from "./connection.ts"

export class FlushScheduler {
  readonly #due = new Set<Connection>()

  readonly soon = (connection: Connection): void => {
    if (this.#due.size === 0) setImmediate(() => this.#flush())
    this.#due.add(connection)
  }

  #flush(): void {
    const due = [...this.#due]
    this.#due.clear()
    for (const connection of due) connection.flush()
  }
}
