/**
 * Who is let in: by certificate and by first line, what each good device is called, and that of a
 * device which was not let in no byte goes any further.
 *
 * A device called `victim` is connected all along. Whoever tries to get in under its name, or under
 * one that only looks like it, must not disturb it.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { createHmac } from "node:crypto"
import { mkdtempSync, rmSync } from "node:fs"
import net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import {
  type AlternativeName,
  type ClientCertificate,
  type ClientCertificateOptions,
  clientAuthority,
  clientCertificate,
  deviceCertificate,
  deviceUri,
  type Issuer,
  makeAuthority,
  writeAuthorities,
} from "../support/client-certificates.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const TIMES = 20
// They work as numbers and are not in the types.
const TLS_1_2 = { minVersion: 0x0303, maxVersion: 0x0303 } as Bun.TLSOptions
const TLS_1_3 = { minVersion: 0x0304, maxVersion: 0x0304 } as Bun.TLSOptions
const LONGEST_ID = "x".repeat(128)
/** Longer than what else a device sends in one TLS record before it is admitted. */
const LONG_LINE = `long${"g".repeat(5_000)}`
const A_CONNECTION_ID = "gw1.0.mb2k3f9zq7x2.1a"
const SECRETS = ["the-older-secret-of-32-characters", "the-newer/secret+of~32.characters"] as const

type Kind = () => ClientCertificateOptions | Promise<ClientCertificateOptions>

/** A gateway, what good devices sent to it and what came out of it since the last look at both. */
interface Site {
  readonly gateway: TestGateway
  readonly sent: { device_id: string; line: string; from_device_seq: number }[]
  readonly events: { connection_id: string }[]
  linesBefore: number
  readonly victim: TestDevice
  readonly victimsConnectionId: string
  victimSeq: number
  readonly stop: () => Promise<void>
}

async function startSite(
  settings: Record<string, string>,
  connectVictim: (port: number) => Promise<TestDevice>,
): Promise<Site> {
  const gateway = await startGateway({ DEVICE_ACK: "seq", ...settings })
  const following = new AbortController()
  const response = await gateway.fetch("/messages", { signal: following.signal })
  const events: Site["events"] = []
  const begun = Promise.withResolvers<void>()
  const reading = (async () => {
    let text = ""
    for await (const chunk of response.body ?? []) {
      text += Buffer.from(chunk).toString()
      const lines = text.split("\n")
      text = lines.pop() ?? ""
      for (const line of lines)
        if (line.startsWith("data: ")) events.push(JSON.parse(line.slice(6)))
      begun.resolve()
    }
  })().catch(() => undefined)
  await begun.promise
  const victim = await connectVictim(gateway.devicePort)
  await victim.send("I am the victim")
  const first = await until(() => events.shift(), { what: "the victim's first line" })
  const stop = async () => {
    following.abort()
    await reading
    await gateway.stop()
  }
  const state = { victimsConnectionId: first.connection_id, victimSeq: 1, linesBefore: 1 }
  expect(await victim.nextLine()).toBe("ACK 0")
  return { gateway, sent: [], events, victim, ...state, stop }
}

/** Sends a line and sees it confirmed; it is expected among the events under this device id. */
async function speak(site: Site, device: TestDevice, deviceId: string, line: string, seq = 0) {
  await device.send(line)
  expect(await device.nextLine()).toBe(`ACK ${seq}`)
  site.sent.push({ device_id: deviceId, line, from_device_seq: seq })
}

/** Runs `act` and waits until exactly `count` more connections have ended for `reason`. */
async function expectClosed(
  site: Site,
  reason: string,
  act: () => Promise<unknown>,
  count = TIMES,
) {
  const metric = () => site.gateway.metric("owsla_connections_closed_total", reason)
  const before = await metric()
  await act()
  await until(async () => (await metric()) >= before + count, {
    what: `${count} connections to end as ${reason}`,
  })
  expect(await metric()).toBe(before + count)
}

