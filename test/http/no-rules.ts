/** The part of an app's dependencies that knows the gate and bans, for tests of other parts. */

import type { AppDependencies } from "../../src/http/app.ts"

const OPEN_GATE = { open: true, prefix: "", retry_after_ms: null, set_at: 0, set_by: "" } as const

export const NO_RULES: Pick<AppDependencies, "rules" | "reachesFleet"> = {
  rules: { gate: OPEN_GATE, setGate: () => OPEN_GATE, bans: () => [], lift: () => null },
  reachesFleet: () => true,
}
