/**
 * The TLS listener: where a device's bytes enter. It turns the callbacks of `Bun.listen` into calls on
 * one `Connection` for each socket, and knows no lines, commands or brokers.
 *
 * No exception leaves a callback: a defect that meets one connection closes that one (`fault`).
 * Bounds: admission decides on each connection before its handshake.
 */

import type { X509Certificate } from "node:crypto"
import type { Socket, TCPSocketListener } from "bun"
import type { Counters } from "../counters.ts"
import { refusal } from "./admission.ts"
import type { CloseReason } from "./close-reason.ts"
import { Connection, type ConnectionContext } from "./connection.ts"
import type { Connections } from "./connections.ts"
import type { Identity, Verdict } from "./identity.ts"
import type { ConnectionIds } from "./ids.ts"
import { issuersValidUntilMs } from "./issuers.ts"

const TLS_1_2 = 0x0303

export interface ListenerOptions {
  readonly host: string
  /** 0 takes a free port. */
  readonly port: number
  readonly maxConnections: number
}

/** What devices are shown, and asked for; PEM. */
export interface ListenerTls {
  readonly certPem: string
  readonly keyPem: string
  /** The CAs of the devices' certificates; null asks for none. */
  readonly clientCaPem: string | null
}

export interface ListenerHooks {
  readonly admitted: (connection: Connection) => void
  /** A device did not say who it is, or was not believed. */
  readonly unidentified: (connection: Connection, detail: string) => void
  /** A connection was refused before its handshake. */
  readonly refused: (reason: CloseReason) => void
  /** A defect of ours, caught. */
  readonly fault: (error: Error) => void
}

type DeviceTlsSocket = Socket<Connection | undefined>

/** As Bun passes it to the handshake's callback; null after a good one. */
interface HandshakeError {
  readonly message: string
}

/** Of a handshake that TLS ended because it had asked for a certificate. */
const NO_CERTIFICATE = "PEER_DID_NOT_RETURN_A_CERTIFICATE"

export class Listener {
  readonly #options: ListenerOptions
  readonly #hooks: ListenerHooks
  readonly #connections: Connections
  readonly #context: ConnectionContext
  readonly #counters: Counters
  readonly #ids: ConnectionIds
  readonly #identity: Identity
  #listening: TCPSocketListener<Connection | undefined> | null = null
  #draining = false

  constructor(
    options: ListenerOptions,
    connections: Connections,
    context: ConnectionContext,
    ids: ConnectionIds,
    identity: Identity,
    hooks: ListenerHooks,
  ) {
    this.#options = options
    this.#connections = connections
    this.#context = context
    this.#counters = context.counters
    this.#ids = ids
    this.#identity = identity
    this.#hooks = hooks
  }

  /** The port that was bound; 0 before `listen`. */
  get port(): number {
    return this.#listening?.port ?? 0
  }

