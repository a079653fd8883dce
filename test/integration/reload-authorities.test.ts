/**
 * SIGHUP with other CAs of devices: the connections of devices that these do not vouch for, or
 * whose certificates have expired, end as refused, at any stage; all others stay.
 */

import { afterAll, afterEach, beforeAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import tls from "node:tls"
import {
  clientCertificate,
  deviceUri,
  type Issuer,
  makeAuthority,
  writeAuthorities,
} from "../support/client-certificates.ts"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 60_000
const directory = mkdtempSync(join(tmpdir(), "owsla-reload-authorities-"))
let kept: Issuer
let removed: Issuer
let gateway: TestGateway
const closers: (() => unknown)[] = []

beforeAll(async () => {
  kept = await makeAuthority("kept")
  removed = await makeAuthority("removed")
})

afterEach(async () => {
  for (const close of closers.splice(0)) close()
  await gateway?.stop()
}, LIMIT_MS)

afterAll(() => rmSync(directory, { recursive: true }))

const trust = (...authorities: Issuer[]) => writeAuthorities(authorities, directory)

function start(settings: Record<string, string> = {}): Promise<TestGateway> {
  const TLS_CLIENT_CA_FILE = trust(kept, removed)
  return startGateway({ DEVICE_AUTH: "mtls", DEVICE_ACK: "seq", TLS_CLIENT_CA_FILE, ...settings })
}

async function connect(id: string, issuer: Issuer, notAfter?: Date): Promise<TestDevice> {
  const times = notAfter === undefined ? {} : { notAfter }
  const { cert, key } = await clientCertificate({ names: [deviceUri(id)], issuer, ...times })
  const device = await connectDevice({ port: gateway.devicePort, tls: { cert, key } })
  closers.push(() => device.terminate())
  await device.send("a line")
  expect(await device.nextLine()).toBe("ACK 0")
  return device
}

async function expectServed(device: TestDevice): Promise<void> {
  const { length } = device.lines
  await device.send("and another")
  expect((await device.waitLines(length + 1)).at(-1)).toBe(`ACK ${length}`)
}

const refused = () => gateway.metric("owsla_connections_closed_total", "refused")

/** Has all workers read their files again. */
async function reload(workers = 1): Promise<void> {
  const count = () => gateway.log.filter(({ msg }) => msg.includes("certificate renewed")).length
  const before = count()
  gateway.signal("SIGHUP")
  await until(() => count() === before + workers, { what: "the files to be taken" })
}

test(
  "devices of a CA that was removed are closed on all workers, also with intermediate CAs; others stay",
  async () => {
    gateway = await start({
      AMQP_URL: (await sharedRabbitMq()).url,
      WORKERS: "2",
      ...ownQueues(uniqueNames("reload-authorities")),
    })
    await gateway.ready()
    const below = await Promise.all(
      [kept, removed].map((issuer) => makeAuthority("intermediate", issuer)),
    )
    const stay: TestDevice[] = []
    const go: TestDevice[] = []
    for (let n = 0; n < 40; n += 1) {
      const issuers = n % 2 === 0 ? [kept, removed] : below
      stay.push(await connect(`stays:${n}`, issuers[0] as Issuer))
      go.push(await connect(`goes:${n}`, issuers[1] as Issuer))
    }
    trust(kept)
    await reload(2)
    for (const device of go) {
      expect((await within(device.closed, { what: "a device to be closed" })).by).toBe("peer")
    }
    for (const device of stay) await expectServed(device)
    expect(await refused()).toBe(go.length)
    const log = gateway.log.filter(({ msg }) => msg.includes("ended as refused"))
    expect(log.map(({ msg }) => msg).join("\n")).toContain("no CA of TLS_CLIENT_CA_FILE vouches")

    await expect(connect("goes:0", removed)).rejects.toThrow()
    await connect("comes", kept)
  },
  LIMIT_MS,
)

test(
  "with the same CAs only those are closed whose certificates, or intermediate CAs, have expired",
  async () => {
    gateway = await start()
    const soon = new Date(Date.now() + 6_000)
    const shortLived = await makeAuthority("short-lived", kept, soon)
    const stays = await connect("stays", kept)
    const expired = await connect("expired", kept, soon)
    const below = await connect("below", shortLived)
    await until(() => Date.now() >= soon.getTime(), { what: "the certificates to expire" })
    for (const device of [stays, expired, below]) await expectServed(device)
    await reload()
    for (const device of [expired, below]) await within(device.closed, { what: "it to be closed" })
    await expectServed(stays)
    expect(await refused()).toBe(2)
  },
  LIMIT_MS,
)

test(
  "an intermediate CA that takes the place of its root keeps its devices, and no others",
  async () => {
    gateway = await start()
    const intermediate = await makeAuthority("intermediate", kept)
    const stays = await connect("stays", intermediate)
    const goes = await connect("goes", kept)
    trust(intermediate)
    await reload()
    await within(goes.closed, { what: "it to be closed" })
    await expectServed(stays)
    expect(await refused()).toBe(1)
  },
  LIMIT_MS,
)

test(
  "a handshake that began before the reload is judged by the CAs after it",
  async () => {
    gateway = await start({ HANDSHAKE_TIMEOUT_MS: "60000" })
    const bystander = await connect("bystander", kept)
    const { cert, key } = await clientCertificate({ names: [deviceUri("late")], issuer: removed })
    const socket = net.connect(gateway.devicePort, "127.0.0.1")
    closers.push(() => socket.destroy())
    await new Promise((resolve) => socket.once("connect", resolve))
    await until(async () => (await gateway.metric("owsla_connections")) === 2, { what: "it" })
    trust(kept)
    await reload()
    const device = tls.connect({ socket, cert, key, rejectUnauthorized: false })
    device.on("error", () => undefined)
    device.resume()
    const { promise, resolve } = Promise.withResolvers<void>()
    device.once("close", () => resolve())
    await within(promise, { what: "it to be refused" })
    expect(await refused()).toBe(1)
    expect((await gateway.fetch("/devices/late")).status).toBe(404)
    await expectServed(bystander)
  },
  LIMIT_MS,
)

test(
  "a file of CAs that cannot be used closes nothing",
  async () => {
    gateway = await start()
    const devices = [await connect("one", kept), await connect("two", removed)]
    trust()
    gateway.signal("SIGHUP")
    await until(() => gateway.log.some(({ msg }) => msg.includes("the old one stays")), {
      what: "the file to be refused",
    })
    for (const device of devices) await expectServed(device)
    expect(await refused()).toBe(0)
  },
  LIMIT_MS,
)
