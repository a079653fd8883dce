/** What all views have: the state of the connection to the gateway, and the end of the session. */

import { send } from "./api.js"
import { byId, find, setText } from "./dom.js"

/** @type {Record<import("./streams.js").StreamState, string>} */
const TEXTS = { live: "live", away: "connecting …", paused: "paused" }

find("logout")?.addEventListener("click", async () => {
  await send("DELETE", "/session")
  location.replace("/")
})

/** @param {import("./streams.js").StreamState} state */
export function connection(state) {
  const badge = byId("connection")
  setText(badge, TEXTS[state])
  badge.dataset["state"] = state
}

export const mayAct = document.body.dataset["access"] === "act"
