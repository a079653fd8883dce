/** The gate and the bans of the fleet. */

import { request } from "./api.js"
import { button, byId, deviceLink, find, input, setText, showRows } from "./dom.js"
import { count, time } from "./format.js"
import { connection, mayAct } from "./shell.js"
import { watch } from "./streams.js"

const look = watch(
  {
    "/gate": ({ ok, data, fault }) => {
      if (ok) showGate(data)
      else setText(byId("gate-state"), fault)
    },
    "/bans": ({ ok, data }) => {
      if (ok) showBans(data.bans)
    },
  },
  connection,
)

/** @param {{ open: boolean, prefix: string }} gate */
function showGate({ open, prefix }) {
  const whom = prefix === "" ? "all devices" : `devices whose ids begin with ${prefix}`
  const shown = byId("gate-state")
  shown.dataset["level"] = open ? "ok" : "warning"
  setText(
    shown,
    open
      ? "The gate is open: new devices are admitted."
      : `The gate is closed for ${whom}. Those that are connected stay.`,
  )
}

if (mayAct) {
  const prefix = input("gate-prefix")
  prefix.value = new URLSearchParams(location.search).get("prefix") ?? ""
  byId("gate").addEventListener("submit", (event) => {
    event.preventDefault()
    const whom = prefix.value === "" ? "ALL new devices" : `new devices ${prefix.value}…`
    if (confirm(`Close the gate for ${whom} on the whole fleet?`)) {
      void set({ open: false, prefix: prefix.value })
    }
  })
  find("gate-open")?.addEventListener("click", () => void set({ open: true }))
}

/** @param {{ open: boolean, prefix?: string }} gate */
async function set(gate) {
  const { ok, data, fault } = await request("PUT", "/gate", gate)
  if (ok) showGate(data)
  else setText(byId("gate-state"), fault)
}

/** @param {{ id: string, until: number, connects: number }[]} bans */
function showBans(bans) {
  showRows("bans", bans, {
    key: ({ id }) => id,
    empty: "No device is banned.",
    cells: ({ id, until, connects }) => [
      deviceLink(id),
      time(until, Date.now()),
      connects === 0 ? "denied by an operator" : `connected ${count(connects)} times`,
      mayAct ? button("Lift", () => void lift(id)) : "",
    ],
  })
}

/** @param {string} id */
async function lift(id) {
  await request("DELETE", `/bans/${encodeURIComponent(id)}`)
  void look("/bans")
}
