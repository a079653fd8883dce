/**
 * Supervision: a worker is replaced while its files are gone, many devices are cut at once, a
 * second instance is started by mistake. Tests that kill or stop processes under load are in
 * `test/faults/process.test.ts`.
 */

import { afterEach, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { helloLine } from "../../src/device/hello.ts"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 90_000
const name = uniqueNames("supervision")
const queues = ownQueues(name)
let broker: TestBroker
let gateway: TestGateway | undefined

beforeAll(async () => {
  broker = await sharedRabbitMq()
}, LIMIT_MS)

afterEach(async () => {
  await gateway?.stop()
  gateway = undefined
}, LIMIT_MS)

async function start(environment: Record<string, string> = {}): Promise<TestGateway> {
  gateway = await startGateway({ AMQP_URL: broker.url, ...queues, ...environment })
  // A worker that is killed before the supervisor has heard that it listens ends the instance. The
  // metrics come by the supervisor, after that.
  await gateway.metric("owsla_connections")
  return gateway
}

function logged(gateway: TestGateway, msg: string): number {
  return gateway.log.filter((line) => line.msg === msg).length
}

describe("files that are gone when a worker is replaced", () => {
  test(
    "are not needed again, and whoever was denied stays so",
    async () => {
      const directory = mkdtempSync(join(tmpdir(), "owsla-gone-"))
      const files = {
        DENYLIST_FILE: join(directory, "denylist"),
        HELLO_SECRETS_FILE: join(directory, "secrets"),
      }
      const secret = "a-secret-of-the-tests-0123456789"
      writeFileSync(files.DENYLIST_FILE, "denied\n")
      writeFileSync(files.HELLO_SECRETS_FILE, secret)
      const gateway = await start({ WORKERS: "1", DEVICE_AUTH: "hello", ...files })
      rmSync(directory, { recursive: true })
      const victim = Number(gateway.workers().get(0))
      process.kill(victim, "SIGKILL")
      await until(() => logged(gateway, "listening") === 2, { what: "a new worker" })
      const [good, denied] = await Promise.all([
        connectDevice({ port: gateway.devicePort }),
        connectDevice({ port: gateway.devicePort }),
      ])
      await good.send(helloLine("good", secret))
      await denied.send(helloLine("denied", secret))
      expect((await denied.closed).by).toBe("peer")
      const refused = () => gateway.metric("owsla_connections_closed_total", "denied")
      await until(async () => (await refused()) === 1, { what: "the denied one to be counted" })
      const admitted = () => gateway.metric("owsla_connections_admitted_total")
      await until(async () => (await admitted()) === 1, { what: "the good one to be admitted" })
      good.end()
    },
    LIMIT_MS,
  )
})

describe("SIGTERM while a worker starts", () => {
  test(
    "drains that one too, and ends with status 0",
    async () => {
      const gateway = await start({ WORKERS: "1" })
      process.kill(Number(gateway.workers().get(0)), "SIGKILL")
      const starts = () => gateway.log.filter(({ msg }) => msg === "worker started").length
      await until(() => starts() === 2, { what: "its successor" })
      gateway.signal("SIGTERM")
      expect(await within(gateway.exited, { what: "the end", timeoutMs: 20_000 })).toBe(0)
    },
    LIMIT_MS,
  )
})

describe("5,000 devices cut at once", () => {
  test(
    "restart nothing",
    async () => {
      const gateway = await start()
      const workers = gateway.workers()
      const herd = Bun.spawn(
        [
          process.execPath,
          join(import.meta.dir, "../bench/herd.ts"),
          ...["--port", String(gateway.devicePort), "--connections", "5000"],
        ],
        { stdin: "pipe", stdout: "pipe" },
      )
      await until(
        async () => (await gateway.metric("owsla_connections_admitted_total")) === 5_000,
        { what: "5,000 devices", timeoutMs: 50_000 },
      )
      herd.kill("SIGKILL")
      await until(async () => (await gateway.metric("owsla_connections")) === 0, {
        what: "no connections",
      })
      const closed = () => gateway.metric("owsla_connections_closed_total", "peer_closed")
      await until(async () => (await closed()) === 5_000, { what: "5,000 ends to be counted" })
      expect(gateway.workers()).toEqual(workers)
      expect(logged(gateway, "worker ended")).toBe(0)
    },
    LIMIT_MS,
  )
})

describe("a second instance started by mistake", () => {
  test(
    "on the same ports ends at once and says so",
    async () => {
      const gateway = await start()
      const second = Bun.spawn([process.execPath, join(import.meta.dir, "../../src/main.ts")], {
        env: {
          ...process.env,
          AMQP_URL: broker.url,
          DEVICE_HOST: "127.0.0.1",
          DEVICE_PORT: String(gateway.devicePort),
          HTTP_PORT: String(gateway.httpPort),
        },
        stdio: ["ignore", "ignore", "pipe"],
      })
      expect(await second.exited).toBe(1)
      expect(await new Response(second.stderr).text()).toContain("the port is in use")
    },
    LIMIT_MS,
  )

  test(
    "with the same INSTANCE_ID is not ready and says why",
    async () => {
      const gateway = await start({ WORKERS: "1", INSTANCE_ID: name("same") })
      await until(async () => (await gateway.fetch("/ready")).ok, { what: "the first" })
      const environment = { AMQP_URL: broker.url, ...queues, WORKERS: "1" }
      const second = await startGateway({ ...environment, INSTANCE_ID: name("same") })
      try {
        const reason = await until(
          async () => {
            const { reason } = (await (await second.fetch("/ready")).json()) as { reason?: string }
            return reason?.includes("INSTANCE_ID") ? reason : null
          },
          { what: "the second to notice" },
        )
        expect(reason).toContain("another connection uses owsla.worker.")
        expect((await gateway.fetch("/ready")).ok).toBe(true)
        // When the first is gone, the second takes its place.
        await gateway.stop()
        await until(async () => (await second.fetch("/ready")).ok, { what: "the second" })
      } finally {
        await second.stop()
      }
    },
    LIMIT_MS,
  )
})
