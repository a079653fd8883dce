/**
 * Development certificates judged by others: node:crypto, OpenSSL's strict verification and a TLS
 * handshake. Then their files under concurrency and refusal, and the command as its user runs it.
 */

import { afterEach, describe, expect, test } from "bun:test"
import { createPrivateKey, X509Certificate } from "node:crypto"
import { existsSync } from "node:fs"
import {
  copyFile,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { connect } from "node:tls"
import {
  type CertificateError,
  createCertificateAuthority,
  createDeviceCertificate,
  createServerCertificate,
  ensureCertificateAuthority,
  ensureDevelopmentCertificates,
  ensurePair,
  type PemPair,
} from "../../src/ops/certificates.ts"

const DAY_MS = 86_400_000
const COMMAND = join(import.meta.dir, "../../src/ops/certs-command.ts")
const LONGEST_ID = "x".repeat(128)
const HOSTILE_IDS = [
  ".",
  "..",
  "",
  `${LONGEST_ID}x`,
  "a\n",
  "\na",
  "a\0",
  "#",
  "*",
  "../x",
  "a/b",
  "a b",
  "é",
]

const directories: string[] = []

afterEach(async () => {
  for (const path of directories.splice(0)) await rm(path, { recursive: true })
})

async function temporaryDirectory(): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), "owsla-certificates-"))
  directories.push(path)
  return path
}

function placesIn(directory: string) {
  return {
    directory,
    certFile: join(directory, "server.crt"),
    keyFile: join(directory, "server.key"),
  }
}

/** Path → contents of every file below `directory`. */
async function snapshot(directory: string): Promise<Record<string, string>> {
  const contents: Record<string, string> = {}
  for (const name of (await readdir(directory, { recursive: true })).sort()) {
    const path = join(directory, name)
    if ((await stat(path)).isFile()) contents[name] = await readFile(path, "utf8")
  }
  return contents
}

async function errorOf(promise: Promise<unknown>): Promise<CertificateError> {
  return promise.then(
    () => Promise.reject(new Error("it did not fail")),
    (error) => error,
  )
}

function expectIssued(ca: string, pair: PemPair): X509Certificate {
  const certificate = new X509Certificate(pair.certPem)
  const authority = new X509Certificate(ca)
  expect(certificate.verify(authority.publicKey)).toBe(true)
  expect(certificate.issuer).toBe(authority.subject)
  expect(certificate.checkPrivateKey(createPrivateKey(pair.keyPem))).toBe(true)
  return certificate
}

async function openssl(args: string[], input = ""): Promise<string> {
  const process = Bun.spawn(["openssl", ...args], { stdin: Buffer.from(input), stderr: "pipe" })
  const [out, err, status] = await Promise.all([
    process.stdout.text(),
    process.stderr.text(),
    process.exited,
  ])
  return status === 0 ? out : `${status}: ${err}`
}

