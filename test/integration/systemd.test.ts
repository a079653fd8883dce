/**
 * The gateway under systemd, with a socket that stands in for systemd: what the gateway sends in
 * each state, that the watchdog hears nothing from a supervisor that stands still, and that a worker
 * that stands still is replaced.
 */

import { afterEach, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { type HeardSocket, hearSocket } from "../support/notify-socket.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { TimeoutError, until } from "../support/wait.ts"

const LIMIT_MS = 90_000
/** The gateway sends WATCHDOG=1 three times in it. */
const WATCHDOG_MS = 600
const name = uniqueNames("systemd")
let broker: TestBroker
let gateway: TestGateway | undefined
let heard: HeardSocket | undefined
let directory: string | undefined

beforeAll(async () => {
  broker = await sharedRabbitMq()
}, LIMIT_MS)

afterEach(async () => {
  await gateway?.stop()
  await heard?.close()
  if (directory !== undefined) rmSync(directory, { recursive: true })
  directory = undefined
  gateway = undefined
  heard = undefined
}, LIMIT_MS)

function socketPath(): string {
  directory = mkdtempSync(join(tmpdir(), "owsla-systemd-"))
  return join(directory, "notify")
}

async function start(environment: Record<string, string> = {}, socket = socketPath()) {
  const listener = await hearSocket(socket)
  heard = listener
  const started = await startGateway({
    AMQP_URL: broker.url,
    ...ownQueues(name),
    WORKERS: "1",
    NOTIFY_SOCKET: socket,
    WATCHDOG_USEC: String(WATCHDOG_MS * 1_000),
    ...environment,
  })
  gateway = started
  await until(() => listener.with("READY", "1").length > 0, { what: "READY=1" })
  return { gateway: started, heard: listener }
}

/** The first number of /proc/uptime is of another clock only on a machine that was suspended. */
const secondsSince = (monotonicUs: string) =>
  Number(readFileSync("/proc/uptime", "utf8").split(" ")[0]) - Number(monotonicUs) / 1_000_000

describe("a service of Type=notify", () => {
  test(
    "is ready, has a status, reloads and stops",
    async () => {
      const { gateway, heard } = await start()
      expect(heard.with("READY")).toHaveLength(1)
      const device = await connectDevice({ port: gateway.devicePort })
      await until(
        () =>
          heard
            .with("STATUS")
            .some(({ STATUS: status = "" }) =>
              /^1 devices, \d+ lines\/s, broker ready in 1 of 1 workers$/.test(status),
            ),
        { what: "the device in the status" },
      )
      expect(heard.with("WATCHDOG", "1").length).toBeGreaterThan(0)

      gateway.signal("SIGHUP")
      await until(() => heard.with("READY").length === 2, { what: "READY=1 after the reload" })
      const reloading = heard.messages.findIndex(({ RELOADING }) => RELOADING === "1")
      const ready = heard.messages.findLastIndex(({ READY }) => READY === "1")
      expect(reloading).toBeGreaterThan(0)
      expect(ready).toBeGreaterThan(reloading)
      const { MONOTONIC_USEC: monotonicUs = "" } = heard.messages[reloading] ?? {}
      expect(Math.abs(secondsSince(monotonicUs))).toBeLessThan(60)

      expect(await gateway.stop()).toBe(0)
      await device.closed
      const [stopping] = heard.with("STOPPING", "1")
      expect(Number(stopping?.["EXTEND_TIMEOUT_USEC"])).toBeGreaterThan(5_000_000)
    },
    LIMIT_MS,
  )

  test(
    "in the abstract namespace hears the gateway too",
    async () => {
      const { heard } = await start({}, `@${name("notify")}`)
      await until(() => heard.with("STATUS").length > 0, { what: "a status" })
    },
    LIMIT_MS,
  )

  test(
    "with the embedded broker is ready and stops too",
    async () => {
      const socket = socketPath()
      const listener = await hearSocket(socket)
      heard = listener
      gateway = await startGateway({ NOTIFY_SOCKET: socket })
      await until(() => listener.with("READY", "1").length === 1, { what: "READY=1" })
      expect(await gateway.stop()).toBe(0)
      await until(() => listener.with("STOPPING", "1").length === 1, { what: "STOPPING=1" })
      // Without WatchdogSec nobody waits for it.
      expect(listener.with("WATCHDOG")).toEqual([])
    },
    LIMIT_MS,
  )

  test(
    "gets more time as long as a drain lasts",
    async () => {
      const { gateway, heard } = await start()
      await gateway.metric("owsla_connections")
      const worker = Number(gateway.workers().get(0))
      process.kill(worker, "SIGSTOP")
      gateway.signal("SIGTERM")
      const extensions = () => heard.with("EXTEND_TIMEOUT_USEC").length
      await until(() => extensions() > 3, { what: "EXTEND_TIMEOUT_USEC again and again" })
      process.kill(worker, "SIGCONT")
      expect(await gateway.exited).toBe(0)
    },
    LIMIT_MS,
  )

  test.each(["/nonexistent/notify", "vsock:2:1234"])(
    "that cannot be heard at %s works all the same, with one warning",
    async (socket) => {
      gateway = await startGateway({ NOTIFY_SOCKET: socket, WATCHDOG_USEC: "30000" })
      const { log } = gateway
      const warnings = () => log.filter(({ msg }) => msg.startsWith("systemd gets no messages"))
      await until(() => warnings().length > 0, { what: "the warning" })
      gateway.signal("SIGHUP")
      await until(() => log.some(({ msg }) => msg === "reload ended"), { what: "the reload" })
      expect(await gateway.stop()).toBe(0)
      expect(warnings()).toHaveLength(1)
    },
    LIMIT_MS,
  )
})

describe("what stands still", () => {
  test(
    "as a supervisor is not heard by the watchdog",
    async () => {
      const { gateway, heard } = await start()
      const pulses = () => heard.with("WATCHDOG", "1").length
      await until(() => pulses() > 2, { what: "some WATCHDOG=1" })
      gateway.signal("SIGSTOP")
      try {
        const isStopped = () => /\) T /.test(readFileSync(`/proc/${gateway.pid}/stat`, "utf8"))
        await until(isStopped, { what: "the supervisor to be stopped" })
        const before = pulses()
        // One that was sent before may still be read.
        const more = until(() => pulses() > before + 1, {
          what: "more WATCHDOG=1",
          timeoutMs: WATCHDOG_MS * 3,
        })
        const result = await more.catch((error: unknown) => error)
        expect(result).toBeInstanceOf(TimeoutError)
      } finally {
        gateway.signal("SIGCONT")
      }
      const before = pulses()
      await until(() => pulses() > before, { what: "WATCHDOG=1 again" })
    },
    LIMIT_MS,
  )

  test(
    "as a worker is replaced, while the supervisor is heard",
    async () => {
      const { gateway, heard } = await start({ WORKERS: "2", WORKER_STALL_TIMEOUT_MS: "2000" })
      await gateway.metric("owsla_connections")
      const victim = Number(gateway.workers().get(1))
      process.kill(victim, "SIGSTOP")
      const ended = () =>
        gateway.log.find((line) => line.msg === "worker ended" && line["workerPid"] === victim)
      const line = await until(ended, { what: "the stopped worker to end", timeoutMs: 30_000 })
      expect(line).toMatchObject({ status: "signal SIGKILL", action: "restart" })
      const { log } = gateway
      expect(log.some(({ msg }) => msg.includes("WORKER_STALL_TIMEOUT_MS"))).toBe(true)
      await until(() => log.filter(({ msg }) => msg === "listening").length === 3, {
        what: "its successor",
      })
      const before = heard.with("WATCHDOG").length
      await until(() => heard.with("WATCHDOG").length > before, { what: "WATCHDOG=1" })
      const device = await connectDevice({ port: gateway.devicePort })
      device.end()
    },
    LIMIT_MS,
  )

  test(
    "as a whole instance, like a machine that was suspended, loses no worker",
    async () => {
      const { gateway, heard } = await start({ WORKER_STALL_TIMEOUT_MS: "2000" })
      await gateway.metric("owsla_connections")
      const processes = [gateway.pid, ...gateway.workers().values()]
      for (const pid of processes) process.kill(pid, "SIGSTOP")
      await Bun.sleep(4_000)
      for (const pid of processes) process.kill(pid, "SIGCONT")
      const before = heard.with("STATUS").length
      await until(() => heard.with("STATUS").length > before + 6, { what: "more of its status" })
      expect(gateway.log.some(({ msg }) => msg === "worker ended")).toBe(false)
    },
    LIMIT_MS,
  )
})
