/**
 * Why the JSON body of a request is not valid, without repeating a value of it: it may be secret.
 */

import * as v from "valibot"

/** @param entries the fields that the body may have. Another field is not named. */
export function bodyFaults(
  issues: readonly v.BaseIssue<unknown>[],
  entries: Readonly<Record<string, unknown>>,
): string {
  const texts = issues.map((issue) => {
    const field = v.getDotPath(issue)
    const isKnown = field !== null && field in entries
    return isKnown ? `${field}: ${issue.message}` : issue.message
  })
  return texts.join("; ")
}