describe("certificates", () => {
  test("the CA signs leaves only, for ten years from an hour ago", async () => {
    const nowMs = Date.UTC(2030, 0, 2, 3, 4, 5)
    const ca = await createCertificateAuthority(nowMs)
    const certificate = expectIssued(ca.certPem, ca)
    expect(certificate.ca).toBe(true)
    expect(certificate.validFromDate.getTime()).toBe(nowMs - 3_600_000)
    expect(certificate.validToDate.getTime()).toBe(nowMs - 3_600_000 + 3650 * DAY_MS)
    const text = await openssl(["x509", "-noout", "-text"], ca.certPem)
    expect(text).toContain("CA:TRUE, pathlen:0")
    expect(text).toContain("Certificate Sign, CRL Sign")
    expect(text).toContain("Signature Algorithm: ecdsa-with-SHA256")
    expect(text).toContain("ASN1 OID: prime256v1")
  })

  test("a server certificate carries the local names and the given ones, each once", async () => {
    const ca = await createCertificateAuthority()
    const names = ["gw.Example.org", "*.example.org", "10.0.0.7", "2001:DB8::1", "::192.0.2.1"]
    const pair = await createServerCertificate(ca, [...names, "localhost"])
    const certificate = expectIssued(ca.certPem, pair)
    expect(certificate.subjectAltName?.split(", ")).toEqual([
      "DNS:localhost",
      "IP Address:127.0.0.1",
      "IP Address:0:0:0:0:0:0:0:1",
      "DNS:gw.example.org",
      "DNS:*.example.org",
      "IP Address:10.0.0.7",
      "IP Address:2001:DB8:0:0:0:0:0:1",
      "IP Address:0:0:0:0:0:0:C000:201",
    ])
    expect(certificate.ca).toBe(false)
    expect(validityDays(certificate)).toBe(825)
    expect(certificate.validFromDate.getTime()).toBeLessThan(Date.now())
  })

  test.each(["", "a b", "-a", "a..b", "https://a", "1.2.3.256", "fe80::1%eth0", "*", "a\n"])(
    "a server certificate is refused for the name %j",
    async (name) => {
      const error = await errorOf(
        createServerCertificate(await createCertificateAuthority(), [name]),
      )
      expect(error.code).toBe("invalid_name")
      expect(error.message).toContain(JSON.stringify(name))
    },
  )

  test.each(["a", "...", ".a", "-rf", "A1._:-", "x".repeat(64)])(
    "the device %j is in the SAN and is the CN",
    async (id) => {
      const ca = await createCertificateAuthority()
      const certificate = expectIssued(ca.certPem, await createDeviceCertificate(ca, id))
      expect(certificate.subjectAltName).toBe(`URI:urn:owsla:device:${id}`)
      expect(certificate.subject.split("\n")).toContain(`CN=${id}`)
      expect(validityDays(certificate)).toBe(825)
    },
  )

  test.each([LONGEST_ID, "x".repeat(65)])("the long device %s is in the SAN only", async (id) => {
    const ca = await createCertificateAuthority()
    const certificate = expectIssued(ca.certPem, await createDeviceCertificate(ca, id))
    expect(certificate.subjectAltName).toBe(`URI:urn:owsla:device:${id}`)
    expect(certificate.subject).not.toContain("CN=")
  })

  test.each(HOSTILE_IDS)("%j is refused as a device id, with the rule", async (id) => {
    const error = await errorOf(createDeviceCertificate(await createCertificateAuthority(), id))
    expect(error.code).toBe("invalid_device_id")
    expect(error.message).toContain("1 to 128 characters of A-Z a-z 0-9 . _ : -")
  })

  test("serial numbers are positive, long and different", async () => {
    const ca = await createCertificateAuthority()
    const serials = new Set<string>()
    for (let n = 0; n < 20; n++) {
      const pem = (await createDeviceCertificate(ca, "a")).certPem
      const parsed = await openssl(["asn1parse"], pem)
      // The first INTEGER is the version, the second the serial number; "-" would precede a
      // negative.
      serials.add(parsed.match(/INTEGER +:(\S+)/g)?.[1] ?? "")
    }
    expect(serials.size).toBe(20)
    for (const serial of serials) expect(serial).toMatch(/:[0-9A-F]{28,32}$/)
  })

  test("OpenSSL accepts each for its purpose and for no other", async () => {
    const directory = await temporaryDirectory()
    const ca = await ensureCertificateAuthority(directory)
    const verify = async (purpose: string, pair: PemPair) => {
      const path = join(directory, "leaf.crt")
      await writeFile(path, pair.certPem)
      const caFile = join(directory, "ca.crt")
      return openssl(["verify", "-x509_strict", "-purpose", purpose, "-CAfile", caFile, path])
    }
    const server = await createServerCertificate(ca, [])
    const device = await createDeviceCertificate(ca, LONGEST_ID)
    expect(await verify("sslserver", server)).toContain("OK")
    expect(await verify("sslclient", server)).toContain("unsuitable certificate purpose")
    expect(await verify("sslclient", device)).toContain("OK")
    expect(await verify("sslserver", device)).toContain("unsuitable certificate purpose")
    const stranger = await createDeviceCertificate(await createCertificateAuthority(), "a")
    expect(await verify("sslclient", stranger)).toContain("verification failed")
  })

  test("a CA that has expired, is none or has another's key does not sign", async () => {
    const ca = await createCertificateAuthority()
    const old = await createCertificateAuthority(Date.now() - 3651 * DAY_MS)
    const leaf = await createServerCertificate(ca, [])
    const foreign = { certPem: ca.certPem, keyPem: old.keyPem }
    for (const [pair, reason] of [
      [old, "the certificate has expired"],
      [leaf, "the certificate is no CA's"],
      [foreign, "the key is another certificate's"],
      [{ certPem: "", keyPem: "" }, "ca.crt and ca.key"],
    ] as const) {
      const error = await errorOf(createServerCertificate(pair, []))
      expect(error.code).toBe("unusable")
      expect(error.message).toContain(reason)
    }
  })

  test("a TLS handshake accepts a device of this CA and nobody else", async () => {
    const ca = await createCertificateAuthority()
    const server = await createServerCertificate(ca, [])
    const listener = Bun.listen<undefined>({
      hostname: "127.0.0.1",
      port: 0,
      tls: {
        cert: server.certPem,
        key: server.keyPem,
        ca: ca.certPem,
        requestCert: true,
        rejectUnauthorized: true,
      },
      socket: {
        data() {},
        handshake(socket, success, error) {
          if (!success || error !== null || !socket.authorized) return
          socket.end(`${socket.getPeerCertificate()?.subjectaltname}`)
        },
      },
    })
    try {
      const greeting = (pair?: PemPair) => readAll(listener.port, ca.certPem, pair)
      expect(await greeting(await createDeviceCertificate(ca, "a:1"))).toBe(
        "URI:urn:owsla:device:a:1",
      )
      expect(await greeting()).toBe("")
      expect(await greeting(server)).toBe("")
      const other = await createCertificateAuthority()
      expect(await greeting(await createDeviceCertificate(other, "a:1"))).toBe("")
    } finally {
      listener.stop(true)
    }
  })
})

