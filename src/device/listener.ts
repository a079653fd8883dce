/**
 * The listener of the device port. It maps the callbacks of the TLS port to the stages of a
 * connection:
 *
 *   opened ─► (proxied) ─► handshakes ─► handshook ─► authenticator ─► admitter ─► received, drained, closed: the connection
 *
 * Independent of lines, commands and brokers.
 * An exception in a callback closes only the connection of that callback, as `fault`.
 * Bounds: those of `handshakes.ts`, checked before each handshake.
 */

import type { X509Certificate } from "node:crypto"
import type { Socket } from "bun"
import type { Counters } from "../counters.ts"
import { asError } from "../errors.ts"
import { normalAddress } from "./address.ts"
import { type AddressLimitOptions, AddressLimits } from "./address-limits.ts"
import type { AdmissionLimits } from "./admission.ts"
import type { Admitter } from "./admitter.ts"
import type { Authenticator, AuthResult } from "./authenticator.ts"
import { ClientAuthorities } from "./client-authorities.ts"
import { type CloseReason, TAKES_NO_DEVICES } from "./close-reason.ts"
import { Connection, type ConnectionContext } from "./connection.ts"
import type { Connections } from "./connections.ts"
import { QueuedHandshake } from "./handshake-queue.ts"
import { type AdmissionReport, Handshakes } from "./handshakes.ts"
import type { ConnectionIds } from "./ids.ts"
import { issuersValidUntilMs } from "./issuers.ts"
import { Proxied, type ProxiedSocket } from "./proxied.ts"
import { Recheck } from "./recheck.ts"
import { shownChain } from "./shown-chain.ts"
import { tlsFailure } from "./tls-failure.ts"
import {
  type HandshakeError,
  type ListenerTls,
  TlsPort,
  type TlsPortHandlers,
  type TlsPortOptions,
} from "./tls-port.ts"

export interface ListenerOptions extends TlsPortOptions {
  readonly admission: AdmissionLimits
  /** Null when addresses are not limited. */
  readonly addressLimits: AddressLimitOptions | null
  /** The proxies whose PROXY headers are required; null when devices connect without one. */
  readonly proxyFrom: readonly string[] | null
  readonly handshakeTimeoutMs: number
  /** Whether the event loop needs more than half of a core. */
  readonly isBusy: () => boolean
}

export interface ListenerHooks {
  /**
   * A connection was refused before its handshake.
   * @param detail null for a health check of a proxy.
   */
  readonly refused: (reason: CloseReason, detail: string | null, remoteAddress: string) => void
  /** Something failed, and devices are served nevertheless. */
  readonly notice: (message: string) => void
  /** An exception in a callback was caught. */
  readonly fault: (error: Error) => void
}

type SocketData = Connection | QueuedHandshake<DeviceTlsSocket> | undefined
type DeviceTlsSocket = Socket<SocketData>

/** So many connections may wait for their PROXY headers while the worker is full. */
const PROXIED_WHEN_FULL = 64
const LEFT_QUEUE = "the peer closed the connection while it waited for its handshake"

/** What a listener brings its sockets to. */
export interface ListenerParts {
  readonly connections: Connections
  readonly context: ConnectionContext
  readonly ids: ConnectionIds
  readonly authenticator: Authenticator
  readonly admitter: Admitter
  /** While false, handshakes wait. */
  readonly mayBegin: () => boolean
  /** Whether the gate is closed for all devices, and refused devices are not told so. */
  readonly isShut: () => boolean
  readonly hooks: ListenerHooks
}

export class Listener {
  readonly #hooks: ListenerHooks
  readonly #connections: Connections
  readonly #context: ConnectionContext
  readonly #counters: Counters
  readonly #ids: ConnectionIds
  readonly #authenticator: Authenticator
  readonly #admitter: Admitter
  readonly #handshakes: Handshakes<DeviceTlsSocket>
  readonly #proxied: Proxied<DeviceTlsSocket & ProxiedSocket> | null
  readonly #recheck: Recheck<Connection>
  readonly #port: TlsPort<SocketData>
  /** Null before the first reload, and when no device certificate is requested. */
  #authorities: ClientAuthorities | null = null

