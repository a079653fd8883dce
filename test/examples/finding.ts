/** What a scenario needs of an example, and what it has found out about it. */

import type { Example } from "./programs.ts"

/** An example that is ready to run. */
export interface Built {
  readonly example: Example
  /** For what was built of it and for other files of it. */
  readonly directory: string
}

export interface Finding {
  readonly example: Example
  /** Empty when it did all that it should. */
  readonly faults: readonly string[]
  /** For the table of docs/examples/README.md. */
  readonly seen: string
}
