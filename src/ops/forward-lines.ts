/**
 * Forwards the output of another process line by line. Bound: a longer line is split after
 * `MAX_LINE_CHARS`.
 */

import type { Output } from "./output.ts"

const MAX_LINE_CHARS = 65_536

/** Resolves at the end of the stream, or when reading fails. */
export async function forwardLines(
  stream: ReadableStream<Uint8Array>,
  output: Pick<Output, "write">,
): Promise<void> {
  const decoder = new TextDecoder()
  let rest = ""
  try {
    for await (const chunk of stream) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n")
      rest = lines.pop() ?? ""
      for (const line of lines) output.write(`${line}\n`)
      if (rest.length < MAX_LINE_CHARS) continue
      output.write(`${rest}\n`)
      rest = ""
    }
  } catch {
    // Reading failed: the text read so far is still forwarded.
  }
  if (rest !== "") output.write(`${rest}\n`)
}
