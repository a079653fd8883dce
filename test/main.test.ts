/** The command line: help, version, the commands, and what is not one. */

import { expect, test } from "bun:test"
import { join } from "node:path"
import manifest from "../package.json" with { type: "json" }

const MAIN_FILE = join(import.meta.dir, "../src/main.ts")

async function run(...args: string[]) {
  const child = Bun.spawn([process.execPath, MAIN_FILE, ...args], {
    env: { PATH: process.env["PATH"] ?? "" },
    stdio: ["ignore", "pipe", "pipe"],
  })
  const [output, error, status] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ])
  return { output, error, status }
}

test.each([[["--help"]], [["start", "--help"]], [["-h"]], [["help"]]])(
  "%j lists the commands and says where the settings are documented",
  async (args) => {
    const { output, error, status } = await run(...args)
    expect({ error, status }).toEqual({ error: "", status: 0 })
    for (const command of ["start", "doctor", "certs", "simulate", "health"]) {
      expect(output).toContain(`bun run ${command}`)
    }
    expect(output).toContain("docs/CONFIGURATION.md")
  },
)

test.each([[["--version"]], [["start", "--version"]], [["-v"]]])(
  "%j prints the version",
  async (args) => {
    expect(await run(...args)).toEqual({
      ...{ output: `owsla ${manifest.version}\n`, error: "", status: 0 },
    })
  },
)

test.each<[string[], string]>([
  [["serve"], '"serve" is not a command'],
  [["--port=1"], "Unknown option '--port'"],
  [["start", "now"], "Unexpected argument 'now'"],
])("%j is an error with status 2, and names --help and the settings", async (args, reason) => {
  const { output, error, status } = await run(...args)
  expect({ output, status }).toEqual({ output: "", status: 2 })
  expect(error).toStartWith(reason)
  expect(error).toContain("--help")
  expect(error).toContain("docs/CONFIGURATION.md")
})

test.each(["doctor", "certs", "simulate", "health"])(
  "%s --help shows how it is used",
  async (command) => {
    const { output, status } = await run(command, "--help")
    expect(status).toBe(0)
    expect(output).toContain(`usage: bun run ${command}`)
  },
)

test("a usage error of the doctor does not show a password", async () => {
  const { error, status } = await run("doctor", "--management", "user:s3cret@broker")
  expect(status).toBe(2)
  expect(error).toStartWith("--management needs an http: or https: URL")
  expect(error).not.toContain("s3cret")
})