describe("files", () => {
  test("CA and server are made once, keys for their owner only, and then left alone", async () => {
    const directory = join(await temporaryDirectory(), "new", "certs")
    const made = await ensureDevelopmentCertificates(placesIn(directory))
    expect(made.state).toBe("made")
    expect(made.expired).toBe(false)
    const before = await snapshot(directory)
    expect(Object.keys(before)).toEqual(["ca.crt", "ca.key", "server.crt", "server.key"])
    expectMatching(before)
    for (const name of ["ca.key", "server.key"])
      expect((await stat(join(directory, name))).mode & 0o777).toBe(0o600)
    const again = await ensureDevelopmentCertificates(placesIn(directory))
    expect(again).toEqual({ ...made, state: "present" })
    expect(await snapshot(directory)).toEqual(before)
  })

  test("a new server certificate is signed by the CA that is there", async () => {
    const directory = await temporaryDirectory()
    const ca = await ensureCertificateAuthority(directory)
    await ensureDevelopmentCertificates(placesIn(directory))
    const after = await snapshot(directory)
    expect(after["ca.crt"]).toBe(ca.certPem)
    expectMatching(after)
  })

  test("a server pair of the operator's own needs no CA and gets none", async () => {
    const directory = await temporaryDirectory()
    await writeServer(
      directory,
      await createServerCertificate(await createCertificateAuthority(), []),
    )
    const before = await snapshot(directory)
    expect((await ensureDevelopmentCertificates(placesIn(directory))).state).toBe("present")
    expect(await snapshot(directory)).toEqual(before)
  })

  test("an expired server certificate is left alone and reported", async () => {
    const directory = await temporaryDirectory()
    const long = Date.now() - 900 * DAY_MS
    const ca = await createCertificateAuthority(long)
    await writeServer(directory, await createServerCertificate(ca, [], long))
    const { state, expired, notAfter } = await ensureDevelopmentCertificates(placesIn(directory))
    expect({ state, expired }).toEqual({ state: "present", expired: true })
    expect(notAfter.getTime()).toBeLessThan(Date.now())
  })

  test("half a pair is an error that names both files, and nothing is written", async () => {
    const halves = ["server.crt", "server.key", "ca.crt", "ca.key"]
    await Promise.all(
      halves.map(async (half) => {
        const directory = await temporaryDirectory()
        await writeFile(join(directory, half), "mine")
        const error = await errorOf(ensureDevelopmentCertificates(placesIn(directory)))
        expect(error.code).toBe("half_pair")
        const stem = join(directory, half.replace(/\..*/, ""))
        expect(error.message).toContain(`${stem}.crt`)
        expect(error.message).toContain(`${stem}.key`)
        expect(await snapshot(directory)).toEqual({ [half]: "mine" })
      }),
    )
  })

  test("half a pair that another process completes is waited for", async () => {
    const places = placesIn(await temporaryDirectory())
    await writeFile(places.keyFile, "key")
    const state = ensurePair(places, () => Promise.reject(new Error("nothing was to be made")))
    await writeFile(places.certFile, "certificate")
    expect(await state).toBe("present")
  })

  test("a pair that cannot be completed is taken back", async () => {
    const directory = await temporaryDirectory()
    const places = placesIn(directory)
    const pair = await createCertificateAuthority()
    const state = ensurePair(places, async () => {
      await writeFile(places.certFile, "mine")
      return pair
    })
    expect((await errorOf(state)).code).toBe("half_pair")
    expect(await snapshot(directory)).toEqual({ "server.crt": "mine" })
  })

  test("a link to nowhere counts as a file and is not written through", async () => {
    const directory = await temporaryDirectory()
    const target = join(directory, "elsewhere")
    await symlink(target, join(directory, "server.key"))
    await symlink(target, join(directory, "server.crt"))
    expect((await errorOf(ensureDevelopmentCertificates(placesIn(directory)))).code).toBe(
      "unusable",
    )
    expect(existsSync(target)).toBe(false)
  })

  test("what cannot be written or read is one sentence with the path and the way out", async () => {
    const directory = await temporaryDirectory()
    await writeFile(join(directory, "file"), "")
    const below = join(directory, "file", "certs")
    const unwritable = await errorOf(ensureDevelopmentCertificates(placesIn(below)))
    expect(unwritable.code).toBe("unusable")
    expect(unwritable.message).toContain(below)
    expect(unwritable.message).toContain("TLS_CERT_FILE and TLS_KEY_FILE")
    expect(unwritable.message).not.toContain("\n")
    await writeServer(directory, { certPem: "garbage", keyPem: "garbage" })
    const garbage = await errorOf(ensureDevelopmentCertificates(placesIn(directory)))
    expect(garbage.code).toBe("unusable")
    expect(garbage.message).toContain(join(directory, "server.crt"))
  })

  test("concurrent calls find one matching set, made once", async () => {
    const directory = await temporaryDirectory()
    const calls = Array.from({ length: 16 }, () =>
      ensureDevelopmentCertificates(placesIn(directory)),
    )
    const states = (await Promise.all(calls)).map(({ state }) => state)
    expect(states.filter((state) => state === "made")).toHaveLength(1)
    const files = await snapshot(directory)
    expect(Object.keys(files)).toEqual(["ca.crt", "ca.key", "server.crt", "server.key"])
    expectMatching(files)
  })
})

