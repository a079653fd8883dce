/**
 * A child of a bench: a load generator, or something to compare with, in a process of its own so
 * that its work is not counted as the gateway's. It is told words on its standard input and reports
 * JSON objects of numbers on its standard output, one a line; it ends when its input closes, or
 * when it is stopped.
 */

import { join } from "node:path"

export interface Child {
  readonly pid: number
  readonly say: (word: string) => void
  /** The next report that has this field, skipping others. */
  readonly told: (field: string) => Promise<Record<string, number>>
  readonly stop: () => Promise<void>
}

/** @param file in this directory. */
export function startChild(
  file: string,
  options: Readonly<Record<string, string | number>>,
): Child {
  const child = Bun.spawn(
    [
      process.execPath,
      join(import.meta.dir, file),
      ...Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)]),
    ],
    { stdin: "pipe", stdout: "pipe", stderr: "inherit" },
  )
  return {
    pid: child.pid,
    say: (word) => {
      child.stdin.write(`${word}\n`)
      void child.stdin.flush()
    },
    told: reports(child.stdout, file),
    stop: async () => {
      child.kill("SIGKILL")
      await child.exited
    },
  }
}

/** In the child: reports these numbers. */
export function report(what: Readonly<Record<string, number>>): void {
  process.stdout.write(`${JSON.stringify(what)}\n`)
}

function reports(stdout: ReadableStream<Uint8Array>, file: string) {
  const reader = stdout.getReader()
  const decoder = new TextDecoder()
  let rest = ""
  return async (field: string): Promise<Record<string, number>> => {
    for (;;) {
      const end = rest.indexOf("\n")
      if (end === -1) {
        const { value, done } = await reader.read()
        if (done) throw new Error(`${file} ended before it told ${field}`)
        rest += decoder.decode(value, { stream: true })
        continue
      }
      const told = JSON.parse(rest.slice(0, end))
      rest = rest.slice(end + 1)
      if (field in told) return told
    }
  }
}
