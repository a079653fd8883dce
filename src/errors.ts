/** Anything that was thrown, as an error or as text. Pure. */

export function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error))
}

export function errorText(error: unknown): string {
  return asError(error).message
}

const FILE_ERRORS: Readonly<Record<string, string>> = {
  ENOENT: "does not exist",
  EACCES: "cannot be read by this user",
  EISDIR: "is a directory",
}

/** Why a file cannot be read. The code stays in the text, because it can be searched for. */
export function fileErrorText(path: string, error: unknown): string {
  const { code = "", message } = asError(error) as NodeJS.ErrnoException
  const known = FILE_ERRORS[code]
  return known === undefined ? message : `${path} ${known} (${code})`
}
