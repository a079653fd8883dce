/**
 * Which devices a fleet refuses: the gate and bans, set at one instance and obeyed by all, also by one
 * that joins later and by a worker that is replaced.
 */

import { afterEach, describe, expect, test } from "bun:test"
import { helloLine } from "../../src/device/hello.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 90_000
const SECRET = "a-secret-of-the-tests-0123456789"
const GOODBYE = { GOODBYE_LINE: "BYE {reason} {retry_after_ms}" }

const gateways: TestGateway[] = []
const devices: TestDevice[] = []

afterEach(async () => {
  for (const device of devices.splice(0)) device.terminate()
  await Promise.all(gateways.splice(0).map((gateway) => gateway.stop()))
}, LIMIT_MS)

async function start(
  settings: Record<string, string>,
  state: "listening" | "ready" = "ready",
): Promise<TestGateway> {
  const gateway = await startGateway({
    ...{ DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET, DEVICE_ACK: "seq", WORKERS: "2" },
    ...settings,
  })
  gateways.push(gateway)
  if (state === "ready") await gateway.ready()
  return gateway
}

/** Settings that instances of one fleet share. */
async function fleetSettings(): Promise<Record<string, string>> {
  const name = uniqueNames("rules")
  const { url } = await sharedRabbitMq()
  return { AMQP_URL: url, FROM_DEVICE_QUEUE: name("from"), TO_DEVICE_QUEUE: name("to") }
}

/** The first line that the device gets: of its acknowledgement, or the goodbye. */
async function answerTo(gateway: TestGateway, deviceId: string): Promise<string> {
  const device = await connectDevice({ port: gateway.devicePort })
  devices.push(device)
  await device.send(helloLine(deviceId, SECRET))
  device.send("a line").catch(() => undefined)
  return device.nextLine()
}

async function act(gateway: TestGateway, method: string, path: string, body?: object) {
  const response = await gateway.fetch(path, {
    method,
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  return { status: response.status, body: (await response.json()) as Record<string, unknown> }
}

describe("the gate", () => {
  test(
    "closed at one instance refuses devices at all, and at those that join later",
    async () => {
      const settings = { ...(await fleetSettings()), ...GOODBYE }
      const [first, second] = [await start(settings), await start(settings)]
      expect(await answerTo(second, "lock:1")).toBe("ACK 0")
      const connected = devices.at(-1)
      const gate = { open: false, prefix: "lock:", retry_after_ms: 7_000 }
      expect((await act(first, "PUT", "/gate", gate)).status).toBe(200)
      // Two workers share the port: each must know it.
      for (let n = 0; n < 12; n += 1) {
        await until(async () => (await answerTo(second, `lock:${n}`)) === "BYE gated 7000", {
          what: "the gate to be known",
        })
      }
      expect(await answerTo(second, "bell:1")).toBe("ACK 0")
      await connected?.send("another line")
      expect(await connected?.nextLine()).toBe("ACK 1")

      // Devices that connect as soon as it listens wait until it knows the gate.
      const third = await start(settings, "listening")
      for (let n = 0; n < 12; n += 1) {
        expect(await answerTo(third, `lock:${n}`)).toBe("BYE gated 7000")
      }
      await third.ready()
      const [[slot, pid] = [0, 0]] = third.workers()
      process.kill(pid, "SIGKILL")
      await third.successorOf(slot, pid)
      for (let n = 0; n < 12; n += 1) {
        expect(await answerTo(third, `lock:${n}`)).toBe("BYE gated 7000")
      }
      await third.ready()
      expect((await act(third, "GET", "/gate")).body).toMatchObject(gate)

      expect((await act(third, "PUT", "/gate", { open: true })).status).toBe(200)
      await until(async () => (await answerTo(first, "lock:50")) === "ACK 0", {
        what: "the gate to be open again",
      })
    },
    LIMIT_MS,
  )

  test(
    "closed for all refuses before TLS when devices get no goodbye line",
    async () => {
      const gateway = await start({ WORKERS: "1", LOG_LEVEL: "debug" })
      expect((await act(gateway, "PUT", "/gate", { open: false })).status).toBe(200)
      await expect(connectDevice({ port: gateway.devicePort })).rejects.toThrow()
      expect(await gateway.metric("owsla_connections_closed_total", "gated")).toBe(1)
      expect((await act(gateway, "GET", "/health")).body["gate"]).toMatchObject({ open: false })
      await act(gateway, "PUT", "/gate", { open: true })
      expect(await answerTo(gateway, "lock:1")).toBe("ACK 0")
    },
    LIMIT_MS,
  )
})

test(
  "a device that connects too often, to any instance, is banned at all of them until it is lifted",
  async () => {
    const settings = { ...(await fleetSettings()), ...GOODBYE, FLAP_LIMIT: "6" }
    const [first, second] = [await start(settings), await start(settings)]
    const answers: string[] = []
    for (let n = 0; !answers.at(-1)?.startsWith("BYE flapping") && n < 60; n += 1) {
      const before = devices.at(-1)
      answers.push(await answerTo(n % 2 === 0 ? first : second, "lock:1"))
      // The other instance has heard of a connection when it closes the one before.
      if (answers.at(-1) === "ACK 0") await before?.closed
    }
    // At least those of the limit. More may come before a worker has heard of the ban.
    expect(answers.filter((answer) => answer === "ACK 0").length).toBeGreaterThanOrEqual(6)
    expect(answers.at(-1)).toStartWith("BYE flapping")
    const goodbye = Number(answers.at(-1)?.split(" ").at(-1))
    expect(goodbye).toBeGreaterThan(290_000)
    expect(goodbye).toBeLessThanOrEqual(300_000)
    for (const gateway of [first, second, first, second, first, second]) {
      await until(async () => (await answerTo(gateway, "lock:1")).startsWith("BYE flapping"), {
        what: "the ban to be known",
      })
    }
    expect(await answerTo(first, "lock:2")).toBe("ACK 0")
    const { body } = await act(second, "GET", "/bans")
    expect(body["bans"]).toMatchObject([{ id: "lock:1", connects: 7 }])
    expect((await act(second, "DELETE", "/bans/lock:1")).status).toBe(200)
    await until(async () => (await answerTo(first, "lock:1")) === "ACK 0", {
      what: "the ban to be lifted",
    })
    expect((await act(first, "DELETE", "/bans/lock:1")).status).toBe(404)
  },
  LIMIT_MS,
)
