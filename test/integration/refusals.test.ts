/**
 * "My device does not connect": what an operator finds of refused connections and of ended ones, with
 * real sockets, over two instances of one fleet.
 */

import { afterEach, describe, expect, test } from "bun:test"
import { connect } from "node:net"
import { connect as connectTls } from "node:tls"
import { helloLine } from "../../src/device/hello.ts"
import { LEFT_HANDSHAKE } from "../../src/device/tls-failure.ts"
import type { ConnectionList, RefusalList, RefusalView } from "../../src/fleet/records-query.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { opensslDevice } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 90_000
const SECRET = "a-secret-of-the-tests-0123456789"

const gateways: TestGateway[] = []
const devices: TestDevice[] = []

afterEach(async () => {
  for (const device of devices.splice(0)) device.terminate()
  await Promise.all(gateways.splice(0).map((gateway) => gateway.stop()))
}, LIMIT_MS)

async function start(settings: Record<string, string> = {}): Promise<TestGateway> {
  const gateway = await startGateway({
    ...{ DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET },
    ...settings,
  })
  gateways.push(gateway)
  await gateway.ready()
  return gateway
}

/** Two instances whose workers all know each other. */
async function startFleet(): Promise<[TestGateway, TestGateway]> {
  const name = uniqueNames("refusals")
  const { url } = await sharedRabbitMq()
  const shared = {
    ...{ AMQP_URL: url, FROM_DEVICE_QUEUE: name("from"), TO_DEVICE_QUEUE: name("to") },
    ...{ FLEET_SECRET: name("secret-of-the-tests"), WORKERS: "2" },
  }
  const instances = ["gw1", "gw2"].map((INSTANCE_ID) => start({ ...shared, INSTANCE_ID }))
  const [one, two] = (await Promise.all(instances)) as [TestGateway, TestGateway]
  const known = async ({ metric }: TestGateway) => (await metric("owsla_fleet_members")) === 6
  await until(async () => (await known(one)) && (await known(two)), {
    what: "all workers to know each other",
  })
  return [one, two]
}

async function identify({ devicePort }: TestGateway, line: string): Promise<TestDevice> {
  const device = await connectDevice({ port: devicePort })
  devices.push(device)
  await device.send(line)
  return device
}

/** Sends bytes without TLS and waits until the gateway closes the connection. */
function plain({ devicePort }: TestGateway, bytes: string): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const socket = connect(devicePort, "127.0.0.1", () => socket.write(bytes))
  socket.on("error", () => undefined)
  socket.on("close", () => resolve())
  socket.resume()
  return promise
}

/** Bun, as Node, closes a connection to a server that it does not trust without an alert. */
async function silentRefusal({ devicePort }: TestGateway): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const socket = connectTls({ port: devicePort, host: "127.0.0.1" })
  socket.on("error", () => undefined)
  socket.on("close", () => resolve())
  await promise
}

