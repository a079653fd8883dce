/**
 * Stands in for systemd: a process that binds a notification socket (`notify_socket.py`) and hears
 * what a service sends there.
 */

import { join } from "node:path"
import { findProgram } from "./tools.ts"
import { until } from "./wait.ts"

export interface HeardSocket {
  /** The messages so far, each as its assignments, oldest first. */
  readonly messages: readonly Readonly<Record<string, string>>[]
  /** The messages with this assignment. */
  readonly with: (name: string, value?: string) => readonly Readonly<Record<string, string>>[]
  readonly close: () => Promise<void>
}

/** @param name a path, or "@" and a name in the abstract namespace. */
export async function hearSocket(name: string): Promise<HeardSocket> {
  const script = join(import.meta.dir, "notify_socket.py")
  const program = Bun.spawn([findProgram("python3", "python3"), script, name], {
    stdio: ["ignore", "pipe", "inherit"],
  })
  let isBound = false
  const messages: Record<string, string>[] = []
  const read = async () => {
    const decoder = new TextDecoder()
    let rest = ""
    for await (const chunk of program.stdout) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n")
      rest = lines.pop() ?? ""
      for (const line of lines) {
        if (line === "bound") isBound = true
        else messages.push(assignments(JSON.parse(line)))
      }
    }
  }
  void read()
  await until(() => isBound, { what: "the socket to be bound" })
  return {
    messages,
    with: (name, value) =>
      messages.filter((message) =>
        value === undefined ? name in message : message[name] === value,
      ),
    close: async () => {
      program.kill()
      await program.exited
    },
  }
}

function assignments(message: string): Record<string, string> {
  const pairs = message.split("\n").map((line): [string, string] => {
    const at = line.indexOf("=")
    return [line.slice(0, at), line.slice(at + 1)]
  })
  return Object.fromEntries(pairs)
}
