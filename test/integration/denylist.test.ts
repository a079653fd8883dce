/**
 * Who was let in and has to go: denied by id or by certificate, expired, or overtaken by its own
 * newer connection. And that the TLS session it kept brings nobody back, nor anybody in who never
 * was.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { createHmac } from "node:crypto"
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import {
  type ClientCertificate,
  clientAuthority,
  clientCertificate,
  deviceCertificate,
  deviceUri,
  makeAuthority,
  writeAuthorities,
  writeClientCertificate,
} from "../support/client-certificates.ts"
import { expectClosed } from "../support/closed-connections.ts"
import { startGateway, type TestGateway, testCaFile } from "../support/gateway.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { findProgram } from "../support/tools.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 60_000
const TIMES = 20
/** A change of the file is promised to take effect within 2 s; a busy machine takes longer. */
const EFFECT_MS = 10_000
/**
 * Long enough for four visits on a busy machine, short enough to be waited for: a certificate's
 * whole life.
 */
const SHORT_LIFE_MS = 8_000
const SECRET = "a-secret-of-the-denylist-0123456789"
const VERSIONS = ["-tls1_2", "-tls1_3"]
const directory = mkdtempSync(join(tmpdir(), "owsla-denylist-"))
const denylistFile = join(directory, "denylist")
/** What else may stand in the file, and must not keep the rest from working. */
const NONSENSE = [
  ...["# leaver", "# bystander", "", "   ", "\r", "-", "*", "two words", "/etc/passwd", "\0\x01"],
  ...["v\u0456ctim", "x".repeat(10_000), "ab".repeat(31), `${"ab:".repeat(32)}ab`, "kept-out"],
]

let gateway: TestGateway
/** How many lines the gateway has read of devices that were let in. */
let lines = 0

afterAll(() => rmSync(directory, { recursive: true, force: true }))

