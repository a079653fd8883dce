/**
 * Reads a recorded tape (`GET /devices/:id/tape.jsonl`) for a replay: the lines from the device,
 * with the time that passed between them.
 *
 * Entries of other kinds are skipped; entries that were dropped are counted. The clocks of two
 * workers may differ, so a line with an earlier time than the one before is sent together with that
 * one. Bound: the file is read into memory.
 */

import { readFileSync } from "node:fs"
import { errorText } from "../errors.ts"
import { readTapeItem, type TapeItem } from "../fleet/tape/entry.ts"

const LF = 10
const CR = 13

export class TapeFileError extends Error {
  override readonly name = "TapeFileError"
}

export interface TapedLine {
  /** Milliseconds after the first line. */
  readonly afterMs: number
  /** Without LF. */
  readonly body: Uint8Array
}

export interface TapeFile {
  readonly lines: readonly TapedLine[]
  /** Entries that the tape lacks. */
  readonly dropped: number
}

/** @throws TapeFileError, which names the line of the file. */
export function readTapeFile(path: string): TapeFile {
  let text: string
  try {
    text = readFileSync(path, "utf8")
  } catch (cause) {
    throw new TapeFileError(`${path} cannot be read: ${errorText(cause)}`, { cause })
  }
  return parseTape(text, path)
}

/**
 * @param name of the file, for errors.
 * @throws TapeFileError
 */
export function parseTape(text: string, name: string): TapeFile {
  const lines: TapedLine[] = []
  let dropped = 0
  let firstAt: number | null = null
  let afterMs = 0
  for (const [index, row] of text.split("\n").entries()) {
    if (row.trim() === "") continue
    const where = `${name}:${index + 1}`
    const item = readTapeItem(parsed(row))
    if (item === null) throw new TapeFileError(`${where}: not an entry of a tape`)
    if (item.kind === "dropped") dropped += item.count
    if (item.kind !== "in") continue
    firstAt ??= item.at
    afterMs = Math.max(afterMs, item.at - firstAt)
    lines.push({ afterMs, body: bodyOf(item, where) })
  }
  if (lines.length === 0) throw new TapeFileError(`${name}: no lines from the device`)
  return { lines, dropped }
}

function parsed(row: string): unknown {
  try {
    return JSON.parse(row)
  } catch {
    return null
  }
}

function bodyOf(
  { line, hex, bytes }: Extract<TapeItem, { kind: "in" }>,
  where: string,
): Uint8Array {
  if (line === undefined && hex === undefined) {
    throw new TapeFileError(
      `${where}: the line is hidden: record the tape with payload "text" or "hex"`,
    )
  }
  const body = line === undefined ? Buffer.from(hex ?? "", "hex") : Buffer.from(line)
  if (body.length !== bytes)
    throw new TapeFileError(`${where}: the line does not have ${bytes} bytes`)
  if (body.includes(LF) || body.at(-1) === CR) {
    throw new TapeFileError(
      `${where}: the line contains LF or ends with CR, and cannot be sent with an LF`,
    )
  }
  return body
}