/**
 * What must hold whoever tried to get in: the victim is there, and only the good devices' lines
 * were read and came out. Then these are forgotten, so that one test that fails is one.
 */
async function expectUndisturbed(site: Site) {
  const { gateway, sent, events, victim } = site
  try {
    await speak(site, victim, "victim", "undisturbed", site.victimSeq)
    site.victimSeq += 1
    const last = sent.at(-1)
    await until(() => events.some((event) => Bun.deepMatch(last ?? {}, event)), {
      what: "the event of the victim's line",
    })
    expect(events).toMatchObject(sent)
    // The victim's line is the last that was read; what a stranger sent before it would be counted
    // by now.
    const read = await gateway.metric("owsla_lines_in_total")
    expect(read - site.linesBefore).toBe(sent.length)
    expect(await gateway.metric("owsla_faults_total")).toBe(0)
  } finally {
    sent.length = 0
    events.length = 0
    site.linesBefore = await gateway.metric("owsla_lines_in_total")
  }
}

/** A handshake, `bytes` right behind it, then nothing until the gateway closes. */
async function intrude(port: number, tls: Bun.TLSOptions, bytes = "intruder\n") {
  let device: TestDevice
  try {
    device = await connectDevice({ port, tls })
  } catch {
    // Refused within the handshake, as TLS 1.2 refuses a device without a certificate.
    return
  }
  device.sendBytes(Buffer.from(bytes)).catch(() => undefined)
  const answer = await device.nextLine().catch(() => null)
  if (answer !== null) device.terminate()
  await device.closed
  expect(answer).toBeNull()
}

/**
 * Half of the attempts with each version of TLS. All have ended when one is found to have failed.
 */
async function twentyTimes(attempt: (tls: Bun.TLSOptions) => Promise<unknown>): Promise<void> {
  const attempts = Array.from({ length: TIMES }, (_, at) => attempt(at % 2 ? TLS_1_2 : TLS_1_3))
  await Promise.allSettled(attempts)
  await Promise.all(attempts)
}

/**
 * A port that leads to the gateway and withholds what the device sends after its first packet until
 * there is a TLS record of over 4,000 bytes, then hands it on in one piece: with TLS 1.3 the end of
 * the handshake and the first application bytes.
 */
async function inOnePacket(port: number, act: (port: number) => Promise<unknown>) {
  const sockets: net.Socket[] = []
  const proxy = net.createServer((inbound) => {
    const outbound = net.connect(port, "127.0.0.1")
    for (const socket of [inbound, outbound]) sockets.push(socket.on("error", () => undefined))
    outbound.pipe(inbound)
    let withheld: Buffer | null = null
    inbound.on("data", (chunk: Buffer) => {
      if (withheld === null) {
        withheld = Buffer.alloc(0)
        outbound.write(chunk)
        return
      }
      withheld = Buffer.concat([withheld, chunk])
      for (let at = 0; at + 5 <= withheld.length; ) {
        const length = withheld.readUInt16BE(at + 3)
        at += 5 + length
        if (length > 4_000 && at <= withheld.length) outbound.write(withheld)
      }
    })
    inbound.on("close", () => outbound.destroy())
  })
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve))
  try {
    await act((proxy.address() as net.AddressInfo).port)
  } finally {
    for (const socket of sockets) socket.destroy()
    proxy.close()
  }
}