describe("DEVICE_AUTH=mtls", () => {
  let bystander: TestDevice
  /** First visits of devices that will come back once something of theirs has expired. */
  let expiry = 0
  const briefly = new Map<string, { certificate: ClientCertificate; session: string }>()

  beforeAll(async () => {
    lines = 0
    deny([])
    gateway = await startGateway({
      DEVICE_AUTH: "mtls",
      TLS_CLIENT_CA_FILE: writeAuthorities([await clientAuthority()], directory),
      DENYLIST_FILE: denylistFile,
      // An answer for each line; with TLS 1.3 the ticket comes with the first of them.
      DEVICE_ACK: "seq",
    })
    bystander = await connect(await deviceCertificate("bystander"))
    for (const version of VERSIONS) {
      const notAfter = new Date(Date.now() + SHORT_LIFE_MS)
      expiry = notAfter.getTime()
      const brief = await makeAuthority("Brief", await clientAuthority(), notAfter)
      const names = [deviceUri(`brief${version}`)]
      const whose = {
        certificate: { names, notAfter },
        "intermediate CA": { names, issuer: brief },
      }
      for (const [what, options] of Object.entries(whose)) {
        const certificate = await clientCertificate(options)
        const session = await keepSession(certificate, version)
        await expectComeback(certificate, version, session)
        briefly.set(what + version, { certificate, session })
      }
    }
  }, LIMIT_MS)

  afterEach(async () => {
    const confirmed = bystander.lines.length
    await bystander.send("still here")
    lines += 1
    await bystander.waitLines(confirmed + 1)
    const expected = lines
    // Set right, so that one test that fails is one.
    lines = await gateway.metric("owsla_lines_in_total")
    expect(lines).toBe(expected)
    expect(await gateway.metric("owsla_faults_total")).toBe(0)
  })

  afterAll(() => gateway?.stop(), LIMIT_MS)

  describe("the file", () => {
    const colons = (hex: string) => hex.toUpperCase().match(/../g)?.join(":") ?? ""
    const denials: [string, (certificate: ClientCertificate) => string, typeof deny][] = [
      ["an id, written in place", () => "leaver", deny],
      ["an id, renamed into place", () => "leaver", denyByRename],
      ["an id with a comment behind it", () => "leaver # stolen", deny],
      [
        "a labelled fingerprint with a comment behind it",
        ({ fingerprint }) => `sha256 Fingerprint=${colons(fingerprint)} # stolen`,
        deny,
      ],
      ["a fingerprint, written in place", ({ fingerprint }) => fingerprint, deny],
      [
        "a fingerprint with colons and CR LF, renamed into place",
        ({ fingerprint }) => `${colons(fingerprint)}\r`,
        denyByRename,
      ],
    ]
    test.each(denials)(
      "%s: closes the device, keeps it out, lets it in again",
      async (_, of, write) => {
        const certificate = await deviceCertificate("leaver")
        const leaver = await connect(certificate)
        await expectClosed(gateway, "denied", 1, async () => {
          write([of(certificate)])
          await within(leaver.closed, { what: "the device to be closed", timeoutMs: EFFECT_MS })
        })
        await expectClosed(gateway, "denied", TIMES, () => times(() => intrude(certificate)))
        write([])
        await letInAgain(certificate)
      },
    )

    test("a fingerprint keeps out one certificate and not its device", async () => {
      const lost = await deviceCertificate("renewed")
      const device = await connect(lost)
      await expectClosed(gateway, "denied", 1, async () => {
        deny([lost.fingerprint])
        await device.closed
      })
      const renewed = await connect(await deviceCertificate("renewed"))
      await expectClosed(gateway, "denied", TIMES, () => times(() => intrude(lost)))
      await speak(renewed)
      renewed.end()
      deny([])
    })

    test("an id that begins like a label denies the device of this id and no other", async () => {
      const certificate = await deviceCertificate("sha256:17")
      const labelled = await connect(certificate)
      const other = await connect(await deviceCertificate("17"))
      await speak(labelled)
      await expectClosed(gateway, "denied", 1 + TIMES, async () => {
        deny(["sha256:17"])
        await within(labelled.closed, { what: "the device to be closed", timeoutMs: EFFECT_MS })
        await times(() => intrude(certificate))
      })
      await speak(other)
      other.end()
      deny([])
    })

    test("a denied certificate does not take over from its device", async () => {
      const lost = await deviceCertificate("target")
      deny([lost.fingerprint])
      await until(async () => !(await isLetIn(lost)), { what: "the list to be in force" })
      const target = await connect(await deviceCertificate("target"))
      await expectClosed(gateway, "denied", TIMES, () => times(() => intrude(lost)))
      await speak(target)
      target.end()
      deny([])
    })

    test.each([
      ["gone", () => rmSync(denylistFile)],
      [
        "a directory",
        () => {
          rmSync(denylistFile)
          mkdirSync(denylistFile)
        },
      ],
      ["empty", () => writeFileSync(denylistFile, "")],
      ["more faulty than before", () => deny(["another fault"])],
    ])("while it is %s its last list stays in force", async (_what, spoil) => {
      const certificate = await deviceCertificate("kept")
      const device = await connect(certificate)
      deny(["kept"])
      await device.closed
      const warnings = () =>
        gateway.log.filter(
          ({ level, msg }) =>
            level === 40 && msg.startsWith("DENYLIST_FILE: the last list stays in force"),
        ).length
      const before = warnings()
      spoil()
      await until(() => warnings() > before, { what: "a warning" })
      await expectClosed(gateway, "denied", TIMES, () => times(() => intrude(certificate)))
      rmSync(denylistFile, { recursive: true, force: true })
      deny([])
      await letInAgain(certificate)
    })
  })

  describe.each(VERSIONS)("a session of %s", (version) => {
    test("does not bring a device back that was denied since", async () => {
      const certificate = await deviceCertificate(`returner${version}`)
      const session = await keepSession(certificate, version)
      await expectComeback(certificate, version, session)
      for (const line of [`returner${version}`, certificate.fingerprint]) {
        const connected = await connect(certificate)
        deny([line])
        await connected.closed
        await expectClosed(gateway, "denied", TIMES, () =>
          expectNoComeback(certificate, version, session),
        )
        deny([])
        await letInAgain(certificate)
      }
      await expectComeback(certificate, version, session)
    })

    test.each(["certificate", "intermediate CA"])(
      "does not outlive the %s",
      async (what) => {
        const { certificate, session } = briefly.get(what + version) ?? {}
        if (certificate === undefined || session === undefined)
          throw new Error("no session was kept")
        await until(() => Date.now() > expiry, { what: "it to expire" })
        await expectClosed(gateway, "refused", TIMES, () => times(() => intrude(certificate)))
        await expectClosed(gateway, "refused", TIMES, () =>
          expectNoComeback(certificate, version, session),
        )
      },
      LIMIT_MS,
    )

    const names = [deviceUri("bystander")]
    test.each<[string, () => Promise<ClientCertificate>]>([
      [
        "that has expired",
        () => clientCertificate({ names, notAfter: new Date(Date.now() - 2_000) }),
      ],
      ["that signed itself", () => clientCertificate({ names, issuer: "self" })],
      [
        "of another CA",
        async () => clientCertificate({ names, issuer: await makeAuthority("Owsla test clients") }),
      ],
      ["of a server", () => clientCertificate({ names, purpose: "serverAuth" })],
      ["with a hostile name", () => deviceCertificate("*")],
      ["with two names", () => clientCertificate({ names: [...names, deviceUri("other")] })],
    ])("of a certificate %s lets nobody in", async (_what, make) => {
      const certificate = await make()
      const session = join(directory, crypto.randomUUID())
      await expectClosed(gateway, "refused", 1, () =>
        visit(certificate, version, ["-sess_out", session]),
      )
      // With TLS 1.3 there is none where the gateway closed before it had sent a ticket.
      if (!existsSync(session)) expect(version).toBe("-tls1_3")
      else {
        await expectClosed(gateway, "refused", TIMES, () =>
          expectNoComeback(certificate, version, session),
        )
      }
    })
  })

  describe("a newer connection of the same device", () => {
    test("closes the older and is the one that commands reach", async () => {
      const older = await connect(await deviceCertificate("mover"))
      await speak(older)
      await expectClosed(gateway, "taken_over", 1, async () => {
        const newer = await connect(await deviceCertificate("mover"))
        await older.closed
        await speak(newer)
        for (const body of ["one", "two"]) expect(await send("mover", body)).toBe("written")
        expect(await newer.waitLines(3)).toEqual(["ACK 0", "one", "two"])
        expect(older.lines).toEqual(["ACK 0"])
        newer.end()
        await newer.closed
      })
      await until(async () => (await send("mover", "anybody?")) === "offline", { what: "it to go" })
    })

    test("is the only one left when many come at once", async () => {
      const certificate = await deviceCertificate("herd")
      await expectClosed(gateway, "taken_over", TIMES - 1, async () => {
        const herd = await Promise.all(Array.from({ length: TIMES }, () => connect(certificate)))
        const open = new Set(herd)
        for (const device of herd) void device.closed.then(() => open.delete(device))
        await until(() => open.size === 1, { what: "one to be left" })
        expect(await send("herd", "you alone")).toBe("written")
        for (const device of open) expect(await device.nextLine()).toBe("you alone")
        expect(herd.flatMap((device) => device.lines)).toEqual(["you alone"])
        for (const device of open) device.end()
      })
    })
  })
})

