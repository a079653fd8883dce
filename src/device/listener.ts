/**
 * The TLS listener: where a device's bytes enter. It turns the callbacks of `Bun.listen` into calls:
 *
 *   open ─► handshakes ─► handshake ─► authenticator ─► admitter ─► data, drain, close: the connection
 *
 * and shows devices a new certificate after a reload. Knows no lines, commands or brokers.
 * An exception in a callback closes the connection that it happened for (`fault`), and no other.
 * Bounds: those of `handshakes.ts`, before each handshake.
 */

import type { X509Certificate } from "node:crypto"
import type { Socket, TCPSocketListener } from "bun"
import type { Counters } from "../counters.ts"
import type { AdmissionLimits } from "./admission.ts"
import type { Admitter } from "./admitter.ts"
import type { Authenticator, AuthResult } from "./authenticator.ts"
import { setBacklog } from "./backlog.ts"
import { ClientAuthorities } from "./client-authorities.ts"
import type { CloseReason } from "./close-reason.ts"
import { Connection, type ConnectionContext } from "./connection.ts"
import type { Connections } from "./connections.ts"
import { QueuedHandshake } from "./handshake-queue.ts"
import { type AdmissionReport, Handshakes } from "./handshakes.ts"
import type { ConnectionIds } from "./ids.ts"
import { issuersValidUntilMs } from "./issuers.ts"
import { Recheck } from "./recheck.ts"
import { shownChain } from "./shown-chain.ts"

const TLS_1_2 = 0x0303

export interface ListenerOptions {
  readonly host: string
  /** 0 takes a free port. */
  readonly port: number
  /** Connections that the kernel may hold before they are accepted. */
  readonly backlog: number
  readonly admission: AdmissionLimits
}

/** What devices are shown, and asked for; PEM. */
export interface ListenerTls {
  readonly certPem: string
  readonly keyPem: string
  /** The CAs of the devices' certificates; null asks for none. */
  readonly clientCaPem: string | null
}

export interface ListenerHooks {
  /** A connection was refused before its handshake. */
  readonly refused: (reason: CloseReason) => void
  /** Something that could not be had, without which devices are served all the same. */
  readonly notice: (message: string) => void
  /** An exception in a callback, caught. */
  readonly fault: (error: Error) => void
}

type DeviceTlsSocket = Socket<Connection | QueuedHandshake<DeviceTlsSocket> | undefined>

/** As Bun passes it to the handshake's callback; null after a good one. */
interface HandshakeError {
  readonly message: string
}

/** Of a handshake that TLS ended because it had asked for a certificate. */
const NO_CERTIFICATE = "PEER_DID_NOT_RETURN_A_CERTIFICATE"

/** What a listener brings its sockets to. */
export interface ListenerParts {
  readonly connections: Connections
  readonly context: ConnectionContext
  readonly ids: ConnectionIds
  readonly authenticator: Authenticator
  readonly admitter: Admitter
  readonly hooks: ListenerHooks
}

export class Listener {
  readonly #options: ListenerOptions
  readonly #hooks: ListenerHooks
  readonly #connections: Connections
  readonly #context: ConnectionContext
  readonly #counters: Counters
  readonly #ids: ConnectionIds
  readonly #authenticator: Authenticator
  readonly #admitter: Admitter
  readonly #handshakes: Handshakes<DeviceTlsSocket>
  readonly #recheck: Recheck<Connection>
  #listening: TCPSocketListener<DeviceTlsSocket["data"]> | null = null
  /** Differs for each certificate that devices were shown, and so for each set of CAs. */
  #generation = 0
  /** Null until there was a reload, and where devices are asked for no certificate. */
  #authorities: ClientAuthorities | null = null

