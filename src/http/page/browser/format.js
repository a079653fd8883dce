/** Numbers, sizes and times as text for people. Pure, except for the time zone of the browser. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"]
const MINUTE = 60_000
const HOUR = 3_600_000
const DAY = 86_400_000

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 })
const clock = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
})
const dayAndClock = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
})

export const UNKNOWN = "–"

/** @param {number | null | undefined} value */
export function count(value) {
  return value === null || value === undefined ? UNKNOWN : whole.format(value)
}

/** A rate: with one decimal while it is small. @param {number | null | undefined} value */
export function rate(value) {
  if (value === null || value === undefined) return UNKNOWN
  return value > 0 && value < 10 ? value.toFixed(1) : whole.format(value)
}

/** @param {number | null | undefined} value 1 is 100 % */
export function percent(value) {
  return value === null || value === undefined ? UNKNOWN : `${whole.format(100 * value)} %`
}

/** @param {number | null | undefined} value */
export function bytes(value) {
  if (value === null || value === undefined) return UNKNOWN
  let [amount, unit] = [value, 0]
  while (amount >= 1_024 && unit < UNITS.length - 1) {
    amount /= 1_024
    unit += 1
  }
  return `${unit > 0 && amount < 10 ? amount.toFixed(1) : Math.round(amount)} ${UNITS[unit]}`
}

/** @param {number | null | undefined} ms */
export function duration(ms) {
  if (ms === null || ms === undefined) return UNKNOWN
  if (ms < 1_000) return `${ms < 10 && ms > 0 ? ms.toFixed(1) : Math.round(ms)} ms`
  if (ms < 10_000) return `${(ms / 1_000).toFixed(1)} s`
  if (ms < MINUTE) return `${Math.round(ms / 1_000)} s`
  if (ms < HOUR) return `${Math.floor(ms / MINUTE)} min ${Math.floor((ms % MINUTE) / 1_000)} s`
  if (ms < DAY) return `${Math.floor(ms / HOUR)} h ${Math.floor((ms % HOUR) / MINUTE)} min`
  return `${Math.floor(ms / DAY)} d ${Math.floor((ms % DAY) / HOUR)} h`
}

/** @param {number} at @param {number} now both in milliseconds since 1970 */
export function ago(at, now) {
  const ms = now - at
  if (ms < 1_000) return "now"
  return ms < MINUTE ? `${Math.floor(ms / 1_000)} s ago` : `${duration(ms)} ago`
}

/** The time of day, with the date unless it is today. @param {number} at @param {number} now */
export function time(at, now) {
  const isToday = new Date(at).toDateString() === new Date(now).toDateString()
  return (isToday ? clock : dayAndClock).format(at)
}
