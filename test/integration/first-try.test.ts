/**
 * The first five minutes: the real program with nothing configured, on the embedded broker. A
 * newcomer connects, sees their line come out as an event and sends one back.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { startGateway, type TestGateway, testCaFile } from "../support/gateway.ts"
import { opensslDevice } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 30_000
let gateway: TestGateway

beforeAll(async () => {
  gateway = await startGateway()
}, LIMIT_MS)

afterAll(() => gateway?.stop(), LIMIT_MS)

test(
  "a line typed into openssl s_client comes out of /messages, and an answer reaches it",
  async () => {
    expect(gateway.log.some(({ msg }) => msg.includes("embedded broker"))).toBe(true)
    const following = new AbortController()
    const response = await gateway.fetch("/messages", { signal: following.signal })
    expect(response.headers.get("content-type")).toStartWith("text/event-stream")
    let events = ""
    const reading = (async () => {
      for await (const chunk of response.body ?? []) events += Buffer.from(chunk).toString()
    })().catch(() => undefined)
    await until(() => events.length > 0, { what: "the stream to begin" })

    const device = opensslDevice({ port: gateway.devicePort, caFile: testCaFile() })
    await device.send("hello from me")
    const data = await until(() => /^data: (.*)$/m.exec(events)?.[1], { what: "an event" })
    const event = JSON.parse(data)
    expect(event).toMatchObject({ line: "hello from me", from_device_seq: 0 })

    const sent = await gateway.fetch(`/devices/${event.device_id}/send`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ line: "hello back" }),
    })
    expect(await sent.json()).toMatchObject({ outcome: "written" })
    expect(await device.waitLines(1)).toEqual(["hello back"])
    await device.close()
    following.abort()
    await reading
  },
  LIMIT_MS,
)

test("it drains like the rest", async () => {
  expect(await gateway.stop()).toBe(0)
})
