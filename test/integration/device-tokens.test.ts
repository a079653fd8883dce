/**
 * `DEVICE_AUTH=token`: each algorithm identifies a device, its connection ends with its token, keys
 * are replaced while the gateway runs, and no other token is accepted. With a supervisor, two
 * workers and a real broker.
 */

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test"
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { MAX_TOKEN_LINE_BYTES } from "../../src/device/token-line.ts"
import { BackEnd } from "../support/back-end.ts"
import { expectClosed } from "../support/closed-connections.ts"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import {
  hmacToken,
  type Issuer,
  issuer,
  jwksOf,
  pemOf,
  token,
  unsigned,
} from "../support/tokens.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 90_000
const TIMES = 20
const ISSUER = "https://issuer.test/"
const AUDIENCE = "owsla"
const EDDSA = issuer("EdDSA")
const ES256 = issuer("ES256")
const RS256 = issuer("RS256")
const ALL = [EDDSA, ES256, RS256]
/** Has the id of a known key. */
const STRANGER = issuer("EdDSA", EDDSA.id)
const directory = mkdtempSync(join(tmpdir(), "owsla-tokens-"))
const keysFile = join(directory, "keys")
const queues = ownQueues(uniqueNames("tokens"))
const settings = {
  DEVICE_AUTH: "token",
  TOKEN_KEYS_FILE: keysFile,
  TOKEN_ISSUER: ISSUER,
  TOKEN_AUDIENCE: AUDIENCE,
  DEVICE_ACK: "seq",
}

let broker: TestBroker
let gateway: TestGateway

beforeAll(async () => {
  broker = await sharedRabbitMq()
}, LIMIT_MS)

afterAll(() => rmSync(directory, { recursive: true, force: true }))

function claims(sub: string, changes: Record<string, unknown> = {}) {
  const exp = Math.floor(Date.now() / 1_000) + 3_600
  return { sub, exp, iss: ISSUER, aud: AUDIENCE, ...changes }
}

function firstLine(by: Issuer, sub: string, changes: Record<string, unknown> = {}): string {
  return `TOKEN ${token(by, claims(sub, changes))}`
}

/** Connects and sends these lines in one write. */
async function connect(...lines: string[]): Promise<TestDevice> {
  const device = await connectDevice({ port: gateway.devicePort })
  device.sendBytes(Buffer.from(lines.map((line) => `${line}\n`).join(""))).catch(() => undefined)
  return device
}

async function isAdmitted(first: string): Promise<boolean> {
  const device = await connect(first, "hello")
  const answer = await device.nextLine().catch(() => null)
  device.terminate()
  await device.closed
  return answer === "ACK 0"
}

function replaceKeys(text: string): void {
  writeFileSync(`${keysFile}.new`, text)
  renameSync(`${keysFile}.new`, keysFile)
}

