/** Anything that was thrown, as an error or as text. Pure. */

export function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error))
}

export function errorText(error: unknown): string {
  return asError(error).message
}
