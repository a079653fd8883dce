/**
 * What a device is offered in TLS: versions, suites and the length of records, as seen by `openssl`
 * and `gnutls-cli`.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { connect } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { sendToOnlyDevice } from "../support/only-device.ts"
import { rsaCertificateFiles } from "../support/server-certificates.ts"
import { connectDevice } from "../support/tls-device.ts"
import { HANDSHAKE, measureRecords } from "../support/tls-records.ts"
import {
  findProgram,
  gnutlsDevice,
  opensslDevice,
  type ProgramDevice,
  type ProgramDeviceOptions,
} from "../support/tools.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 60_000
/** OpenSSL refuses old versions and weak suites by itself at any other level. */
const EVEN_WEAK = "@SECLEVEL=0"
const directory = mkdtempSync(join(tmpdir(), "owsla-tls-"))
const rsaFiles = rsaCertificateFiles(directory)

afterAll(() => rmSync(directory, { recursive: true, force: true }))

/** A handshake of `openssl s_client`: what was negotiated, or the alert of the gateway. */
async function negotiate(port: number, ...args: string[]): Promise<string | undefined> {
  const client = Bun.spawn(
    [
      ...[findProgram("openssl", "openssl"), "s_client", "-brief", ...args],
      ...["-connect", `127.0.0.1:${port}`],
    ],
    { stdin: "ignore", stdout: "ignore", stderr: "pipe" },
  )
  const output = await client.stderr.text()
  await client.exited
  const version = /^Protocol version: (.*)$/m.exec(output)?.[1]
  const suite = /^Ciphersuite: (.*)$/m.exec(output)?.[1]
  if (suite !== undefined) return `${version} ${suite}`
  return /alert [a-z ]+[a-z]/.exec(output)?.[0]
}

/** Each suite of TLS 1.2 and below that OpenSSL can offer. */
function opensslSuites(): string[] {
  const command = [findProgram("openssl", "openssl"), "ciphers", "-s", "-tls1_2"]
  const listed = Bun.spawnSync([...command, `ALL:${EVEN_WEAK}`])
  if (!listed.success) throw new Error(`no list of suites: ${listed.stderr}`)
  return listed.stdout.toString().trim().split(":")
}

