/**
 * Every valid device id works on every route, and an id that no route could reach is refused.
 * Against the real program, with its own URLs and an HTTP client that normalises them.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import fc from "fast-check"
import { helloLine } from "../../src/device/hello.ts"
import { DEVICE_ID, isDeviceName } from "../../src/device/ids.ts"
import {
  clientAuthority,
  clientCertificate,
  deviceUri,
  writeAuthorities,
} from "../support/client-certificates.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { check } from "../support/property.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const SECRET = "a-secret-of-the-tests-0123456789"
const GENERATED = 60
/** Ids that a URL, a shell, a file system, a router or an object may interpret. */
const ODD = [
  ...["...", "..a", "a..", ".a", "a.", "-", "-rf", "--force", "_", ":", "::", "a:b", ":id"],
  ...["con", "NUL", "com1.txt", "Lock", "lock", "0", "007", "1e3", "-1", "true", "null"],
  ...["__proto__", "constructor", "toString", "send", "connection", "devices", "sha256:ab"],
  ...[".", ":", "-", "x"].map((character) => character.repeat(128)),
]
let gateway: TestGateway
const devices: TestDevice[] = []

beforeAll(async () => {
  gateway = await startGateway({ DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET })
}, LIMIT_MS)

afterAll(async () => {
  for (const device of devices) device.terminate()
  await gateway?.stop()
}, LIMIT_MS)

async function greet(id: string): Promise<TestDevice> {
  const device = await connectDevice({ port: gateway.devicePort })
  devices.push(device)
  await device.send(helloLine(id, SECRET))
  return device
}

/** Ids of the whole alphabet, short and long, always the same for a seed. */
function generated(): string[] {
  const ids = new Set<string>()
  const name = fc.stringMatching(DEVICE_ID).filter(isDeviceName)
  check(
    fc.property(name, (id) => void ids.add(id)),
    GENERATED,
  )
  return [...ids].filter((id) => !ODD.includes(id))
}

describe("a device by its id", () => {
  test(
    "is described, sent to and closed, whatever the id",
    async () => {
      const headers = { "content-type": "text/plain" }
      await Promise.all(
        [...ODD, ...generated()].map(async (id, at) => {
          const device = await greet(id)
          // As it is, and as a careful client writes it.
          const path = `/devices/${at % 2 === 0 ? id : encodeURIComponent(id)}`
          const view = await until(
            async () => {
              const response = await gateway.fetch(path)
              return response.ok ? response.json() : undefined
            },
            { what: `${id} to be admitted` },
          )
          expect(view).toMatchObject({ device_id: id, state: "open" })
          const sent = await gateway.fetch(`${path}/send`, { method: "POST", headers, body: id })
          expect([id, sent.status]).toEqual([id, 200])
          expect(await device.nextLine()).toBe(id)
          const listed = await gateway.fetch(`/devices?prefix=${encodeURIComponent(id)}&limit=1000`)
          const { devices: rows } = (await listed.json()) as { devices: { device_id: string }[] }
          expect(rows.map(({ device_id }) => device_id)).toContain(id)
          const kicked = await gateway.fetch(`${path}/connection`, { method: "DELETE" })
          expect([id, kicked.status]).toEqual([id, 200])
          expect((await device.closed).by).toBe("peer")
        }),
      )
      expect(await gateway.metric("owsla_faults_total")).toBe(0)
    },
    LIMIT_MS,
  )
})

describe.each([".", ".."])("the id %s, which no URL keeps", (id) => {
  test("is refused by HELLO, counted and told in the log", async () => {
    const refused = () => gateway.metric("owsla_connections_closed_total", "refused")
    const before = await refused()
    const device = await greet(id)
    expect((await device.closed).by).toBe("peer")
    expect(await refused()).toBe(before + 1)
    // One line for both: the other comes within the same minute.
    const told = () => gateway.log.filter(({ msg }) => /as refused: HELLO as \.: not a/.test(msg))
    await until(() => told().length === 1, { what: "the line in the log" })
  })
})

test(
  "the same by certificate",
  async () => {
    const directory = mkdtempSync(join(tmpdir(), "owsla-ids-"))
    const authorities = [await clientAuthority()]
    const settings = {
      DEVICE_AUTH: "mtls",
      TLS_CLIENT_CA_FILE: writeAuthorities(authorities, directory),
    }
    const site = await startGateway(settings)
    try {
      const named = [{ names: [deviceUri("..")] }, { subject: [{ CN: "." }] }]
      for (const options of named) {
        const { cert, key } = await clientCertificate(options)
        const port = site.devicePort
        devices.push(await connectDevice({ port, tls: { cert, key } }))
      }
      await until(
        async () => (await site.metric("owsla_connections_closed_total", "refused")) === 2,
        { what: "both to be refused" },
      )
      expect(await site.metric("owsla_connections_admitted_total")).toBe(0)
    } finally {
      await site.stop()
      rmSync(directory, { recursive: true, force: true })
    }
  },
  LIMIT_MS,
)
