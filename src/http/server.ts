/**
 * The HTTP server of one worker, on the port that all workers share.
 *
 *   net.Server ─► HttpConnections (limits) ─► node:http (parser) ─► fetch-adapter ─► routes
 *       ▲                  │
 *       └── every 500 ms: connections whose deadline has passed are closed
 *
 * A `net.Server` accepts the connections, so that there are never more than `maxConnections`,
 * whatever clients send. Otherwise unfinished requests, which need no token, could use up the
 * descriptors that devices need. A connection that is passed to `node:http` by the event
 * "connection" has none of its time-outs, so `HttpConnections` enforces them.
 *
 * Rejected alternatives, tested with Bun 1.4.5:
 * - `Bun.serve` does not report a connection before its first request is complete, so connections
 *   cannot be counted. Its time-out for them is fixed at about 12 s, whatever `idleTimeout` is.
 * - A listening `node:http` server enforces `maxConnections` and time-outs, but ignores `reusePort`
 *   (oven-sh/bun#43690). At the limit it closes the newest connection, so unfinished requests would
 *   keep clients out.
 * - A plain acceptor in front of a `Bun.serve` on a Unix socket copies all bytes and needs three
 *   descriptors for each connection.
 */

import { createServer as createHttpServer } from "node:http"
import { type AddressInfo, createServer, type Socket } from "node:net"
import { asError } from "../errors.ts"
import { answer, type Fetch, hasBody } from "./fetch-adapter.ts"
import { type HttpCloseReason, HttpConnections, WAITING_MS } from "./http-connections.ts"

const SWEEP_EVERY_MS = 500
/** How long `stop` waits until responses in progress are sent. */
const STOP_MS = 500
const STOP_LOOK_EVERY_MS = 10

export interface HttpOptions {
  readonly host: string
  readonly sendTimeoutMs: number
  readonly maxReplyMs: number
  readonly maxConnections: number
  /** The server has closed a connection. */
  readonly closed: (reason: HttpCloseReason) => void
  /** An exception occurred while a request was handled or a connection was accepted. */
  readonly fault: (error: Error) => void
}

export interface HttpServer {
  readonly port: number
  /** Connections whose requests are being received or answered. */
  readonly busyCount: number
  /**
   * Stops accepting, waits up to `STOP_MS` for responses in progress, then closes all connections.
   */
  readonly stop: () => Promise<void>
}

const steadyMs = () => performance.now()

/** Rejects when the address cannot be bound. */
export async function serve(
  routes: { readonly fetch: Fetch },
  { host, sendTimeoutMs, maxReplyMs, maxConnections, closed, fault }: HttpOptions,
  port: number,
): Promise<HttpServer> {
  // Longer than a command with a reply takes, and than the interval of keep-alives in event
  // streams.
  const answerMs = sendTimeoutMs + maxReplyMs + 10_000
  const connections = new HttpConnections<Socket>({ max: maxConnections, answerMs })
  const close = (connection: Socket, reason: HttpCloseReason) => {
    connections.closed(connection)
    closed(reason)
    connection.destroy()
  }

  // This time-out appears in the header Keep-Alive only; `HttpConnections` enforces it.
  const http = createHttpServer({ keepAliveTimeout: WAITING_MS }, (incoming, outgoing) => {
    const { socket } = incoming
    if (!connections.asked(socket, steadyMs())) {
      // Further requests from the same read may follow after the socket was closed.
      if (!socket.destroyed) close(socket, "pipelined")
      return
    }
    const received = () => connections.received(socket, steadyMs())
    if (hasBody(incoming)) incoming.on("end", received)
    else received()
    outgoing.on("close", () => {
      connections.answered(socket, steadyMs())
      // Discard a body that no route has read, so that the next request can be read.
      incoming.resume()
    })
    const progressed = () => connections.progressed(socket, steadyMs())
    answer(routes.fetch, incoming, outgoing, progressed).catch((error: unknown) => {
      fault(asError(error))
      socket.destroy()
    })
  })
  http.on("clientError", (_, socket) => {
    if (socket.writable) socket.end("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
  })

  const acceptor = createServer((socket) => {
    // The client has closed the connection: the "close" event of the response handles that.
    socket.on("error", () => undefined)
    socket.on("close", () => connections.closed(socket))
    const leaving = connections.opened(socket, steadyMs())
    if (leaving !== null) close(leaving.connection, leaving.reason)
    if (leaving?.connection !== socket) http.emit("connection", socket)
  })
  const { promise: listening, resolve, reject } = Promise.withResolvers<void>()
  acceptor.once("error", reject)
  acceptor.listen({ host, port, reusePort: true }, resolve)
  await listening
  acceptor.off("error", reject)
  // For example too many open files: waiting connections are accepted later.
  acceptor.on("error", fault)
  const sweeping = setInterval(() => {
    for (const { connection, reason } of connections.overdue(steadyMs())) close(connection, reason)
  }, SWEEP_EVERY_MS)

  return {
    port: (acceptor.address() as AddressInfo).port,
    get busyCount() {
      return connections.busyCount
    },
    stop: async () => {
      acceptor.close()
      clearInterval(sweeping)
      const untilMs = steadyMs() + STOP_MS
      while (connections.busyCount > 0 && steadyMs() < untilMs) await Bun.sleep(STOP_LOOK_EVERY_MS)
      for (const connection of connections.all()) connection.destroy()
    },
  }
}