  constructor(options: ListenerOptions, parts: ListenerParts) {
    const { connections, context, ids, authenticator, admitter, hooks } = parts
    this.#options = options
    this.#connections = connections
    this.#context = context
    this.#counters = context.counters
    this.#ids = ids
    this.#authenticator = authenticator
    this.#admitter = admitter
    this.#hooks = hooks
    this.#recheck = new Recheck({
      nowMs: context.nowMs,
      chainOf: ({ socket }) => shownChain(socket),
      refused: (connection, detail) => {
        this.#admitter.reject(connection, "refused", detail, connection.peer.remoteAddress)
      },
    })
    this.#handshakes = new Handshakes({
      limits: options.admission,
      steadyMs: context.steadyMs,
      connectionCount: () => connections.count,
      suspended: () => context.backpressure.suspended,
      begin: (socket) => this.#begin(socket),
      waits: (socket, queued) => {
        socket.data = queued
      },
      refuse: (socket, reason) => this.#refuse(socket, reason),
      replace: (socket, ageMs) => this.#replace(socket, ageMs),
    })
  }

  /** The port that was bound; 0 before `listen`. */
  get port(): number {
    return this.#listening?.port ?? 0
  }

  /** Why a connection that came now would be refused, or null. */
  get refusing(): CloseReason | null {
    return this.#handshakes.refusing
  }

  get admission(): AdmissionReport {
    return this.#handshakes.report
  }

  /** To be called periodically. @param lagMs how late the call is. */
  sweep(lagMs: number): void {
    this.#handshakes.sweep(lagMs)
    this.#recheck.sweep()
  }

  /** @throws when the address is in use or the certificate and key are no pair. */
  listen(tls: ListenerTls): void {
    this.#listening = this.#listen(tls, this.#options.port, this.#generation)
  }

  /**
   * Shows a new certificate to devices that connect from now on. Live connections stay, except those whose
   * certificates have expired or are no longer vouched for by the CAs of `tls`.
   * @throws when it can't be used: then the old one serves on.
   */
  renew(tls: ListenerTls): void {
    const before = this.#listening
    if (before === null || this.#handshakes.draining) return
    // `reload` of Bun ignores TLS. Both share the port for a moment.
    const authorities = tls.clientCaPem === null ? null : new ClientAuthorities(tls.clientCaPem)
    this.#listening = this.#listen(tls, before.port, this.#generation + 1)
    before.stop(false)
    this.#generation += 1
    this.#authorities = authorities
    if (authorities !== null) this.#recheck.start(authorities, this.#connections.values())
  }

  #listen({ certPem, keyPem, clientCaPem }: ListenerTls, port: number, generation: number) {
    const options = {
      hostname: this.#options.host,
      port,
      reusePort: true,
      tls: {
        cert: certPem,
        key: keyPem,
        minVersion: TLS_1_2,
        rejectUnauthorized: true,
        ...(clientCaPem === null
          ? { requestCert: false }
          : // Each CA of the file is trusted by itself: an intermediate one needs no root beside it.
            { requestCert: true, ca: clientCaPem, allowPartialTrustChain: true }),
      },
      socket: {
        binaryType: "uint8array" as const,
        open: (socket: DeviceTlsSocket) => this.#opened(socket),
        handshake: (socket: DeviceTlsSocket, success: boolean, error: HandshakeError | null) =>
          this.#handshook(socket, success, error, generation),
        data: (socket: DeviceTlsSocket, chunk: Uint8Array) => this.#received(socket, chunk),
        drain: (socket: DeviceTlsSocket) => connectionOf(socket)?.flush(),
        close: (socket: DeviceTlsSocket) => this.#closed(socket),
        // Bun calls this when one of these callbacks threw, and when an established session broke.
        error: (socket: DeviceTlsSocket, error: Error) => this.#failed(socket, error),
      },
    }
    // `reusePort`, a numeric `minVersion`, `allowPartialTrustChain` and `fd` work but are not in the types.
    const listening = Bun.listen(options as never) as TCPSocketListener<DeviceTlsSocket["data"]>
    const { fd } = listening as unknown as { readonly fd: number }
    const refused = setBacklog(fd, this.#options.backlog)
    if (refused !== null) this.#hooks.notice(`LISTEN_BACKLOG stays the system's: ${refused}`)
    return listening
  }

  /** Stops accepting; live connections stay. */
  stop(): void {
    this.#listening?.stop(false)
    for (const socket of this.#handshakes.stop()) {
      socket.data = undefined
      this.#refuse(socket, "drained")
    }
  }

  #opened(socket: DeviceTlsSocket): void {
    this.#counters.connectionsAccepted += 1
    this.#handshakes.accept(socket)
  }

  /** Ends a connection that is not admitted, for a newcomer to a full worker. */
  #replace(socket: DeviceTlsSocket, ageMs: number): void {
    const connection = connectionOf(socket)
    if (connection === undefined) return
    // A connection that is being closed keeps its reason.
    if (connection.state !== "closing") {
      const detail = `it had not become a device ${ageMs} ms after its handshake began, and the worker is full`
      this.#reject(socket, connection, "overloaded", detail)
    }
    socket.terminate()
  }

  #refuse(socket: DeviceTlsSocket, reason: CloseReason): void {
    socket.terminate()
    this.#hooks.refused(reason)
  }

  #begin(socket: DeviceTlsSocket): Connection {
    const connection = new Connection(this.#ids.mint(), socket, this.#context)
    socket.data = connection
    this.#connections.add(connection)
    return connection
  }

  #handshook(
    socket: DeviceTlsSocket,
    success: boolean,
    error: HandshakeError | null,
    generation: number,
  ): void {
    const connection = connectionOf(socket)
    if (connection === undefined || connection.state !== "handshaking") return
    if (!success) {
      const unshown = error?.message.includes(NO_CERTIFICATE) === true
      const detail = unshown ? "no certificate" : (error?.message ?? "no reason is known")
      this.#reject(socket, connection, unshown ? "not_identified" : "handshake_failed", detail)
      return
    }
    this.#handshakes.completed(connection)
    connection.identify()
    const outdated = generation === this.#generation ? null : this.#outdated(socket)
    const result = this.#authenticator.handshaken(connection, {
      // Bun reports success for a certificate that it does not trust too.
      authorized: error === null && socket.authorized && outdated === null,
      fault: error?.message ?? outdated,
      certificate: () => socket.getPeerX509Certificate() as X509Certificate | undefined,
      issuersValidUntilMs: () => issuersValidUntilMs(socket),
    })
    this.#perform(socket, connection, result)
  }

  /** Why the CAs of today would refuse one that was accepted, and perhaps waited, before a reload; null: they would not. */
  #outdated(socket: DeviceTlsSocket): string | null {
    return this.#authorities?.faultOf(shownChain(socket), this.#context.nowMs()) ?? null
  }

  #received(socket: DeviceTlsSocket, chunk: Uint8Array): void {
    const connection = connectionOf(socket)
    if (connection === undefined) this.#counters.bytesAfterClose += chunk.length
    else if (connection.state !== "identifying") connection.received(chunk)
    else this.#perform(socket, connection, this.#authenticator.received(connection, chunk))
  }

  #perform(socket: DeviceTlsSocket, connection: Connection, result: AuthResult): void {
    switch (result.kind) {
      case "waiting":
        break
      case "rejected":
        this.#reject(socket, connection, result.reason, result.detail)
        break
      case "accepted": {
        const { deviceId, fingerprint, rest } = result
        const { remoteAddress } = socket
        const tlsVersion = socket.getTLSVersion()
        this.#handshakes.admitted(socket)
        this.#admitter.admit(connection, deviceId, { remoteAddress, tlsVersion, fingerprint })
        if (rest.length > 0) connection.received(rest)
        break
      }
    }
  }

  #reject(
    socket: DeviceTlsSocket,
    connection: Connection,
    reason: CloseReason,
    detail: string,
  ): void {
    this.#admitter.reject(connection, reason, detail, socket.remoteAddress)
  }

  #closed(socket: DeviceTlsSocket): void {
    const { data } = socket
    if (data instanceof QueuedHandshake) {
      this.#handshakes.left(data)
      this.#hooks.refused("peer_closed")
      return
    }
    const connection = data
    if (connection === undefined) return
    // First: an exception below must not leave it counted.
    this.#handshakes.closed(socket, connection)
    this.#authenticator.forget(connection)
    connection.socketClosed()
    this.#connections.remove(connection)
  }

  #failed(socket: DeviceTlsSocket, error: Error): void {
    const connection = connectionOf(socket)
    // What the system or OpenSSL says of a connection has a number; what our callbacks threw has not.
    if (!("errno" in error)) {
      this.#hooks.fault(error)
      connection?.close("fault")
      return
    }
    connection?.close("peer_closed")
  }
}

/** Undefined for a socket that waits, and for one that was refused. */
function connectionOf({ data }: DeviceTlsSocket): Connection | undefined {
  return data instanceof Connection ? data : undefined
}
