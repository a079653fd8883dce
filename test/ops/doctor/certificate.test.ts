/** What the doctor finds about the TLS files, and its handshake with itself. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { inspectConfig } from "../../../src/config/config.ts"
import {
  createCertificateAuthority,
  createServerCertificate,
  type PemPair,
} from "../../../src/ops/certificates.ts"
import {
  checkCertificate,
  checkClientAuthorities,
  checkTokenKeys,
} from "../../../src/ops/doctor/certificate.ts"
import type { Finding } from "../../../src/ops/doctor/finding.ts"
import { checkHandshake } from "../../../src/ops/doctor/handshake.ts"

const DAY_MS = 86_400_000
const directory = mkdtempSync(join(tmpdir(), "owsla-doctor-"))
let authority: PemPair
let server: PemPair

beforeAll(async () => {
  authority = await createCertificateAuthority()
  server = await createServerCertificate(authority, ["gateway.example"])
})

afterAll(() => rmSync(directory, { recursive: true }))

function file(name: string, text: string): string {
  const path = join(directory, name)
  writeFileSync(path, text)
  return path
}

function configOf({ certPem, keyPem }: PemPair = server, environment: Record<string, string> = {}) {
  return inspectConfig({
    TLS_CERT_FILE: file("server.crt", certPem),
    TLS_KEY_FILE: file("server.key", keyPem),
    ...environment,
  }).config
}

const bad = (findings: readonly Finding[]) => findings.filter(({ level }) => level !== "ok")
const check = (pair?: PemPair, nowMs = Date.now()) => checkCertificate(configOf(pair), nowMs)

/** A pair that OpenSSL makes, for what the development certificates never are. */
function openssl(key: string[], ...request: string[]): PemPair {
  const [certFile, keyFile] = [join(directory, "odd.crt"), join(directory, "odd.key")]
  const made = Bun.spawnSync([
    ...["openssl", "req", "-x509", "-nodes", "-days", "365", "-subj", "/CN=odd"],
    ...["-newkey", ...key, "-keyout", keyFile, "-out", certFile, ...request],
  ])
  if (!made.success) throw new Error(made.stderr.toString())
  return { certPem: readText(certFile), keyPem: readText(keyFile) }
}

const readText = (path: string) => Bun.spawnSync(["cat", path]).stdout.toString()
const NAMED = ["-addext", "subjectAltName=DNS:gateway.example"]

describe("the certificate", () => {
  test("that is good: its pair, its days, its chain, its names and its key", () => {
    const findings = check()
    expect(bad(findings)).toEqual([])
    const text = findings.map(({ message }) => message).join("\n")
    expect(text).toContain("TLS_KEY_FILE is the key of TLS_CERT_FILE")
    expect(text).toContain("for 824 more days")
    expect(text).toContain("leads to O=Owsla development, CN=Owsla development CA")
    expect(text).toContain("gateway.example")
    expect(text).toContain("the key is ECDSA with P-256")
  })

  test("with its chain", () => {
    const certPem = server.certPem + authority.certPem
    const findings = check({ ...server, certPem })
    expect(bad(findings)).toEqual([])
    expect(findings.map(({ message }) => message)).toContain(
      "the chain has 2 certificate(s) and ends at its root",
    )
  })

  test("in the wrong order is not the key's", () => {
    const certPem = authority.certPem + server.certPem
    expect(bad(check({ ...server, certPem }))).toMatchObject([
      { level: "failure", message: expect.stringContaining("is not the key of") },
    ])
  })

  test("with a CA that has not signed it", async () => {
    const other = await createCertificateAuthority()
    const certPem = server.certPem + other.certPem
    expect(bad(check({ ...server, certPem }))).toMatchObject([
      { level: "failure", message: expect.stringContaining("certificate 2 of TLS_CERT_FILE") },
    ])
  })

  test.each<[string, number, string]>([
    ["expires soon", 815 * DAY_MS, "warning"],
    ["has expired", 826 * DAY_MS, "failure"],
    ["is not valid yet", -2 * DAY_MS, "failure"],
  ])("that %s", (_, afterMs, level) => {
    expect(bad(check(server, Date.now() + afterMs))).toMatchObject([{ level }])
  })

  test("for localhost only, when devices come over the network", async () => {
    const local = await createServerCertificate(authority, [])
    expect(bad(check(local))).toMatchObject([
      { level: "warning", message: expect.stringContaining("valid for localhost, 127.0.0.1") },
    ])
    const config = configOf(local, { DEVICE_HOST: "127.0.0.1" })
    expect(bad(checkCertificate(config, Date.now()))).toEqual([])
  })

  test("without a name", () => {
    const pair = openssl(["rsa:2048"])
    expect(bad(check(pair))).toMatchObject([
      { level: "failure", message: "the certificate has no subject alternative name" },
    ])
  })

  test("with a short RSA key", () => {
    expect(bad(check(openssl(["rsa:1024"], ...NAMED)))).toMatchObject([
      { level: "failure", message: "the RSA key has 1024 bits, which TLS clients refuse" },
    ])
  })

  test("with an RSA key has advice", () => {
    const findings = check(openssl(["rsa:2048"], ...NAMED))
    expect(findings.find(({ advice }) => advice?.includes("P-256"))).toMatchObject({ level: "ok" })
  })

  test("of a public CA without its intermediate", () => {
    const issuers = "authorityInfoAccess=caIssuers;URI:http://ca.example/ca.crt"
    const own = "basicConstraints=critical,CA:FALSE"
    const pair = openssl(["rsa:2048"], ...NAMED, "-addext", issuers, "-addext", own)
    expect(bad(check(pair))).toMatchObject([
      { level: "warning", advice: expect.stringContaining("intermediate") },
    ])
  })

  test("that is missing is not made", () => {
    const { config } = inspectConfig({})
    const development = {
      ...config.tls,
      certFile: join(directory, "no.crt"),
      keyFile: join(directory, "no.key"),
    }
    const missing = { ...config, tls: development }
    expect(checkCertificate(missing, Date.now())).toMatchObject([{ level: "skipped" }])
    // A file that was set and cannot be read is a failure of the configuration, said there once.
    const set = { certFile: "/nothing/a.crt", keyFile: "/nothing/a.key", development: false }
    const unreadable = { ...config, tls: set }
    expect(checkCertificate(unreadable, Date.now())).toMatchObject([
      { level: "skipped", message: expect.stringContaining("configuration") },
    ])
  })
})

