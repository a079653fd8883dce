/**
 * The back-end of the README, as it can be pasted, with an example device: each reading is answered
 * once, and the two do not go on answering each other's answers.
 */

import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { startGateway, testCaFile } from "../support/gateway.ts"
import { startRabbitMq } from "../support/rabbitmq.ts"
import { pythonWithPika } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const ROOT = join(import.meta.dir, "../..")
const READINGS = 5
const directory = mkdtempSync(join(tmpdir(), "owsla-readme-"))
const stops: (() => unknown)[] = []

afterAll(async () => {
  for (const stop of stops.reverse()) await stop()
  rmSync(directory, { recursive: true, force: true })
}, LIMIT_MS)

/** The lines that a program in Python prints, while it runs. */
function run(script: string, environment: Record<string, string>): readonly string[] {
  const program = Bun.spawn([pythonWithPika(), "-u", script], {
    env: { PATH: process.env["PATH"] ?? "", ...environment },
    stdio: ["ignore", "pipe", "inherit"],
  })
  const lines: string[] = []
  const reading = (async () => {
    let rest = ""
    for await (const chunk of program.stdout.pipeThrough(new TextDecoderStream())) {
      const parts = (rest + chunk).split("\n")
      rest = parts.pop() ?? ""
      lines.push(...parts)
    }
  })()
  stops.push(async () => {
    program.kill()
    await reading
  })
  return lines
}

test(
  "the back-end of the README answers each reading of an example device once",
  async () => {
    // Its queues have the names that the README has, which another test may use on a shared node.
    const broker = await startRabbitMq()
    stops.push(() => broker.dispose())
    const { url: AMQP_URL } = broker
    const gateway = await startGateway({
      ...{ AMQP_URL, WORKERS: "1", DEVICE_ACK: "seq" },
      GOODBYE_LINE: "BYE {reason} {retry_after_ms}",
    })
    stops.push(() => gateway.stop())
    await gateway.ready()

    const readme = readFileSync(join(ROOT, "README.md"), "utf8")
    const [, code = ""] = /```python\n(.*?)```/s.exec(readme) ?? []
    const script = join(directory, "back-end.py")
    writeFileSync(script, code)
    const taken = run(script, { AMQP_URL })
    const seen = run(join(ROOT, "docs/examples/devices/python/device.py"), {
      ...{ GATEWAY: `localhost:${gateway.devicePort}`, CA_FILE: testCaFile() },
      INTERVAL_MS: "200",
    })
    const answers = () => seen.filter((line) => line === "command thank you").length
    const readings = () => taken.filter((line) => line.includes("b'reading ")).length
    await until(() => answers() >= READINGS, { what: "answers", timeoutMs: 30_000 })
    // If it answered answers, each reading would have begun a conversation without end.
    await until(() => readings() >= answers(), { what: "as many readings", timeoutMs: 10_000 })
    expect(taken.some((line) => line.includes("b'done: thank you'"))).toBe(true)
  },
  LIMIT_MS,
)