describe("DEVICE_AUTH=mtls", () => {
  const directory = mkdtempSync(join(tmpdir(), "owsla-identity-"))
  let otherAuthority: Issuer
  let site: Site

  beforeAll(async () => {
    otherAuthority = await makeAuthority("Other test clients")
    const authorities = [await clientAuthority(), otherAuthority]
    const { cert, key } = await deviceCertificate("victim")
    site = await startSite(
      { DEVICE_AUTH: "mtls", TLS_CLIENT_CA_FILE: writeAuthorities(authorities, directory) },
      (port) => connectDevice({ port, tls: { cert, key } }),
    )
  }, LIMIT_MS)

  afterEach(() => expectUndisturbed(site))

  afterAll(async () => {
    await site?.stop()
    rmSync(directory, { recursive: true, force: true })
  }, LIMIT_MS)

  const connect = ({ cert, key }: ClientCertificate) =>
    connectDevice({ port: site.gateway.devicePort, tls: { cert, key } })

  const uri = (id: string): AlternativeName[] => [deviceUri(id)]
  const dns = (value: string): AlternativeName => ({ type: "dns", value })
  const intermediate = async () => makeAuthority("Intermediate", await clientAuthority())

  test.each<[string, string, Kind]>([
    ["a URI", "lock-17", () => ({ names: uri("lock-17") })],
    ["a CN", "lock-18", () => ({ subject: [{ CN: "lock-18" }] })],
    ["both, the URI", "lock-19", () => ({ names: uri("lock-19"), subject: [{ CN: "other" }] })],
    [
      "a URI, not two CNs",
      "lock-20",
      () => ({ names: uri("lock-20"), subject: [{ CN: "a" }, { CN: "b" }] }),
    ],
    ["a URI of 128 characters", LONGEST_ID, () => ({ names: uri(LONGEST_ID) })],
    ["a URI with : and .", "eui:00.1A_-x", () => ({ names: uri("eui:00.1A_-x") })],
    ["a CN with : and .", "eui:00.1B_-x", () => ({ subject: [{ CN: "eui:00.1B_-x" }] })],
    ["a URI beside a DNS name", "lock-21", () => ({ names: [dns("a.b"), ...uri("lock-21")] })],
    [
      "a CN beside a DNS name",
      "lock-22",
      () => ({ names: [dns("a.b")], subject: [{ CN: "lock-22" }] }),
    ],
    [
      "a URI of ours beside another",
      "lock-23",
      () => ({
        names: [{ type: "uri", value: "https://a/urn:owsla:device:b" }, ...uri("lock-23")],
      }),
    ],
    [
      "a URI, signed by an intermediate CA,",
      "lock-24",
      async () => ({ names: uri("lock-24"), issuer: await intermediate() }),
    ],
    [
      "a URI, signed by the file's other CA,",
      "lock-25",
      () => ({ names: uri("lock-25"), issuer: otherAuthority }),
    ],
  ])("%s names the device", async (_what, deviceId, kind) => {
    const device = await connect(await clientCertificate(await kind()))
    await speak(site, device, deviceId, "hello")
    const sent = await site.gateway.fetch(`/devices/${deviceId}/send`, {
      method: "POST",
      body: "for you",
      headers: { "content-type": "text/plain" },
    })
    expect(await sent.json()).toMatchObject({ outcome: "written" })
    expect(await device.nextLine()).toBe("for you")
    device.end()
    await device.closed
  })

  test("without a certificate none is let in", () =>
    expectClosed(site, "not_identified", () =>
      twentyTimes((version) => intrude(site.gateway.devicePort, version)),
    ))

  const spelled = "x, URI:urn:owsla:device:victim"
  const hiddenName = [{ CN: "lock-1" }, { O: "x", CN: "victim" }]
  const badIds = [
    ...[
      "",
      "x".repeat(129),
      "x".repeat(300),
      "#",
      "*",
      "vic tim",
      "victim ",
      " victim",
      "victim/send",
    ],
    ...[
      "victim\n",
      "a\nURI:urn:owsla:device:victim",
      "victim\0",
      "victim\0.b",
      "%76ictim",
      "v\u0456ctim",
    ],
    ...['victim"', "a, URI:urn:owsla:device:victim", "victim,", "victim\\", A_CONNECTION_ID],
  ]
  const badNames: AlternativeName["type"][] = ["dns", "email", "uri", "directory", "other"]
  test.each<[string, Kind]>([
    ["has expired", () => ({ names: uri("victim"), notAfter: new Date(Date.now() - 2_000) })],
    [
      "is not yet valid",
      () => ({ names: uri("victim"), notBefore: new Date(Date.now() + 60_000) }),
    ],
    ["signed itself", () => ({ names: uri("victim"), issuer: "self" })],
    [
      "is of a CA that is not known",
      async () => ({ names: uri("victim"), issuer: await makeAuthority("Unknown CA") }),
    ],
    [
      "is of a CA that bears the name of ours",
      async () => ({ names: uri("victim"), issuer: await makeAuthority("Owsla test clients") }),
    ],
    [
      "was signed by a device",
      async () => ({ names: uri("victim"), issuer: (await deviceCertificate("lock-1")).issuer }),
    ],
    [
      "comes without the intermediate CA that signed it",
      async () => ({ names: uri("victim"), issuer: { ...(await intermediate()), chain: [] } }),
    ],
    ["is for a server only", () => ({ names: uri("victim"), purpose: "serverAuth" })],
    ["has no name", () => ({})],
    ["has an empty CN", () => ({ subject: [{ CN: "" }] })],
    ["has two CNs", () => ({ subject: [{ CN: "victim" }, { CN: "other" }] })],
    ["has two CNs in one RDN", () => ({ subject: [{ CN: ["victim", "other"] }] })],
    ["has a second CN beside another attribute", () => ({ subject: hiddenName })],
    ["has a CN of 300 characters", () => ({ subject: [{ CN: "x".repeat(300) }] })],
    ["has the CN of a connection", () => ({ subject: [{ CN: A_CONNECTION_ID }] })],
    ["spells a CN in its CN", () => ({ subject: [{ CN: "x\nCN=victim" }] })],
    ["spells a CN beside its CN", () => ({ subject: [{ CN: "x + CN=victim" }] })],
    ["spells a CN beside its O", () => ({ subject: [{ O: "x + CN=victim" }] })],
    ["spells a CN below its O", () => ({ subject: [{ O: "x\nCN=victim" }] })],
    ["spells a CN in its CN, in one line", () => ({ subject: [{ CN: "x, CN=victim" }] })],
    ["spells a URI in its CN", () => ({ subject: [{ CN: spelled }] })],
    ["has a NUL in its CN", () => ({ subject: [{ CN: "victim\0" }] })],
    ["names two devices", () => ({ names: [...uri("lock-1"), ...uri("victim")] })],
    ["names one device twice", () => ({ names: [...uri("victim"), ...uri("victim")] })],
    ["names a good and a bad device", () => ({ names: [...uri("victim"), ...uri("*")] })],
    ["names the victim's connection", () => ({ names: uri(site.victimsConnectionId) })],
    ...badNames.map((type): [string, Kind] => [
      `spells a URI in a name of type ${type}`,
      () => ({ names: [{ type, value: spelled }] }),
    ]),
    ...badIds.map((id): [string, Kind] => [
      `has the id ${id.length > 128 ? `of ${id.length} characters` : JSON.stringify(id)}`,
      () => ({ names: uri(id), subject: [{ CN: "fallback" }] }),
    ]),
  ])("a certificate that %s is refused", async (_what, kind) => {
    const { cert, key } = await clientCertificate(await kind())
    await expectClosed(site, "refused", () =>
      twentyTimes((version) => intrude(site.gateway.devicePort, { cert, key, ...version })),
    )
  })

  test.each<[string, ClientCertificateOptions]>([
    ["has two extensions for its names", { names: uri("lock-1"), moreNames: uri("victim") }],
    ["has no names where they should be", { namesDer: Buffer.from("none") }],
    ["has a byte behind its names", { namesDer: Buffer.from("30028200ff", "hex") }],
  ])("a certificate that %s is none to TLS", async (_what, options) => {
    const { cert, key } = await clientCertificate({ subject: [{ CN: "victim" }], ...options })
    await expectClosed(site, "handshake_failed", () =>
      twentyTimes((version) => intrude(site.gateway.devicePort, { cert, key, ...version })),
    )
  })

  test.each<[string, Kind]>([
    ["is of another CA", async () => ({ names: uri("victim"), issuer: await makeAuthority("?") })],
    ["has a hostile name", () => ({ names: uri("*") })],
  ])(
    "lines in one packet with the handshake, of a device whose certificate %s",
    async (_what, kind) => {
      const { cert, key } = await clientCertificate(await kind())
      const tls = { cert, key, ...TLS_1_3 }
      await inOnePacket(site.gateway.devicePort, (port) =>
        expectClosed(site, "refused", () =>
          twentyTimes(() => intrude(port, tls, `${LONG_LINE}\nintruder\n`)),
        ),
      )
    },
  )

  test("a good device's line may come in one packet with the handshake", async () => {
    const { cert, key } = await deviceCertificate("hasty")
    await inOnePacket(site.gateway.devicePort, async (port) => {
      const device = await connectDevice({ port, tls: { cert, key, ...TLS_1_3 } })
      await speak(site, device, "hasty", LONG_LINE)
    })
  })
})

