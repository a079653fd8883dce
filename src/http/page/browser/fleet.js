/** The members of the fleet and the shards that they keep. */

import { byId, setText, showRows } from "./dom.js"
import { count, rate } from "./format.js"
import { connection } from "./shell.js"
import { watch } from "./streams.js"

/** @typedef {import("../../../fleet/fleet-view.ts").FleetView} FleetView */

/** @type {Record<string, string>} */
const STATES = { self: "answers", heard_of: "heard of", silent: "silent", left: "left" }

watch(
  {
    "/fleet": ({ ok, data, fault }) => {
      if (ok) show(data)
      else setText(byId("fleet-note"), fault)
    },
  },
  connection,
)

/** @param {FleetView} fleet */
function show(fleet) {
  const note = byId("fleet-note")
  const fault = faultOf(fleet)
  note.dataset["level"] = fault === null ? "ok" : "warning"
  const instances = new Set(fleet.members.map(({ instance }) => instance)).size
  const members = `${count(fleet.members.length)} workers of ${count(instances)} instances`
  setText(note, fault ?? `${members}. Each of the ${fleet.shards} shards has a keeper.`)
  showRows("members", fleet.members, {
    key: ({ worker }) => worker,
    kind: ({ state }) => (state === "silent" ? "level-warn" : ""),
    cells: ({ worker, instance, state, shards, held, admits_per_s }) => [
      worker,
      instance,
      STATES[state] ?? state,
      shards.join(", "),
      count(held),
      rate(admits_per_s),
    ],
  })
}

/** @param {FleetView} fleet */
function faultOf({ connected, shards_without_keeper: lost, has_foreign }) {
  if (!connected) return "The broker is not available: the other workers cannot be reached."
  if (lost.length > 0) return `No worker keeps the shards ${lost.join(", ")}.`
  if (has_foreign) return "A member uses another FLEET_SHARDS, or an earlier version."
  return null
}
