/**
 * The TLS listener: where a device's bytes enter. It turns the callbacks of `Bun.listen` into calls on
 * one `Connection` for each socket, and knows no lines, commands or brokers.
 *
 * No exception leaves a callback: a defect that meets one connection closes that one (`fault`).
 * Bounds: admission decides on each connection before its handshake, and on when that may begin.
 */

import type { X509Certificate } from "node:crypto"
import type { Socket, TCPSocketListener } from "bun"
import type { Counters } from "../counters.ts"
import { ByAge } from "../structures/by-age.ts"
import { Admission, type AdmissionDecision, type AdmissionLimits } from "./admission.ts"
import type { Authenticator, AuthResult } from "./authenticator.ts"
import { setBacklog } from "./backlog.ts"
import { ClientAuthorities } from "./client-authorities.ts"
import type { CloseReason } from "./close-reason.ts"
import { Connection, type ConnectionContext } from "./connection.ts"
import type { Connections } from "./connections.ts"
import { HandshakeQueue, QueuedHandshake } from "./handshake-queue.ts"
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

/** How it stands with those that wait for their handshakes. */
export interface AdmissionReport {
  readonly waiting: number
  /** Handshakes under way, and how many may be. */
  readonly handshakes_in_progress: number
  readonly handshake_limit: number
  readonly handshakes_per_s: number
  /** When the last of those that wait will be in; null while nothing is known of it. */
  readonly estimated_wait_ms: number | null
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
  /** The epoch of the newest connection of a device that was heard of from other workers. */
  readonly epochElsewhere: (deviceId: string) => number | undefined
  /** A handshake failed, or the device did not identify itself or was refused. `detail` says why. */
  readonly unidentified: (
    connection: Connection,
    reason: CloseReason,
    detail: string,
    remoteAddress: string,
  ) => void
  /** A connection was refused before its handshake. */
  readonly refused: (reason: CloseReason) => void
  /** Something that could not be had, without which devices are served all the same. */
  readonly notice: (message: string) => void
  /** A defect of ours, caught. */
  readonly fault: (error: Error) => void
}

