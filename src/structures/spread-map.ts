/**
 * Counts keys, for a large number of keys. The keys are spread over many small maps, because one
 * map of a million entries blocks the event loop for tens of milliseconds each time that it grows.
 * A key whose count falls to 0 is removed. Pure. The caller bounds its size.
 */

const PARTS = 256
/**
 * Only this many characters at the end of a key are hashed: enough to spread keys that end in a
 * running number.
 */
const HASHED_CHARS = 16

export class SpreadMap {
  readonly #parts = Array.from({ length: PARTS }, () => new Map<string, number>())
  size = 0

  get(key: string): number {
    return this.#partOf(key)?.get(key) ?? 0
  }

  add(key: string, times: number): void {
    const part = this.#partOf(key)
    const before = part?.get(key) ?? 0
    if (before + times > 0) part?.set(key, before + times)
    else part?.delete(key)
    if (before === 0) this.size += 1
    else if (before + times === 0) this.size -= 1
  }

  *keys(): Iterable<string> {
    for (const part of this.#parts) yield* part.keys()
  }

  /** FNV-1a of the last characters. */
  #partOf(key: string): Map<string, number> | undefined {
    let hash = 0x811c9dc5
    for (let at = Math.max(0, key.length - HASHED_CHARS); at < key.length; at += 1) {
      hash = Math.imul(hash ^ key.charCodeAt(at), 0x01000193)
    }
    return this.#parts[(hash ^ (hash >>> 16)) & (PARTS - 1)]
  }
}