describe("bun run certs", () => {
  test("shows what it made, then what is there", async () => {
    const directory = await temporaryDirectory()
    const made = await run(directory)
    expect(made).toMatchObject({ status: 0, err: "" })
    expect(made.out).toStartWith("Made the server certificate.\n")
    const files = await snapshot(directory)
    expectMatching(files)
    for (const name of ["certs/ca.crt", "certs/server.crt"]) {
      const certificate = new X509Certificate(files[name] ?? "")
      expect(made.out).toContain(`${name}\n`)
      expect(made.out).toContain(`SHA-256 ${certificate.fingerprint256}`)
      expect(made.out).toContain(certificate.validToDate.toISOString())
    }
    expect(made.out).toContain("CN=Owsla development CA")
    expect(made.out).not.toContain("PRIVATE")
    await run(directory, "device", "a")
    const again = await run(directory)
    expect(again.out).toStartWith("Nothing was missing.\n")
    expect(again.out).toContain("certs/devices/a.crt\n")
  })

  test("several at once leave one matching set", async () => {
    const directory = await temporaryDirectory()
    const runs = await Promise.all([1, 2, 3, 4].map(() => run(directory)))
    for (const { status, err } of runs) expect({ status, err }).toEqual({ status: 0, err: "" })
    expect(runs.filter(({ out }) => out.startsWith("Made"))).toHaveLength(1)
    const files = await snapshot(directory)
    expect(Object.keys(files)).toHaveLength(4)
    expectMatching(files)
  })

  test("device makes each id's files, the CA first, and never outside of devices/", async () => {
    const directory = await temporaryDirectory()
    const ids = ["a", "...", "-rf", "a:b_C-1", LONGEST_ID]
    expect(await run(directory, "device", "--", ...ids)).toMatchObject({ status: 0, err: "" })
    const files = await snapshot(directory)
    const expected = ids.flatMap((id) => [`certs/devices/${id}.crt`, `certs/devices/${id}.key`])
    expect(Object.keys(files).sort()).toEqual(["certs/ca.crt", "certs/ca.key", ...expected].sort())
    for (const id of ids) {
      expectMatching(files, `devices/${id}`)
      const { mode } = await stat(join(directory, `certs/devices/${id}.key`))
      expect(mode & 0o777).toBe(0o600)
    }
  })

  test("device replaces with --force only, and makes the others all the same", async () => {
    const directory = await temporaryDirectory()
    await run(directory, "device", "a")
    const before = await snapshot(directory)
    const refused = await run(directory, "device", "a", "b")
    expect(refused.status).toBe(1)
    expect(refused.err).toContain("certs/devices/a.crt")
    expect(refused.err).toContain("--force")
    const between = await snapshot(directory)
    expect(between).toMatchObject(before)
    expectMatching(between, "devices/b")
    expect((await run(directory, "device", "--force", "a")).status).toBe(0)
    const after = await snapshot(directory)
    expect(after["certs/devices/a.key"]).not.toBe(before["certs/devices/a.key"])
    expect(after["certs/ca.key"]).toBe(before["certs/ca.key"])
    expectMatching(after, "devices/a")
  })

  test("device replaces no other device's certificate, as on a disk that ignores case", async () => {
    const directory = await temporaryDirectory()
    await run(directory, "device", "lock")
    for (const end of ["crt", "key"]) {
      const from = join(directory, `certs/devices/lock.${end}`)
      await copyFile(from, join(directory, `certs/devices/Lock.${end}`))
    }
    const before = await snapshot(directory)
    for (const args of [
      ["device", "Lock"],
      ["device", "--force", "Lock"],
    ]) {
      const refused = await run(directory, ...args)
      expect(refused.status).toBe(1)
      expect(refused.err).toContain("is the certificate of the device lock")
    }
    expect(await snapshot(directory)).toEqual(before)
  })

  test.each([".", "..", "", `${LONGEST_ID}x`, "a\n", "#", "*", "../x"])(
    "device refuses %j with status 2 and makes no device at all",
    async (id) => {
      const directory = await temporaryDirectory()
      const refused = await run(directory, "device", "good", id)
      expect(refused.status).toBe(2)
      expect(refused.err).toContain("1 to 128 characters")
      expect(Object.keys(await snapshot(directory))).toEqual(["certs/ca.crt", "certs/ca.key"])
    },
  )

  test("server replaces its own certificate, another's with --force only", async () => {
    const directory = await temporaryDirectory()
    await run(directory)
    const before = await snapshot(directory)
    const replaced = await run(directory, "server", "--name", "gw.example", "--name", "10.0.0.7")
    expect(replaced).toMatchObject({ status: 0, err: "" })
    expect(replaced.out).toContain("DNS:gw.example, IP Address:10.0.0.7")
    const after = await snapshot(directory)
    expect(after["certs/server.key"]).not.toBe(before["certs/server.key"])
    expectMatching(after)

    const own = await createServerCertificate(await createCertificateAuthority(), [])
    await writeServer(join(directory, "certs"), own)
    const refused = await run(directory, "server")
    expect(refused.status).toBe(1)
    expect(refused.err).toContain("not signed by the development CA")
    expect((await snapshot(directory))["certs/server.key"]).toBe(own.keyPem)
    expect((await run(directory, "server", "--force")).status).toBe(0)
    expectMatching(await snapshot(directory))
    expect((await run(directory, "server", "--name", "a b")).status).toBe(2)
  })

  test("--dir names another directory; what cannot be used is one line and status 1", async () => {
    const directory = await temporaryDirectory()
    expect((await run(directory, "--dir", "other")).status).toBe(0)
    expect(await readdir(directory)).toEqual(["other"])
    await writeFile(join(directory, "file"), "")
    const refused = await run(directory, "--dir", "file/certs")
    expect(refused.status).toBe(1)
    expect(refused.err.trimEnd().split("\n")).toHaveLength(1)
    expect(refused.err).toContain("file/certs")
  })

  test.each([
    [["bogus"]],
    [["--bogus"]],
    [["device"]],
    [["device", "a", "--name", "b"]],
    [["server", "b"]],
    [["server", "--name"]],
    [["--name", "b"]],
    [["--force"]],
    [["--dir="]],
  ])("%j is answered with the usage and status 2", async (args) => {
    const directory = await temporaryDirectory()
    const refused = await run(directory, ...args)
    expect(refused).toMatchObject({ status: 2, out: "" })
    expect(refused.err).toContain("usage: bun run certs")
    expect(await readdir(directory)).toEqual([])
  })

  test("--help shows the usage on stdout", async () => {
    const shown = await run(await temporaryDirectory(), "--help")
    expect(shown).toMatchObject({ status: 0, err: "" })
    expect(shown.out).toContain("usage: bun run certs")
  })
})

