/**
 * A command, one line on its way to a device, and the closed list of ways it can end.
 * A command lives from its arrival until its source was told its one outcome.
 */

export const OUTCOMES = [
  /** The kernel took all its bytes. Whether the device read them is not known. */
  "written",
  "offline",
  "expired",
  "invalid",
  "too_large",
  "duplicate",
  "late",
  "slow_device",
  /** The connection closed while the command waited on it. */
  "closed",
] as const

export type Outcome = (typeof OUTCOMES)[number]

/** The connection a command ended on, as receipts name it. */
export interface Recipient {
  readonly deviceId: string
  readonly connectionId: string
  /** Milliseconds since 1970 when the connection was admitted. */
  readonly epoch: number
}

/** A line on its way to a device. Its connection calls exactly one of the four methods, possibly before `offer` returns. */
export interface Command {
  /** The line without terminator: holds no LF and no CR, and at most `MAX_LINE_BYTES` bytes. */
  readonly body: Uint8Array
  /** `to_device_seq`: a safe integer from 0, or null when the command is not numbered. */
  readonly seq: number | null
  readonly messageId: string | null
  /** Never written at or after this time; `Infinity` when it does not expire. */
  readonly expiresAtMs: number
  /** Which way it came; "gateway" is one that the gateway has made itself. */
  readonly cameBy: "delivery" | "http" | "gateway"
  /** True when the broker says that it handed this command out before. */
  readonly redelivered: boolean
  /** Of the body; null on commands that came by no delivery. */
  readonly bodyHash: bigint | number | null
  /** True when another worker took it from the broker and forwarded it. */
  readonly forwarded: boolean
  /**
   * True once the delivery that brought it can no longer be acknowledged: the broker delivers the command
   * again or dead-letters it, and that decides its outcome unless bytes of it were offered to the socket
   * before. Always false on commands that came by no delivery.
   */
  readonly lost: boolean
  /** Set when bytes of it are offered to a socket. */
  isOffered: boolean
  settle(outcome: Outcome, detail: string, recipient: Recipient | null): void
  /** It repeats a command whose outcome another delivery decides. */
  acknowledge(): void
  /**
   * The same command waits at the connection, by a delivery that may be lost without coming here again: that one goes
   * on with the delivery of this one.
   */
  replace(waiting: Command): void
  /** It was lost, and the connection gives it back; see `lost`. */
  withdraw(): void
}

const LF = 10
const CR = 13

/** What makes `body` unfit to be one line, or null. */
export function bodyFault(
  body: Uint8Array,
  maxLineBytes: number,
): { outcome: "invalid" | "too_large"; detail: string } | null {
  if (body.length > maxLineBytes) {
    return { outcome: "too_large", detail: `${body.length} bytes, at most ${maxLineBytes}` }
  }
  if (body.includes(LF) || body.includes(CR)) {
    return { outcome: "invalid", detail: "the line holds LF or CR" }
  }
  return null
}
