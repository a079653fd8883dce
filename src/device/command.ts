/**
 * A command: one line to be written to a device. And the outcomes: the closed list of results of a
 * command. A command exists from its arrival until its source has received its one outcome.
 */

import type { LineFormat } from "./framing.ts"
import type { ReplyRequest } from "./reply-request.ts"

export const OUTCOMES = [
  /** The kernel has accepted all its bytes. Whether the device has read them is unknown. */
  "written",
  "offline",
  "expired",
  "invalid",
  "too_large",
  "duplicate",
  "late",
  "slow_device",
  /** The connection closed before the command was written. */
  "closed",
  /** It was written, and the device has sent the line that it asked for. */
  "answered",
  /** It was written, and the line that it asked for did not come. */
  "no_reply",
  /**
   * A newer command with its `supersede_key` took its place before it was offered to the socket.
   */
  "superseded",
  /** An operator or a back-end took it back while it was held. */
  "cancelled",
  /** The device is not connected, and no more commands can be held. */
  "hold_full",
] as const

export type Outcome = (typeof OUTCOMES)[number]

/** Whether the kernel has accepted all bytes of a command with this outcome. */
export function isWritten(outcome: Outcome): boolean {
  return outcome === "written" || outcome === "answered" || outcome === "no_reply"
}

/** Outcomes of commands that were not written, and that need not be written any more. */
const UNWANTED: ReadonlySet<Outcome> = new Set(["duplicate", "superseded", "cancelled"])

/** Whether a command with this outcome is kept in the undelivered queue. */
export function isKept(outcome: Outcome): boolean {
  return !isWritten(outcome) && !UNWANTED.has(outcome)
}

/** The connection at which a command ended. Receipts contain these fields. */
export interface Recipient {
  readonly deviceId: string
  readonly connectionId: string
  /** Milliseconds since 1970 when the connection was admitted. */
  readonly epoch: number
}

/** The headers of W3C Trace Context. They are passed on unchanged and not interpreted. */
export interface TraceContext {
  readonly traceparent?: string
  readonly tracestate?: string
}

/** The line with which a device has answered a command. */
export interface Reply {
  readonly line: Uint8Array
  readonly fromDeviceSeq: number
}

/**
 * A line for a device. The connection calls exactly one of the four methods, possibly before
 * `offer` returns.
 */
export interface Command {
  /**
   * The line without LF or length: at most `MAX_LINE_BYTES` bytes, and with `DEVICE_FRAMING=line`
   * without LF and CR.
   */
  readonly body: Uint8Array
  /** `to_device_seq`: a safe integer from 0, or null when the command is not numbered. */
  readonly seq: number | null
  readonly messageId: string | null
  /**
   * Milliseconds since 1970. Not written at or after this time; `Infinity` when it does not expire.
   */
  readonly expiresAtMs: number
  /**
   * Of the commands of a connection with the same key, only the newest is written; see
   * `supersede-keys.ts`. Null without a key.
   */
  readonly supersedeKey: string | null
  /** The line that it waits for after it was written; null when it waits for none. */
  readonly reply: ReplyRequest | null
  readonly trace: TraceContext | null
  /** The way by which it came; the gateway itself makes those of "gateway", acknowledgements. */
  readonly cameBy: "delivery" | "http" | "broadcast" | "gateway"
  /** The `redelivered` flag of the delivery: the broker may have delivered this command before. */
  readonly redelivered: boolean
  /** A hash of the body. Null on commands without a broker delivery. */
  readonly bodyHash: bigint | number | null
  /** True when another worker consumed the command and forwarded it. */
  readonly forwarded: boolean
  /** True when it was held until its device connected; see `hold-back.ts`. */
  readonly wasHeld: boolean
  /**
   * True once the delivery of the command can no longer be acknowledged. The broker redelivers or
   * dead-letters the command, and that decides its outcome, unless bytes of it were offered to the
   * socket before. Always false on commands without a broker delivery.
   */
  readonly lost: boolean
  /** Set to true when bytes of the command are offered to a socket. */
  isOffered: boolean
  /**
   * The outcome of the command.
   * @param reply with the outcome `answered` only.
   */
  settle(outcome: Outcome, detail: string, recipient: Recipient | null, reply?: Reply): void
  /**
   * This is a repeated delivery of a command. Another delivery of the same command has or gets the
   * outcome.
   */
  acknowledge(): void
  /**
   * The same command waits at the connection. Its delivery may be lost without being redelivered
   * here, so the waiting command continues with the delivery of this one.
   */
  replace(waiting: Command): void
  /** The connection gives back a lost command; see `lost`. */
  withdraw(): void
}

const LF = 10
const CR = 13

/** Why `body` is not a valid line, or null. */
export function bodyFault(
  body: Uint8Array,
  { framing, maxLineBytes }: LineFormat,
): { outcome: "invalid" | "too_large"; detail: string } | null {
  if (body.length > maxLineBytes) {
    return { outcome: "too_large", detail: `${body.length} bytes, at most ${maxLineBytes}` }
  }
  if (framing === "line" && (body.includes(LF) || body.includes(CR))) {
    return { outcome: "invalid", detail: "the line contains LF or CR" }
  }
  return null
}
