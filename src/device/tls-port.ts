/**
 * A TLS port whose certificate and CAs can be replaced.
 *
 *   closed ──listen──► listening ──renew──► listening with the new certificate ──stop──► closed
 *
 * A connection keeps the certificate and the CAs with which it was accepted. Bound: `backlog`
 * connections that wait in the kernel.
 */

import { constants } from "node:crypto"
import type { Socket, TCPSocketListener } from "bun"
import { setBacklog } from "./backlog.ts"

/** The numbers of the protocol versions on the wire. */
const VERSIONS = { "1.2": 0x0303, "1.3": 0x0304 } as const

/**
 * The suites of TLS 1.2: ECDHE for forward secrecy, with an AEAD cipher. Without a list BoringSSL
 * offers CBC suites too, and with an RSA key also suites without forward secrecy.
 *
 * The gateway's order counts, but in the brackets the device's: a device without AES hardware puts
 * ChaCha20 first. Rejected: AES-128 in the brackets instead of AES-256. Many libraries prefer
 * AES-256, then ChaCha20, then AES-128, and would get ChaCha20 on devices with AES hardware.
 *
 * The suites of TLS 1.3 all have AEAD ciphers and cannot be set. There the device's order counts.
 */
const TLS_1_2_SUITES = [
  "[ECDHE-ECDSA-AES256-GCM-SHA384|ECDHE-ECDSA-CHACHA20-POLY1305|ECDHE-RSA-AES256-GCM-SHA384|ECDHE-RSA-CHACHA20-POLY1305]",
  "ECDHE-ECDSA-AES128-GCM-SHA256",
  "ECDHE-RSA-AES128-GCM-SHA256",
].join(":")

/** The longest plaintext of a record (RFC 8446, section 5.1), and BoringSSL's default. */
const FULL_RECORD_BYTES = 16_384

export interface TlsPortOptions {
  readonly host: string
  /** 0 binds any free port. */
  readonly port: number
  /** Connections that the kernel may hold until they are accepted. */
  readonly backlog: number
  /**
   * Whether devices get session tickets. Only the worker that issued a ticket can resume from it,
   * since Bun shares no ticket keys between processes. Two tickets cost an eighth of a handshake,
   * and are held until the first bytes are written to the device. Without tickets no session is
   * resumed, with TLS 1.2 neither.
   */
  readonly resumption: "tickets" | "none"
  /** The lowest version of TLS that is accepted. */
  readonly minVersion: keyof typeof VERSIONS
  /**
   * The longest plaintext of a record that is sent, 512 to 16,384. Handshake messages are split
   * too. BoringSSL negotiates no record size (RFC 6066 section 4, RFC 8449), so it is the same for
   * all devices.
   */
  readonly maxRecordBytes: number
}

/** The server certificate, its key and the client CAs, in PEM. */
export interface ListenerTls {
  readonly certPem: string
  readonly keyPem: string
  /** The CAs of device certificates; null when no device certificate is requested. */
  readonly clientCaPem: string | null
}

/** Passed by Bun to the handshake callback; null after a successful handshake. */
export interface HandshakeError {
  readonly message: string
}

/** The callbacks of `Bun.listen`. */
export interface TlsPortHandlers<Data> {
  opened(socket: Socket<Data>): void
  /** @param isCurrent whether the socket was accepted with the current certificate and CAs. */
  handshook(
    socket: Socket<Data>,
    success: boolean,
    error: HandshakeError | null,
    isCurrent: boolean,
  ): void
  received(socket: Socket<Data>, chunk: Uint8Array): void
  drained(socket: Socket<Data>): void
  closed(socket: Socket<Data>): void
  /** A callback has thrown, or an established session has broken. */
  failed(socket: Socket<Data>, error: Error): void
  /** The backlog could not be set. */
  notice(message: string): void
}

export class TlsPort<Data> {
  readonly #options: TlsPortOptions
  readonly #handlers: TlsPortHandlers<Data>
  #listening: TCPSocketListener<Data> | null = null
  /** Incremented by each renewal. */
  #generation = 0

  constructor(options: TlsPortOptions, handlers: TlsPortHandlers<Data>) {
    this.#options = options
    this.#handlers = handlers
  }

  get isListening(): boolean {
    return this.#listening !== null
  }

  /** The bound port; 0 before `listen` and after `stop`. */
  get port(): number {
    return this.#listening?.port ?? 0
  }

  /** @throws when the address is in use, or when key and certificate do not match. */
  listen(tls: ListenerTls): void {
    this.#listening = this.#listen(tls, this.#options.port, this.#generation)
  }

  /**
   * Presents a new certificate to later connections.
   * @throws when the new certificate cannot be used. Then the old one stays in use.
   */
  renew(tls: ListenerTls): void {
    const before = this.#listening
    if (before === null) return
    // Bun's `reload` ignores TLS options. The old and the new listener share the port for a moment.
    this.#listening = this.#listen(tls, before.port, this.#generation + 1)
    before.stop(false)
    this.#generation += 1
  }

  /** Stops accepting. Existing connections stay open. */
  stop(): void {
    this.#listening?.stop(false)
    this.#listening = null
  }

  #listen({ certPem, keyPem, clientCaPem }: ListenerTls, port: number, generation: number) {
    const handlers = this.#handlers
    const { host, resumption, minVersion, maxRecordBytes } = this.#options
    const noTickets = resumption === "none" ? constants.SSL_OP_NO_TICKET : 0
    const options = {
      hostname: host,
      port,
      reusePort: true,
      tls: {
        cert: certPem,
        key: keyPem,
        minVersion: VERSIONS[minVersion],
        ciphers: TLS_1_2_SUITES,
        secureOptions: constants.SSL_OP_CIPHER_SERVER_PREFERENCE | noTickets,
        rejectUnauthorized: true,
        ...(clientCaPem === null
          ? { requestCert: false }
          : // Each CA of the file is a trust anchor: an intermediate CA needs no root in the file.
            { requestCert: true, ca: clientCaPem, allowPartialTrustChain: true }),
      },
      socket: {
        binaryType: "uint8array" as const,
        open:
          maxRecordBytes === FULL_RECORD_BYTES
            ? (socket: Socket<Data>) => handlers.opened(socket)
            : (socket: Socket<Data>) => {
                socket.setMaxSendFragment(maxRecordBytes)
                handlers.opened(socket)
              },
        handshake: (socket: Socket<Data>, success: boolean, error: HandshakeError | null) =>
          handlers.handshook(socket, success, error, generation === this.#generation),
        data: (socket: Socket<Data>, chunk: Uint8Array) => handlers.received(socket, chunk),
        drain: (socket: Socket<Data>) => handlers.drained(socket),
        close: (socket: Socket<Data>) => handlers.closed(socket),
        error: (socket: Socket<Data>, error: Error) => handlers.failed(socket, error),
      },
    }
    // `reusePort`, a numeric `minVersion`, `allowPartialTrustChain` and `fd` work but are not in
    // the types.
    const listening: TCPSocketListener<Data> & { readonly fd?: number } = Bun.listen(
      options as never,
    )
    const fault = setBacklog(listening.fd ?? -1, this.#options.backlog)
    if (fault !== null) handlers.notice(`LISTEN_BACKLOG is not applied: ${fault}`)
    return listening
  }
}
