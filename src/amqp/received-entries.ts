/**
 * Decides which entries of a received table are copied byte for byte, and which headers are written
 * from their values. Pure.
 */

import type { HeaderValue } from "../broker/broker.ts"
import type { ReceivedHeaders } from "../broker/republishing.ts"
import { tableEntries } from "./field-reader.ts"

interface ReceivedEntry {
  readonly name: string
  /** The bytes of the value, its type included. */
  readonly bytes: Uint8Array
}

/** `copied` in received order; `changed` are the names of headers that were changed or added. */
export function receivedEntries(
  headers: Readonly<Record<string, HeaderValue>>,
  { bytes, values, renamed }: ReceivedHeaders,
): { readonly copied: readonly ReceivedEntry[]; readonly changed: readonly string[] } {
  const copied: ReceivedEntry[] = []
  const names = new Set<string>()
  for (const { name: cameAs, from, to } of tableEntries(bytes)) {
    const name = renamed.get(cameAs) ?? cameAs
    if (!Object.hasOwn(headers, name) || !Object.is(headers[name], values[cameAs])) continue
    names.add(name)
    copied.push({ name, bytes: bytes.subarray(from, to) })
  }
  const isChanged = (name: string) => headers[name] !== undefined && !names.has(name)
  return { copied, changed: Object.keys(headers).filter(isChanged) }
}
