/**
 * `TLS_CLIENT_CA_FILE` with an intermediate CA and no root: only that CA is trusted. Refused
 * connections are logged at the default level.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import {
  type ClientCertificate,
  clientCertificate,
  deviceUri,
  type Issuer,
  makeAuthority,
  writeAuthorities,
} from "../support/client-certificates.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 30_000
const directory = mkdtempSync(join(tmpdir(), "owsla-authorities-"))
let gateway: TestGateway
let root: Issuer
let intermediate: Issuer
const devices: TestDevice[] = []

beforeAll(async () => {
  root = await makeAuthority("Owsla test root")
  intermediate = await makeAuthority("Owsla test intermediate", root)
  gateway = await startGateway({
    DEVICE_AUTH: "mtls",
    TLS_CLIENT_CA_FILE: writeAuthorities([intermediate], directory),
  })
}, LIMIT_MS)

afterAll(async () => {
  for (const device of devices) device.terminate()
  await gateway?.stop()
  rmSync(directory, { recursive: true, force: true })
}, LIMIT_MS)

const certified = (id: string, issuer: Issuer) =>
  clientCertificate({ names: [deviceUri(id)], issuer })

async function connect({ cert, key }: Pick<ClientCertificate, "cert" | "key">) {
  const device = await connectDevice({ port: gateway.devicePort, tls: { cert, key } })
  devices.push(device)
  return device
}

async function expectRefused(certificate: ClientCertificate): Promise<void> {
  const refused = () => gateway.metric("owsla_connections_closed_total", "refused")
  const before = await refused()
  await connect(certificate).catch(() => undefined)
  await until(async () => (await refused()) === before + 1, { what: "one to be refused" })
}

describe("TLS_CLIENT_CA_FILE with an intermediate CA alone", () => {
  test.each([
    ["its own alone", false],
    ["the chain", true],
  ])("lets in a device that it signed, which shows %s", async (_, whole) => {
    const id = whole ? "chained" : "single"
    const { cert, key } = await certified(id, intermediate)
    const [single = ""] = cert.match(/-----BEGIN[^-]+-----[^-]+-----END CERTIFICATE-----/) ?? []
    await connect({ cert: whole ? cert : `${single}\n`, key })
    await until(async () => (await gateway.fetch(`/devices/${id}`)).ok, {
      what: "the device to be admitted",
    })
  })

  test("lets in none that its root signed, or another of its name", async () => {
    const namesake = await makeAuthority("Owsla test intermediate", root)
    for (const issuer of [root, namesake]) await expectRefused(await certified("other", issuer))
    expect((await gateway.fetch("/devices/other")).status).toBe(404)
  })
})

test("who is refused is found in the log at info, once a minute", async () => {
  const stranger = await makeAuthority("a stranger")
  for (let n = 0; n < 5; n += 1) await expectRefused(await certified(`stranger:${n}`, stranger))
  const lines = () => gateway.log.filter(({ msg }) => msg.includes("ended as refused"))
  await until(() => lines().length === 1, { what: "the line in the log" })
  expect(lines()[0]?.msg).toMatch(/^a connection from 127\.0\.0\.1 ended as refused: unable to /)
})
