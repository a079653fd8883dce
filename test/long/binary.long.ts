/**
 * The binary of `bun run build`: its commands, and two workers with a broker from the first line to
 * SIGTERM. A binary has neither sources nor packages beside it, and runs its workers without the
 * path of an entry point.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import manifest from "../../package.json" with { type: "json" }
import { certificateFiles } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 120_000
const ROOT = join(import.meta.dir, "../..")
const directory = mkdtempSync(join(tmpdir(), "owsla-binary-"))
const binary = join(directory, "owsla")
let broker: PrivateBroker

beforeAll(async () => {
  const [, ...build] = manifest.scripts.build.split(" ")
  const command = [process.execPath, ...build.slice(0, -1), binary]
  const built = Bun.spawnSync(command, { cwd: ROOT, stderr: "pipe" })
  if (!built.success) throw new Error(built.stderr.toString())
  broker = await startRabbitMq()
}, LIMIT_MS)

afterAll(async () => {
  await broker?.dispose()
  rmSync(directory, { recursive: true, force: true })
}, LIMIT_MS)

/** In a folder without sources, with nothing but these variables. */
function start(args: readonly string[], environment: Record<string, string> = {}) {
  return Bun.spawn([binary, ...args], {
    cwd: directory,
    env: { PATH: process.env["PATH"] ?? "", ...environment },
    stdio: ["ignore", "pipe", "pipe"],
  })
}

test.each<[string[], string]>([
  [["--version"], `owsla ${manifest.version}`],
  [["--help"], "usage: bun run start"],
  [["doctor", "--help"], "usage: bun run doctor"],
  [["certs", "--help"], "usage: bun run certs"],
  [["simulate", "--help"], "usage: bun run simulate"],
  [["health", "--help"], "usage: bun run health"],
])(
  "%j is answered",
  async (args, text) => {
    const child = start(args)
    expect(await child.stdout.text()).toContain(text)
    expect(await child.exited).toBe(0)
  },
  LIMIT_MS,
)

test(
  "certs makes a certificate",
  async () => {
    const made = mkdtempSync(join(tmpdir(), "owsla-binary-certs-"))
    try {
      const child = start(["certs", "--dir", made])
      expect(await child.exited).toBe(0)
      expect(readdirSync(made)).toContain("server.crt")
    } finally {
      rmSync(made, { recursive: true, force: true })
    }
  },
  LIMIT_MS,
)

test(
  "the doctor checks the broker",
  async () => {
    const child = start(["doctor", "--json"], { AMQP_URL: broker.url, ...certificateFiles() })
    const { findings } = JSON.parse(await child.stdout.text()) as {
      findings: { check: string; level: string }[]
    }
    const levels = findings.filter(({ check }) => ["broker", "handshake"].includes(check))
    expect(levels).toMatchObject([{ level: "ok" }, { level: "ok" }])
    await child.exited
  },
  LIMIT_MS,
)

test(
  "two workers take lines from devices to the queue, and drain on SIGTERM",
  async () => {
    const gateway = start(["start"], {
      AMQP_URL: broker.url,
      WORKERS: "2",
      DEVICE_HOST: "127.0.0.1",
      DEVICE_PORT: "0",
      HTTP_PORT: "0",
      ...certificateFiles(),
    })
    const log: Record<string, unknown>[] = []
    let output = ""
    const reading = (async () => {
      for await (const chunk of gateway.stdout) {
        output += Buffer.from(chunk).toString()
        const lines = output.split("\n")
        output = lines.pop() ?? ""
        for (const line of lines) log.push(JSON.parse(line))
      }
    })()
    const listening = () => log.filter(({ msg }) => msg === "listening")
    await until(() => listening().length === 2, { what: "two workers to listen" })
    expect(log.filter(({ msg }) => msg === "instance started")).toHaveLength(1)
    const http = `http://127.0.0.1:${listening()[0]?.["httpPort"]}`
    const page = await (await fetch(http)).text()
    expect(page).toContain("Owsla")
    const assets = [...page.matchAll(/\/page\/assets\/[^"]+/g)].map(([path]) => path)
    expect(assets.length).toBeGreaterThan(0)
    for (const path of assets) {
      const asset = await fetch(`${http}${path}`)
      expect({ path, status: asset.status }).toEqual({ path, status: 200 })
      expect((await asset.text()).length).toBeGreaterThan(0)
    }
    const port = Number(listening()[0]?.["devicePort"])
    const devices = await Promise.all(Array.from({ length: 8 }, () => connectDevice({ port })))
    await Promise.all(devices.map((device, at) => device.send(`line ${at}`)))
    const arrived = async () => (await broker.queueDepth("from_device")) === devices.length
    await until(arrived, { what: "the lines in from_device", timeoutMs: 30_000 })
    gateway.kill("SIGTERM")
    expect(await within(gateway.exited, { what: "the drain", timeoutMs: 60_000 })).toBe(0)
    await reading
    expect(log.filter(({ msg }) => msg === "worker ended").map(({ status }) => status)).toEqual([
      "status 0",
      "status 0",
    ])
    expect(await gateway.stderr.text()).toBe("")
    expect(await broker.queueDepth("from_device")).toBe(devices.length)
    await Promise.all(devices.map((device) => device.closed))
  },
  LIMIT_MS,
)
