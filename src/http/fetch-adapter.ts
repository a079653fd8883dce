/**
 * Adapts `node:http` to a function from `Request` to `Response`, such as Hono's `fetch`.
 *
 *   IncomingMessage ─► Request with a body stream ─► fetch ─► Response ─┬─ event stream ─► sent in parts
 *                                                                       └─ otherwise ────► sent with Content-Length
 *
 * `request.signal` is aborted when the client closes the connection before it has the response.
 * Repeated headers are joined by commas, so that the application can refuse two `Host` headers. The
 * host in `request.url` is a constant: use the header instead.
 *
 * Bounds: `MAX_UNREAD_BYTES` of a request body are buffered for `fetch`. An event stream is not
 * read while the client does not read.
 */

import type { IncomingMessage, ServerResponse } from "node:http"

const MAX_UNREAD_BYTES = 65_536
const BASE = "http://localhost"
/** Headers of the connection (RFC 9110, section 7.6.1): `node:http` sets them. */
const OF_CONNECTION: readonly string[] = ["connection", "keep-alive", "transfer-encoding"]

/** What is known about a request besides its contents. */
export interface RequestOrigin {
  /** Of the other end of the connection, which may be a proxy. */
  readonly remoteAddress: string
}

export type Fetch = (request: Request, origin: RequestOrigin) => Response | Promise<Response>

/**
 * Resolves when the response was passed to `node:http`, or when the client has closed the
 * connection.
 * @param progressed called when the client has read a part of the response.
 */
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
  const response = await fetch(request, { remoteAddress: incoming.socket.remoteAddress ?? "" })
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

/** Null when the request cannot be expressed as a `Request`, such as `OPTIONS *`. */
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

/** The path of a request target in absolute form (RFC 9112, section 3.2.2). */
function pathOf(url: string): string | null {
  const parsed = URL.parse(url)
  return parsed === null || parsed.host === "" ? null : parsed.pathname + parsed.search
}

/**
 * Whether the request has a body to pass on. The body of a GET has no meaning (RFC 9110, section
 * 9.3.1).
 */
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
        const cutOff = () =>
          over(() => controller.error(new Error("the client closed the connection")))
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

/** Resolves when the client reads again, or has closed the connection. */
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
