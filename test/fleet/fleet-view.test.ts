/** The fleet as operators see it. */

import { expect, test } from "bun:test"
import { fleetView } from "../../src/fleet/fleet-view.ts"
import { Keepers } from "../../src/fleet/keepers.ts"
import { Members } from "../../src/fleet/members.ts"

const SELF = { worker: "gw2.0", incarnation: "b" }
const OTHER = { worker: "gw1.0", incarnation: "a" }
const own = { connected: true, held: 3, admitsPerS: 100 }

test("names each member with its state and its shards, and the shards that nobody keeps", () => {
  const members = new Members()
  const keepers = new Keepers(SELF, 4, members)
  members.heard(OTHER.worker, OTHER.incarnation, 0)
  members.admits(OTHER.worker, OTHER.incarnation, 250)
  members.holds(OTHER.worker, OTHER.incarnation, 7)
  keepers.heard(OTHER, { of: 4, since: 1, version: 1, shards: [3, 1] })
  const view = fleetView(members, keepers, own)
  expect(view).toEqual({
    ...{ worker: "gw2.0", connected: true, shards: 4, has_foreign: false },
    shards_without_keeper: [0, 2],
    members: [
      {
        ...{ worker: "gw1.0", instance: "gw1", state: "heard_of", held: 7, admits_per_s: 250 },
        shards: [1, 3],
      },
      {
        ...{ worker: "gw2.0", instance: "gw2", state: "self", held: 3, admits_per_s: 100 },
        shards: [],
      },
    ],
  })
  members.missed(OTHER.worker)
  expect(fleetView(members, keepers, own).members[0]?.state).toBe("silent")
})

test("says when a member uses another number of shards", () => {
  const members = new Members()
  const keepers = new Keepers(SELF, 4, members)
  members.heard(OTHER.worker, OTHER.incarnation, 0)
  keepers.heard(OTHER, { of: 8, since: 1, version: 1, shards: [] })
  expect(fleetView(members, keepers, own).has_foreign).toBe(true)
})
