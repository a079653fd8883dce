/** The part of an app's dependencies that knows held commands, for tests of other parts. */

import type { AppDependencies } from "../../src/http/app.ts"

export const NO_HELD: Pick<AppDependencies, "heldQuery" | "maxHoldMs"> = {
  heldQuery: { list: async () => [], cancel: async () => 0 },
  maxHoldMs: 604_800_000,
}
