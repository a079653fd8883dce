/** The query parameter `limit` of a list: a whole number from 1 on. */

import * as v from "valibot"
import { wholeNumber } from "./body-faults.ts"

export function limitOf({ max, byDefault }: { readonly max: number; readonly byDefault: number }) {
  return v.optional(
    v.pipe(
      v.string(),
      v.regex(/^[0-9]{1,4}$/, `must be a whole number from 1 to ${max}`),
      v.transform(Number),
      wholeNumber(1, max),
    ),
    String(byDefault),
  )
}
