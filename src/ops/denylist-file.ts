/**
 * The file of the denylist: read at start and followed, see `followed-file.ts`.
 *
 * A file that cannot be read, is empty or has more invalid lines than before is probably incomplete
 * or damaged. Using it would admit denied devices, so the last list stays in force. At start no
 * list is in force yet, so the valid lines are used. The file is read in pieces, so that the event
 * loop is not blocked.
 *
 * Bound: `MAX_FILE_BYTES`.
 */

import { open } from "node:fs/promises"
import { type Denylist, DenylistReader, MAX_DENIED, MAX_LINE_CHARS } from "../device/denylist.ts"
import { FollowedFile, TooLargeError } from "./followed-file.ts"

const MAX_FILE_BYTES = 134_217_728
const PIECE_BYTES = 65_536

/**
 * @param changed called with the first list and after each change. The file is not checked again
 * until it resolves.
 * @param warn called once for each new problem with the file.
 */
export function followedDenylist(
  path: string,
  changed: (denylist: Denylist) => void | Promise<void>,
  warn: (message: string) => void,
): FollowedFile<DenylistReader> {
  /** The number of invalid lines in the file in force; null when no file was used yet. */
  let faultyInForce: number | null = null
  return new FollowedFile({
    setting: "DENYLIST_FILE",
    path,
    maxBytes: MAX_FILE_BYTES,
    read: readDenylist,
    reasonToKeep: (read) => reasonToKeep(read, faultyInForce),
    use: async (read) => {
      faultyInForce = read.faultyLines
      await changed(read.denylist)
      if (read.faultyLines > 0) warn(`DENYLIST_FILE: ${faultsOf(read)}`)
      if (read.surplusLines > 0) {
        warn(
          `DENYLIST_FILE: ${read.surplusLines} line(s) beyond the limit of ${MAX_DENIED} are ignored`,
        )
      }
    },
    consequence: () =>
      faultyInForce === null ? "no device is denied" : "the last list stays in force",
    warn,
  })
}

/**
 * Why this file is not used, and what to do; null when it is used.
 * @param faultyInForce null when there is no last list.
 */
function reasonToKeep(read: DenylistReader, faultyInForce: number | null): string | null {
  if (read.denylist.size === 0 && read.faultyLines > 0) {
    return `no line is a device id or fingerprint: ${faultsOf(read)}; ${CORRECTION}`
  }
  if (faultyInForce === null) return null
  if (read.isEmpty) return `the file is empty; to deny no device, write a comment line: # none`
  if (read.faultyLines <= faultyInForce) return null
  return `${faultsOf(read)}, more than in the last list (${faultyInForce}); ${CORRECTION}`
}

const CORRECTION = "correct these lines, or write # before them"

function faultsOf({ faultyLines, firstFaultyLines }: DenylistReader): string {
  return `${faultyLines} line(s) are not a device id or fingerprint, first: ${firstFaultyLines.join(", ")}`
}

async function readDenylist(path: string): Promise<DenylistReader> {
  const reader = new DenylistReader()
  const file = await open(path)
  try {
    const buffer = new Uint8Array(PIECE_BYTES)
    // The decoder removes a byte order mark.
    const decoder = new TextDecoder()
    let rest = ""
    for (let total = 0; ; ) {
      const { bytesRead } = await file.read(buffer)
      if (bytesRead === 0) break
      total += bytesRead
      // The file may grow while it is read.
      if (total > MAX_FILE_BYTES) throw new TooLargeError(MAX_FILE_BYTES)
      const lines = decoder.decode(buffer.subarray(0, bytesRead), { stream: true }).split("\n")
      const last = lines.pop() ?? ""
      if (lines.length === 0) {
        // A line with more characters is not valid, so the rest of it is not needed.
        rest = (rest + last).slice(0, MAX_LINE_CHARS + 1)
        continue
      }
      reader.read(rest + lines[0])
      for (let at = 1; at < lines.length; at += 1) reader.read(lines[at] ?? "")
      rest = last
    }
    reader.read(rest + decoder.decode())
    return reader
  } finally {
    await file.close()
  }
}
