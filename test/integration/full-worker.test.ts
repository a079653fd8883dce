/**
 * A worker that is full of connections that are no devices: each newcomer takes the place of the
 * oldest of them, and no device loses its own.
 */

import { afterEach, describe, expect, test } from "bun:test"
import net from "node:net"
import { helloLine } from "../../src/device/hello.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const PLACES = 40
const DEVICES = 10
const SECRET = "a-secret-of-the-tests-0123456789"
/** Longer than any of these tests takes, so that only a newcomer ends a silent connection. */
const NEVER = "600000"

let gateway: TestGateway
const closers: (() => unknown)[] = []

afterEach(async () => {
  for (const close of closers.splice(0)) close()
  await gateway?.stop()
}, LIMIT_MS)

async function connect(): Promise<TestDevice> {
  const device = await connectDevice({ port: gateway.devicePort })
  closers.push(() => device.terminate())
  return device
}

/** A connection that never says anything; resolves when it is made. */
async function silentTcp(): Promise<void> {
  const socket = net.connect(gateway.devicePort, "127.0.0.1")
  closers.push(() => socket.destroy())
  socket.on("error", () => undefined)
  await new Promise((resolve) => socket.once("connect", resolve))
}

/** One of TLS that never says who it is. */
async function silentTls(): Promise<void> {
  await connect()
}

async function held(): Promise<number> {
  return (
    (await gateway.metric("owsla_connections")) +
    (await gateway.metric("owsla_connections_waiting"))
  )
}

describe.each<[string, Record<string, string>, () => Promise<void>]>([
  ["connections that say nothing", { DEVICE_AUTH: "none" }, silentTcp],
  ["connections that never say who they are", { DEVICE_AUTH: "hello" }, silentTls],
])("a worker full of %s", (_, settings, silent) => {
  const hello = settings["DEVICE_AUTH"] === "hello"

  /**
   * A device that has sent a line, and has its acknowledgement; tries again while it is refused.
   */
  async function device(n: number): Promise<TestDevice> {
    return until(
      async () => {
        const each = await connect()
        if (hello) await each.send(helloLine(`device-${n}`, SECRET))
        await each.send("a line")
        return (await each.nextLine(5_000)) === "ACK 0" ? each : null
      },
      { what: "a device to be let in", timeoutMs: 30_000 },
    )
  }

  test(
    "lets a device in for the oldest of them, never holds more than MAX_CONNECTIONS, and keeps its devices",
    async () => {
      gateway = await startGateway({
        ...{ DEVICE_ACK: "seq", MAX_CONNECTIONS: String(PLACES), HELLO_SECRETS: SECRET },
        ...{ HANDSHAKE_TIMEOUT_MS: NEVER, IDENTIFY_TIMEOUT_MS: NEVER, ...settings },
      })
      const first = await device(0)
      for (let n = 1; n < PLACES; n += 1) await silent()
      await until(async () => (await held()) === PLACES, { what: "the worker to be full" })
      const devices = [first]
      for (let n = 1; n <= DEVICES; n += 1) {
        devices.push(await device(n))
        expect(await held()).toBeLessThanOrEqual(PLACES)
      }
      const closed = (reason: string) => gateway.metric("owsla_connections_closed_total", reason)
      // Newcomers that came before one was overdue were refused for the same reason.
      expect(await closed("overloaded")).toBeGreaterThanOrEqual(DEVICES)
      expect([await closed("handshake_timeout"), await closed("not_identified")]).toEqual([0, 0])
      expect(await gateway.metric("owsla_faults_total")).toBe(0)
      for (const each of devices) {
        await each.send("and another")
        expect((await each.waitLines(2)).at(-1)).toBe("ACK 1")
      }
    },
    LIMIT_MS,
  )
})

test(
  "a worker full of devices refuses a newcomer and keeps every one",
  async () => {
    gateway = await startGateway({ MAX_CONNECTIONS: "5", DEVICE_ACK: "seq" })
    const devices: TestDevice[] = []
    for (let n = 0; n < 5; n += 1) {
      const each = await connect()
      await each.send("a line")
      expect(await each.nextLine()).toBe("ACK 0")
      devices.push(each)
    }
    for (let n = 0; n < 5; n += 1) await expect(connect()).rejects.toThrow()
    expect(await gateway.metric("owsla_connections_closed_total", "overloaded")).toBe(5)
    for (const each of devices) {
      await each.send("and another")
      expect(await each.nextLine()).toBe("ACK 1")
    }
  },
  LIMIT_MS,
)
