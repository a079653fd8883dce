/**
 * The command that runs this program again, for workers and for measurements.
 *
 * In a binary of `bun build --compile` the path of the entry point is inside the binary and would
 * be a stray argument: there the binary itself is the command.
 */

import { join } from "node:path"

/** Where a binary has its sources. */
const IN_BINARY = "/$bunfs/"

/** Without arguments. */
export function ownProgram(): readonly string[] {
  if (import.meta.dir.startsWith(IN_BINARY)) return [process.execPath]
  return [process.execPath, join(import.meta.dir, "../main.ts")]
}
