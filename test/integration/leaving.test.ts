/**
 * How devices are sent away: with their lines acknowledged, a goodbye line that says why and when to
 * come back, and not all at once.
 */

import { afterEach, describe, expect, test } from "bun:test"
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { helloLine } from "../../src/device/hello.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 90_000
const SECRET = "a-secret-of-the-tests-0123456789"
const GOODBYE = { GOODBYE_LINE: "BYE {reason} {retry_after_ms}" }
const NAMED = { DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET, DEVICE_ACK: "seq" }

let gateway: TestGateway
const devices: TestDevice[] = []

afterEach(async () => {
  for (const device of devices.splice(0)) device.terminate()
  await gateway?.stop()
}, LIMIT_MS)

async function connect(name?: string): Promise<TestDevice> {
  const device = await connectDevice({ port: gateway.devicePort })
  devices.push(device)
  if (name !== undefined) await device.send(helloLine(name, SECRET))
  await device.send("a line")
  expect(await device.nextLine()).toBe("ACK 0")
  return device
}

/** The last line of a device that the gateway has closed. */
async function lastLine(device: TestDevice): Promise<string> {
  expect((await device.closed).by).toBe("peer")
  return device.lines.at(-1) ?? ""
}

async function health() {
  const response = await gateway.fetch("/health")
  return (await response.json()) as {
    status: string
    connections: number
    draining: { closed: number; left: number; ends_at: number } | null
    workers: { state: string }[]
  }
}

const closedAs = (reason: string) => gateway.metric("owsla_connections_closed_total", reason)

describe("a goodbye line", () => {
  test(
    "tells a device that it was kicked, taken over or denied",
    async () => {
      const directory = mkdtempSync(join(tmpdir(), "owsla-leaving-"))
      const list = join(directory, "denied")
      writeFileSync(list, "# none\n")
      try {
        gateway = await startGateway({ ...GOODBYE, ...NAMED, DENYLIST_FILE: list })
        const kicked = await connect("lock:1")
        await gateway.fetch("/devices/lock:1/connection", { method: "DELETE" })
        expect(await lastLine(kicked)).toMatch(/^BYE kicked \d{3,5}$/)

        const older = await connect("lock:2")
        await connect("lock:2")
        expect(await lastLine(older)).toMatch(/^BYE taken_over \d{3,5}$/)

        const denied = await connect("lock:3")
        writeFileSync(`${list}.new`, "lock:3\n")
        renameSync(`${list}.new`, list)
        expect(await lastLine(denied)).toMatch(/^BYE denied \d{3,5}$/)

        const again = await connectDevice({ port: gateway.devicePort })
        devices.push(again)
        await again.send(helloLine("lock:3", SECRET))
        expect(await lastLine(again)).toMatch(/^BYE denied \d{3,5}$/)
      } finally {
        rmSync(directory, { recursive: true, force: true })
      }
    },
    LIMIT_MS,
  )

  test(
    "is not sent to a device that gave the reason itself, and by default to none",
    async () => {
      gateway = await startGateway({ ...GOODBYE, DEVICE_ACK: "seq", MAX_LINE_BYTES: "100" })
      const tooLong = await connect()
      await tooLong.send("x".repeat(200))
      expect(await lastLine(tooLong)).toBe("ACK 0")
      await gateway.stop()
      gateway = await startGateway({ DEVICE_ACK: "seq" })
      const device = await connect()
      gateway.signal("SIGTERM")
      expect(await lastLine(device)).toBe("ACK 0")
    },
    LIMIT_MS,
  )

  test(
    "comes after the acknowledgements of all lines when the gateway stops",
    async () => {
      gateway = await startGateway({ ...GOODBYE, DEVICE_ACK: "seq" })
      const all = await Promise.all(Array.from({ length: 30 }, () => connect()))
      const sent = Promise.all(
        all.map(async (device) => {
          for (let n = 1; n <= 20; n += 1) await device.send(`line ${n}`)
        }),
      )
      await sent
      gateway.signal("SIGTERM")
      for (const device of all) {
        expect(await lastLine(device)).toMatch(/^BYE drained \d{3,5}$/)
        const acknowledged = device.lines.filter((line) => line.startsWith("ACK ")).length
        expect(device.lines.slice(0, acknowledged)).toEqual(
          Array.from({ length: acknowledged }, (_, n) => `ACK ${n}`),
        )
        expect(device.lines).toHaveLength(acknowledged + 1)
      }
      expect(await gateway.exited).toBe(0)
    },
    LIMIT_MS,
  )
})