async function list<T>({ fetch }: TestGateway, path: string): Promise<T> {
  const response = await fetch(path)
  if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`)
  return (await response.json()) as T
}

/** The refusals once there are so many. */
async function refusals(gateway: TestGateway, count: number): Promise<readonly RefusalView[]> {
  let found: RefusalList | undefined
  await until(
    async () => {
      found = await list<RefusalList>(gateway, "/refusals")
      return found.refusals.length >= count
    },
    { what: `${count} refusals` },
  )
  return found?.refusals ?? []
}

describe("a connection that does not become a device", () => {
  test(
    "is listed with its reason, detail and address, and logged at info",
    async () => {
      const gateway = await start({ HANDSHAKE_TIMEOUT_MS: "500", IDENTIFY_TIMEOUT_MS: "500" })
      const port = gateway.devicePort
      await plain(gateway, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
      await plain(gateway, "hello\n")
      await plain(gateway, "")
      await (await identify(gateway, "hello")).closed
      await (await identify(gateway, helloLine("lock:1", `${SECRET}x`))).closed
      await (await connectDevice({ port })).closed
      const found = await refusals(gateway, 6)
      expect(found.map(({ reason, detail, device_id }) => [reason, detail, device_id])).toEqual([
        ["not_identified", "the first line was not complete within IDENTIFY_TIMEOUT_MS", null],
        ["refused", "HELLO as lock:1: the proof is wrong", "lock:1"],
        ["not_identified", "the first line is not a HELLO", null],
        [
          "handshake_timeout",
          "the TLS handshake was not complete within HANDSHAKE_TIMEOUT_MS",
          null,
        ],
        ["handshake_failed", "WRONG_VERSION_NUMBER: the peer did not send TLS", null],
        ["handshake_failed", "HTTP_REQUEST: the peer sent HTTP, not TLS", null],
      ])
      for (const { at, address, worker } of found) {
        expect(address).toBe("127.0.0.1")
        expect(worker).toMatch(/\.0$/)
        expect(Math.abs(Date.now() - at)).toBeLessThan(LIMIT_MS)
      }
      // One line for each reason of an address, at level info.
      const lines = gateway.log.filter(({ msg }) => msg.includes("ended as"))
      expect(lines.map(({ level, reason }) => [level, reason])).toEqual([
        [30, "handshake_failed"],
        [30, "handshake_timeout"],
        [30, "not_identified"],
        [30, "refused"],
      ])
    },
    LIMIT_MS,
  )

  test(
    "because it does not accept the certificate or is too old is listed as such",
    async () => {
      const gateway = await start()
      const notTrusted =
        "the device does not accept the server certificate: " +
        "check its CA and the host name it connects to"
      const refusing = ["-verify_return_error"]
      const attempts: [string[], string][] = [
        [["-tls1_3", ...refusing], `BAD_PACKET_LENGTH: most often, ${notTrusted}`],
        [["-tls1_2", ...refusing], `TLSV1_ALERT_UNKNOWN_CA: ${notTrusted}`],
        [
          ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
          "UNSUPPORTED_PROTOCOL: the newest TLS version of the device is older than TLS_MIN_VERSION",
        ],
      ]
      for (const [args] of attempts) await opensslDevice({ port: gateway.devicePort, args }).closed
      await silentRefusal(gateway)
      const found = await refusals(gateway, attempts.length + 1)
      expect(found.map(({ reason, detail }) => [reason, detail]).reverse()).toEqual(
        [...attempts.map(([, detail]) => detail), LEFT_HANDSHAKE].map((detail) => [
          "handshake_failed",
          detail,
        ]),
      )
    },
    LIMIT_MS,
  )

  test(
    "because of a limit or the gate is listed too",
    async () => {
      const gateway = await start({ MAX_CONNECTIONS_PER_ADDRESS: "1" })
      const first = await identify(gateway, helloLine("lock:1", SECRET))
      await plain(gateway, "")
      first.terminate()
      await until(async () => (await gateway.metric("owsla_connections")) === 0, {
        what: "the device to be gone",
      })
      const close = { method: "PUT", body: '{"open":false,"prefix":"lock:"}' }
      expect((await gateway.fetch("/gate", close)).status).toBe(200)
      await (await identify(gateway, helloLine("lock:2", SECRET))).closed
      expect(await refusals(gateway, 2)).toMatchObject([
        { reason: "gated", device_id: "lock:2", detail: expect.stringContaining("lock:") },
        { reason: "overloaded_address", device_id: null },
      ])
    },
    LIMIT_MS,
  )

  test(
    "is found from any worker of the fleet; a worker that does not answer is in the counts",
    async () => {
      const [one, two] = await startFleet()
      for (const [n, gateway] of [one, two, one, two].entries()) {
        await (await identify(gateway, helloLine(`lock:${n}`, `${SECRET}x`))).closed
      }
      for (const gateway of [one, two]) {
        const found = await list<RefusalList>(gateway, "/refusals?limit=3")
        expect(found).toMatchObject({ answered: 4, workers: 4 })
        expect(found.refusals.map(({ device_id }) => device_id)).toEqual([
          "lock:3",
          "lock:2",
          "lock:1",
        ])
      }
      const [stopped] = two.workers().values()
      if (stopped === undefined) throw new Error("no worker")
      process.kill(stopped, "SIGSTOP")
      try {
        const found = await list<RefusalList>(one, "/refusals")
        expect(found).toMatchObject({ answered: 3, workers: 4 })
      } finally {
        process.kill(stopped, "SIGCONT")
      }
    },
    LIMIT_MS,
  )
})

test(
  "the last connections of a device are found over the fleet, with why they ended",
  async () => {
    const [one, two] = await startFleet()
    const admitted = async (gateway: TestGateway) => {
      const device = await identify(gateway, helloLine("lock:1", SECRET))
      await until(async () => (await open(gateway)) === gateway, { what: "the admission" })
      return device
    }
    const connections = (gateway: TestGateway) =>
      list<ConnectionList>(gateway, "/devices/lock:1/connections")
    /** The instance that has the device now. */
    const open = async (asked: TestGateway) => {
      const { connections: all } = await connections(asked)
      const current = all.find(({ disconnected_at }) => disconnected_at === null)
      return current === undefined ? null : current.instance === "gw1" ? one : two
    }
    const first = await admitted(one)
    const second = await admitted(two)
    // When the second one ends earlier, the first one stays.
    await first.closed
    second.end()
    await second.closed
    await until(async () => (await open(one)) === null, { what: "the second one to end" })
    await admitted(one)
    const kick = await two.fetch("/devices/lock:1/connection", { method: "DELETE" })
    expect(kick.status).toBe(200)
    await admitted(two)

    for (const gateway of [one, two]) {
      const found = await connections(gateway)
      expect(found).toMatchObject({ answered: 4, workers: 4 })
      const shown = found.connections.map(({ instance, reason }) => [instance, reason])
      expect(shown).toEqual([
        ["gw2", null],
        ["gw1", "kicked"],
        ["gw2", "peer_closed"],
        ["gw1", "taken_over"],
      ])
      for (const { connected_at, disconnected_at, remote_address } of found.connections) {
        expect(disconnected_at ?? Date.now()).toBeGreaterThanOrEqual(connected_at)
        expect(remote_address).toBe("127.0.0.1")
      }
    }
  },
  LIMIT_MS,
)
