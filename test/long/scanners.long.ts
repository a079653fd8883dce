/**
 * The device port as `sslscan` and `testssl.sh` see it, with an ECDSA and with an RSA certificate.
 * `sh test/install long` installs both. What they report is in SECURITY.md.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { startGateway, type TestGateway, testCaFile } from "../support/gateway.ts"
import { sendToOnlyDevice } from "../support/only-device.ts"
import { rsaCertificateFiles } from "../support/server-certificates.ts"
import { connectDevice } from "../support/tls-device.ts"
import { findProgram } from "../support/tools.ts"

const START_LIMIT_MS = 30_000
const SSLSCAN_LIMIT_MS = 60_000
/** A scan takes about a minute. */
const TESTSSL_LIMIT_MS = 600_000
const directory = mkdtempSync(join(tmpdir(), "owsla-scanners-"))
const rsaFiles = rsaCertificateFiles(directory)

afterAll(() => rmSync(directory, { recursive: true, force: true }))

interface Finding {
  readonly id: string
  readonly severity: string
  readonly finding: string
}

async function output(...command: string[]): Promise<string> {
  const program = Bun.spawn(command, { stdio: ["ignore", "pipe", "ignore"] })
  const text = await program.stdout.text()
  await program.exited
  return text
}

/** The attributes of each element with this name. */
function elements(xml: string, name: string): Record<string, string>[] {
  return [...xml.matchAll(new RegExp(`<${name} ([^>]*)>`, "g"))].map(([, attributes = ""]) =>
    Object.fromEntries(
      [...attributes.matchAll(/(\w+)="([^"]*)"/g)].map(([, key, value]) => [key, value]),
    ),
  )
}

/** The versions that are enabled, the suites that are accepted, and the problems. */
async function sslscan(port: number) {
  const scanner = findProgram("sslscan", "sslscan")
  const xml = await output(scanner, "--xml=-", `127.0.0.1:${port}`)
  expect(xml).toEndWith("</document>\n")
  const versions = elements(xml, "protocol")
    .filter(({ enabled }) => enabled === "1")
    .map(({ type, version }) => `${type} ${version}`)
  const suites = elements(xml, "cipher").map(({ sslversion, cipher }) => `${sslversion} ${cipher}`)
  const renegotiation = elements(xml, "renegotiation").map(({ supported }) => supported)
  const heartbleed = elements(xml, "heartbleed").map(({ vulnerable }) => vulnerable)
  const problems = xml.match(/<error>.*/g) ?? []
  return { versions, suites: suites.sort(), renegotiation, heartbleed, problems }
}

async function testssl(port: number, caFile: string): Promise<Finding[]> {
  const file = join(directory, `${port}.json`)
  const options = ["--quiet", "--color", "0", "--warnings", "batch", "--nodns", "none"]
  await output(
    ...[findProgram("testssl", "testssl.sh"), ...options],
    ...["--add-ca", caFile, "--jsonfile", file, `127.0.0.1:${port}`],
  )
  return Bun.file(file).json()
}

const TLS_1_3 = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]

describe.each(["ECDSA", "RSA"])("with a certificate with an %s key", (kind) => {
  let gateway: TestGateway

  beforeAll(async () => {
    gateway = await startGateway(kind === "RSA" ? rsaFiles : {})
  }, START_LIMIT_MS)
  afterAll(() => gateway?.stop(), START_LIMIT_MS)

  test(
    "sslscan finds TLS 1.2 and 1.3 with ECDHE and AEAD, and nothing else",
    async () => {
      expect(await sslscan(gateway.devicePort)).toEqual({
        versions: ["tls 1.2", "tls 1.3"],
        suites: [
          `TLSv1.2 ECDHE-${kind}-AES128-GCM-SHA256`,
          `TLSv1.2 ECDHE-${kind}-AES256-GCM-SHA384`,
          `TLSv1.2 ECDHE-${kind}-CHACHA20-POLY1305`,
          ...TLS_1_3.map((suite) => `TLSv1.3 ${suite}`),
        ],
        renegotiation: ["0"],
        heartbleed: ["0", "0"],
        problems: [],
      })
    },
    SSLSCAN_LIMIT_MS,
  )

  test(
    "testssl.sh finds nothing bad in the protocol",
    async () => {
      const caFile = kind === "RSA" ? rsaFiles.TLS_CERT_FILE : testCaFile()
      const findings = await testssl(gateway.devicePort, caFile)
      // WARN and DEBUG are about the scanner itself.
      const bad = findings.filter(({ severity }) =>
        ["LOW", "MEDIUM", "HIGH", "CRITICAL", "FATAL"].includes(severity),
      )
      // The certificates of the tests name no CRL and no OCSP server.
      expect(bad.map(({ id }) => id)).toEqual(["cert_revocation"])
      // A scan that was cut short has no bad findings either.
      const good = findings.filter(({ severity }) => severity === "OK").map(({ id }) => id)
      for (const id of [
        ...["SSLv2", "SSLv3", "TLS1_2", "TLS1_3", "cipher_order", "PFS", "cipherlist_NULL"],
        ...["cipherlist_aNULL", "cipherlist_LOW", "heartbleed", "CCS", "ROBOT", "secure_renego"],
        ...["secure_client_renego", "CRIME_TLS", "SWEET32", "LOGJAM", "BEAST", "LUCKY13", "RC4"],
      ]) {
        expect(good).toContain(id)
      }
      const notOffered = findings.filter(({ finding }) => finding === "not offered")
      for (const id of ["TLS1", "TLS1_1", "cipherlist_3DES_IDEA", "cipherlist_AVERAGE"]) {
        expect(notOffered.map((finding) => finding.id)).toContain(id)
      }
      expect(findings.some(({ id }) => id === "scanTime")).toBe(true)
    },
    TESTSSL_LIMIT_MS,
  )

  test("a device is served after the scans", async () => {
    const device = await connectDevice({ port: gateway.devicePort })
    expect(await sendToOnlyDevice(gateway, "welcome")).toBe("written")
    expect(await device.nextLine()).toBe("welcome")
    device.terminate()
    expect(await gateway.metric("owsla_faults_total")).toBe(0)
  })
})

test(
  "with TLS_MIN_VERSION=1.3 sslscan finds TLS 1.3 only",
  async () => {
    const gateway = await startGateway({ TLS_MIN_VERSION: "1.3" })
    try {
      const found = await sslscan(gateway.devicePort)
      expect(found.versions).toEqual(["tls 1.3"])
      expect(found.suites).toEqual(TLS_1_3.map((suite) => `TLSv1.3 ${suite}`))
      expect(found.problems).toEqual([])
    } finally {
      await gateway.stop()
    }
  },
  SSLSCAN_LIMIT_MS,
)