describe.each(["ECDSA", "RSA"])("with a certificate with an %s key", (kind) => {
  const offered = [
    `ECDHE-${kind}-AES256-GCM-SHA384`,
    `ECDHE-${kind}-CHACHA20-POLY1305`,
    `ECDHE-${kind}-AES128-GCM-SHA256`,
  ]
  let gateway: TestGateway

  beforeAll(async () => {
    gateway = await startGateway(kind === "RSA" ? rsaFiles : {})
  }, LIMIT_MS)
  afterAll(() => gateway?.stop(), LIMIT_MS)

  test("TLS 1.2 has ECDHE with AEAD", async () => {
    for (const suite of offered) {
      const negotiated = await negotiate(gateway.devicePort, "-tls1_2", "-cipher", suite)
      expect(negotiated).toBe(`TLSv1.2 ${suite}`)
    }
  })

  test("TLS 1.2 has no other suite", async () => {
    const others = opensslSuites().filter((suite) => !offered.includes(suite))
    for (const weak of ["AES128-SHA", "AES128-GCM-SHA256", `ECDHE-${kind}-AES128-SHA`]) {
      expect(others).toContain(weak)
    }
    const list = `${others.join(":")}:${EVEN_WEAK}`
    const negotiated = await negotiate(gateway.devicePort, "-tls1_2", "-cipher", list)
    expect(negotiated).toBe("alert handshake failure")
  })

  test("a device chooses between AES-256 and ChaCha20, and gets AES-128 only without them", async () => {
    const [aes256 = "", chacha = "", aes128 = ""] = offered
    for (const [first, second] of [
      [aes256, chacha],
      [chacha, aes256],
    ] as const) {
      for (const order of [
        [first, second, aes128],
        [aes128, first, second],
      ]) {
        const list = order.join(":")
        const negotiated = await negotiate(gateway.devicePort, "-tls1_2", "-cipher", list)
        expect(negotiated).toBe(`TLSv1.2 ${first}`)
      }
    }
  })

  test.each(["-tls1", "-tls1_1"])("%s is refused", async (version) => {
    const negotiated = await negotiate(
      ...[gateway.devicePort, version, "-cipher", `ALL:${EVEN_WEAK}`],
    )
    expect(negotiated).toBe("alert protocol version")
  })

  test("TLS 1.3 has its own suites", async () => {
    const negotiated = await negotiate(gateway.devicePort, "-tls1_3")
    expect(negotiated).toStartWith("TLSv1.3 TLS_")
  })

  test.each([
    ["TLS 1.2 with AES-GCM", "NORMAL:-VERS-ALL:+VERS-TLS1.2", true],
    [
      "TLS 1.2 with CBC",
      "NORMAL:-VERS-ALL:+VERS-TLS1.2:-CIPHER-ALL:+AES-128-CBC:+AES-256-CBC",
      false,
    ],
    [
      "TLS 1.2 without forward secrecy",
      "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+RSA:+DHE-RSA",
      false,
    ],
  ])("gnutls-cli connects with %s: %p %p", async (_, priority, can) => {
    const failures = () => gateway.metric("owsla_connections_closed_total", "handshake_failed")
    const before = await failures()
    const device = gnutlsDevice({ port: gateway.devicePort, args: [`--priority=${priority}`] })
    if (can) {
      expect(await sendToOnlyDevice(gateway, "welcome")).toBe("written")
      expect(await device.waitLines(1)).toEqual(["welcome"])
      await device.close()
    } else {
      const { exitCode } = await within(device.closed, { what: "gnutls-cli to end" })
      expect(exitCode).not.toBe(0)
      await until(async () => (await failures()) === before + 1, { what: "the failed handshake" })
    }
  })
})

test(
  "TLS_MIN_VERSION=1.3 refuses TLS 1.2",
  async () => {
    const gateway = await startGateway({ TLS_MIN_VERSION: "1.3" })
    try {
      expect(await negotiate(gateway.devicePort, "-tls1_2")).toBe("alert protocol version")
      expect(await negotiate(gateway.devicePort)).toStartWith("TLSv1.3 TLS_")
    } finally {
      await gateway.stop()
    }
  },
  LIMIT_MS,
)

test(
  "a refused handshake ends with an alert and is not reset",
  async () => {
    const gateway = await startGateway()
    try {
      // A ClientHello of TLS 1.1 with the suite AES128-SHA and without extensions.
      const hello = Buffer.concat([
        Buffer.from("160302002d010000290302", "hex"),
        Buffer.alloc(32),
        Buffer.from("000002002f0100", "hex"),
      ])
      const received: Buffer[] = []
      const { promise: ended, resolve } = Promise.withResolvers<string>()
      const client = connect(gateway.devicePort, "127.0.0.1", () => client.write(hello))
      client.on("data", (chunk) => received.push(Buffer.from(chunk)))
      client.on("error", (error) => resolve(error.message))
      client.on("end", () => resolve("closed"))
      expect(await within(ended, { what: "the end of the connection" })).toBe("closed")
      const [fatal, protocolVersion] = [2, 70]
      expect([...Buffer.concat(received).subarray(-2)]).toEqual([fatal, protocolVersion])
    } finally {
      await gateway.stop()
    }
  },
  LIMIT_MS,
)

/** What a device is called, how it connects, and the bytes that its cipher adds to a record. */
const devices: [string, (options: ProgramDeviceOptions) => ProgramDevice, string, number][] = [
  ["openssl, TLS 1.3", opensslDevice, "-tls1_3", 17],
  ["openssl, TLS 1.2 with AES-GCM", opensslDevice, "-tls1_2", 24],
  ["openssl, TLS 1.2 with ChaCha20", opensslDevice, "-cipher=ECDHE+CHACHA20", 16],
  ["gnutls-cli, TLS 1.3", gnutlsDevice, "--priority=NORMAL:-VERS-ALL:+VERS-TLS1.3", 17],
  ["gnutls-cli, TLS 1.2", gnutlsDevice, "--priority=NORMAL:-VERS-ALL:+VERS-TLS1.2", 24],
]

