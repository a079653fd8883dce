/** Reading the server certificate, its key and the client CAs, and the error for each fault. */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createCertificateAuthority, createServerCertificate } from "../../src/ops/certificates.ts"
import {
  chainNotAfterS,
  readListenerTls,
  readServerCertificate,
} from "../../src/ops/server-certificate.ts"

const directory = mkdtempSync(join(tmpdir(), "owsla-server-certificate-"))
const path = (name: string) => join(directory, name)

beforeAll(async () => {
  const ca = await createCertificateAuthority()
  for (const name of ["one", "two"]) {
    const { certPem, keyPem } = await createServerCertificate(ca, [])
    writeFileSync(path(`${name}.crt`), certPem)
    writeFileSync(path(`${name}.key`), keyPem)
  }
  writeFileSync(path("garbage"), "no PEM")
})

afterAll(() => rmSync(directory, { recursive: true }))

test("a pair is returned unchanged", () => {
  const pair = readServerCertificate({ certFile: path("one.crt"), keyFile: path("one.key") })
  expect(pair.certPem).toStartWith("-----BEGIN CERTIFICATE-----")
  expect(pair.keyPem).toContain("PRIVATE KEY")
})

test.each([
  ["missing", "one.key", "missing does not exist (ENOENT)"],
  ["one.crt", "missing", "missing does not exist (ENOENT)"],
  ["garbage", "one.key", "garbage is no PEM certificate"],
  ["one.crt", "garbage", "garbage is no PEM private key"],
  ["garbage", "garbage", "garbage is no PEM private key"],
  ["one.crt", "two.key", "two.key is not the key of "],
])("%s with %s is reported: %p", (certificate, key, told) => {
  const files = { certFile: path(certificate), keyFile: path(key) }
  expect(() => readServerCertificate(files)).toThrow(told)
})

test("a chain expires with the first of its certificates", async () => {
  const dayMs = 86_400_000
  const ca = await createCertificateAuthority(Date.now() - 400 * dayMs)
  const server = await createServerCertificate(ca, [])
  const ends = [ca, server].map(({ certPem }) => chainNotAfterS(certPem) ?? 0)
  expect(ends[0]).not.toBe(ends[1])
  for (const chain of [`${ca.certPem}\n${server.certPem}`, `${server.certPem}\n${ca.certPem}`]) {
    expect(chainNotAfterS(chain)).toBe(Math.min(...ends))
  }
  expect(chainNotAfterS("no certificate")).toBeNull()
})

test("all faults of all files are reported together, including the client CAs", () => {
  const files = { certFile: path("garbage"), keyFile: path("missing") }
  const read = () => readListenerTls(files, path("one.crt"))
  expect(read).toThrow("TLS_CERT_FILE: ")
  expect(read).toThrow("TLS_KEY_FILE: ")
  expect(read).toThrow("one.crt holds a certificate that is not a CA, entry 1")
})
