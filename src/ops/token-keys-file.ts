/**
 * The file of `TOKEN_KEYS_FILE`: read at start and followed, see `followed-file.ts`.
 *
 * At start a file that cannot be used is an error, because no device could connect. Later a file
 * that is empty, incomplete, cannot be read or contains no usable key leaves the last keys in
 * force.
 *
 * Passes on the text of the file, which workers parse again: keys are public, and their objects
 * cannot be sent to another process. Bound: `MAX_FILE_BYTES`.
 */

import { parseTokenKeys, TokenKeysError } from "../device/token-keys.ts"
import { errorText, fileErrorText } from "../errors.ts"
import { FollowedFile, TooLargeError } from "./followed-file.ts"

const SETTING = "TOKEN_KEYS_FILE"
/** A JWK with a chain of certificates has about 8,000 bytes. */
const MAX_FILE_BYTES = 262_144

/**
 * The text of the file, for the start.
 * @throws TokenKeysError, which names the setting, when the file cannot be read or used.
 */
export async function readTokenKeys(path: string): Promise<string> {
  try {
    const text = await readText(path)
    parseTokenKeys(text)
    return text
  } catch (error) {
    throw new TokenKeysError(`${SETTING}: ${fileErrorText(path, error)}`)
  }
}

/**
 * @param firstText the text whose keys are in force.
 * @param changed called with a text that differs and can be used.
 * @param warn called once for each new problem with the file.
 */
export function followedTokenKeys(
  path: string,
  firstText: string,
  changed: (text: string) => void,
  warn: (message: string) => void,
): FollowedFile<string> {
  let inForce = firstText
  const options = {
    setting: SETTING,
    path,
    maxBytes: MAX_FILE_BYTES,
    read: readText,
    reasonToKeep,
    use: (text: string) => {
      if (text === inForce) return
      inForce = text
      changed(text)
    },
    consequence: () => "the last keys stay in force",
    warn,
  }
  return new FollowedFile(options, true)
}

async function readText(path: string): Promise<string> {
  const bytes = await Bun.file(path)
    .slice(0, MAX_FILE_BYTES + 1)
    .bytes()
  if (bytes.length > MAX_FILE_BYTES) throw new TooLargeError(MAX_FILE_BYTES)
  return new TextDecoder().decode(bytes)
}

function reasonToKeep(text: string): string | null {
  try {
    parseTokenKeys(text)
    return null
  } catch (error) {
    return errorText(error)
  }
}
