/**
 * Parses the JSON body of a request, and says why it is not valid, without repeating a value of it:
 * it may be secret.
 */

import * as v from "valibot"

/** For a schema of a body. Its members are named by `bodyFaults`. */
export const NOT_AN_OBJECT = "the body must be a JSON object"
/** A member with another name may be a whole document. */
const SHOWN_NAME = /^[A-Za-z_]\w{0,31}$/

/** @param entries the members that the body may have. */
export function bodyFaults(
  issues: readonly v.BaseIssue<unknown>[],
  entries: Readonly<Record<string, unknown>>,
): string {
  return issues.map((issue) => bodyFault(issue, entries)).join("; ")
}

function bodyFault(
  issue: v.BaseIssue<unknown>,
  entries: Readonly<Record<string, unknown>>,
): string {
  const member = v.getDotPath(issue)
  if (member === null) return issue.message
  // Of a strict object, whose members themselves have other issues.
  const isOfObject = issue.type === "strict_object"
  if (Object.hasOwn(entries, member))
    return `${member}: ${isOfObject ? "is missing" : issue.message}`
  if (!isOfObject) return issue.message
  const known = `the members are ${Object.keys(entries).join(", ")}`
  return `${SHOWN_NAME.test(member) ? member : "a member"}: is not known; ${known}`
}

/**
 * @param entries the members that the body may have.
 * @returns what the schema makes of the JSON in the body, or why it is not valid.
 */
export async function readJson<Output extends object>(
  body: Promise<ArrayBuffer>,
  schema: v.GenericSchema<unknown, Output>,
  entries: Readonly<Record<string, unknown>>,
  config?: v.Config<v.BaseIssue<unknown>>,
): Promise<Output | string> {
  let parsed: unknown
  try {
    parsed = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(await body))
  } catch {
    return "the body is not JSON in UTF-8"
  }
  if (Array.isArray(parsed)) return NOT_AN_OBJECT
  const checked = v.safeParse(schema, parsed, config)
  return checked.success ? checked.output : bodyFaults(checked.issues, entries)
}

/**
 * A lone surrogate has no UTF-8 encoding. The encoder would replace it, and the device would get
 * other bytes.
 */
export function wellFormed() {
  return v.check(isWellFormed, "must be well-formed Unicode")
}

/** `json-schema.ts` recognises the check by this function. */
export function isWellFormed(value: string): boolean {
  return value.isWellFormed()
}

/** A whole number in this range, both ends included. */
export function wholeNumber(min: number, max: number) {
  return v.pipe(
    v.number("must be a number"),
    v.integer("must be a whole number"),
    v.minValue(min, `must be at least ${min}`),
    v.maxValue(max, `must be at most ${max}`),
  )
}
