/**
 * The Compose file, read by Debian's docker-compose, which knows the schema. It needs no daemon. `sh
 * test/install long` installs it.
 */

import { expect, test } from "bun:test"
import { join } from "node:path"
import { ROOT, read } from "../support/deployment.ts"
import { findProgram } from "../support/tools.ts"

const FOLDER = join(ROOT, "docs/compose")

/** The result of `docker-compose config`. Version 1 does not know the name of a project in a file. */
function configOf(text: string): { status: number; complaint: string } {
  const program = findProgram("docker-compose", "docker-compose")
  const command = [program, "--project-directory", FOLDER, "--file", "-", "config", "--quiet"]
  const { exitCode, stderr } = Bun.spawnSync(command, {
    env: { PATH: process.env["PATH"] ?? "", BROKER_PASSWORD: "secret" },
    stdin: Buffer.from(text.replace(/^name: .*$/m, "")),
  })
  return { status: exitCode, complaint: stderr.toString() }
}

test("docker-compose accepts the file", () => {
  expect(configOf(read("docs/compose/compose.yaml"))).toEqual({ status: 0, complaint: "" })
})

test("docker-compose would have found a fault", () => {
  const wrong = read("docs/compose/compose.yaml").replaceAll("stop_grace_period", "stop_grace")
  expect(configOf(wrong)).toMatchObject({ complaint: expect.stringContaining("stop_grace") })
})