  constructor(options: ListenerOptions, parts: ListenerParts) {
    const { connections, context, ids, authenticator, admitter, mayBegin, isShut, hooks } = parts
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
      refused: (connection, detail) => connection.close("refused", { detail }),
    })
    this.#handshakes = new Handshakes({
      limits: options.admission,
      addressLimits: options.addressLimits && new AddressLimits(options.addressLimits),
      steadyMs: context.steadyMs,
      connectionCount: () => connections.count + (this.#proxied?.waiting ?? 0),
      isBusy: options.isBusy,
      mayBegin,
      isShut,
      suspended: () => context.backpressure.suspended,
      begin: (socket, address) => this.#begin(socket, address),
      waits: (socket, queued) => {
        socket.data = queued
      },
      refuse: (socket, reason, address, detail) => this.#refuse(socket, reason, address, detail),
      replace: (socket, ageMs) => this.#replace(socket, ageMs),
    })
    this.#proxied = options.proxyFrom && this.#makeProxied(options, options.proxyFrom)
    const handlers: TlsPortHandlers<SocketData> = {
      opened: (socket) => this.#opened(socket),
      handshook: (socket, success, error, isCurrent) =>
        this.#handshook(socket, success, error, isCurrent),
      received: (socket, chunk) => this.#received(socket, chunk),
      drained: (socket) => connectionOf(socket)?.flush(),
      closed: (socket) => this.#closed(socket),
      failed: (socket, error) => this.#failed(socket, error),
      notice: (message) => hooks.notice(message),
    }
    this.#port = new TlsPort(options, handlers)
  }

  /** The bound port; 0 before `listen`. */
  get port(): number {
    return this.#port.port
  }

  /** Why a connection would be refused now, or null. */
  get refusing(): CloseReason | null {
    return this.#handshakes.refusing
  }

  /** The most handshakes completed in a second since the start. */
  get bestRatePerS(): number {
    return this.#handshakes.bestRatePerS
  }

  get admission(): AdmissionReport {
    return this.#handshakes.report
  }

  /** Call this periodically. @param lagMs how late the call is. */
  sweep(lagMs: number): void {
    this.#handshakes.sweep(lagMs)
    this.#recheck.sweep()
  }

  /** @throws when the address is in use, or when key and certificate do not match. */
  listen(tls: ListenerTls): void {
    this.#port.listen(tls)
  }

  /**
   * Presents a new certificate to devices that connect from now on. Existing connections stay open,
   * unless the device's certificate has expired or no CA of `tls` trusts it.
   * @throws when the new certificate cannot be used. Then the old one stays in use.
   */
  renew(tls: ListenerTls): void {
    if (!this.#port.isListening) return
    const authorities = tls.clientCaPem === null ? null : new ClientAuthorities(tls.clientCaPem)
    this.#port.renew(tls)
    this.#authorities = authorities
    if (authorities !== null) this.#recheck.start(authorities, this.#connections.values())
  }

  /** Refuses new connections, and those that wait. Existing connections stay open. */
  refuseAll(): void {
    for (const socket of this.#proxied?.clear() ?? []) {
      this.#refuse(socket, "drained", addressOf(socket), TAKES_NO_DEVICES)
    }
    for (const { socket, address } of this.#handshakes.stop()) {
      socket.data = undefined
      this.#refuse(socket, "drained", address, TAKES_NO_DEVICES)
    }
  }

  /** Accepts new connections again after `refuseAll`. */
  resume(): void {
    this.#handshakes.resume()
  }

  /** Stops listening, for good. Existing connections stay open. */
  stop(): void {
    this.#port.stop()
    this.refuseAll()
  }

  #makeProxied(options: ListenerOptions, from: readonly string[]) {
    const { maxWaiting } = options.admission
    return new Proxied<DeviceTlsSocket & ProxiedSocket>({
      from,
      maxWaiting: () =>
        this.#handshakes.isFull ? Math.min(PROXIED_WHEN_FULL, maxWaiting) : maxWaiting,
      timeoutMs: options.handshakeTimeoutMs,
      steadyMs: this.#context.steadyMs,
      arrived: (socket, address) => {
        this.#handshakes.accept(socket, address)
        // Paused until its header was read.
        if (connectionOf(socket) !== undefined) socket.resume()
      },
      refuse: (socket, reason, detail) => this.#refuse(socket, reason, addressOf(socket), detail),
    })
  }

  #opened(socket: DeviceTlsSocket): void {
    this.#counters.connectionsAccepted += 1
    if (this.#proxied === null) this.#handshakes.accept(socket, addressOf(socket))
    else this.#proxied.take(socket)
  }

  /** Closes an unadmitted connection, so that a new one can take its place on a full worker. */
  #replace(socket: DeviceTlsSocket, ageMs: number): void {
    const connection = connectionOf(socket)
    if (connection === undefined) return
    // A closing connection keeps its reason.
    if (connection.state !== "closing") {
      const detail = `not admitted ${ageMs} ms after its handshake started, and MAX_CONNECTIONS is reached`
      connection.close("overloaded", { detail })
    }
    socket.terminate()
  }

  #refuse(
    socket: DeviceTlsSocket,
    reason: CloseReason,
    address: string,
    detail: string | null,
  ): void {
    socket.terminate()
    this.#hooks.refused(reason, detail, address)
  }

  #begin(socket: DeviceTlsSocket, address: string): Connection {
    const connection = new Connection(this.#ids.mint(), socket, address, this.#context)
    socket.data = connection
    this.#connections.add(connection)
    return connection
  }

  #handshook(
    socket: DeviceTlsSocket,
    success: boolean,
    error: HandshakeError | null,
    isCurrent: boolean,
  ): void {
    const connection = connectionOf(socket)
    if (connection === undefined || connection.state !== "handshaking") return
    if (!success) {
      const { reason, detail } = tlsFailure(error?.message)
      connection.close(reason, { detail })
      return
    }
    this.#counters.handshakes.observe(this.#handshakes.completed(connection))
    connection.identify()
    const outdated = isCurrent ? null : this.#outdated(socket)
    const result = this.#authenticator.handshaken(connection, {
      // Bun reports success also for an untrusted certificate.
      authorized: error === null && socket.authorized && outdated === null,
      fault: error?.message ?? outdated,
      certificate: () => socket.getPeerX509Certificate() as X509Certificate | undefined,
      issuersValidUntilMs: () => issuersValidUntilMs(socket),
    })
    this.#perform(socket, connection, result)
  }

  /**
   * Why the current CAs refuse a connection that was accepted before a reload, or null when they
   * trust it.
   */
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
      case "verifying":
        void this.#verify(socket, connection, result.settled)
        break
      case "rejected":
        connection.close(result.reason, result)
        break
      case "accepted": {
        const { deviceId, fingerprint, expiresAtMs, rest } = result
        const tlsVersion = socket.getTLSVersion()
        const peer = { tlsVersion, fingerprint, expiresAtMs }
        if (!this.#admitter.admit(connection, deviceId, peer)) break
        this.#handshakes.admitted(socket)
        if (rest.length > 0) connection.received(rest)
        break
      }
    }
  }

  /**
   * Does not read the socket until the token is verified. The connection may close in the meantime.
   */
  async #verify(
    socket: DeviceTlsSocket,
    connection: Connection,
    settled: Promise<AuthResult>,
  ): Promise<void> {
    socket.pause()
    try {
      const result = await settled
      if (connection.state === "closed") return
      socket.resume()
      if (connection.state === "identifying") this.#perform(socket, connection, result)
    } catch (error) {
      this.#failed(socket, asError(error))
    }
  }

  #closed(socket: DeviceTlsSocket): void {
    const { data } = socket
    if (data instanceof QueuedHandshake) {
      this.#handshakes.left(data)
      this.#hooks.refused("peer_closed", LEFT_QUEUE, data.address)
      return
    }
    const connection = data
    if (connection === undefined) {
      if (this.#proxied?.left(socket)) this.#hooks.refused("peer_closed", null, addressOf(socket))
      return
    }
    // First, so that an exception below does not leave the connection counted.
    this.#handshakes.closed(socket, connection)
    this.#authenticator.forget(connection)
    connection.socketClosed()
    this.#connections.remove(connection)
  }

  #failed(socket: DeviceTlsSocket, error: Error): void {
    const connection = connectionOf(socket)
    // Errors of the system or of OpenSSL have an `errno`. Exceptions of the callbacks above have
    // none.
    if (!("errno" in error)) {
      this.#hooks.fault(error)
      connection?.close("fault", { detail: "internal error, see the log" })
      return
    }
    connection?.close("peer_closed", { detail: `the connection broke: ${error.message}` })
  }
}

/** Empty once the peer has reset the connection. */
function addressOf({ remoteAddress }: ProxiedSocket): string {
  if (remoteAddress === undefined) return ""
  return normalAddress(remoteAddress) ?? remoteAddress
}

/** Undefined for a socket in the handshake queue and for a refused one. */
function connectionOf({ data }: DeviceTlsSocket): Connection | undefined {
  return data instanceof Connection ? data : undefined
}
