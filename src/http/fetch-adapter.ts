/**
 * Answers a request of `node:http` by a function from `Request` to `Response`, as Hono is one.
 *
 *   IncomingMessage ─► Request, its body as a stream ─► fetch ─► Response ─┬─ event stream ─► as it comes
 *                                                                          └─ otherwise ────► whole, with Content-Length
 *
 * `request.signal` is aborted when the client hangs up before it has the answer. All values of a header that is sent several times are
 * kept, joined by commas: nothing is chosen among two `Host` headers. The host of `request.url` says nothing; use the header. Bounds:
 * `MAX_UNREAD_BYTES` of a body wait for `fetch`; an event stream is read no further while its client takes nothing.
 */

import type { IncomingMessage, ServerResponse } from "node:http"

const MAX_UNREAD_BYTES = 65_536
const BASE = "http://localhost"
/** Of the connection and not of the answer (RFC 9110, section 7.6.1): `node:http` decides. */
const OF_CONNECTION: readonly string[] = ["connection", "keep-alive", "transfer-encoding"]

export type Fetch = (request: Request) => Response | Promise<Response>

/** Resolves when the answer was handed over, or the client is gone. @param progressed the client took a part of the answer. */
export async function answer(
  fetch: Fetch,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  progressed: () => void,
): Promise<void> {
  const caller = new AbortController()
  outgoing.on("close", () => {
    if (!outgoing.writableFinished) caller.abort()
  })
  const request = requestOf(incoming, caller.signal)
  if (request === null) {
    outgoing.writeHead(400).end()
    return
  }
  const response = await fetch(request)
  if (outgoing.destroyed) {
    await response.body?.cancel()
    return
  }
  outgoing.statusCode = response.status
  for (const [name, value] of response.headers) {
    if (!OF_CONNECTION.includes(name)) outgoing.setHeader(name, value)
  }
  const { body } = response
  if (body === null) outgoing.end()
  else if (response.headers.get("content-type")?.startsWith("text/event-stream") === true) {
    await stream(body, outgoing, progressed)
  } else outgoing.end(new Uint8Array(await response.arrayBuffer()))
}

/** Null: the request cannot be written as one, such as `OPTIONS *`. */
function requestOf(incoming: IncomingMessage, signal: AbortSignal): Request | null {
  const { method = "", url = "", rawHeaders } = incoming
  const target = url.startsWith("/") ? url : pathOf(url)
  if (target === null) return null
  try {
    const headers = new Headers()
    for (let at = 0; at + 1 < rawHeaders.length; at += 2) {
      headers.append(rawHeaders[at] ?? "", rawHeaders[at + 1] ?? "")
    }
    const body = hasBody(incoming) ? bodyOf(incoming) : null
    return new Request(BASE + target, { method, headers, body, signal })
  } catch {
    return null
  }
}

/** Of a target in absolute form (RFC 9112, section 3.2.2). */
function pathOf(url: string): string | null {
  const parsed = URL.parse(url)
  return parsed === null || parsed.host === "" ? null : parsed.pathname + parsed.search
}

/** Whether there is a body to hand over; that of a GET means nothing (RFC 9110, section 9.3.1). */
export function hasBody({ method, headers }: IncomingMessage): boolean {
  if (method === "GET" || method === "HEAD") return false
  return headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0
}

function bodyOf(incoming: IncomingMessage): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        let isOver = false
        const over = (end: () => void) => {
          if (!isOver) end()
          isOver = true
        }
        incoming.on("data", (chunk: Uint8Array) => {
          if (isOver) return
          controller.enqueue(new Uint8Array(chunk))
          if ((controller.desiredSize ?? 0) <= 0) incoming.pause()
        })
        incoming.on("end", () => over(() => controller.close()))
        const cutOff = () => over(() => controller.error(new Error("the client hung up")))
        incoming.on("aborted", cutOff)
        incoming.on("error", cutOff)
        incoming.on("close", cutOff)
        incoming.pause()
      },
      pull() {
        incoming.resume()
      },
      cancel() {
        incoming.removeAllListeners("data")
        incoming.resume()
      },
    },
    new ByteLengthQueuingStrategy({ highWaterMark: MAX_UNREAD_BYTES }),
  )
}

async function stream(
  body: ReadableStream<Uint8Array>,
  outgoing: ServerResponse,
  progressed: () => void,
): Promise<void> {
  const reader = body.getReader()
  const gone = () => void reader.cancel().catch(() => undefined)
  outgoing.on("close", gone)
  outgoing.flushHeaders()
  for (;;) {
    const { done, value } = await reader.read()
    if (done || outgoing.destroyed) break
    if (!outgoing.write(value)) await drained(outgoing)
    if (outgoing.destroyed) break
    progressed()
  }
  outgoing.end()
}

/** Resolves when the client takes bytes again, or is gone. */
function drained(outgoing: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const over = () => {
      outgoing.off("drain", over)
      outgoing.off("close", over)
      resolve()
    }
    outgoing.on("drain", over)
    outgoing.on("close", over)
    if (outgoing.destroyed) over()
  })
}
