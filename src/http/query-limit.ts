/** The query parameter `limit` of a list: a whole number from 1 on. */

import * as v from "valibot"

export function limitOf({ max, byDefault }: { readonly max: number; readonly byDefault: number }) {
  const rule = `must be a whole number from 1 to ${max}`
  return v.optional(
    v.pipe(
      v.string(),
      v.regex(/^[0-9]{1,4}$/, rule),
      v.transform(Number),
      v.minValue(1, rule),
      v.maxValue(max, rule),
    ),
    String(byDefault),
  )
}
