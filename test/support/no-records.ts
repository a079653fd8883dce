/** The options of a fleet that remembers no connections, for tests of other parts. */

import { ConnectionHistory } from "../../src/device/connection-history.ts"
import { Refusals } from "../../src/device/refusals.ts"
import type { FleetOptions } from "../../src/fleet/fleet.ts"

export function noRecords(): Pick<FleetOptions, "refusals" | "history"> {
  return { refusals: new Refusals(), history: new ConnectionHistory() }
}
