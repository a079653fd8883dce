/**
 * The line that a command waits for after it was written, and whether a line is that line. Pure.
 *
 *   token    the first word of the line equals the token; a word ends at a space, a tab or the end
 *   prefix   the line begins with the prefix
 *   next     any line
 *
 * All are compared byte by byte. Patterns were rejected: a back-end could send one that takes
 * seconds to match a line.
 */

export type ReplyCondition =
  | { readonly kind: "token"; readonly token: Uint8Array }
  | { readonly kind: "prefix"; readonly prefix: Uint8Array }
  | { readonly kind: "next" }

export interface ReplyRequest {
  readonly condition: ReplyCondition
  /** From the time when the command was written. */
  readonly timeoutMs: number
}

const TAB = 9
const SPACE = 32

/** Whether a byte ends the first word of a line. */
export function isWordEnd(byte: number): boolean {
  return byte === SPACE || byte === TAB
}

export function matches(condition: ReplyCondition, line: Uint8Array): boolean {
  switch (condition.kind) {
    case "token": {
      const end = line[condition.token.length]
      return (end === undefined || isWordEnd(end)) && beginsWith(line, condition.token)
    }
    case "prefix":
      return beginsWith(line, condition.prefix)
    case "next":
      return true
  }
}

function beginsWith(line: Uint8Array, prefix: Uint8Array): boolean {
  return prefix.length <= line.length && prefix.every((byte, at) => byte === line[at])
}
