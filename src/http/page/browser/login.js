/**
 * The login. After it the address shows its own view.
 *
 * A link on another site opens the page without the cookie (SameSite=Strict). So there may be a
 * session although this is shown: then the view is opened again, now from this site.
 */

import { open, send } from "./api.js"
import { byId, input } from "./dom.js"

const again = () => location.replace(location.pathname + location.search)
const token = input("token")

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault()
  const answer = await open(token.value)
  if (answer.ok) {
    again()
    return
  }
  byId("login-fault").textContent = answer.fault
  token.select()
})
for (const button of document.querySelectorAll("button")) button.disabled = false
token.focus()

if ((await send("GET", "/session")).ok) again()
