/** The maximum numbers of device and HTTP connections for an open-files limit. */

import { expect, test } from "bun:test"
import { connectionsUnder, httpConnectionsUnder } from "../../src/ops/open-files.ts"

const WANTED = 256

test.each([
  // limit, HTTP connections, devices
  [null, 256, 10_000],
  [200_000, 256, 199_488],
  [1_024, 256, 512],
  [700, 175, 350],
  [512, 128, 256],
  [2, 1, 1],
  [1, 1, 1],
])("under a limit of %p there are %i and %i", (limit, http, devices) => {
  expect(httpConnectionsUnder(limit, WANTED)).toBe(http)
  expect(connectionsUnder(limit, http)).toBe(devices)
})

test("under any sufficient limit, both leave descriptors for other uses", () => {
  for (let limit = 8; limit < 5_000; limit += 1) {
    for (const wanted of [1, WANTED, 65_536]) {
      const http = httpConnectionsUnder(limit, wanted)
      const rest = limit - http - connectionsUnder(limit, http)
      expect(rest).toBeGreaterThanOrEqual(Math.min(256, Math.floor(limit / 4)))
    }
  }
})
