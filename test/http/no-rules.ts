/** The parts of an app's dependencies that know the gate, bans and broadcasts, for tests of others. */

import type { AppDependencies } from "../../src/http/app.ts"

const OPEN_GATE = { open: true, prefix: "", retry_after_ms: null, set_at: 0, set_by: "" } as const

const denied = (id: string) => ({ device_id: id, at: 1, until: 2, connects: 0 })

export const NO_RULES: Pick<AppDependencies, "rules" | "reachesFleet" | "broadcast"> = {
  rules: {
    gate: OPEN_GATE,
    setGate: () => OPEN_GATE,
    bans: () => [],
    lift: () => null,
    deny: denied,
  },
  reachesFleet: () => true,
  broadcast: async () => ({ kind: "busy" }),
}
