/**
 * Faults of resources: too few open files, memory under a flood that the broker does not take, and
 * a log on a full disk.
 */

import { expect } from "bun:test"
import { openSync } from "node:fs"
import net from "node:net"
import { join } from "node:path"
import { certificateFiles, cpuSeconds, metricValue } from "../support/gateway.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"
import { bedsOnOneBroker, expectKept, residentMegabytes } from "./bed.ts"
import { fault, last, sized } from "./fault.ts"

const LIMIT_MS = sized(600_000, 300_000)
const start = bedsOnOneBroker(LIMIT_MS)

const OPEN_FILES = 512
const CONNECTS = 1_000
const INSIDE = 50

fault(
  {
    fault: "open-files limit reached",
    made: `ulimit -n ${OPEN_FILES}, ${CONNECTS} connects to one worker, again and again for ${sized(20, 3)} s`,
    promise: "those beyond are refused; devices inside, broker and HTTP go on; lost 0",
  },
  async () => {
    const limited = ["sh", "-c", `ulimit -n ${OPEN_FILES}; exec "$@"`, "sh"]
    const bed = await start({ WORKERS: "1" }, limited)
    const { gateway } = bed
    const worker = Number(gateway.workers().get(0))
    const herd = await bed.herd({ devices: INSIDE, rate: 10 })
    const knocking = Array.from({ length: CONNECTS }, () => new Knocker(gateway.devicePort))
    const full = () => gateway.metric("owsla_connections_closed_total", "overloaded")
    await until(async () => (await full()) > 0, { what: "the worker to be full" })
    const before = { cpu: cpuSeconds(worker), atMs: performance.now(), refused: await full() }
    await last(sized(20, 3))
    const refused = (await full()) - before.refused
    const busy = (cpuSeconds(worker) - before.cpu) / ((performance.now() - before.atMs) / 1_000)
    expect((await gateway.fetch("/health")).status).toBe(200)
    await bed.flowsAgain()
    for (const knocker of knocking) knocker.stop()
    const kept = expectKept(await herd.end(), INSIDE)
    expect(gateway.log.filter(({ msg }) => msg === "worker ended")).toEqual([])
    return { ...kept, refused, "CPU of the full worker, %": Math.round(busy * 100) }
  },
  LIMIT_MS,
)

/** Holds a TCP connection, and knocks again a second after it was refused, as devices do. */
class Knocker {
  readonly #port: number
  #socket: net.Socket | null = null
  #timer: ReturnType<typeof setTimeout> | null = null
  #stopped = false

  constructor(port: number) {
    this.#port = port
    this.#knock()
  }

  stop(): void {
    this.#stopped = true
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#socket?.destroy()
  }

  #knock(): void {
    const socket = net.connect(this.#port, "127.0.0.1")
    this.#socket = socket
    socket.on("error", () => undefined)
    socket.on("close", () => {
      // The period of its attempts, not a wait for anything.
      if (!this.#stopped) this.#timer = setTimeout(() => this.#knock(), 1_000)
    })
  }
}

const FLOODING = sized(2_000, 100)
/**
 * What the kernel holds for the devices would take minutes to come through, and has no part in the
 * promise.
 */
const FLOOD_LINES = sized(400, 1_000)

fault(
  {
    fault: "flood while the broker is paused",
    made: `${FLOODING} devices send ${FLOOD_LINES} lines each as fast as they can, the broker is stopped (SIGSTOP) for ${sized(30, 5)} s`,
    promise:
      "resident memory at most 300 MB a worker; devices stay; everything arrives after, lost 0",
  },
  async () => {
    const started = await start()
    const herd = await started.herd({
      devices: FLOODING,
      rate: 0,
      flags: ["--lines", String(FLOOD_LINES)],
    })
    let most = 0
    started.broker.pause()
    try {
      expect(await started.confirmed()).toBeLessThan(FLOODING * FLOOD_LINES)
      for (let at = 0; at < sized(30, 5); at += 1) {
        await last(1)
        most = Math.max(most, residentMegabytes(started.gateway))
      }
    } finally {
      started.broker.resume()
    }
    await started.flowsAgain(60_000)
    const all = async () => (await started.confirmed()) >= FLOODING * FLOOD_LINES
    await until(all, { what: "every line to be confirmed", timeoutMs: LIMIT_MS })
    const kept = expectKept(await herd.end(), FLOODING)
    most = Math.max(most, residentMegabytes(started.gateway))
    expect(most).toBeLessThanOrEqual(300)
    return { ...kept, "largest worker, MB": most }
  },
  LIMIT_MS,
)

fault(
  {
    fault: "log on a full disk",
    made: "standard output and error are /dev/full, at LOG_LEVEL=debug",
    promise: "lines go on to the broker; log lines are dropped and counted",
  },
  async () => {
    const started = await start()
    const { broker, queues, gateway } = started
    const [devicePort, httpPort] = [await freePort(), await freePort()]
    const full = openSync("/dev/full", "w")
    const program = Bun.spawn([process.execPath, join(import.meta.dir, "../../src/main.ts")], {
      env: {
        PATH: process.env["PATH"] ?? "",
        AMQP_URL: broker.url,
        ...queues,
        ...certificateFiles(),
        INSTANCE_ID: "full-disk",
        WORKERS: "1",
        DEVICE_HOST: "127.0.0.1",
        DEVICE_PORT: String(devicePort),
        HTTP_PORT: String(httpPort),
        LOG_LEVEL: "debug",
      },
      stdio: ["ignore", full, full],
    })
    started.alsoEnd(async () => {
      program.kill("SIGTERM")
      await program.exited
    })
    const metrics = async () => (await fetch(`http://127.0.0.1:${httpPort}/metrics`)).text()
    const ready = async () => (await fetch(`http://127.0.0.1:${httpPort}/ready`)).ok
    await until(ready, { what: "the gateway without a log" })
    const devices: TestDevice[] = await Promise.all(
      Array.from({ length: 20 }, () => connectDevice({ port: devicePort })),
    )
    await Promise.all(devices.map((device) => device.send("a line")))
    const confirmed = async () =>
      metricValue(await metrics(), "owsla_lines_confirmed_total") === devices.length
    await until(confirmed, { what: "every line to be confirmed" })
    const dropped = metricValue(await metrics(), "owsla_log_lines_dropped_total")
    expect(dropped).toBeGreaterThan(0)
    for (const device of devices) device.end()
    expect((await gateway.fetch("/health")).status).toBe(200)
    return { "lines sent": devices.length, lost: 0, "log lines dropped": dropped }
  },
  LIMIT_MS,
)

async function freePort(): Promise<number> {
  const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data: () => undefined } })
  const { port } = listener
  listener.stop(true)
  return port
}
