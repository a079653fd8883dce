/**
 * Reads a broadcast from the properties of a message, or the reason for which the message is not a
 * broadcast. Pure.
 *
 * Numbers may be strings of digits, and ids one string, separated by commas, because command-line
 * publishers can only send strings.
 */

import type { HeaderValue, MessageProperties } from "../broker/broker.ts"
import { bodyFault } from "../device/command.ts"
import type { LineFormat } from "../device/framing.ts"
import { DEVICE_ID } from "../device/ids.ts"
import {
  type Audience,
  type BroadcastRequest,
  DEFAULT_PER_S,
  MAX_BROADCAST_IDS,
  MAX_PER_S,
} from "../fleet/broadcast-request.ts"
import type { Refusal } from "./command-message.ts"
import { isOption, OPTION_RULE } from "./command-options.ts"

const PREFIX = /^[A-Za-z0-9._:-]{1,128}$/

export function readBroadcast(
  body: Uint8Array,
  { headers = {} }: MessageProperties,
  format: LineFormat,
): BroadcastRequest | Refusal {
  const { to, to_prefix: prefix, to_ids: ids, per_s, supersede_key: key } = headers
  const given = [to, prefix, ids].filter((value) => value !== undefined && value !== null)
  if (given.length !== 1) {
    return invalid("the headers must have one of to, to_prefix and to_ids")
  }
  const audience = readAudience(to, prefix, ids)
  if (typeof audience === "string") return invalid(audience)
  const perS = readPerS(per_s)
  if (perS === null) return invalid(`per_s must be a whole number from 1 to ${MAX_PER_S}`)
  const supersedeKey = key ?? null
  if (supersedeKey !== null && !isOption(supersedeKey)) {
    return invalid(`supersede_key ${OPTION_RULE}`)
  }
  return bodyFault(body, format) ?? { audience, line: body, perS, supersedeKey }
}

/** @returns the reason for which it is none, if it is none. */
function readAudience(to: HeaderValue, prefix: HeaderValue, ids: HeaderValue): Audience | string {
  if (to !== undefined && to !== null) {
    return to === "all" ? { kind: "all" } : "to must be all"
  }
  if (prefix !== undefined && prefix !== null) {
    const isPrefix = typeof prefix === "string" && PREFIX.test(prefix)
    return isPrefix ? { kind: "prefix", prefix } : `to_prefix does not match ${PREFIX.source}`
  }
  const listed: unknown = typeof ids === "string" ? ids.split(",", MAX_BROADCAST_IDS + 1) : ids
  if (!Array.isArray(listed)) return "to_ids is neither a list nor a text"
  if (listed.length > MAX_BROADCAST_IDS) return `to_ids has more than ${MAX_BROADCAST_IDS} ids`
  const trimmed = listed.map((id: unknown) => (typeof id === "string" ? id.trim() : ""))
  return trimmed.every((id) => DEVICE_ID.test(id))
    ? { kind: "ids", ids: trimmed }
    : `an id of to_ids does not match ${DEVICE_ID.source}`
}

/** Null when it is invalid. */
function readPerS(value: HeaderValue): number | null {
  if (value === undefined || value === null) return DEFAULT_PER_S
  const isDigits = typeof value === "string" && /^[0-9]{1,6}$/.test(value)
  if (!isDigits && typeof value !== "number" && typeof value !== "bigint") return null
  const perS = Number(value)
  return Number.isInteger(perS) && perS >= 1 && perS <= MAX_PER_S ? perS : null
}

function invalid(detail: string): Refusal {
  return { outcome: "invalid", detail }
}
