/** The directory of a fleet of four instances on one broker node. */

import { afterAll, afterEach, beforeAll } from "bun:test"
import { directoryScenarios } from "../support/directory-scenarios.ts"
import { TestFleet } from "../support/fleet.ts"

const LIMIT_MS = 180_000
let fleet: TestFleet

beforeAll(async () => {
  fleet = await TestFleet.start(4, { SEND_TIMEOUT_MS: "2000" })
}, LIMIT_MS)

afterEach(() => fleet.releaseDevices())

afterAll(() => fleet?.stop(), LIMIT_MS)

directoryScenarios({
  fleet: () => fleet,
  disturbBroker: async () => {
    await fleet.broker.stop()
    await fleet.broker.start()
  },
})
