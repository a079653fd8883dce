/**
 * The optional fields of a command, which are AMQP headers of the same names: how long it may be
 * held, what it supersedes, the reply that it waits for, and its trace context. Pure.
 *
 *   headers ─► readOptions ─► options, or the reason for which the command is invalid
 *   HTTP    ─► optionHeaders, for the message of a command that is forwarded or kept
 *
 * Numbers may also be strings of digits and `reply_next` the string "true", because command-line
 * publishers can only send strings. Bounds: `MAX_OPTION_BYTES` for each text, those of
 * `OptionLimits`, and `MAX_TRACE_BYTES`, beyond which a header of the trace context is ignored.
 */

import type { HeaderValue } from "../broker/broker.ts"
import type { TraceContext } from "../device/command.ts"
import { isWordEnd, type ReplyCondition, type ReplyRequest } from "../device/reply-request.ts"

/** The longest `supersede_key`, `reply_token` and `reply_prefix`, in bytes of UTF-8. */
export const MAX_OPTION_BYTES = 128
export const DEFAULT_REPLY_TIMEOUT_MS = 5_000
/**
 * W3C Trace Context, section 3.3.1.5: the length of `tracestate` that is to be passed on. The
 * headers of a line must fit a frame.
 */
export const MAX_TRACE_BYTES = 512

export interface OptionLimits {
  /** The longest time for which a command may be held. */
  readonly maxHoldMs: number
  /** The longest time for which a command may wait for its reply. */
  readonly maxReplyMs: number
}

export interface CommandOptions {
  /** How long it is held when its device is not connected; null when it is not held. */
  readonly holdMs: number | null
  readonly supersedeKey: string | null
  readonly reply: ReplyRequest | null
  readonly trace: TraceContext | null
}

export const NO_OPTIONS: CommandOptions = {
  holdMs: null,
  supersedeKey: null,
  reply: null,
  trace: null,
}

const encoder = new TextEncoder()
const decoder = new TextDecoder("utf-8", { ignoreBOM: true })

type Headers = Readonly<Record<string, HeaderValue>>

/** The options, or why they are not valid. */
export function readOptions(headers: Headers, limits: OptionLimits): CommandOptions | string {
  const { maxHoldMs, maxReplyMs } = limits
  const hold = headers["hold_ms"] ?? null
  const holdMs = hold === null ? null : readMs(hold)
  if (holdMs !== null && (holdMs < 1 || holdMs > maxHoldMs)) {
    return `hold_ms must be a whole number from 1 to ${maxHoldMs} (MAX_HOLD_MS)`
  }
  const key = headers["supersede_key"] ?? null
  if (key !== null && !isOption(key)) return `supersede_key ${OPTION_RULE}`
  const reply = readReply(headers, maxReplyMs)
  if (typeof reply === "string") return reply
  const trace = readTrace(headers)
  if (holdMs === null && key === null && reply === null && trace === null) return NO_OPTIONS
  return { holdMs, supersedeKey: key, reply, trace }
}

/** The headers that `readOptions` reads. */
export function optionHeaders({ holdMs, supersedeKey, reply, trace }: CommandOptions): Headers {
  return {
    ...(holdMs === null ? {} : { hold_ms: holdMs }),
    ...(supersedeKey === null ? {} : { supersede_key: supersedeKey }),
    ...(reply === null
      ? {}
      : { ...conditionHeader(reply.condition), reply_timeout_ms: reply.timeoutMs }),
    ...trace,
  }
}

/** The trace context of a message; null without one. */
export function readTrace(headers: Headers): TraceContext | null {
  const { traceparent, tracestate } = headers
  const isParent = isTrace(traceparent)
  const isState = isTrace(tracestate)
  if (!isParent && !isState) return null
  return { ...(isParent ? { traceparent } : {}), ...(isState ? { tracestate } : {}) }
}

export const OPTION_RULE = `must be 1 to ${MAX_OPTION_BYTES} bytes of UTF-8`
const TOKEN_RULE = "must have no space and no tab"

function readReply(headers: Headers, maxReplyMs: number): ReplyRequest | string | null {
  const token = headers["reply_token"] ?? null
  const prefix = headers["reply_prefix"] ?? null
  const next = headers["reply_next"] ?? null
  const timeout = headers["reply_timeout_ms"] ?? null
  if (token === null && prefix === null && next === null && timeout === null) return null
  if (token !== null && !isOption(token)) return `reply_token ${OPTION_RULE}`
  if (token !== null && hasWordEnd(token)) return `reply_token ${TOKEN_RULE}`
  if (prefix !== null && !isOption(prefix)) return `reply_prefix ${OPTION_RULE}`
  const isNext = next === true || next === "true"
  if (next !== null && !isNext && next !== false) return "reply_next must be true"
  const conditions: ReplyCondition[] = []
  if (token !== null) conditions.push({ kind: "token", token: encoder.encode(token) })
  if (prefix !== null) conditions.push({ kind: "prefix", prefix: encoder.encode(prefix) })
  if (isNext) conditions.push({ kind: "next" })
  const [condition, ...others] = conditions
  if (condition === undefined && timeout === null) return null
  if (condition === undefined) {
    return "reply_timeout_ms needs one of reply_token, reply_prefix and reply_next"
  }
  if (others.length > 0) {
    return "exactly one of reply_token, reply_prefix and reply_next is allowed"
  }
  if (timeout === null) {
    return { condition, timeoutMs: Math.min(DEFAULT_REPLY_TIMEOUT_MS, maxReplyMs) }
  }
  const timeoutMs = readMs(timeout)
  if (timeoutMs < 1 || timeoutMs > maxReplyMs) {
    return `reply_timeout_ms must be a whole number from 1 to ${maxReplyMs} (MAX_REPLY_MS)`
  }
  return { condition, timeoutMs }
}

function conditionHeader(condition: ReplyCondition): Headers {
  switch (condition.kind) {
    case "token":
      return { reply_token: decoder.decode(condition.token) }
    case "prefix":
      return { reply_prefix: decoder.decode(condition.prefix) }
    case "next":
      return { reply_next: true }
  }
}

/**
 * Whether this is a valid text of an option. A text that is not UTF-8 has lone surrogates
 * (`escaped-text.ts`).
 */
export function isOption(value: HeaderValue): value is string {
  if (typeof value !== "string" || value === "" || !value.isWellFormed()) return false
  return isWithin(value, MAX_OPTION_BYTES)
}

function isWithin(text: string, maxBytes: number): boolean {
  return text.length <= maxBytes && encoder.encode(text).length <= maxBytes
}

function hasWordEnd(token: string): boolean {
  return encoder.encode(token).some(isWordEnd)
}

/** 0 when it is not a whole number. */
function readMs(value: HeaderValue): number {
  const digits = typeof value === "string" && /^[0-9]{1,12}$/.test(value)
  if (!digits && typeof value !== "number" && typeof value !== "bigint") return 0
  const number = Number(value)
  return Number.isSafeInteger(number) ? number : 0
}

function isTrace(value: HeaderValue): value is string {
  return typeof value === "string" && value !== "" && isWithin(value, MAX_TRACE_BYTES)
}
