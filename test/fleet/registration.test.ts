/** A registration that waits before it is sent. */

import { expect, test } from "bun:test"
import { aged, type Registration } from "../../src/fleet/registration.ts"

test("counts as repeated after more than a second", () => {
  const fresh: Registration = ["lock", "gw1.0.mb2k3f9zq7x2.1", 5, 1]
  expect(aged(fresh, 1_000)).toEqual(fresh)
  expect(aged(fresh, 1_001)).toEqual(["lock", "gw1.0.mb2k3f9zq7x2.1", 5])
})