test(
  "a connection is closed as aged, near its age, with all its lines acknowledged",
  async () => {
    gateway = await startGateway({ ...GOODBYE, DEVICE_ACK: "seq", MAX_CONNECTION_AGE_MS: "3000" })
    const connectedAtMs = performance.now()
    const device = await connect()
    let sent = 1
    const sending = setInterval(() => {
      sent += 1
      device.send("more").catch(() => undefined)
    }, 20)
    await device.closed
    const ageMs = performance.now() - connectedAtMs
    clearInterval(sending)
    expect(device.lines.at(-1)).toMatch(/^BYE aged \d{3,5}$/)
    expect(ageMs).toBeGreaterThan(2_300)
    const acknowledged = device.lines.length - 1
    expect(acknowledged).toBeGreaterThan(10)
    expect(acknowledged).toBeLessThanOrEqual(sent)
    expect(await gateway.metric("owsla_lines_in_total")).toBe(acknowledged)
    expect(await closedAs("aged")).toBe(1)
  },
  LIMIT_MS,
)

describe("an instance of two workers on a broker", () => {
  async function start(): Promise<void> {
    const name = uniqueNames("leaving")
    gateway = await startGateway({
      ...GOODBYE,
      ...NAMED,
      AMQP_URL: (await sharedRabbitMq()).url,
      FROM_DEVICE_QUEUE: name("from_device"),
      TO_DEVICE_QUEUE: name("to_device"),
      WORKERS: "2",
      DRAIN_TIMEOUT_MS: "20000",
    })
    await gateway.ready()
  }

  test(
    "is emptied by POST /drain, goes on running, and takes devices again after DELETE /drain",
    async () => {
      await start()
      const names = Array.from({ length: 40 }, (_, n) => `lock:${n}`)
      const all = await Promise.all(names.map((name) => connect(name)))
      const response = await gateway.fetch("/drain", { method: "POST" })
      expect([response.status, await response.json()]).toEqual([202, { draining: true }])
      for (const device of all) expect(await lastLine(device)).toMatch(/^BYE drained \d+$/)
      await until(async () => (await health()).workers.every(({ state }) => state === "drained"), {
        what: "both workers to be drained",
      })
      const { draining, connections } = await health()
      expect([connections, draining]).toMatchObject([0, { closed: 40, left: 0 }])
      expect(draining?.ends_at).toBeGreaterThan(Date.now())
      expect((await gateway.fetch("/ready")).status).toBe(503)

      // A worker that starts meanwhile takes none either.
      const [[slot, pid] = [0, 0]] = gateway.workers()
      process.kill(pid, "SIGKILL")
      await gateway.successorOf(slot, pid)
      const refusedBefore = await closedAs("drained")
      await until(async () => (await health()).workers.length === 2, { what: "two workers" })
      for (let n = 0; n < 20; n += 1) {
        await expect(connectDevice({ port: gateway.devicePort })).rejects.toThrow()
      }
      expect(await closedAs("drained")).toBe(refusedBefore + 20)

      expect((await gateway.fetch("/drain", { method: "DELETE" })).status).toBe(200)
      await until(async () => (await health()).workers.every(({ state }) => state === "serving"), {
        what: "both workers to serve",
      })
      await gateway.ready()
      for (const name of names) await connect(name)
    },
    LIMIT_MS,
  )

  test(
    "serves the devices that are left while it is stopped",
    async () => {
      await start()
      const count = 150
      const all = await Promise.all(Array.from({ length: count }, (_, n) => connect(`lock:${n}`)))
      let closed = 0
      const lines: string[] = []
      for (const device of all) {
        void device.closed.then(() => {
          closed += 1
        })
      }
      gateway.signal("SIGTERM")
      await until(() => closed > 10, { what: "some devices to be closed" })
      // Connections are closed oldest first, at 50 a second and worker.
      const last = all.filter((device) => device.lines.length === 1).slice(-20)
      for (const device of last) await device.send("in between")
      for (const device of last) lines.push(await device.nextLine())
      expect(new Set(lines)).toEqual(new Set(["ACK 1"]))
      expect(closed).toBeLessThan(count)
      expect(await gateway.exited).toBe(0)
      expect(closed).toBe(count)
    },
    LIMIT_MS,
  )
})
