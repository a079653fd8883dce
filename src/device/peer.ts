/**
 * The peer: a device's socket, as far as a connection needs it, and what is known of who is at its other
 * end. Types, and the one value for a peer that nothing is known of yet.
 */

/** What a connection needs of its socket. */
export interface DeviceSocket {
  /** Bytes taken, fewer than offered when the kernel is full; negative when the socket is closed. */
  write(bytes: Uint8Array): number
  /**
   * Sends what was accepted, then says that no more comes; the peer closes in answer. Bun's `end` would leave
   * a socket that nothing can close when the peer does not.
   */
  shutdown(): void
  /** Closes at once; may call the close handler before it returns. */
  terminate(): void
  pause(): void
  resume(): void
}

export interface PeerInfo {
  readonly remoteAddress: string
  readonly tlsVersion: string
  /** SHA-256 of the client's certificate, or null. */
  readonly fingerprint: string | null
}

export const UNKNOWN_PEER: PeerInfo = { remoteAddress: "", tlsVersion: "", fingerprint: null }
