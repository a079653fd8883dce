/**
 * Supervision: what becomes of the instance when its processes die or are told to stop. The real
 * program with real signals; RabbitMQ behind it.
 */

import { afterEach, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { helloLine } from "../../src/device/hello.ts"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { pikaConsume } from "../support/tools.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 60_000
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
  return gateway
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

/** The start and end of a worker, as the log tells. */
function times(gateway: TestGateway, msg: string): number[] {
  return gateway.log
    .filter((line) => line.msg === msg)
    .map((line) => Date.parse(String(line["time"])))
}

describe("a worker that is killed", () => {
  test(
    "is back within two seconds, and the others go on",
    async () => {
      const gateway = await start()
      const survivor = await connectedTo(gateway, 1)
      const victim = Number(gateway.workers().get(0))
      process.kill(victim, "SIGKILL")
      await until(() => times(gateway, "listening").length === 3, { what: "a new worker" })
      const [endedAt = 0] = times(gateway, "worker ended")
      const listeningAgainAt = times(gateway, "listening")[2] ?? Number.POSITIVE_INFINITY
      expect(listeningAgainAt - endedAt).toBeLessThan(2_000)
      expect(gateway.workers().get(0)).not.toBe(victim)
      await survivor.send("still here")
      await until(async () => (await gateway.metric("owsla_worker_restarts_total")) === 1, {
        what: "the restart to be counted",
      })
      const [line] = await pikaConsume({
        url: broker.url,
        queue: queues.FROM_DEVICE_QUEUE,
        count: 1,
      })
      expect(line?.body.toString()).toBe("still here")
      survivor.end()
    },
    LIMIT_MS,
  )

  test(
    "too often ends the instance with status 1 and says why",
    async () => {
      const gateway = await start({ MAX_RESTARTS: "2", MAX_RESTARTS_WINDOW_MS: "60000" })
      for (let death = 1; death <= 3; death += 1) {
        process.kill(Number(gateway.workers().get(0)), "SIGKILL")
        await until(() => times(gateway, "worker ended").length >= death, { what: "its end" })
        if (death < 3) await until(() => gateway.workers().has(0), { what: "its successor" })
      }
      expect(await gateway.exited).toBe(1)
      const last = gateway.log.find((line) => line.msg === "instance ended")
      expect(last).toMatchObject({
        status: 1,
        reason: expect.stringContaining("restart intensity"),
      })
    },
    LIMIT_MS,
  )
})

describe("files that are gone when a worker is replaced", () => {
  test(
    "are not needed again, and whoever was denied stays so",
    async () => {
      const directory = mkdtempSync(join(tmpdir(), "owsla-gone-"))
      const files = {
        DENYLIST_FILE: join(directory, "denylist"),
        HELLO_SECRETS_FILE: join(directory, "secrets"),
      }
      const secret = "a-secret-of-the-tests"
      writeFileSync(files.DENYLIST_FILE, "denied\n")
      writeFileSync(files.HELLO_SECRETS_FILE, secret)
      const gateway = await start({ WORKERS: "1", DEVICE_AUTH: "hello", ...files })
      rmSync(directory, { recursive: true })
      const victim = Number(gateway.workers().get(0))
      process.kill(victim, "SIGKILL")
      await until(() => times(gateway, "listening").length === 2, { what: "a new worker" })
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

describe("a supervisor that is killed", () => {
  test(
    "leaves no worker behind: each drains and ends, and the ports are free",
    async () => {
      const gateway = await start()
      const workers = [...gateway.workers().values()]
      const device = await connectDevice({ port: gateway.devicePort })
      await device.send("before")
      gateway.signal("SIGKILL")
      await until(() => !workers.some(alive), { what: "the workers to end" })
      const [line] = await pikaConsume({
        url: broker.url,
        queue: queues.FROM_DEVICE_QUEUE,
        count: 1,
      })
      expect(line?.body.toString()).toBe("before")
      const again = Bun.listen({
        hostname: "127.0.0.1",
        port: gateway.devicePort,
        socket: { data: () => undefined },
      })
      again.stop(true)
    },
    LIMIT_MS,
  )
})

describe("SIGTERM", () => {
  test(
    "drains: every line that was read is with the broker, devices are closed, status 0",
    async () => {
      const gateway = await start({ LOG_LEVEL: "debug" })
      const before = await broker.queueDepth(queues.FROM_DEVICE_QUEUE)
      const devices = await Promise.all(
        Array.from({ length: 20 }, () => connectDevice({ port: gateway.devicePort })),
      )
      const lines = Array.from({ length: 500 }, (_, n) => `line ${n}\n`).join("")
      await Promise.all(devices.map((device) => device.sendBytes(Buffer.from(lines))))
      gateway.signal("SIGTERM")
      expect(await gateway.exited).toBe(0)
      // Bytes that it had sent and nobody read turn a close into a reset.
      const closes = await Promise.all(devices.map((device) => device.closed))
      for (const { by } of closes) expect(by).toBeOneOf(["peer", "fault"])

      const drained = gateway.log.filter((line) => line["phase"] === "done")
      expect(drained.map((line) => line["unconfirmedLines"])).toEqual([0, 0])
      // What was still in a socket's buffer was never read; what was read came out in order.
      const depth = await broker.queueDepth(queues.FROM_DEVICE_QUEUE)
      const read = gateway.log
        .filter(({ msg }) => msg === "connection closed")
        .reduce((sum, line) => sum + Number(line["linesIn"]), 0)
      expect(read).toBeGreaterThan(0)
      expect(depth - before).toBe(read)
      const messages = await pikaConsume({
        url: broker.url,
        queue: queues.FROM_DEVICE_QUEUE,
        count: depth - before,
      })
      const next = new Map<string, number>()
      for (const { headers } of messages) {
        const id = String(headers["connection_id"])
        expect(headers["from_device_seq"]).toBe(next.get(id) ?? 0)
        next.set(id, (next.get(id) ?? 0) + 1)
      }
    },
    LIMIT_MS,
  )

  test(
    "twice ends at once",
    async () => {
      // Paused, the broker confirms nothing: the first signal's drain would take its full time.
      const gateway = await start({ DRAIN_TIMEOUT_MS: "60000" })
      const device = await connectDevice({ port: gateway.devicePort })
      broker.pause()
      try {
        await device.send("not confirmed")
        await until(async () => (await gateway.metric("owsla_window_lines")) === 1, {
          what: "the line to wait for its confirm",
        })
        gateway.signal("SIGTERM")
        await until(() => gateway.log.some((line) => line["phase"] === "confirming"), {
          what: "the drain to begin",
        })
        // At first it counts as the same signal, passed on twice.
        let status: number | string | null = null
        void gateway.exited.then((exited) => {
          status = exited
        })
        await until(
          () => {
            if (status === null) gateway.signal("SIGTERM")
            return status !== null
          },
          { what: "the second signal to end it" },
        )
        expect(await gateway.exited).toBe(1)
      } finally {
        broker.resume()
      }
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
      await until(() => times(gateway, "worker started").length === 2, { what: "its successor" })
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
        { what: "5,000 devices", timeoutMs: 30_000 },
      )
      herd.kill("SIGKILL")
      await until(async () => (await gateway.metric("owsla_connections")) === 0, {
        what: "no connections",
      })
      expect(gateway.workers()).toEqual(workers)
      expect(gateway.log.some((line) => line.msg === "worker ended")).toBe(false)
      const closed = await gateway.metric("owsla_connections_closed_total", "peer_closed")
      expect(closed).toBe(5_000)
    },
    LIMIT_MS,
  )
})

/** A device on the worker of `slot`, tried until one lands there. */
async function connectedTo(gateway: TestGateway, slot: number) {
  const log = gateway.log.find((line) => line.msg === "listening")
  expect(log).toBeDefined()
  for (;;) {
    const device = await connectDevice({ port: gateway.devicePort })
    await device.send("where am I")
    const [line] = await pikaConsume({ url: broker.url, queue: queues.FROM_DEVICE_QUEUE, count: 1 })
    if (String(line?.properties["reply_to"]).endsWith(`.${slot}`)) return device
    device.end()
  }
}

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
        expect(reason).toContain("another connection has owsla.worker.")
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
