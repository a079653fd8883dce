/**
 * The first minutes on a terminal: the start prints commands, and these work when they are pasted
 * into a shell. Nothing is configured except free ports.
 */

import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 60_000
const MAIN_FILE = join(import.meta.dir, "../../src/main.ts")
const directory = mkdtempSync(join(tmpdir(), "owsla-first-minutes-"))

afterAll(() => rmSync(directory, { recursive: true, force: true }))

/** Collects what a stream gives, as it comes. */
function collected(stream: ReadableStream<Uint8Array>): () => string {
  let text = ""
  void (async () => {
    for await (const chunk of stream) text += Buffer.from(chunk).toString()
  })()
  return () => text
}

function shell(command: string) {
  const child = Bun.spawn(["sh", "-c", `exec ${command}`], {
    cwd: directory,
    stdio: ["pipe", "pipe", "ignore"],
  })
  return { child, output: collected(child.stdout) }
}

test(
  "a terminal gets text, with commands that work as they are",
  async () => {
    // `script` gives the program a terminal.
    const gateway = Bun.spawn(
      [
        "script",
        "--quiet",
        "--return",
        "--command",
        `exec ${process.execPath} ${MAIN_FILE}`,
        "/dev/null",
      ],
      {
        cwd: directory,
        env: { PATH: process.env["PATH"] ?? "", DEVICE_PORT: "0", HTTP_PORT: "0" },
        stdio: ["pipe", "pipe", "inherit"],
      },
    )
    const printed = collected(gateway.stdout)
    const commandOf = (name: string) =>
      new RegExp(`^ {4}${name} +(.+?)(?:\\u001b.*)?\\r?$`, "m").exec(printed())?.[1]
    await until(() => commandOf("check"), { what: "the addresses" })
    expect(printed()).not.toContain('"msg"')
    expect(commandOf("page")).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/$/)

    const following = shell(commandOf("lines") ?? "")
    await until(() => following.output().length > 0, { what: "the stream to begin" })
    const device = shell(commandOf("device") ?? "")
    device.child.stdin.write("hello from a shell\n")
    await device.child.stdin.flush()
    const id = await until(() => /"device_id":"([^"]+)"/.exec(following.output())?.[1], {
      what: "the line",
    })
    expect(following.output()).toContain("hello from a shell")

    const sending = shell((commandOf("command") ?? "").replace("<device_id>", id))
    expect(await sending.child.exited).toBe(0)
    await until(() => device.output().includes("open the door"), { what: "the command" })

    for (const { child } of [following, device]) child.kill()
    // Control-C.
    gateway.stdin.write("\u0003")
    await gateway.stdin.flush()
    expect(await within(gateway.exited, { what: "the drain", timeoutMs: 30_000 })).toBe(0)
  },
  LIMIT_MS,
)
