/**
 * Reads goodbye lines: the gateway's `GOODBYE_LINE` with its placeholders filled in. A device obeys
 * one by connecting again after the time in it. Pure.
 */

/** Returns the milliseconds after which to come back; null for another line. */
export type GoodbyeReader = (line: string) => number | null

const AFTER = "{retry_after_ms}"

/** @param template as the gateway's setting; null when it contains no `{retry_after_ms}`. */
export function goodbyeReader(template: string): GoodbyeReader | null {
  const [before, after, ...more] = template.split(AFTER)
  if (before === undefined || after === undefined || more.length > 0) return null
  const pattern = new RegExp(`^${literal(before)}(\\d{1,10})${literal(after)}$`)
  return (line) => {
    const ms = pattern.exec(line)?.[1]
    return ms === undefined ? null : Number(ms)
  }
}

function literal(text: string): string {
  return text
    .split("{reason}")
    .map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"))
    .join("\\S+")
}
