/**
 * The examples of the HTTP API in Markdown: `curl` commands, and the JSON answers that are shown
 * after them.
 *
 *   ```sh    each command with curl is an example; a command may continue on the next line with \
 *   ```json  right after such a block: the answer of its last command
 *   `curl …` in a text is an example too, unless it names the program alone
 */

export interface HttpExample {
  /** In one line. Empty when an answer is shown without a command. */
  readonly command: string
  /** Null when none is shown. */
  readonly answer: string | null
}

const FENCE = /^ *```(\w*)\n([\s\S]*?)^ *```$/gm
const INLINE = /`([^`\n]*\bcurl\s[^`\n]+)`/g

export function httpExamplesOf(markdown: string): HttpExample[] {
  const examples: HttpExample[] = []
  let previous: HttpExample | null = null
  for (const [, language = "", text = ""] of markdown.matchAll(FENCE)) {
    if (language === "json") {
      if (previous !== null) examples.pop()
      examples.push({ command: previous?.command ?? "", answer: text.trim() })
      previous = null
      continue
    }
    const commands = commandsOf(text)
    examples.push(...commands)
    previous = commands.at(-1) ?? null
  }
  const prose = markdown.replace(FENCE, "")
  for (const [, command = ""] of prose.matchAll(INLINE)) examples.push({ command, answer: null })
  return examples
}

function commandsOf(text: string): HttpExample[] {
  const lines = text.replace(/\\\n\s*/g, "").split("\n")
  return lines
    .filter((line) => /(^|\s)curl\s/.test(line) && !/^\s*#/.test(line))
    .map((command) => ({ command: command.trim(), answer: null }))
}

/**
 * Whether a value has the form of the one that is shown: the same fields, with values of the same
 * types.
 */
export function hasForm(shown: unknown, value: unknown): boolean {
  if (typeof shown !== "object" || shown === null || typeof value !== "object" || value === null) {
    return typeof shown === typeof value && (shown === null) === (value === null)
  }
  if (Array.isArray(shown) || Array.isArray(value)) {
    if (!Array.isArray(shown) || !Array.isArray(value) || shown.length !== value.length)
      return false
    return shown.every((item, at) => hasForm(item, value[at]))
  }
  const fields = Object.entries(shown)
  const values: Readonly<Record<string, unknown>> = { ...value }
  return (
    fields.length === Object.keys(values).length &&
    fields.every(([name, item]) => name in values && hasForm(item, values[name]))
  )
}