  /** Why a connection that came now would be refused, or null. */
  get refusing(): CloseReason | null {
    const state = {
      connections: this.#connections.count,
      suspended: this.#context.backpressure.suspended,
      draining: this.#draining,
    }
    return refusal(state, this.#options.maxConnections)
  }

  /** @throws when the address is in use or the certificate and key are no pair. */
  listen(tls: ListenerTls): void {
    this.#listening = this.#listen(tls, this.#options.port)
  }

  /**
   * Shows a new certificate to devices that connect from now on; live connections stay.
   * @throws when it can't be used: then the old one serves on.
   */
  renew(tls: ListenerTls): void {
    const before = this.#listening
    if (before === null || this.#draining) return
    // `reload` of Bun ignores TLS. Both share the port for a moment.
    this.#listening = this.#listen(tls, before.port)
    before.stop(false)
  }

  #listen({ certPem, keyPem, clientCaPem }: ListenerTls, port: number) {
    const options = {
      hostname: this.#options.host,
      port,
      reusePort: true,
      tls: {
        cert: certPem,
        key: keyPem,
        minVersion: TLS_1_2,
        rejectUnauthorized: true,
        ...(clientCaPem === null ? { requestCert: false } : { requestCert: true, ca: clientCaPem }),
      },
      socket: {
        binaryType: "uint8array" as const,
        open: (socket: DeviceTlsSocket) => this.#opened(socket),
        handshake: (socket: DeviceTlsSocket, success: boolean, error: HandshakeError | null) =>
          this.#handshook(socket, success, error),
        data: (socket: DeviceTlsSocket, chunk: Uint8Array) => this.#received(socket, chunk),
        drain: (socket: DeviceTlsSocket) => socket.data?.flush(),
        close: (socket: DeviceTlsSocket) => this.#closed(socket),
        // Bun calls this when a callback of ours threw, and when an established session broke.
        error: (socket: DeviceTlsSocket, error: Error) => this.#failed(socket, error),
      },
    }
    // `reusePort` and a numeric `minVersion` work but are not in the types.
    return Bun.listen(options as never) as TCPSocketListener<Connection | undefined>
  }

  /** Stops accepting; live connections stay. */
  stop(): void {
    this.#draining = true
    this.#listening?.stop(false)
  }

  #opened(socket: DeviceTlsSocket): void {
    this.#counters.connectionsAccepted += 1
    const reason = this.refusing
    if (reason !== null) {
      socket.terminate()
      this.#hooks.refused(reason)
      return
    }
    const connection = new Connection(this.#ids.mint(), socket, this.#context)
    socket.data = connection
    this.#connections.add(connection)
  }

  #handshook(socket: DeviceTlsSocket, success: boolean, error: HandshakeError | null): void {
    const connection = socket.data
    if (connection === undefined || connection.state !== "handshaking") return
    if (!success) {
      const unshown = error?.message.includes(NO_CERTIFICATE) === true
      connection.close(unshown ? "not_identified" : "handshake_failed")
      return
    }
    connection.identify()
    const verdict = this.#identity.handshaken(connection, {
      // Bun reports success for a certificate that it does not trust too.
      authorized: error === null && socket.authorized,
      fault: error?.message ?? null,
      certificate: () => socket.getPeerX509Certificate() as X509Certificate | undefined,
      issuersValidUntilMs: () => issuersValidUntilMs(socket),
    })
    this.#perform(socket, connection, verdict)
  }

  #received(socket: DeviceTlsSocket, chunk: Uint8Array): void {
    const connection = socket.data
    if (connection === undefined) this.#counters.bytesAfterClose += chunk.length
    else if (connection.state !== "identifying") connection.received(chunk)
    else this.#perform(socket, connection, this.#identity.received(connection, chunk))
  }

  #perform(socket: DeviceTlsSocket, connection: Connection, verdict: Verdict): void {
    switch (verdict.is) {
      case "waiting":
        break
      case "unknown":
        this.#hooks.unidentified(connection, verdict.detail)
        connection.close(verdict.reason)
        break
      case "known": {
        const { deviceId, fingerprint, rest } = verdict
        const epoch = this.#connections.nextEpoch(deviceId, this.#context.nowMs())
        const { remoteAddress } = socket
        const tlsVersion = socket.getTLSVersion()
        connection.admit(deviceId, epoch, { remoteAddress, tlsVersion, fingerprint })
        this.#counters.connectionsAdmitted += 1
        this.#connections.enter(connection)?.close("taken_over")
        this.#hooks.admitted(connection)
        if (rest.length > 0) connection.received(rest)
        break
      }
    }
  }

  #closed(socket: DeviceTlsSocket): void {
    const connection = socket.data
    if (connection === undefined) return
    this.#identity.forget(connection)
    connection.socketClosed()
    this.#connections.remove(connection)
  }

  #failed(socket: DeviceTlsSocket, error: Error): void {
    const connection = socket.data
    // What the system or OpenSSL says of a connection has a number; what our callbacks threw has not.
    if (!("errno" in error)) {
      this.#hooks.fault(error)
      connection?.close("fault")
      return
    }
    connection?.close("peer_closed")
  }
}
