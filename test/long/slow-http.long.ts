/**
 * The HTTP port under `slowhttptest`: slow headers, slow bodies and slow reading by 1,000 connections.
 * Meanwhile `/health` is answered, and a device gets its lines acknowledged. `sh test/install long`
 * installs it.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { connectDevice } from "../support/tls-device.ts"
import { findProgram } from "../support/tools.ts"

const LIMIT_MS = 120_000
const SECONDS = 20

let gateway: TestGateway

beforeAll(async () => {
  gateway = await startGateway({ DEVICE_ACK: "seq" })
}, LIMIT_MS)

afterAll(async () => {
  await gateway?.stop()
}, LIMIT_MS)

test.each([
  ["headers", ["-H", "-i", "2"]],
  ["bodies", ["-B", "-i", "2", "-s", "8192"]],
  ["reading", ["-X", "-w", "1", "-y", "2", "-n", "1", "-z", "1", "-k", "3"]],
])(
  "slow %s keep nobody out",
  async (_name, mode) => {
    const program = findProgram("slowhttptest", "slowhttptest")
    const url = `http://127.0.0.1:${gateway.httpPort}/health`
    const rate = ["-c", "1000", "-r", "200", "-l", String(SECONDS), "-p", "3", "-u", url]
    const attack = Bun.spawn([program, ...mode, ...rate], { stdio: ["ignore", "pipe", "pipe"] })
    const device = await connectDevice({ port: gateway.devicePort })
    let lines = 0
    let isOver = false
    void attack.exited.then(() => {
      isOver = true
    })
    while (!isOver) {
      const answer = await gateway.fetch("/health", { signal: AbortSignal.timeout(5_000) })
      expect(answer.status).toBe(200)
      await answer.text()
      await device.send("a line")
      expect(await device.nextLine(5_000)).toBe(`ACK ${lines}`)
      lines += 1
      await Bun.sleep(100)
    }
    device.end()
    // Its own probe, by another connection, found the port available to the end.
    const colour = new RegExp(`${String.fromCharCode(27)}\\[[0-9;]*m`, "g")
    const output = (await attack.stdout.text()).replaceAll(colour, "")
    const available = [...output.matchAll(/service available:\s*(\w+)/g)].map(([, word]) => word)
    expect(new Set(available)).toEqual(new Set(["YES"]))
    expect(lines).toBeGreaterThan(SECONDS)
    expect(await gateway.metric("owsla_faults_total")).toBe(0)
  },
  LIMIT_MS,
)
