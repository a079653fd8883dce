/**
 * The image, built without a registry and run with a read-only root and no capabilities against
 * RabbitMQ: a device's line gets to the queue, the health check passes, SIGTERM drains. `sh
 * test/install long` installs what it needs. Needs root.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { chmodSync, cpSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { type Container, Podman } from "../support/container.ts"
import { certificateFiles, ownQueues } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { amqpConsume } from "../support/tools.ts"
import { until, within } from "../support/wait.ts"

const BUILD_LIMIT_MS = 600_000
const LIMIT_MS = 120_000
const USER = 1000
const name = uniqueNames("image")
const queues = ownQueues(name)
let podman: Podman
let broker: PrivateBroker
let certificates: string

beforeAll(async () => {
  podman = new Podman()
  ;[broker] = await Promise.all([startRabbitMq(), podman.build()])
  certificates = mkdtempSync(join(tmpdir(), "owsla-image-"))
  cpSync(dirname(certificateFiles().TLS_CERT_FILE), certificates, { recursive: true })
  const owned = Bun.spawnSync(["chown", "--recursive", `${USER}:${USER}`, certificates])
  expect(owned.exitCode).toBe(0)
  chmodSync(certificates, 0o700)
}, BUILD_LIMIT_MS)

afterAll(async () => {
  await podman?.dispose()
  await broker?.dispose()
  if (certificates !== undefined) rmSync(certificates, { recursive: true })
}, LIMIT_MS)

/** A port that nothing listens on, so that the health check knows its number. */
function freePort(): string {
  const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } })
  listener.stop(true)
  return String(listener.port)
}

async function start(
  environment: Record<string, string> = {},
  args: readonly string[] = [],
): Promise<Container> {
  return await podman.run(
    {
      AMQP_URL: broker.url,
      ...queues,
      TLS_CERT_FILE: "/app/certs/server.crt",
      TLS_KEY_FILE: "/app/certs/server.key",
      DEVICE_HOST: "127.0.0.1",
      HTTP_PORT: freePort(),
      DEVICE_PORT: freePort(),
      WORKERS: "2",
      INSTANCE_ID: name("instance"),
      ...environment,
    },
    [`${certificates}:/app/certs:ro`],
    args,
  )
}

const HEALTH_COMMAND = ["bun", "--no-install", "src/main.ts", "health"]

test("the image runs as a numeric user, without a shell, and stops by SIGTERM", async () => {
  const config = await podman.config()
  expect(config).toMatchObject({
    User: `${USER}:${USER}`,
    Entrypoint: ["bun", "--no-install", "src/main.ts"],
    Cmd: ["start"],
    StopSignal: "SIGTERM",
    ExposedPorts: { "8443/tcp": {}, "8080/tcp": {} },
    Healthcheck: { Test: ["CMD", ...HEALTH_COMMAND] },
  })
  expect(config["Labels"]).toMatchObject({ "org.opencontainers.image.licenses": "MIT" })
})

test(
  "a container with a read-only root carries a line to the broker, is healthy, and drains",
  async () => {
    const devicePort = freePort()
    const container = await start({ DEVICE_PORT: devicePort })
    const started = async () => (await container.logs()).includes('"instance started"')
    await until(started, { what: "the instance to start", timeoutMs: 60_000 })
    await until(async () => (await container.exec(HEALTH_COMMAND)) === 0, { what: "health" })
    expect(await container.exec(["touch", "/app/file"])).not.toBe(0)

    const device = await connectDevice({ port: Number(devicePort) })
    await device.send("a line from outside")
    const consumed = { url: broker.url, queue: queues.FROM_DEVICE_QUEUE, count: 1 }
    const [line] = await amqpConsume({ ...consumed, timeoutMs: 60_000 })
    expect(line?.toString()).toBe("a line from outside")

    await container.signal("SIGTERM")
    expect(await within(container.exited(), { what: "the drain", timeoutMs: 60_000 })).toBe(0)
    await device.closed
    const logs = await container.logs()
    expect(logs).toContain('"phase":"done"')
    expect(logs).toContain('"reason":"drained"')
  },
  LIMIT_MS,
)

test(
  "the doctor runs in a container",
  async () => {
    const container = await start({}, ["doctor", "--json"])
    // 1 is a warning about this machine, 2 a failure.
    const status = await within(container.exited(), { what: "its end", timeoutMs: 60_000 })
    expect(status).toBeLessThan(2)
    expect(await container.logs()).toContain('"check":"broker')
  },
  LIMIT_MS,
)

test(
  "a container without AMQP_URL ends with status 2 and says why",
  async () => {
    const container = await start({ AMQP_URL: "" })
    expect(await within(container.exited(), { what: "its end", timeoutMs: 60_000 })).toBe(2)
    expect(await container.logs()).toContain("AMQP_URL: needed with NODE_ENV=production")
  },
  LIMIT_MS,
)
