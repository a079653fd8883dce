/**
 * Schedules flushes: one write in each tick for each connection, however many commands it got in
 * that tick. Bound: one entry for each connection of the worker.
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
