/**
 * The entries of a tape, as `GET /devices/:id/tape.jsonl` shows them, and the check of those that
 * come from other workers.
 *
 *   in             a line from the device, with `confirmed_at` once the broker has confirmed it
 *   out            a command that ended at a connection of the device, with its outcome
 *   connected, disconnected
 *   dropped        so many entries are missing here
 *   completed      an entry before it has got its `confirmed_at` or its last outcome
 *
 * A `completed` is in the stream of a tape only: in the list its entry has changed. Times are
 * milliseconds since 1970 by the clock of the worker that held the connection. Bound:
 * `MAX_PAYLOAD_BYTES` of the line in an entry.
 */

import { isUtf8 } from "node:buffer"
import * as v from "valibot"
import { DEVICE_ID } from "../../device/ids.ts"

/** Whether the entries of a tape contain the lines, and how. */
export const PAYLOADS = ["hidden", "text", "hex"] as const
export type Payload = (typeof PAYLOADS)[number]

/** In JSON. Enough for 65,536 bytes in hexadecimal. A longer line is recorded without its bytes. */
const MAX_PAYLOAD_BYTES = 131_074
/** What an entry takes in memory besides its text, about. */
const OVERHEAD_BYTES = 64

const id = v.pipe(v.string(), v.regex(DEVICE_ID))
const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
/** An outcome or a reason, perhaps one of a later version. */
const word = v.pipe(v.string(), v.regex(/^[a-z_]{1,32}$/))
const shown = {
  line: v.exactOptional(v.string()),
  hex: v.exactOptional(v.pipe(v.string(), v.regex(/^[0-9a-f]*$/))),
}

const item = v.variant("kind", [
  v.object({
    at: count,
    kind: v.literal("in"),
    connection_id: id,
    /** `from_device_seq`. */
    seq: count,
    bytes: count,
    ...shown,
    confirmed_at: v.exactOptional(count),
  }),
  v.object({
    at: count,
    kind: v.literal("out"),
    connection_id: id,
    /** `to_device_seq`; null when the command has none. */
    seq: v.nullable(count),
    bytes: count,
    ...shown,
    outcome: word,
  }),
  v.object({ at: count, kind: v.literal("connected"), connection_id: id }),
  /** Without a reason the process that held the connection has ended. */
  v.object({
    at: count,
    kind: v.literal("disconnected"),
    connection_id: id,
    reason: v.exactOptional(word),
  }),
  v.object({ kind: v.literal("dropped"), count }),
  v.object({
    kind: v.literal("completed"),
    /** The number of the entry. */
    entry: count,
    confirmed_at: v.exactOptional(count),
    outcome: v.exactOptional(word),
  }),
])

export type TapeItem = v.InferOutput<typeof item>
export type TapeEntry = Exclude<TapeItem, { kind: "completed" }>
/** What completes an entry. */
export interface Completion {
  readonly confirmed_at?: number
  readonly outcome?: string
}

/** The item; null when it is not valid. */
export function readTapeItem(row: unknown): TapeItem | null {
  const checked = v.safeParse(item, row)
  return checked.success ? checked.output : null
}

/** The bytes that the item counts against the bounds of a tape. */
export function sizeOf(item: TapeItem): number {
  return Buffer.byteLength(JSON.stringify(item)) + OVERHEAD_BYTES
}

/** The fields of a line in an entry. A line that is not UTF-8 is shown in hexadecimal. */
export function shownLine(line: Uint8Array, payload: Payload): { line?: string; hex?: string } {
  if (payload === "hidden" || line.length > MAX_PAYLOAD_BYTES) return {}
  const bytes = Buffer.from(line.buffer, line.byteOffset, line.length)
  if (payload === "text" && isUtf8(bytes)) {
    const text = bytes.toString()
    if (Buffer.byteLength(JSON.stringify(text)) <= MAX_PAYLOAD_BYTES) return { line: text }
  }
  return line.length * 2 + 2 <= MAX_PAYLOAD_BYTES ? { hex: bytes.toString("hex") } : {}
}
