/**
 * The HTTP server of one worker, on the port that all workers share.
 *
 *   net.Server ─► HttpConnections: a place? ─► node:http, the parser ─► fetch-adapter ─► routes
 *       ▲                  │
 *       └── every 500 ms: those whose deadline is over are closed
 *
 * Connections are accepted here and not by the HTTP server, so that there are never more than `maxConnections`, whatever was
 * sent on them. Otherwise unfinished requests, for which no token is needed, use up the descriptors that devices need.
 *
 * Rejected, as seen on Bun 1.4.5:
 * - `Bun.serve` tells of no connection before its first request is complete, so they cannot be counted. Its time-out for these is
 *   fixed at about 12 s, whatever `idleTimeout` is.
 * - `node:http` listening by itself has `maxConnections` and time-outs that hold, but ignores `reusePort` (oven-sh/bun#43690), and at the
 *   limit it closes the newest connection, so that unfinished requests would keep everybody out.
 * - A plain acceptor before a `Bun.serve` on a Unix socket has to copy all bytes, and needs three descriptors for a connection.
 * A connection that is handed to `node:http` by the event "connection" gets none of its time-outs, so they are kept here.
 */

import { createServer as createHttpServer } from "node:http"
import { type AddressInfo, createServer, type Socket } from "node:net"
import { asError } from "../errors.ts"
import { answer, type Fetch, hasBody } from "./fetch-adapter.ts"
import { type HttpCloseReason, HttpConnections, WAITING_MS } from "./http-connections.ts"

const SWEEP_EVERY_MS = 500
/** Answers that are under way when the server stops have this long to be sent. */
const STOP_MS = 500
const STOP_LOOK_EVERY_MS = 10

export interface HttpOptions {
  readonly host: string
  readonly sendTimeoutMs: number
  readonly maxConnections: number
  /** A connection is closed by the server. */
  readonly closed: (reason: HttpCloseReason) => void
  /** A defect that met a request. */
  readonly fault: (error: Error) => void
}

export interface HttpServer {
  readonly port: number
  /** Connections whose requests are being received or answered. */
  readonly busyCount: number
  /** Accepts nothing more and closes all connections, soon also those that are being answered. */
  readonly stop: () => Promise<void>
}

const steadyMs = () => performance.now()

/** Rejects when the port can't be had. */
export async function serve(
  routes: { readonly fetch: Fetch },
  { host, sendTimeoutMs, maxConnections, closed, fault }: HttpOptions,
  port: number,
): Promise<HttpServer> {
  // Longer than a send may take and than the keep-alives of event streams are apart.
  const answerMs = sendTimeoutMs + 10_000
  const connections = new HttpConnections<Socket>({ max: maxConnections, answerMs })
  const close = (connection: Socket, reason: HttpCloseReason) => {
    connections.closed(connection)
    closed(reason)
    connection.destroy()
  }

  // The time-out is only told to clients, in the header Keep-Alive.
  const http = createHttpServer({ keepAliveTimeout: WAITING_MS }, (incoming, outgoing) => {
    const { socket } = incoming
    if (!connections.asked(socket, steadyMs())) {
      // Others of the same read may follow after it is closed.
      if (!socket.destroyed) close(socket, "pipelined")
      return
    }
    const received = () => connections.received(socket, steadyMs())
    if (hasBody(incoming)) incoming.on("end", received)
    else received()
    outgoing.on("close", () => {
      connections.answered(socket, steadyMs())
      // A body that no route reads is discarded, so that the next request can be read.
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
    // Hung up: what that means for a request is told by its answer's "close".
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
  // Such as too many open files: those who wait are accepted later.
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
