/**
 * Text that a peer may have chosen, made safe to show on one line of a terminal or a page: control
 * characters, and all others outside of printable ASCII, are escaped as in JSON. Pure.
 */

const UNSAFE = /[^\x20-\x7e]/g
const CUT = "…"

/** @param maxLength of the result in characters. */
export function shownText(text: string, maxLength: number): string {
  // Cut first: escaping makes a text up to six times longer.
  const safe = text.slice(0, maxLength + 1).replace(UNSAFE, escaped)
  return safe.length <= maxLength ? safe : safe.slice(0, maxLength - 1) + CUT
}

function escaped(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`
}