describe("DEVICE_AUTH=hello", () => {
  let site: Site

  async function connectVictim(port: number): Promise<TestDevice> {
    const victim = await connectDevice({ port })
    await victim.send(hello("victim"))
    return victim
  }

  beforeAll(async () => {
    const settings = {
      DEVICE_AUTH: "hello",
      HELLO_SECRETS: SECRETS.join(","),
      // So that whatever is closed in these tests is not closed by this.
      IDENTIFY_TIMEOUT_MS: "60000",
    }
    site = await startSite(settings, connectVictim)
  }, LIMIT_MS)

  afterEach(() => expectUndisturbed(site))

  afterAll(() => site?.stop(), LIMIT_MS)

  test.each([
    ["and LF", "lock-17", `${hello("lock-17")}\n`],
    ["and CR LF", "lock-18", `${hello("lock-18")}\r\n`],
    ["by the newer secret", "lock-19", `${hello("lock-19", SECRETS[1])}\n`],
    ["in upper case", "lock-20", `HELLO lock-20 ${proof("lock-20").toUpperCase()}\n`],
    ["of the longest id", LONGEST_ID, `${hello(LONGEST_ID)}\r\n`],
    ["of an id with odd characters", "eui:00.1A_-x", `${hello("eui:00.1A_-x")}\n`],
  ])("a proof %s lets the device in, and its line in the same packet", async (_, id, first) => {
    const device = await connectDevice({ port: site.gateway.devicePort })
    await device.sendBytes(Buffer.from(first))
    await speak(site, device, id, "hello")
    // Only the first line is one that says who it is.
    await speak(site, device, id, hello("victim"), 1)
    device.end()
    const hasty = await connectDevice({ port: site.gateway.devicePort })
    await hasty.sendBytes(Buffer.from(`${first}one\ntwo\nthr`))
    expect(await hasty.waitLines(2)).toEqual(["ACK 0", "ACK 1"])
    site.sent.push({ device_id: id, line: "one", from_device_seq: 0 })
    site.sent.push({ device_id: id, line: "two", from_device_seq: 1 })
    hasty.end()
    await hasty.closed
  })

  test("a HELLO may come one byte at a time", async () => {
    const device = await connectDevice({ port: site.gateway.devicePort })
    for (const byte of Buffer.from(`${hello("slow")}\r\n`)) await device.sendBytes(Buffer.of(byte))
    await speak(site, device, "slow", "hello")
    device.end()
  })

  test("a HELLO and a line may come in one packet with the handshake", () =>
    inOnePacket(site.gateway.devicePort, async (port) => {
      const device = await connectDevice({ port, tls: TLS_1_3 })
      await device.send(hello("hasty"))
      await speak(site, device, "hasty", LONG_LINE)
    }))

  const good = hello("victim")
  test.each([
    ...["", "\r", "intruder", "HELLO", "HELLO victim", "HELLO  ", "GET / HTTP/1.1\r", "\0\x01\xff"],
    ...[good.toLowerCase(), ` ${good}`, `\uFEFF${good}`, `${good} `, `${good}\r\r`, `${good} more`],
    ...[`${good}0`, good.slice(0, -1), good.replace(" ", "  "), good.replaceAll(" ", "\t")],
    ...[good.slice(0, -2).concat("zz"), `HELLO victim ${good}`, `${good}\0`, `${good}\r${good}`],
    ...["", "x".repeat(129), "v\u0456ctim", "victim\0", "#", "*", "victim/send", "%76ictim"].map(
      (id) => hello(id),
    ),
  ])("%j is no first line", (first) =>
    expectClosed(site, "not_identified", () =>
      twentyTimes((tls) => intrude(site.gateway.devicePort, tls, `${first}\n${good}\nintruder\n`)),
    ),
  )

  test.each([
    ["under another's proof", () => `HELLO victim ${proof("lock-1")}`],
    ["with a proof of zeroes", () => `HELLO victim ${"0".repeat(64)}`],
    ["by a secret that is none", () => hello("victim", "another-secret-of-32-characters-")],
    ["by both secrets as one", () => hello("victim", SECRETS.join(","))],
    ["by an empty secret", () => hello("victim", "")],
    ["in another case", () => `HELLO Victim ${proof("victim")}`],
    ["under a connection id", () => hello(A_CONNECTION_ID)],
    ["under the victim's connection id", () => hello(site.victimsConnectionId)],
  ])("a HELLO %s is refused", (_what, first) =>
    expectClosed(site, "refused", () =>
      twentyTimes((tls) => {
        const bytes = `${first()}\n${good}\nintruder\n`
        return intrude(site.gateway.devicePort, tls, bytes)
      }),
    ),
  )

  test("a bad HELLO in one packet with the handshake and lines is refused", () =>
    inOnePacket(site.gateway.devicePort, (port) =>
      expectClosed(site, "refused", () =>
        twentyTimes(() =>
          intrude(port, TLS_1_3, `HELLO victim ${"0".repeat(64)}\n${LONG_LINE}\nintruder\n`),
        ),
      ),
    ))

  test.each([
    ["letters", "x".repeat(513)],
    ["a good HELLO and spaces", good.padEnd(513)],
    ["nothing but spaces", " ".repeat(65_536)],
  ])("a first line of %s without end is closed before its time is over", (_what, bytes) =>
    expectClosed(site, "not_identified", () =>
      twentyTimes((tls) => intrude(site.gateway.devicePort, tls, bytes)),
    ),
  )

  test(
    "who says nothing in time, or nothing whole, is closed",
    async () => {
      const settings = { HELLO_SECRETS: SECRETS[0], IDENTIFY_TIMEOUT_MS: "1500" }
      const impatient = await startSite({ DEVICE_AUTH: "hello", ...settings }, connectVictim)
      const port = impatient.gateway.devicePort
      try {
        await expectClosed(
          impatient,
          "not_identified",
          () =>
            Promise.all([
              twentyTimes((tls) => intrude(port, tls, "")),
              twentyTimes((tls) => intrude(port, tls, good)),
              // What comes meanwhile buys no time.
              twentyTimes(() => drip(port)),
            ]),
          3 * TIMES,
        )
        await expectUndisturbed(impatient)
      } finally {
        await impatient.stop()
      }
    },
    LIMIT_MS,
  )

  /** A byte of a first line now and then, without end, for as long as the gateway lets it. */
  async function drip(port: number): Promise<void> {
    const device = await connectDevice({ port })
    const dripping = setInterval(() => void device.sendBytes(Buffer.from("H")), 50)
    await device.closed
    clearInterval(dripping)
  }
})

function proof(deviceId: string, secret: string = SECRETS[0]): string {
  return createHmac("sha256", secret).update(deviceId).digest("hex")
}

function hello(deviceId: string, secret?: string): string {
  return `HELLO ${deviceId} ${proof(deviceId, secret)}`
}
