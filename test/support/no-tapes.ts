/** What a fleet needs for tapes, for tests of other parts. */

import type { TapesHooks } from "../../src/fleet/tape/tapes.ts"

export const NO_TAPES: TapesHooks = {
  lines: { taping: false, take: () => undefined },
  started: () => undefined,
  ended: () => undefined,
}
