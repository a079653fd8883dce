/** Converts any thrown value to an `Error`. Pure. */

export function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error))
}
