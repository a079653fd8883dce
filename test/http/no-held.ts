/** The parts of an app's dependencies that know held commands and tapes, for tests of others. */

import type { AppDependencies } from "../../src/http/app.ts"

export const NO_HELD: Pick<AppDependencies, "heldQuery" | "maxHoldMs" | "tapes"> = {
  heldQuery: { list: async () => [], cancel: async () => 0 },
  maxHoldMs: 604_800_000,
  tapes: { start: async () => "full", stop: async () => null, list: () => [], reader: () => null },
}
