/**
 * The tour of docs/TOUR.md: its blocks, pasted one after another into one shell, do what the text
 * around them says. Only the ports are others.
 */

import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { freePorts } from "../support/free-ports.ts"
import { within } from "../support/wait.ts"

const LIMIT_MS = 90_000
const ROOT = join(import.meta.dir, "../..")
const directory = mkdtempSync(join(tmpdir(), "owsla-tour-"))

afterAll(() => rmSync(directory, { recursive: true, force: true }))

test(
  "the tour can be pasted",
  async () => {
    for (const name of ["src", "package.json", "node_modules", "bunfig.toml"]) {
      symlinkSync(join(ROOT, name), join(directory, name))
    }
    const ports = freePorts(["device", "http"])
    const tour = readFileSync(join(ROOT, "docs/TOUR.md"), "utf8")
    const blocks = [...tour.matchAll(/^```sh\n([\s\S]*?)^```$/gm)].map(([, block = ""]) =>
      block.replaceAll(":8443", `:${ports.device}`).replaceAll(":8080", `:${ports.http}`),
    )
    expect(blocks.length).toBe(6)
    // `set -m` as in a terminal, where `%1` is the first job. A block that fails ends the tour.
    const script = blocks.map((block, at) => `echo "== ${at}"\n${block}`).join("")
    const shell = Bun.spawn(["bash", "-c", `set -em\n${script}\necho "== end"\n`], {
      cwd: directory,
      env: {
        PATH: `${dirname(process.execPath)}:${process.env["PATH"]}`,
        ...{ DEVICE_PORT: String(ports.device), HTTP_PORT: String(ports.http) },
      },
      stdio: ["ignore", "pipe", "inherit"],
    })
    const output = new Response(shell.stdout).text()
    expect(await within(shell.exited, { what: "the tour", timeoutMs: LIMIT_MS - 5_000 })).toBe(0)
    const parts = (await output).split(/^== .*\n/m).slice(1)
    expect(parts[1]).toMatch(/"device_id":"lock:17".*"from_device_seq":0.*"line":"battery 80"/)
    expect(parts[2]).toMatch(/"outcome":"written"/)
    expect(parts[3]).toMatch(/"code":"offline"[\s\S]*"outcome":"held"[\s\S]*^close$/m)
    expect(parts[4]).toMatch(/"reason":"refused".*"device_id":"lock:19"/)
    expect(parts[5]).toMatch(
      /"device_id":"lock:17"[\s\S]*"device_id":"lock:18"[\s\S]*phase: "?done/,
    )
  },
  LIMIT_MS,
)
