/** A keeper of held commands that has none, for tests of the fleet. */

import type { KeeperHooks } from "../../src/fleet/fleet.ts"

export const NO_HELD_COMMANDS: KeeperHooks = {
  gained: () => undefined,
  lost: () => undefined,
  registered: () => false,
  list: () => [],
  cancel: () => 0,
  count: 0,
}