function validityDays(certificate: X509Certificate): number {
  return (certificate.validToDate.getTime() - certificate.validFromDate.getTime()) / DAY_MS
}

async function writeServer(directory: string, pair: PemPair): Promise<void> {
  await mkdir(directory, { recursive: true })
  await writeFile(join(directory, "server.crt"), pair.certPem)
  await writeFile(join(directory, "server.key"), pair.keyPem)
}

/** That `stem`'s certificate is its key's and the CA's, in a snapshot of `certs` or its parent. */
function expectMatching(files: Record<string, string>, stem = "server"): void {
  const at = (name: string) => files[name] ?? files[`certs/${name}`] ?? ""
  expectIssued(at("ca.crt"), { certPem: at("ca.crt"), keyPem: at("ca.key") })
  expectIssued(at("ca.crt"), { certPem: at(`${stem}.crt`), keyPem: at(`${stem}.key`) })
}

/**
 * What a client that checks the server's name is sent until the connection ends, however it does.
 */
async function readAll(port: number, ca: string, pair?: PemPair): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const client = pair ? { cert: pair.certPem, key: pair.keyPem } : {}
  const socket = connect({ host: "127.0.0.1", port, ca, ...client })
  let text = ""
  socket.on("data", (chunk) => {
    text += chunk
  })
  socket.on("error", (error) => {
    // The server hangs up on whom it refuses; a complaint about its certificate is a failure here.
    if (!/ECONNRESET|EPIPE|alert|hang up|disconnected/i.test(`${error}`)) reject(error)
  })
  socket.on("close", () => resolve(text))
  return promise
}

async function run(directory: string, ...args: string[]) {
  const child = Bun.spawn([process.execPath, COMMAND, ...args], { cwd: directory, stderr: "pipe" })
  const [out, err, status] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ])
  return { out, err, status }
}
