/**
 * Web pages of other sites and a gateway without tokens: a browser on the machine of the gateway
 * reaches its HTTP port, and a page must neither read nor command there. The requests are written
 * by hand with the headers that browsers send.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { rawRequest } from "../support/raw-http.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"

const LIMIT_MS = 60_000
let gateway: TestGateway
let device: TestDevice
let deviceId: string

beforeAll(async () => {
  gateway = await startGateway({ DEVICE_ACK: "seq" })
  device = await connectDevice({ port: gateway.devicePort })
  await device.send("hello")
  expect(await device.nextLine()).toBe("ACK 0")
  const list = (await (await gateway.fetch("/devices")).json()) as {
    devices: { device_id: string }[]
  }
  deviceId = list.devices[0]?.device_id ?? ""
}, LIMIT_MS)

afterAll(() => gateway?.stop(), LIMIT_MS)

/** The status and the error's code of a request with these header lines. */
async function ask(method: string, path: string, headers: readonly string[], body = "") {
  const lines = [`${method} ${path} HTTP/1.1`, ...headers, `Content-Length: ${body.length}`]
  const answer = await rawRequest(gateway.httpPort, lines, body)
  return { status: answer.status, error: JSON.parse(answer.body).error }
}

const FORBIDDEN = {
  status: 403,
  error: { code: "forbidden", message: expect.stringContaining("set HTTP_TOKENS") },
}
const host = (name = "127.0.0.1") => `Host: ${name}:${gateway.httpPort}`

/** A command that comes after every refused one: it must be the next line of the device. */
async function expectNoCommand(): Promise<void> {
  const answer = await ask(
    "POST",
    `/devices/${deviceId}/send`,
    [host(), "Content-Type: text/plain"],
    "allowed",
  )
  expect(answer.status).toBe(200)
  expect(await device.nextLine()).toBe("allowed")
}

describe("a page of another origin", () => {
  test.each<[string, () => string[]]>([
    ["another port", () => [`Origin: http://127.0.0.1:${gateway.httpPort + 1}`]],
    ["another name of loopback", () => [`Origin: http://localhost:${gateway.httpPort}`]],
    ["another scheme", () => [`Origin: https://127.0.0.1:${gateway.httpPort}`]],
    ["another site", () => ["Origin: https://evil.test", "Sec-Fetch-Site: cross-site"]],
    ["a sandboxed frame or a file", () => ["Origin: null"]],
    ["a page without Origin", () => ["Sec-Fetch-Site: same-site"]],
    [
      "two Origin headers",
      () => [
        `Origin: http://127.0.0.1:${gateway.httpPort}`,
        `Origin: http://127.0.0.1:${gateway.httpPort}`,
      ],
    ],
  ])("commands no device by a text/plain POST: %s", async (_, headers) => {
    const refused = () => gateway.metric("owsla_http_errors_total", "forbidden")
    const before = await refused()
    const lines = [host(), "Content-Type: text/plain", ...headers()]
    expect(await ask("POST", `/devices/${deviceId}/send`, lines, "open")).toEqual(FORBIDDEN)
    await expectNoCommand()
    expect(await refused()).toBe(before + 1)
  })

  test("reads no route and closes no device", async () => {
    const lines = [host(), "Sec-Fetch-Site: cross-site"]
    for (const path of ["/health", "/ready", "/metrics", "/devices", "/messages", "/nothing"]) {
      expect(await ask("GET", path, lines)).toEqual(FORBIDDEN)
    }
    expect(await ask("DELETE", `/devices/${deviceId}/connection`, lines)).toEqual(FORBIDDEN)
    await expectNoCommand()
  })
})

describe("a name that is rebound to loopback", () => {
  test.each<[string, () => string[]]>([
    ["of the attacker", () => ["Host: evil.test"]],
    ["with the port", () => [host("evil.test")]],
    ["that begins like loopback", () => [host("127.0.0.1.evil.test")]],
    ["beside a good one", () => [host(), "Host: evil.test"]],
    ["before a good one", () => ["Host: evil.test", host()]],
    ["sent twice", () => [host(), host()]],
    ["that is empty", () => ["Host: "]],
    ["that is malformed", () => ["Host: evil.test#@127.0.0.1"]],
    ["with a path", () => ["Host: evil.test/127.0.0.1"]],
  ])("reads nothing, commands nothing and closes nothing: %s", async (_, headers) => {
    const lines = [...headers(), "Content-Type: text/plain"]
    for (const path of ["/health", "/ready", "/metrics", "/devices", "/messages"]) {
      expect(await ask("GET", path, lines)).toEqual(FORBIDDEN)
    }
    expect(await ask("POST", `/devices/${deviceId}/send`, lines, "open")).toEqual(FORBIDDEN)
    expect(await ask("DELETE", `/devices/${deviceId}/connection`, lines)).toEqual(FORBIDDEN)
    await expectNoCommand()
  })
})

describe("what is served without tokens", () => {
  test.each<[string, () => string[]]>([
    ["a program, by address", () => [host()]],
    ["a program, by name", () => [host("localhost")]],
    ["a program, by IPv6", () => [host("[::1]")]],
    ["through another port of this machine", () => ["Host: localhost:1"]],
    ["an address typed into a browser", () => [host(), "Sec-Fetch-Site: none"]],
    [
      "a page of the gateway itself",
      () => [host(), `Origin: http://127.0.0.1:${gateway.httpPort}`, "Sec-Fetch-Site: same-origin"],
    ],
  ])("%s", async (_, headers) => {
    expect((await ask("GET", "/ready", headers())).status).toBe(200)
  })
})

test("HTTP/1.0 without a Host header is refused", async () => {
  const answer = await rawRequest(gateway.httpPort, ["GET /health HTTP/1.0"])
  expect(answer.status).toBe(403)
})