describe("DEVICE_AUTH=hello", () => {
  const hello = `HELLO leaver ${createHmac("sha256", SECRET).update("leaver").digest("hex")}\n`

  beforeAll(async () => {
    lines = 0
    deny([])
    gateway = await startGateway({
      DEVICE_AUTH: "hello",
      HELLO_SECRETS: SECRET,
      DENYLIST_FILE: denylistFile,
      DEVICE_ACK: "seq",
    })
  }, LIMIT_MS)

  afterAll(() => gateway?.stop(), LIMIT_MS)

  test("an id closes the device, keeps it out, lets it in again", async () => {
    const [leaver, silent] = await Promise.all([connect(), connect()])
    await leaver.sendBytes(Buffer.from(hello))
    await speak(leaver)
    await expectClosed(gateway, "denied", 2, async () => {
      deny(["leaver"])
      await within(leaver.closed, { what: "the device to be closed", timeoutMs: EFFECT_MS })
      // It was connected before the change and says who it is after it.
      await silent.sendBytes(Buffer.from(`${hello}intruder\n`))
      await silent.closed
    })
    const knock = () => intrude(undefined, `${hello}intruder\n`)
    await expectClosed(gateway, "denied", TIMES, () => times(knock))
    deny([])
    const letIn = () => isLetIn(undefined, `${hello}hello again\n`)
    await until(letIn, { what: "the device to be let in again" })
    expect(await gateway.metric("owsla_lines_in_total")).toBe(lines)
    expect(await gateway.metric("owsla_faults_total")).toBe(0)
  })
})

/** Writes the list: these lines after others that mean nothing, or nobody who is here. */
function deny(denied: string[], path = denylistFile): void {
  writeFileSync(path, [...NONSENSE, ...denied].map((line) => `${line}\n`).join(""))
}

function denyByRename(denied: string[]): void {
  deny(denied, `${denylistFile}.new`)
  renameSync(`${denylistFile}.new`, denylistFile)
}

