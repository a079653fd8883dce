/**
 * SIGHUP: a new certificate is taken without closing a connection, and one that cannot be used is
 * refused. Under load, with a supervisor, in `test/faults/process.test.ts`.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { X509Certificate } from "node:crypto"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import tls from "node:tls"
import {
  createCertificateAuthority,
  createServerCertificate,
  type PemPair,
} from "../../src/ops/certificates.ts"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
/** Enough to reach both workers: the kernel leaves one of them out once in 2^19 runs. */
const LOOKS = 20
const directory = mkdtempSync(join(tmpdir(), "owsla-reload-"))
const certFile = join(directory, "server.crt")
const keyFile = join(directory, "server.key")
let authority: PemPair
let madeAtMs = Date.now() - 3_600_000

beforeAll(async () => {
  authority = await createCertificateAuthority()
})

afterAll(() => rmSync(directory, { recursive: true }))

/** Writes a new certificate; returns its fingerprint. */
async function renew(): Promise<string> {
  // Each one ends at another time.
  madeAtMs += 60_000
  const { certPem, keyPem } = await createServerCertificate(authority, [], madeAtMs)
  writeFileSync(certFile, certPem)
  writeFileSync(keyFile, keyPem)
  return new X509Certificate(certPem).fingerprint256
}

/** The fingerprint that a device that connects now is shown. */
async function shown(port: number): Promise<string> {
  const socket = tls.connect({ host: "127.0.0.1", port, rejectUnauthorized: false })
  await new Promise((resolve, reject) =>
    socket.once("secureConnect", resolve).once("error", reject),
  )
  const { fingerprint256 } = socket.getPeerCertificate()
  socket.destroy()
  return fingerprint256
}

async function allShown(port: number): Promise<Set<string>> {
  return new Set(await Promise.all(Array.from({ length: LOOKS }, () => shown(port))))
}

function told(gateway: TestGateway, text: string): number {
  return gateway.log.filter(({ msg }) => msg.includes(text)).length
}

const renewals = (gateway: TestGateway) => told(gateway, "certificate renewed")

/** Has a gateway take a new certificate; returns its fingerprint. */
async function renewedOf(gateway: TestGateway, workers: number): Promise<string> {
  const before = renewals(gateway)
  const fingerprint = await renew()
  gateway.signal("SIGHUP")
  await until(() => renewals(gateway) === before + workers, { what: "it to be taken" })
  return fingerprint
}

describe("without a supervisor, with the embedded broker", () => {
  let gateway: TestGateway

  beforeAll(async () => {
    await renew()
    gateway = await startGateway({ TLS_CERT_FILE: certFile, TLS_KEY_FILE: keyFile })
  }, LIMIT_MS)

  afterAll(() => gateway?.stop(), LIMIT_MS)

  test("new connections see the new certificate, and the old ones stay", async () => {
    const devices = await Promise.all(
      Array.from({ length: LOOKS }, () => connectDevice({ port: gateway.devicePort })),
    )
    const renewed = await renewedOf(gateway, 1)
    expect([...(await allShown(gateway.devicePort))]).toEqual([renewed])
    const certificate = new X509Certificate(readFileSync(certFile))
    expect(await gateway.metric("owsla_certificate_not_after_seconds")).toBe(
      certificate.validToDate.getTime() / 1_000,
    )
    const lines = await gateway.metric("owsla_lines_in_total")
    for (const device of devices) await device.send("still here")
    await until(
      async () => (await gateway.metric("owsla_lines_in_total")) === lines + devices.length,
      { what: "a line of each" },
    )
    for (const device of devices) device.end()
  })

  test.each([
    ["no certificate", () => writeFileSync(certFile, "nothing"), "TLS_CERT_FILE"],
    ["another's key", () => writeFileSync(keyFile, authority.keyPem), "TLS_KEY_FILE"],
    ["no file", () => rmSync(keyFile), "TLS_KEY_FILE"],
  ])(
    "%s is refused, with the setting's name, and the old one stays",
    async (_what, spoil, name) => {
      const good = await renewedOf(gateway, 1)
      spoil()
      const refusals = () => told(gateway, "is refused and the old one stays")
      const before = refusals()
      gateway.signal("SIGHUP")
      await until(() => refusals() === before + 1, { what: "it to be refused" })
      const last = gateway.log.findLast(({ msg }) =>
        msg.includes("is refused and the old one stays"),
      )
      expect(last?.msg).toContain(name)
      expect([...(await allShown(gateway.devicePort))]).toEqual([good])
    },
  )
})

describe("with a supervisor", () => {
  let gateway: TestGateway

  beforeAll(async () => {
    await renew()
    gateway = await startGateway({
      AMQP_URL: (await sharedRabbitMq()).url,
      ...ownQueues(uniqueNames("reload")),
      TLS_CERT_FILE: certFile,
      TLS_KEY_FILE: keyFile,
    })
  }, LIMIT_MS)

  afterAll(() => gateway?.stop(), LIMIT_MS)

  test("a worker that is replaced has the last good one, whatever the files are now", async () => {
    const good = await renewedOf(gateway, 2)
    writeFileSync(certFile, "nothing")
    const listening = told(gateway, "listening")
    process.kill(Number(gateway.workers().get(0)), "SIGKILL")
    await until(() => told(gateway, "listening") === listening + 1, { what: "its successor" })
    expect([...(await allShown(gateway.devicePort))]).toEqual([good])
  })
})