describe("with a supervisor and workers", () => {
  let backEnd: BackEnd

  beforeAll(async () => {
    replaceKeys(jwksOf(...ALL))
    const shared = { AMQP_URL: broker.url, WORKERS: "2", ...queues }
    gateway = await startGateway({ ...settings, ...shared })
    await gateway.ready()
    backEnd = await BackEnd.connect(broker.url, queues)
  }, LIMIT_MS)

  afterEach(async () => expect(await gateway.metric("owsla_faults_total")).toBe(0))

  afterAll(async () => {
    await backEnd?.close()
    await gateway?.stop()
  }, LIMIT_MS)

  test.each(ALL)("a token of $algorithm identifies its device", async (by) => {
    const id = `lock:${by.algorithm}`
    const device = await connect(firstLine(by, id), "one", "two")
    expect(await device.waitLines(2)).toEqual(["ACK 0", "ACK 1"])
    const published = () => backEnd.lines.filter((line) => line.device === id)
    await until(() => published().length === 2, { what: "both lines" })
    expect(published().map(({ body }) => body)).toEqual(["one", "two"])
    device.end()
    await device.closed
  })

  test("a token in pieces, and with CR LF, identifies its device too", async () => {
    const device = await connectDevice({ port: gateway.devicePort })
    const bytes = Buffer.from(`${firstLine(RS256, "slow")}\r\nhello\n`)
    for (const byte of bytes) await device.sendBytes(Buffer.of(byte))
    expect(await device.nextLine()).toBe("ACK 0")
    device.end()
  })

  test("lines directly after the token keep their order, however many", async () => {
    const lines = Array.from({ length: 20_000 }, (_, n) => `line ${n} ${"x".repeat(40)}`)
    const devices = await Promise.all(
      ALL.map((by) => connect(firstLine(by, `hasty-${by.algorithm}`), ...lines)),
    )
    for (const device of devices) {
      const acknowledged = await device.waitLines(lines.length, LIMIT_MS)
      expect(acknowledged).toEqual(lines.map((_, n) => `ACK ${n}`))
    }
    for (const by of ALL) {
      const published = () =>
        backEnd.lines.filter(({ device }) => device === `hasty-${by.algorithm}`)
      await until(() => published().length >= lines.length, { what: "all lines" })
      expect(
        published()
          .map(({ body }) => body)
          .join("\n") === lines.join("\n"),
      ).toBe(true)
    }
    for (const device of devices) device.end()
  }, 90_000)

  test("a device that leaves during the verification leaves nothing behind", async () => {
    const before = await gateway.metric("owsla_connections")
    await Promise.all(
      Array.from({ length: 5 * TIMES }, async (_, n) => {
        const device = await connectDevice({ port: gateway.devicePort })
        await device.sendBytes(Buffer.from(`${firstLine(RS256, `leaver-${n}`)}\nhello\n`))
        device.terminate()
        await device.closed
      }),
    )
    await until(async () => (await gateway.metric("owsla_connections")) <= before, {
      what: "the connections to be gone",
    })
  })

  test("the connection ends as expired when exp passes, and takes its last lines along", async () => {
    const exp = Math.floor(Date.now() / 1_000) + 5
    await expectClosed(gateway, "expired", 1, async () => {
      const device = await connect(firstLine(ES256, "brief", { exp }), "hello")
      expect(await device.nextLine()).toBe("ACK 0")
      const { by } = await within(device.closed, { what: "the end of the token" })
      expect(Date.now()).toBeGreaterThanOrEqual(exp * 1_000)
      expect(by).toBe("peer")
    })
    const ends = () => backEnd.presence.filter((event) => event.device_id === "brief")
    await until(() => ends().some((event) => event.reason === "expired"), { what: "the event" })
    await expectClosed(gateway, "refused", 1, async () => {
      expect(await isAdmitted(firstLine(ES256, "brief", { exp }))).toBe(false)
    })
  })

  test("a new token of the same device takes over before the old one expires", async () => {
    const older = await connect(firstLine(EDDSA, "mover"), "hello")
    await older.nextLine()
    await expectClosed(gateway, "taken_over", 1, async () => {
      const newer = await connect(firstLine(EDDSA, "mover"), "hello")
      expect(await newer.nextLine()).toBe("ACK 0")
      await older.closed
      newer.end()
    })
  })

  describe("another token", () => {
    const good = token(EDDSA, claims("victim"))
    const now = Math.floor(Date.now() / 1_000)
    const flipped = good.slice(0, -2) + (good.at(-2) === "A" ? "B" : "A") + good.slice(-1)

    test.each<[string, string]>([
      ["without signature", `${unsigned({ alg: "none" }, claims("victim"))}.`],
      ["with an HMAC by the public key", hmacToken(pemOf(RS256), claims("victim"))],
      ["with another signature", flipped],
      ["of a stranger", token(STRANGER, claims("victim"))],
      ["of an unknown kid", token(EDDSA, claims("victim"), { kid: "unknown" })],
      ["of another algorithm", token(EDDSA, claims("victim"), { kid: ES256.id })],
      ["with a critical header", token(EDDSA, claims("victim"), { crit: ["x"], x: 1 })],
      ["for another audience", token(EDDSA, claims("victim", { aud: "other" }))],
      ["of another issuer", token(EDDSA, claims("victim", { iss: "other" }))],
      ["without exp", token(EDDSA, claims("victim", { exp: undefined }))],
      ["with exp as text", token(EDDSA, claims("victim", { exp: String(now + 60) }))],
      ["that has expired", token(EDDSA, claims("victim", { exp: now - 1 }))],
      ["for later", token(EDDSA, claims("victim", { nbf: now + 3_600 }))],
      ["without sub", token(EDDSA, claims("victim", { sub: undefined }))],
      ["of a device id that is none", token(EDDSA, claims("vic tim"))],
      ["of a device id that is too long", token(EDDSA, claims("x".repeat(129)))],
      ["with three dots", `${good}.`],
      ["with empty parts", ".."],
    ])("%s is refused, and no line of its device is read", async (_what, text) => {
      const before = await gateway.metric("owsla_lines_in_total")
      await expectClosed(gateway, "refused", TIMES, async () => {
        const attempts = Array.from({ length: TIMES }, () => isAdmitted(`TOKEN ${text}`))
        expect(new Set(await Promise.all(attempts))).toEqual(new Set([false]))
      })
      expect(await gateway.metric("owsla_lines_in_total")).toBe(before)
    })

    test.each<[string, string]>([
      ["empty", ""],
      ["a HELLO", `HELLO victim ${"0".repeat(64)}`],
      ["the token alone", good],
      ["a request", "GET / HTTP/1.1"],
      ["too long", `TOKEN ${"a".repeat(MAX_TOKEN_LINE_BYTES - 5)}`],
    ])("a first line that is %s is not one", async (_what, line) => {
      await expectClosed(gateway, "not_identified", TIMES, async () => {
        const attempts = Array.from({ length: TIMES }, () => isAdmitted(line))
        expect(new Set(await Promise.all(attempts))).toEqual(new Set([false]))
      })
    })

    test("is not in the log, which has the fault", async () => {
      const text = token(EDDSA, claims("victim", { aud: "other" }))
      await expectClosed(gateway, "refused", 1, () => isAdmitted(`TOKEN ${text}`))
      const log = JSON.stringify(gateway.log)
      for (const part of text.split(".")) expect(log).not.toContain(part)
      // A worker logs the first refusal only, which the tests above have caused.
      expect(log).toMatch(/ended as refused: the token /)
    })
  })

  describe("keys that are replaced", () => {
    const later = issuer("EdDSA", "later")

    beforeEach(async () => {
      replaceKeys(jwksOf(...ALL))
      await effective(firstLine(EDDSA, "probe"), true)
    }, LIMIT_MS)

    /** Waits until all workers admit, or refuse, this device. */
    async function effective(first: string, admitted: boolean): Promise<void> {
      // So many connections in a row reach each of two workers.
      const looks = Array.from({ length: TIMES }, () => () => isAdmitted(first))
      await until(
        async () => {
          for (const look of looks) if ((await look()) !== admitted) return false
          return true
        },
        { what: `the keys to ${admitted ? "admit" : "refuse"} the device` },
      )
    }

    test("admit and refuse devices by the new keys, and connected devices stay", async () => {
      const connected = await connect(firstLine(ES256, "connected"), "hello")
      expect(await connected.nextLine()).toBe("ACK 0")
      replaceKeys(pemOf(later))
      await effective(firstLine(later, "newcomer"), true)
      await effective(firstLine(ES256, "connected"), false)
      await connected.send("still here")
      expect(await connected.nextLine()).toBe("ACK 1")
      connected.end()
    }, 90_000)

    test.each<[string, () => void]>([
      ["gone", () => rmSync(keysFile)],
      ["empty", () => writeFileSync(keysFile, "")],
      ["half written", () => writeFileSync(keysFile, jwksOf(...ALL).slice(0, 200))],
      ["without a usable key", () => writeFileSync(keysFile, `{"keys":[]}`)],
      ["weak", () => writeFileSync(keysFile, pemOf(issuer("RS256", "weak", 1_024)))],
    ])("stay in force while the file is %s, with one warning", async (_what, spoil) => {
      const kept = "TOKEN_KEYS_FILE: the last keys stay in force"
      const warnings = () => gateway.log.filter(({ msg }) => msg.startsWith(kept)).length
      const before = warnings()
      spoil()
      await until(() => warnings() > before, { what: "a warning" })
      expect(await isAdmitted(firstLine(EDDSA, "kept"))).toBe(true)
      expect(warnings()).toBe(before + 1)
    })

    test("are those of a worker that is replaced later, also when the file is gone", async () => {
      replaceKeys(jwksOf(later))
      await effective(firstLine(EDDSA, "old"), false)
      rmSync(keysFile)
      const workers = () => gateway.workers()
      const before = new Map(workers())
      for (const pid of before.values()) process.kill(pid, "SIGKILL")
      await until(
        () =>
          gateway.log.filter(({ msg }) => msg === "listening").length >= 4 && workers().size === 2,
        { what: "new workers" },
      )
      await gateway.ready()
      await effective(firstLine(later, "newcomer"), true)
      await effective(firstLine(EDDSA, "old"), false)
    }, 90_000)
  })
})

