/** Keys for the members of one simulated fleet. */

import { FleetKeys } from "../../src/fleet/fleet-keys.ts"

export const FLEET_KEYS = new FleetKeys("a-fleet-secret-of-the-tests-0123456789")

/** Keys that no member of that fleet has. */
export const OTHER_KEYS = new FleetKeys("another-fleet-secret-of-the-tests-0123")

/** The random part of command ids. */
export const RANDOM_PART = "r4nd0m"
