/**
 * A command: one line to be written to a device. And the outcomes: the closed list of results of a command.
 * A command exists from its arrival until its source has received its one outcome.
 */

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
] as const

export type Outcome = (typeof OUTCOMES)[number]

/** The connection at which a command ended. Receipts contain these fields. */
export interface Recipient {
  readonly deviceId: string
  readonly connectionId: string
  /** Milliseconds since 1970 when the connection was admitted. */
  readonly epoch: number
}

/** The source of a command, which receives its outcome: the consumer of a queue or an HTTP request. */
export interface CommandSource {
  /** Called exactly once for each command, possibly before `offer` returns. The methods below are called instead. */
  settled(command: Command, outcome: Outcome, detail: string, recipient: Recipient | null): void
  /** A repeated delivery of a command. Another delivery of the same command has or gets the outcome. */
  acknowledge(command: Command): void
  /**
   * The same command waits at the connection. Its delivery may be lost without being redelivered here, so the waiting
   * command continues with the delivery of `command`. Absent for sources without broker deliveries.
   */
  replace?(waiting: Command, command: Command): void
  /** The connection gave back a lost command; see `Command.lost`. */
  withdrawn?(command: Command): void
}

export interface Command {
  /** The line without terminator: at most `MAX_LINE_BYTES` bytes, without LF and CR. */
  readonly body: Uint8Array
  /** `to_device_seq`: a safe integer from 0, or null when the command is not numbered. */
  readonly seq: number | null
  readonly messageId: string | null
  /** Milliseconds since 1970. Not written at or after this time; `Infinity` when it does not expire. */
  readonly expiresAtMs: number
  /** The `redelivered` flag of the delivery: the broker may have delivered this command before. */
  readonly redelivered: boolean
  /** A hash of the body. Absent on commands without a broker delivery. */
  readonly bodyHash?: bigint | number
  /** True when another worker consumed the command and forwarded it. */
  readonly forwarded: boolean
  /**
   * True once the delivery of the command can no longer be acknowledged. The broker redelivers or dead-letters the
   * command, and that decides its outcome, unless bytes of it were offered to the socket before. Absent on commands
   * without a broker delivery.
   */
  readonly lost?: boolean
  /** Set to true when bytes of the command are offered to a socket. Absent when the source does not need it. */
  isOffered?: boolean
  readonly source: CommandSource
}

const LF = 10
const CR = 13

/** Why `body` is not a valid line, or null. */
export function bodyFault(
  body: Uint8Array,
  maxLineBytes: number,
): { outcome: "invalid" | "too_large"; detail: string } | null {
  if (body.length > maxLineBytes) {
    return { outcome: "too_large", detail: `${body.length} bytes, at most ${maxLineBytes}` }
  }
  if (body.includes(LF) || body.includes(CR)) {
    return { outcome: "invalid", detail: "the line contains LF or CR" }
  }
  return null
}
