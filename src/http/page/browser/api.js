/**
 * Requests to the JSON API, with the session cookie. When the session has expired, a dialog asks
 * for a token above the view, and the request is sent again: nothing that was typed is lost.
 *
 *   request ─► 401 ─► dialog ─► POST /session ─► request again
 */

import { element } from "./dom.js"

/**
 * @typedef {object} Answer
 * @property {number} status 0 when the gateway cannot be reached
 * @property {boolean} ok
 * @property {any} data the JSON of the body; null without one
 * @property {string} fault what to show to the operator; empty when `ok`
 */

/** @type {Promise<void> | null} */
let login = null

/**
 * @param {string} method
 * @param {string} path
 * @param {unknown} [body] sent as JSON
 * @returns {Promise<Answer>}
 */
export async function request(method, path, body) {
  for (;;) {
    const answer = await send(method, path, body)
    if (answer.status !== 401) return answer
    await loggedIn()
  }
}

/** @param {string} path */
export const get = (path) => request("GET", path)

/**
 * @param {string} method @param {string} path @param {unknown} [body]
 * @returns {Promise<Answer>}
 */
export async function send(method, path, body) {
  /** @type {Response} */
  let response
  try {
    response = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? null : JSON.stringify(body),
    })
  } catch {
    return { status: 0, ok: false, data: null, fault: "The gateway cannot be reached." }
  }
  return answerOf(response.status, await response.json().catch(() => null))
}

/** @param {number} status @param {any} data @returns {Answer} */
export function answerOf(status, data) {
  const ok = status >= 200 && status < 300
  return { status, ok, data, fault: ok ? "" : faultOf(status, data) }
}

/** @param {number} status @param {any} data */
function faultOf(status, data) {
  const { code, message } = data?.error ?? {}
  return code === undefined ? `The answer was ${status}.` : `${code}: ${message}`
}

/** Resolves when there is a session again. Several callers share one dialog. */
export function loggedIn() {
  login ??= ask().finally(() => {
    login = null
  })
  return login
}

/** @returns {Promise<void>} */
function ask() {
  const focused = document.activeElement
  const token = /** @type {HTMLInputElement} */ (
    element("input", {
      id: "again",
      type: "password",
      autocomplete: "current-password",
      required: "",
    })
  )
  const fault = element("p", { class: "fault", role: "alert" })
  const form = element(
    "form",
    {},
    element("h2", { id: "again-title" }, "The session has expired"),
    element("p", { class: "muted" }, "The view stays as it is."),
    element("label", { for: "again" }, "Token"),
    token,
    fault,
    element("button", { type: "submit" }, "Log in"),
  )
  const dialog = /** @type {HTMLDialogElement} */ (
    element("dialog", { class: "login", "aria-labelledby": "again-title" }, form)
  )
  // There is nothing behind it that works without a session.
  dialog.addEventListener("cancel", (event) => event.preventDefault())
  document.body.append(dialog)
  dialog.showModal()
  return new Promise((resolve) => {
    form.addEventListener("submit", async (event) => {
      event.preventDefault()
      const answer = await open(token.value)
      if (!answer.ok) {
        fault.textContent = answer.fault
        token.select()
        return
      }
      const { data } = await send("GET", "/session")
      // Buttons may be missing, or be there although they do not work.
      if (data?.access !== document.body.dataset["access"]) location.replace(location.href)
      dialog.close()
      dialog.remove()
      if (focused instanceof HTMLElement) focused.focus()
      resolve()
    })
  })
}

/** Opens a session. @param {string} token */
export function open(token) {
  return send("POST", "/session", { token: token.trim() })
}