type DeviceTlsSocket = Socket<Connection | QueuedHandshake<DeviceTlsSocket> | undefined>

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
  readonly #authenticator: Authenticator
  readonly #admission: Admission
  readonly #handshakeQueue: HandshakeQueue<DeviceTlsSocket>
  /** Those whose handshakes are under way and have not stalled. */
  readonly #handshaking = new Set<Connection>()
  /** Connections that have begun and are not admitted yet, also while they are being closed. */
  readonly #unadmitted = new ByAge<DeviceTlsSocket>()
  readonly #recheck: Recheck<Connection>
  #listening: TCPSocketListener<DeviceTlsSocket["data"]> | null = null
  /** Differs for each certificate that devices were shown, and so for each set of CAs. */
  #generation = 0
  /** Null until there was a reload, and where devices are asked for no certificate. */
  #authorities: ClientAuthorities | null = null
  #draining = false

  constructor(
    options: ListenerOptions,
    connections: Connections,
    context: ConnectionContext,
    ids: ConnectionIds,
    identity: Authenticator,
    hooks: ListenerHooks,
  ) {
    this.#options = options
    this.#connections = connections
    this.#context = context
    this.#counters = context.counters
    this.#ids = ids
    this.#authenticator = identity
    this.#hooks = hooks
    this.#admission = new Admission(options.admission)
    this.#recheck = new Recheck({
      nowMs: context.nowMs,
      chainOf: ({ socket }) => shownChain(socket),
      refused: (connection, detail) => {
        const { remoteAddress } = connection.peer
        this.#hooks.unidentified(connection, "refused", detail, remoteAddress)
        connection.close("refused")
      },
    })
    this.#handshakeQueue = new HandshakeQueue(this.#admission, {
      steadyMs: context.steadyMs,
      open: () => !context.backpressure.suspended,
      begin: (socket) => this.#begin(socket),
    })
  }

  /** The port that was bound; 0 before `listen`. */
  get port(): number {
    return this.#listening?.port ?? 0
  }

  /** Why a connection that came now would be refused, or null. */
  get refusing(): CloseReason | null {
    const decision = this.#decide()
    return decision.kind === "refuse" ? decision.reason : null
  }

  get admission(): AdmissionReport {
    const { waiting } = this.#handshakeQueue
    return {
      waiting,
      handshakes_in_progress: this.#admission.underWay,
      handshake_limit: this.#admission.atOnce,
      handshakes_per_s: this.#admission.ratePerS,
      estimated_wait_ms: this.#admission.waitMs(waiting),
    }
  }

  /** To be called now and then, with how late that is. */
  sweep(lagMs: number): void {
    const steadyMs = this.#context.steadyMs()
    const sinceMs = steadyMs - this.#admission.stalledAfterMs
    let stalled = 0
    // In the order in which they began.
    for (const connection of this.#handshaking) {
      if (connection.acceptedAtMs > sinceMs) break
      this.#handshaking.delete(connection)
      stalled += 1
    }
    this.#admission.look(lagMs, stalled, steadyMs)
    this.#handshakeQueue.next()
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
    if (before === null || this.#draining) return
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
        // Bun calls this when a callback of ours threw, and when an established session broke.
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
    this.#draining = true
    this.#listening?.stop(false)
    for (const socket of this.#handshakeQueue.clear()) {
      socket.data = undefined
      this.#refuse(socket, "drained")
    }
  }

  #decide(): AdmissionDecision {
    return this.#admission.decide({
      connections: this.#connections.count,
      waiting: this.#handshakeQueue.waiting,
      suspended: this.#context.backpressure.suspended,
      draining: this.#draining,
      oldestBeganAtMs: this.#unadmitted.oldest?.atMs ?? null,
      steadyMs: this.#context.steadyMs(),
    })
  }

  #opened(socket: DeviceTlsSocket): void {
    this.#counters.connectionsAccepted += 1
    const decision = this.#decide()
    if (decision.kind === "refuse") {
      this.#refuse(socket, decision.reason)
      return
    }
    if (decision.kind === "replace_oldest") this.#endOldestUnadmitted()
    const now = this.#admission.beginsInMs(this.#context.steadyMs()) === 0
    if (now && this.#handshakeQueue.waiting === 0) this.#begin(socket)
    else {
      socket.data = this.#handshakeQueue.wait(socket)
      this.#handshakeQueue.next()
    }
  }

  /** Makes room for a newcomer to a full worker. */
  #endOldestUnadmitted(): void {
    const { oldest } = this.#unadmitted
    if (oldest === null) return
    const { item: socket, atMs } = oldest
    // Here, and not when its socket is gone: whatever that takes, the next newcomer ends another one.
    this.#unadmitted.delete(socket)
    this.#admission.replaced()
    const connection = connectionOf(socket)
    if (connection === undefined) return
    const ms = Math.round(this.#context.steadyMs() - atMs)
    // One that is being closed keeps its reason.
    if (connection.state !== "closing") {
      const detail = `it had not become a device ${ms} ms after its handshake began, and the worker is full`
      this.#unidentified(socket, connection, "overloaded", detail)
    }
    socket.terminate()
  }

  #refuse(socket: DeviceTlsSocket, reason: CloseReason): void {
    socket.terminate()
    this.#hooks.refused(reason)
  }

  #begin(socket: DeviceTlsSocket): void {
    const connection = new Connection(this.#ids.mint(), socket, this.#context)
    socket.data = connection
    this.#connections.add(connection)
    this.#handshaking.add(connection)
    this.#unadmitted.add(socket, connection.acceptedAtMs)
    this.#admission.began(connection.acceptedAtMs)
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
      this.#unidentified(
        socket,
        connection,
        unshown ? "not_identified" : "handshake_failed",
        detail,
      )
      return
    }
    const steadyMs = this.#context.steadyMs()
    const tookMs = steadyMs - connection.acceptedAtMs
    if (this.#handshaking.delete(connection)) {
      this.#admission.completed(tookMs, steadyMs)
      this.#handshakeQueue.next()
    } else this.#admission.completedLate(tookMs, steadyMs)
    connection.identify()
    const outdated = generation === this.#generation ? null : this.#outdated(socket)
    const verdict = this.#authenticator.handshaken(connection, {
      // Bun reports success for a certificate that it does not trust too.
      authorized: error === null && socket.authorized && outdated === null,
      fault: error?.message ?? outdated,
      certificate: () => socket.getPeerX509Certificate() as X509Certificate | undefined,
      issuersValidUntilMs: () => issuersValidUntilMs(socket),
    })
    this.#perform(socket, connection, verdict)
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

  #perform(socket: DeviceTlsSocket, connection: Connection, verdict: AuthResult): void {
    switch (verdict.kind) {
      case "waiting":
        break
      case "rejected":
        this.#unidentified(socket, connection, verdict.reason, verdict.detail)
        break
      case "accepted": {
        const { deviceId, fingerprint, rest } = verdict
        const elsewhere = this.#hooks.epochElsewhere(deviceId)
        const epoch = this.#connections.nextEpoch(deviceId, this.#context.nowMs(), elsewhere)
        const { remoteAddress } = socket
        const tlsVersion = socket.getTLSVersion()
        connection.admit(deviceId, epoch, { remoteAddress, tlsVersion, fingerprint })
        this.#unadmitted.delete(socket)
        this.#counters.connectionsAdmitted += 1
        this.#connections.enter(connection)?.close("taken_over")
        this.#hooks.admitted(connection)
        if (rest.length > 0) connection.received(rest)
        break
      }
    }
  }

  #unidentified(
    socket: DeviceTlsSocket,
    connection: Connection,
    reason: CloseReason,
    detail: string,
  ): void {
    this.#hooks.unidentified(connection, reason, detail, socket.remoteAddress)
    connection.close(reason)
  }

  #closed(socket: DeviceTlsSocket): void {
    const { data } = socket
    if (data instanceof QueuedHandshake) {
      this.#handshakeQueue.leave(data)
      this.#hooks.refused("peer_closed")
      return
    }
    const connection = data
    if (connection === undefined) return
    this.#unadmitted.delete(socket)
    this.#authenticator.forget(connection)
    connection.socketClosed()
    this.#connections.remove(connection)
    if (!this.#handshaking.delete(connection)) return
    this.#admission.ended()
    this.#handshakeQueue.next()
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
