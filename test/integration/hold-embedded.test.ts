/** Held commands with the embedded broker: the real program in one process, without RabbitMQ. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { helloLine } from "../../src/device/hello.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const SECRET = "a-secret-of-the-tests-0123456789"
const HOLD_MS = 600_000
let gateway: TestGateway

beforeAll(async () => {
  gateway = await startGateway({ DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET })
}, LIMIT_MS)

afterAll(() => gateway?.stop(), LIMIT_MS)

async function post(name: string, body: object): Promise<[number, Record<string, unknown>]> {
  const headers = { "content-type": "application/json" }
  const request = { method: "POST", headers, body: JSON.stringify({ hold_ms: HOLD_MS, ...body }) }
  const response = await gateway.fetch(`/devices/${name}/send`, request)
  return [response.status, (await response.json()) as Record<string, unknown>]
}

async function held(name: string): Promise<unknown[]> {
  const response = await gateway.fetch(`/devices/${name}/held?body=1`)
  return ((await response.json()) as { held: { line: string }[] }).held.map(({ line }) => line)
}

async function connect(name: string) {
  const device = await connectDevice({ port: gateway.devicePort })
  await device.send(helloLine(name, SECRET))
  return device
}

describe("with the embedded broker", () => {
  test("a command is held, listed, and written when its device connects", async () => {
    const name = "lock:1"
    expect(await post(name, { line: "first" })).toMatchObject([202, { outcome: "held" }])
    expect(await post(name, { line: "second" })).toMatchObject([202, { outcome: "held" }])
    expect(await held(name)).toEqual(["first", "second"])
    const device = await connect(name)
    expect(await device.waitLines(2)).toEqual(["first", "second"])
    await until(async () => (await held(name)).length === 0, { what: "no held command" })
    expect(await post(name, { line: "third" })).toMatchObject([200, { outcome: "written" }])
    expect(await device.waitLines(3)).toEqual(["first", "second", "third"])
    device.end()
  })

  test("a held command with a reply ends as answered", async () => {
    const name = "lock:2"
    const about = { line: "status r1", message_id: "m1", reply_token: "r1" }
    expect(await post(name, about)).toMatchObject([202, { outcome: "held" }])
    const device = await connect(name)
    expect(await device.nextLine()).toBe("status r1")
    await device.send("r1 on")
    const answered = async () => (await gateway.metric("owsla_commands_total", "answered")) === 1
    await until(answered, { what: "the outcome" })
    device.end()
  })

  test("a held command is cancelled, or expires", async () => {
    const name = "lock:3"
    expect(await post(name, { line: "expires", hold_ms: 100 })).toMatchObject([202, {}])
    expect(await post(name, { line: "cancelled", message_id: "m1" })).toMatchObject([202, {}])
    const cancelling = await gateway.fetch(`/devices/${name}/held/m1`, { method: "DELETE" })
    expect(await cancelling.json()).toEqual({ cancelled: 1 })
    for (const outcome of ["cancelled", "expired"]) {
      const counted = async () => (await gateway.metric("owsla_commands_total", outcome)) === 1
      await until(counted, { what: `the outcome ${outcome}` })
    }
    expect(await held(name)).toEqual([])
  })
})
