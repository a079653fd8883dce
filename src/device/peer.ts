/**
 * The peer of a connection: the interface of its socket, and information about the peer.
 */

/** The methods of a socket that a connection uses. */
export interface DeviceSocket {
  /**
   * Returns the bytes accepted, fewer than offered when the send buffer is full; negative when the
   * socket is closed.
   */
  write(bytes: Uint8Array): number
  /**
   * Sends the accepted bytes, then closes the sending side. The peer then closes too. Bun's `end`
   * was rejected: when the peer does not close, nothing can close such a socket any more.
   */
  shutdown(): void
  /** Closes immediately. May call the close handler before it returns. */
  terminate(): void
  pause(): void
  resume(): void
}

export interface PeerInfo {
  readonly tlsVersion: string
  /** SHA-256 of the device's certificate; null when it presented none. */
  readonly fingerprint: string | null
  /** When the connection must end, milliseconds since 1970; infinite without a token. */
  readonly expiresAtMs: number
}

export const UNKNOWN_PEER: PeerInfo = {
  tlsVersion: "",
  fingerprint: null,
  expiresAtMs: Number.POSITIVE_INFINITY,
}