describe("with the embedded broker", () => {
  afterEach(async () => {
    await gateway?.stop()
  }, LIMIT_MS)

  test("keys are replaced too", async () => {
    replaceKeys(pemOf(EDDSA))
    gateway = await startGateway(settings)
    expect(await isAdmitted(firstLine(EDDSA, "old"))).toBe(true)
    replaceKeys(pemOf(RS256))
    await until(() => isAdmitted(firstLine(RS256, "new")), { what: "the new keys" })
    expect(await isAdmitted(firstLine(EDDSA, "old"))).toBe(false)
  }, 90_000)

  test("a device that sends no whole first line in time is closed", async () => {
    replaceKeys(pemOf(EDDSA))
    gateway = await startGateway({ ...settings, IDENTIFY_TIMEOUT_MS: "1000" })
    await expectClosed(gateway, "not_identified", 2, async () => {
      const silent = await connectDevice({ port: gateway.devicePort })
      const slow = await connectDevice({ port: gateway.devicePort })
      await slow.sendBytes(Buffer.from(firstLine(EDDSA, "slow")))
      await Promise.all([silent.closed, slow.closed])
    })
  }, 90_000)

  test("the start warns when tokens for other services are accepted", async () => {
    replaceKeys(pemOf(EDDSA))
    gateway = await startGateway({ ...settings, TOKEN_AUDIENCE: "", TOKEN_ISSUER: "" })
    expect(gateway.log.map(({ msg }) => msg)).toContain(
      "TOKEN_AUDIENCE is not set: tokens that the issuer has made for other services are accepted too; set TOKEN_AUDIENCE to the audience (aud) that the issuer gives to tokens of devices",
    )
    expect(await isAdmitted(firstLine(EDDSA, "any", { iss: undefined, aud: "other" }))).toBe(true)
  }, 90_000)
})

describe("a gateway does not start", () => {
  test.each<[string, string, string]>([
    ["with a weak key", pemOf(issuer("RS256", "weak", 1_024)), "RSA key of fewer than 2048 bits"],
    ["with an empty file", "", "the file is empty"],
    ["with a private key", `{"keys":[{"kty":"OKP","crv":"Ed25519","d":"AA"}]}`, "private key"],
  ])("%s", async (_what, text, fault) => {
    replaceKeys(text)
    const failure = await startGateway(settings).catch((error: unknown) => String(error))
    expect(failure).toContain("ended with 2")
    expect(failure).toMatch(
      new RegExp(`The configuration has faults:\\s+TOKEN_KEYS_FILE: .*${fault}`),
    )
  })
})
