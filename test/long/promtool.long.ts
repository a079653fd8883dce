/**
 * The metrics, the alert rules and their cases as Prometheus's own `promtool` sees them. `sh
 * test/install long` installs it.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { ALERT_CASES_FILE, ALERTS_FILE, PROMETHEUS_FOLDER } from "../support/alerts.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { sendToOnlyDevice } from "../support/only-device.ts"
import { sharedRabbitMq } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { findProgram } from "../support/tools.ts"

const LIMIT_MS = 120_000
const promtool = findProgram("promtool", "prometheus")
let gateway: TestGateway

beforeAll(async () => {
  const broker = await sharedRabbitMq()
  gateway = await startGateway({ AMQP_URL: broker.url, DEVICE_ACK: "seq" })
  await gateway.ready()
}, LIMIT_MS)

afterAll(() => gateway?.stop(), LIMIT_MS)

function run(args: readonly string[], input = "") {
  const { exitCode, stdout, stderr } = Bun.spawnSync([promtool, ...args], {
    stdin: Buffer.from(input),
    cwd: PROMETHEUS_FOLDER,
  })
  return { exitCode, output: `${stdout}${stderr}` }
}

test(
  "promtool has nothing to say about the metrics of an instance with a device and a command",
  async () => {
    const device = await connectDevice({ port: gateway.devicePort })
    await device.send("hello")
    expect(await device.nextLine()).toBe("ACK 0")
    expect(await sendToOnlyDevice(gateway, "open")).toBe("written")
    await gateway.fetch("/nothing")
    const text = await (await gateway.fetch("/metrics")).text()
    expect(run(["check", "metrics"], text)).toEqual({ exitCode: 0, output: "" })
    device.end()
  },
  LIMIT_MS,
)

test("promtool finds a fault in metrics, so that the test above can fail", () => {
  const text = "# HELP a_seconds_total b\n# TYPE a_seconds_total gauge\na_seconds_total 1\n"
  expect(run(["check", "metrics"], text).exitCode).not.toBe(0)
})

test("the alert rules are valid", () => {
  const { exitCode, output } = run(["check", "rules", ALERTS_FILE])
  expect({ exitCode, output }).toEqual({ exitCode: 0, output: expect.stringContaining("SUCCESS") })
})

test("the configuration of Prometheus in docs/OPERATING.md is valid", () => {
  const text = readFileSync(join(PROMETHEUS_FOLDER, "../OPERATING.md"), "utf8")
  const configuration = /```yaml\n(# prometheus\.yml\n[\s\S]*?)```/.exec(text)?.[1] ?? ""
  expect(configuration).toContain("job_name: owsla\n")
  const { exitCode, output } = run(
    ["check", "config", "--syntax-only", "/dev/stdin"],
    configuration,
  )
  expect({ exitCode, output }).toEqual({ exitCode: 0, output: expect.stringContaining("SUCCESS") })
})

test("each alert fires in its case, and not before", () => {
  const { exitCode, output } = run(["test", "rules", ALERT_CASES_FILE])
  expect({ exitCode, output }).toEqual({ exitCode: 0, output: expect.stringContaining("SUCCESS") })
})
