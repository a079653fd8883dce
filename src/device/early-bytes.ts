/**
 * The bytes that devices have sent after their tokens, kept while the tokens are verified.
 *
 *   begin ─► keep … keep ─┬─ take: the bytes in order, when the token is verified
 *                         └─ drop: the connection has ended
 *
 * The listener pauses the socket, so only bytes of the same read arrive: at most 512 KiB for each
 * connection. A bound for one connection was rejected: a device that sends stored lines directly
 * after its token cannot know how many of them one read contains.
 *
 * Pure. Bound: `MAX_EARLY_BYTES` for all connections of a worker.
 */

/** 32 full reads. A token is verified in well under a millisecond. */
export const MAX_EARLY_BYTES = 16_777_216

interface Kept {
  readonly chunks: Uint8Array[]
  bytes: number
}

/** @typeParam C identifies a connection. */
export class EarlyBytes<C> {
  readonly #kept = new Map<C, Kept>()
  #bytes = 0

  /** Bytes of all connections. */
  get bytes(): number {
    return this.#bytes
  }

  begin(connection: C): void {
    this.#kept.set(connection, { chunks: [], bytes: 0 })
  }

  has(connection: C): boolean {
    return this.#kept.has(connection)
  }

  /** @returns false when the bytes are not kept, because they exceed the bound. */
  keep(connection: C, chunk: Uint8Array): boolean {
    const kept = this.#kept.get(connection)
    if (kept === undefined || this.#bytes + chunk.length > MAX_EARLY_BYTES) return false
    kept.chunks.push(chunk)
    kept.bytes += chunk.length
    this.#bytes += chunk.length
    return true
  }

  /** Removes and returns the bytes; empty when the connection has ended. */
  take(connection: C): Uint8Array {
    const { chunks, bytes } = this.#kept.get(connection) ?? { chunks: [], bytes: 0 }
    this.drop(connection)
    const all = new Uint8Array(bytes)
    let at = 0
    for (const chunk of chunks) {
      all.set(chunk, at)
      at += chunk.length
    }
    return all
  }

  drop(connection: C): void {
    this.#bytes -= this.#kept.get(connection)?.bytes ?? 0
    this.#kept.delete(connection)
  }
}
