/**
 * A denylist near its bound: connected devices are not delayed, and a worker that starts has the
 * whole list before it admits a device.
 */

import { afterEach, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { helloLine } from "../../src/device/hello.ts"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 240_000
const LINES = 600_000
const SECRET = "a-secret-of-the-tests-0123456789"
const queues = ownQueues(uniqueNames("long"))
let broker: TestBroker
let gateway: TestGateway | undefined
let directory: string

beforeAll(async () => {
  broker = await sharedRabbitMq()
}, LIMIT_MS)

afterEach(async () => {
  await gateway?.stop()
  gateway = undefined
  rmSync(directory, { recursive: true, force: true })
}, LIMIT_MS)

async function start(environment: Record<string, string>): Promise<TestGateway> {
  directory = mkdtempSync(join(tmpdir(), "owsla-long-"))
  writeFileSync(join(directory, "denied"), "somebody\n")
  gateway = await startGateway({
    DENYLIST_FILE: join(directory, "denied"),
    DEVICE_AUTH: "hello",
    HELLO_SECRETS: SECRET,
    DEVICE_ACK: "seq",
    ...environment,
  })
  await gateway.ready()
  return gateway
}

/** Written beside its place and renamed, so that it changes atomically. */
function deny(last: string): void {
  const path = join(directory, "next")
  const lines = Array.from({ length: LINES }, (_, n) => `device-${n}`)
  writeFileSync(path, `${lines.join("\n")}\n${last}\n`)
  renameSync(path, join(directory, "denied"))
}

async function connect(gateway: TestGateway, deviceId: string): Promise<TestDevice> {
  const device = await connectDevice({ port: gateway.devicePort })
  await device.send(helloLine(deviceId, SECRET))
  return device
}

/** The times between confirms of a device that sends the next line at once. */
function exchange(device: TestDevice): { longestMs: () => number; stop: () => Promise<void> } {
  let longestMs = 0
  let isOver = false
  const exchanging = (async () => {
    for (let confirmed = 1; !isOver; confirmed += 1) {
      const sentAtMs = performance.now()
      await device.send("a line")
      await device.waitLines(confirmed, LIMIT_MS)
      longestMs = Math.max(longestMs, performance.now() - sentAtMs)
    }
  })()
  const stop = () => {
    isOver = true
    return exchanging
  }
  return { longestMs: () => longestMs, stop }
}

describe.each(["embedded", "RabbitMQ"])("a long list, with the broker %s,", (kind) => {
  test(
    "takes effect while lines of devices go on being confirmed",
    async () => {
      const alone = kind === "embedded"
      const gateway = await start(alone ? {} : { AMQP_URL: broker.url, WORKERS: "1", ...queues })
      const [device, victim] = await Promise.all([
        connect(gateway, "welcome"),
        connect(gateway, "victim"),
      ])
      await victim.send("admitted")
      await victim.waitLines(1)
      deny("victim")
      const { longestMs, stop } = exchange(device)
      const changedAtMs = performance.now()
      await within(victim.closed, { what: "the victim to be closed", timeoutMs: LIMIT_MS })
      const tookMs = performance.now() - changedAtMs
      await stop()
      // A list that was parsed in one step would cause one wait of nearly this length.
      expect(longestMs()).toBeLessThan(tookMs / 3)
      device.end()
    },
    LIMIT_MS,
  )
})

test(
  "a worker that is replaced has all of a long list before it admits a device",
  async () => {
    const gateway = await start({ AMQP_URL: broker.url, WORKERS: "1", ...queues })
    const victim = await connect(gateway, "victim")
    deny("victim")
    await within(victim.closed, { what: "the victim to be closed", timeoutMs: LIMIT_MS })
    const denied = () => gateway.metric("owsla_connections_closed_total", "denied")
    // Seen, so that it outlives the worker.
    await until(async () => (await denied()) === 1, { what: "the end to be counted" })
    process.kill(Number(gateway.workers().get(0)), "SIGKILL")
    const again = async () => {
      const device = await connect(gateway, "victim")
      return device.closed
    }
    // Refused until a worker listens.
    await until(again, { what: "the victim to be closed again", timeoutMs: LIMIT_MS })
    const welcome = await connect(gateway, "welcome")
    await welcome.send("admitted")
    await welcome.waitLines(1)
    const log = gateway.log.filter(({ msg }) => msg === "listening")
    expect(log.length).toBe(2)
    expect(await denied()).toBe(2)
    welcome.end()
  },
  LIMIT_MS,
)