describe("the devices' CAs", () => {
  const mtls = (pem: string) =>
    configOf(server, { DEVICE_AUTH: "mtls", TLS_CLIENT_CA_FILE: file("ca.crt", pem) })

  test("have days too", () => {
    const config = mtls(authority.certPem)
    expect(checkClientAuthorities(config, Date.now())).toMatchObject([{ level: "ok" }])
    const later = Date.now() + 3_645 * DAY_MS
    expect(checkClientAuthorities(config, later)).toMatchObject([{ level: "warning" }])
  })

  test("must be CAs", () => {
    expect(checkClientAuthorities(mtls(server.certPem), Date.now())).toMatchObject([
      { level: "failure", message: expect.stringContaining("is not a CA") },
    ])
  })

  test("are not looked at without mtls", () => {
    expect(checkClientAuthorities(configOf(), Date.now())).toEqual([])
  })
})

test("the keys of tokens", () => {
  const token = (text: string) =>
    checkTokenKeys(
      configOf(server, { DEVICE_AUTH: "token", TOKEN_KEYS_FILE: file("keys.pem", text) }),
    )
  const publicKey = Bun.spawnSync(["openssl", "pkey", "-pubout"], {
    stdin: Buffer.from(server.keyPem),
  }).stdout.toString()
  expect(token(publicKey)).toMatchObject([{ level: "ok", message: "TOKEN_KEYS_FILE has 1 key(s)" }])
  expect(token("")).toMatchObject([{ level: "failure" }])
})

describe("the handshake", () => {
  test("with the configured certificate", async () => {
    expect(await checkHandshake(configOf())).toMatchObject([
      { level: "ok", message: expect.stringMatching(/^TLSv1\.3 with TLS_AES_\w+, in \d+ ms$/) },
    ])
  })

  test("up to the certificate of a device", async () => {
    const ca = file("ca.crt", authority.certPem)
    const config = configOf(server, { DEVICE_AUTH: "mtls", TLS_CLIENT_CA_FILE: ca })
    expect(await checkHandshake(config)).toMatchObject([
      { level: "ok", message: "it succeeds up to the certificate that a device must present" },
    ])
  })

  test("fails with the key of another certificate", async () => {
    const config = configOf({ ...server, keyPem: authority.keyPem })
    expect(await checkHandshake(config)).toMatchObject([
      { level: "failure", message: expect.stringContaining("is not the key of") },
    ])
  })
})
