/**
 * Event streams of the gateway. A stream is open only while the page is visible, and is opened
 * again after it ended: the worker that answered may have ended, or the session has expired.
 *
 *   open ─► live ─┬─ hidden ─────────► closed ─► visible: open
 *                 └─ ended, error ───► wait, ask for the session ─► open
 */

import { get } from "./api.js"

const AGAIN_MS = 2_000

/** @typedef {"live" | "away" | "paused"} StreamState */

/**
 * @param {string} path
 * @param {Record<string, (data: any, id: string) => void>} events each gets the data of one event, from JSON
 * @param {(state: StreamState) => void} [changed]
 * @returns {() => void} closes it for good
 */
export function follow(path, events, changed = () => {}) {
  /** @type {EventSource | null} */
  let source = null
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer
  let isOver = false

  const close = () => {
    clearTimeout(timer)
    source?.close()
    source = null
  }
  const open = () => {
    close()
    if (isOver || document.hidden) return
    const opened = new EventSource(path)
    source = opened
    opened.addEventListener("open", () => changed("live"))
    for (const [name, handle] of Object.entries(events)) {
      opened.addEventListener(name, (event) => handle(JSON.parse(event.data), event.lastEventId))
    }
    opened.addEventListener("error", () => {
      changed("away")
      close()
      timer = setTimeout(again, AGAIN_MS)
    })
  }
  const again = async () => {
    // Asks for a token when the session has expired; without the gateway it is tried later.
    const { ok } = await get("/session")
    if (ok) open()
    else if (!isOver) timer = setTimeout(again, AGAIN_MS)
  }
  const visibility = () => {
    if (document.hidden) {
      close()
      changed("paused")
    } else open()
  }
  document.addEventListener("visibilitychange", visibility)
  open()
  return () => {
    isOver = true
    close()
    document.removeEventListener("visibilitychange", visibility)
  }
}

/**
 * Calls `look` now and then every `everyMs` while the page is visible, one call at a time.
 * @param {() => Promise<void>} look
 * @param {number} everyMs
 */
export function poll(look, everyMs) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer
  let isLooking = false
  const now = async () => {
    clearTimeout(timer)
    if (document.hidden || isLooking) return
    isLooking = true
    await look()
    isLooking = false
    timer = setTimeout(now, everyMs)
  }
  document.addEventListener("visibilitychange", () => void now())
  void now()
  return now
}