describe.each([512, 1_000, 16_384])("TLS_MAX_RECORD_BYTES=%d", (max) => {
  let gateway: TestGateway
  let published = ""
  const following = new AbortController()

  beforeAll(async () => {
    gateway = await startGateway({ ...rsaFiles, TLS_MAX_RECORD_BYTES: String(max) })
    const response = await gateway.fetch("/messages", { signal: following.signal })
    const read = async () => {
      for await (const chunk of response.body ?? []) published += Buffer.from(chunk).toString()
    }
    read().catch(() => undefined)
    await until(() => published !== "", { what: "the stream of lines to begin" })
  }, LIMIT_MS)
  afterAll(async () => {
    following.abort()
    await gateway?.stop()
  }, LIMIT_MS)

  test.each(devices)(
    "%s: lines and commands of several records",
    async (name, start, arg, added) => {
      const records = await measureRecords(gateway.devicePort)
      const version = arg.startsWith("-cipher=") ? ["-tls1_2", ...arg.split("=")] : [arg]
      const device = start({ port: records.port, host: "127.0.0.1", args: version })
      try {
        const line = `${name} ${"up".repeat(20_000)}`
        await device.send(line)
        await until(() => published.includes(JSON.stringify(line)), { what: "the published line" })
        const command = `${name} ${"down".repeat(10_000)}`
        expect(await sendToOnlyDevice(gateway, command)).toBe("written")
        expect(await device.waitLines(1)).toEqual([command])
        // Full records, and none longer.
        expect(records.longest).toBe(max + added)
      } finally {
        await device.close()
        records.stop()
      }
    },
  )

  test("the handshake has no longer records either", async () => {
    const records = await measureRecords(gateway.devicePort)
    try {
      // Only in TLS 1.2 the types of its records can be seen.
      expect(await negotiate(records.port, "-tls1_2")).toStartWith("TLSv1.2")
      const handshake = records.sent.filter(({ type }) => type === HANDSHAKE)
      const longest = Math.max(...handshake.map(({ bytes }) => bytes))
      if (max === 512) expect(longest).toBe(512)
      // The certificate has more than 512 bytes and fits into one full record.
      else expect(longest).toBeGreaterThan(512)
      expect(longest).toBeLessThanOrEqual(max)
    } finally {
      records.stop()
    }
  })
})

test(
  "commands in small records arrive whole at a device that does not read for a while",
  async () => {
    const gateway = await startGateway({
      TLS_MAX_RECORD_BYTES: "512",
      MAX_OUTGOING_BYTES: "67108864",
      SEND_TIMEOUT_MS: "60000",
      // Each command waits in a connection of its own.
      MAX_HTTP_CONNECTIONS: "1000",
    })
    try {
      const device = await connectDevice({ port: gateway.devicePort })
      device.pause()
      const commands = Array.from({ length: 200 }, (_, n) => `${n} ${"x".repeat(60_000 + n)}`)
      const sent = commands.map((command) => sendToOnlyDevice(gateway, command))
      const waitingBytes = async () => {
        const { devices } = (await (await gateway.fetch("/devices")).json()) as {
          devices: { outgoing_bytes: number }[]
        }
        return devices[0]?.outgoing_bytes ?? 0
      }
      // Then the socket accepts only parts of what is offered to it.
      await until(async () => (await waitingBytes()) > 1_000_000, { what: "bytes that wait" })
      device.resume()
      expect(new Set(await Promise.all(sent))).toEqual(new Set(["written"]))
      const lines = await device.waitLines(commands.length)
      expect(new Set(lines)).toEqual(new Set(commands))
      device.terminate()
    } finally {
      await gateway.stop()
    }
  },
  LIMIT_MS,
)
