/**
 * A start without installed packages: it says so, and downloads nothing, in whatever directory it
 * is started.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { cpSync, mkdirSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { Server } from "bun"

const LIMIT_MS = 60_000
const ROOT = join(import.meta.dir, "../..")
const directory = mkdtempSync(join(tmpdir(), "owsla-packages-"))
const copy = join(directory, "copy")
const elsewhere = join(directory, "elsewhere")
const requested: string[] = []
let registry: Server<undefined>

beforeAll(() => {
  mkdirSync(elsewhere)
  for (const name of ["src", "package.json", "bun.lock", "bunfig.toml", "tsconfig.json"]) {
    cpSync(join(ROOT, name), join(copy, name), { recursive: true })
  }
  registry = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: (request) => {
      requested.push(new URL(request.url).pathname)
      return new Response("not here", { status: 404 })
    },
  })
})

afterAll(async () => {
  await registry?.stop(true)
  rmSync(directory, { recursive: true, force: true })
})

/** Runs a command with an empty cache of packages and this test's registry. */
async function run(command: readonly string[], cwd: string) {
  const program = Bun.spawn([process.execPath, ...command], {
    cwd,
    env: {
      PATH: process.env["PATH"] ?? "",
      HOME: directory,
      BUN_INSTALL_CACHE_DIR: join(directory, "cache"),
      BUN_CONFIG_REGISTRY: registry.url.href,
      DEVICE_PORT: "0",
      HTTP_PORT: "0",
    },
    stdio: ["ignore", "pipe", "pipe"],
  })
  const [output, error] = await Promise.all([
    new Response(program.stdout).text(),
    new Response(program.stderr).text(),
  ])
  return { status: await program.exited, text: output + error }
}

test.each<[string, () => string[], string]>([
  ["bun run start", () => ["run", "start"], copy],
  ["bun src/main.ts", () => ["src/main.ts"], copy],
  ["bun <path>/src/main.ts from another directory", () => [join(copy, "src/main.ts")], elsewhere],
])(
  "%s names the missing packages and downloads none",
  async (_, command, cwd) => {
    requested.length = 0
    const { status, text } = await run(command(), cwd)
    expect(requested).toEqual([])
    expect(text).toContain("packages are not installed: @cloudamqp/amqp-client, ")
    expect(text).toContain(`cd ${copy} && bun install`)
    expect(status).toBe(1)
  },
  LIMIT_MS,
)

test.each([
  ["bun run certs", ["run", "certs"]],
  ["bun run simulate", ["run", "simulate", "--help"]],
])(
  "%s downloads nothing",
  async (_, command) => {
    requested.length = 0
    const { status, text } = await run(command, copy)
    expect(requested).toEqual([])
    expect(text).toMatch(/Cannot find (package|module)/)
    expect(status).toBe(1)
  },
  LIMIT_MS,
)