/** All have ended when one is found to have failed. */
async function times(attempt: () => Promise<unknown>): Promise<void> {
  const attempts = Array.from({ length: TIMES }, attempt)
  await Promise.allSettled(attempts)
  await Promise.all(attempts)
}

function connect(certificate?: ClientCertificate): Promise<TestDevice> {
  const tls = certificate === undefined ? {} : { cert: certificate.cert, key: certificate.key }
  return connectDevice({ port: gateway.devicePort, tls })
}

/** Sends a line and sees it confirmed. */
async function speak(device: TestDevice): Promise<void> {
  await device.send("hello")
  expect(await device.nextLine()).toBe("ACK 0")
  lines += 1
}

/** A new session, `bytes` right behind its handshake, then nothing until the gateway closes. */
async function intrude(certificate?: ClientCertificate, bytes = "intruder\n"): Promise<void> {
  const device = await connect(certificate)
  device.sendBytes(Buffer.from(bytes)).catch(() => undefined)
  const answer = await device.nextLine().catch(() => null)
  if (answer !== null) device.terminate()
  await device.closed
  expect(answer).toBeNull()
}

/** A new session, one line, and whether that was confirmed. */
async function isLetIn(certificate?: ClientCertificate, bytes = "hello\n"): Promise<boolean> {
  const device = await connect(certificate)
  device.sendBytes(Buffer.from(bytes)).catch(() => undefined)
  const confirmed = await device.nextLine().then(
    () => true,
    () => false,
  )
  if (confirmed) lines += 1
  device.end()
  await device.closed
  return confirmed
}

async function letInAgain(certificate: ClientCertificate): Promise<void> {
  await until(() => isLetIn(certificate), {
    what: "the device to be let in again",
    timeoutMs: EFFECT_MS,
  })
}

/**
 * One visit of `openssl s_client`, which sends a line at once and leaves when that is confirmed, or
 * when it is shown the door. What it says of the session is in its output.
 */
async function visit(certificate: ClientCertificate, version: string, args: string[]) {
  const { certFile, chainFile, keyFile } = writeClientCertificate(certificate, directory)
  const program = Bun.spawn(
    [
      ...[findProgram("openssl", "openssl"), "s_client", "-connect"],
      ...[`localhost:${gateway.devicePort}`, "-servername", "localhost", "-CAfile", testCaFile()],
      ...["-cert", certFile, "-key", keyFile, "-nocommands", version, ...args],
      ...(certificate.chain === "" ? [] : ["-cert_chain", chainFile]),
    ],
    { stdio: ["pipe", "pipe", "ignore"] },
  )
  try {
    program.stdin.write("intruder\n")
    await program.stdin.flush()
  } catch {
    // It was shown the door before it could speak.
  }
  let output = ""
  let confirmed = false
  for await (const chunk of program.stdout) {
    output += Buffer.from(chunk).toString("latin1")
    if (confirmed || !output.includes("ACK 0")) continue
    confirmed = true
    lines += 1
    await program.stdin.end()
  }
  await program.exited
  return { output, confirmed }
}

/** A first visit; the path of the session that is kept of it. */
async function keepSession(certificate: ClientCertificate, version: string): Promise<string> {
  const session = join(directory, crypto.randomUUID())
  const { output, confirmed } = await visit(certificate, version, ["-sess_out", session])
  expect(output).toMatch(/^New, TLSv1/m)
  expect(confirmed).toBe(true)
  return session
}

async function expectComeback(certificate: ClientCertificate, version: string, session: string) {
  const { output, confirmed } = await visit(certificate, version, ["-sess_in", session])
  expect(output).toMatch(/^Reused, TLSv1/m)
  expect(confirmed).toBe(true)
}

async function expectNoComeback(certificate: ClientCertificate, version: string, session: string) {
  await times(async () => {
    const { output, confirmed } = await visit(certificate, version, ["-sess_in", session])
    expect(output).toMatch(/^Reused, TLSv1/m)
    expect(confirmed).toBe(false)
  })
}

async function send(deviceId: string, body: string): Promise<string> {
  const headers = { "content-type": "text/plain" }
  const path = `/devices/${deviceId}/send`
  const response = await gateway.fetch(path, { method: "POST", body, headers })
  const { outcome, error } = (await response.json()) as {
    outcome?: string
    error?: { code: string }
  }
  return outcome ?? error?.code ?? ""
}
