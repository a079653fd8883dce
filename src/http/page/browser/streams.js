/**
 * Event streams of the gateway. A stream is open only while the page is visible, and is opened
 * again after it ended: the worker that answered may have ended, or the session has expired.
 *
 *   open ─► live ─┬─ hidden ─────────► closed ─► visible: open
 *                 └─ ended, error ───► wait, ask for the session ─► open
 */

import { answerOf, get } from "./api.js"

const AGAIN_MS = 2_000
const SHOW_EVERY_MS = 2_000

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
 * Follows the answers of several GET routes by one stream.
 * @param {Record<string, (answer: import("./api.js").Answer) => void>} views by path: each gets an answer that
 *   differs from the last one, and the last one again from time to time, because views show how long ago things were
 * @param {(state: StreamState) => void} changed
 * @returns {(path: string) => Promise<void>} looks at one of them now, after the operator has acted
 */
export function watch(views, changed) {
  /** @type {Map<string, import("./api.js").Answer>} */
  const answers = new Map()
  const show = (/** @type {string} */ path) => {
    const answer = answers.get(path)
    if (answer !== undefined && !document.hidden) views[path]?.(answer)
  }
  const look = async (/** @type {string} */ path) => {
    answers.set(path, await get(path))
    show(path)
  }
  const paths = Object.keys(views)
  const query = new URLSearchParams(paths.map((path) => ["of", path]))
  follow(
    `/page/follow?${query}`,
    {
      answer: ({ of, status, body }) => {
        answers.set(of, answerOf(status, body))
        show(of)
      },
      missed: () => paths.forEach((path) => void look(path)),
    },
    changed,
  )
  setInterval(() => paths.forEach(show), SHOW_EVERY_MS)
  return look
}
