/**
 * What the workers keep once every table that remembers the past is full. Such tables have bounds
 * that a day of ordinary use reaches and an hour does not, so memory that grows within an hour says
 * nothing about a leak. Here each round does a day's work:
 *
 *   commands to devices that stay ─► held commands ─► their devices come, take them and go ─► look
 *
 * Each round has other devices and other message ids. The looks follow a collection
 * (`heap-report.ts`).
 */

import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { helloLine } from "../../src/device/hello.ts"
import { heapReports, readHeapReports } from "../support/heap-report.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"
import type { Child } from "./child.ts"
import { BackEnd, type BenchResult, makeBed, round } from "./harness.ts"
import { startHeldDevices } from "./held.ts"

export interface FullTablesParameters {
  /** Devices of a round that are away and then come. */
  readonly devices: number
  /** Commands that are held for each of them. */
  readonly heldEach: number
  /** The time in which they come. */
  readonly backSeconds: number
  /** Devices that stay. */
  readonly steady: number
  /** Commands to each of these in each round. */
  readonly commandsEach: number
  readonly rounds: number
  /** The time after a round in which the last of it goes, of several reports. */
  readonly settleMs: number
}

const SECRET = "a-secret-of-the-benches-0123456789"
const HOLD_MS = 3_600_000
const LIMIT_MS = 300_000
const REPORTS_OF_A_SETTLING = 5

export async function fullTables(parameters: FullTablesParameters): Promise<BenchResult> {
  const { devices, heldEach, backSeconds, steady, commandsEach, rounds, settleMs } = parameters
  const directory = mkdtempSync(join(tmpdir(), "owsla-heap-"))
  const bed = await makeBed({
    ...{ WORKERS: "2", DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET },
    ...{ MAX_HELD: String(devices * heldEach), IDLE_TIMEOUT_MS: String(HOLD_MS) },
    ...heapReports(directory, settleMs / REPORTS_OF_A_SETTLING),
  })
  const { gateway, queues } = bed
  const backEnd = await BackEnd.connect(bed.broker.url)
  const staying: TestDevice[] = []
  const written = () => gateway.metric("owsla_commands_total", "written")
  const figures: Record<string, number> = {}
  try {
    await gateway.ready()
    const publish = await backEnd.publisher()
    await backEnd.consume(queues.fromDevice, (message) => {
      const { headers = {}, replyTo = "" } = message.properties
      publish(replyTo, "newer", { connection_id: String(headers["connection_id"]) })
    })
    for (let at = 0; at < steady; at += 1) {
      const device = await connectDevice({ port: gateway.devicePort })
      await device.send(helloLine(`stays-${at}`, SECRET))
      staying.push(device)
    }
    for (let turn = 1; turn <= rounds; turn += 1) {
      const before = await written()
      await backEnd.publishAll(
        queues.toDevice,
        Array.from({ length: steady * commandsEach }, (_, at) => ({
          body: `command ${at}`,
          headers: { device_id: `stays-${at % steady}` },
          messageId: crypto.randomUUID(),
        })),
      )
      await until(async () => (await written()) >= before + steady * commandsEach, {
        what: "all commands to be written",
        timeoutMs: LIMIT_MS,
      })

      const from = turn * devices
      for (let number = 0; number < heldEach; number += 1) {
        await backEnd.publishAll(
          queues.toDevice,
          Array.from({ length: devices }, (_, at) => ({
            body: `held ${number}`,
            headers: { device_id: `away-${from + at}`, hold_ms: String(HOLD_MS) },
          })),
        )
      }
      await until(
        async () => (await gateway.metric("owsla_held_commands")) === devices * heldEach,
        { what: "all commands to be held", timeoutMs: LIMIT_MS },
      )
      const { devicePort: port } = gateway
      const coming = { port, secret: SECRET, from, devices, each: heldEach, backSeconds }
      await comeAndGo(startHeldDevices(coming), devices)
      await until(async () => (await gateway.metric("owsla_connections")) === steady, {
        what: "the devices to be gone",
        timeoutMs: LIMIT_MS,
      })
      await Bun.sleep(settleMs)
      const reports = readHeapReports(directory)
      const workers = [...gateway.workers().values()].map((pid) => reports.get(String(pid))?.at(-1))
      const sum = (of: "heapBytes" | "residentBytes") =>
        round(workers.reduce((total, report) => total + (report?.[of] ?? Number.NaN), 0) / 1e6)
      figures[`heap of both workers after round ${turn}, MB`] = sum("heapBytes")
      figures[`resident after round ${turn}, MB`] = sum("residentBytes")
    }
    return { bench: "full-tables", parameters: { ...parameters }, figures }
  } finally {
    for (const device of staying) device.end()
    backEnd.close()
    await bed.stop()
    rmSync(directory, { recursive: true, force: true })
  }
}

/** All devices connect, take their held commands, and disconnect. */
async function comeAndGo(drivers: readonly Child[], devices: number): Promise<void> {
  try {
    await Promise.all(drivers.map((driver) => driver.told("ready")))
    for (const driver of drivers) driver.say("come")
    await Promise.all(drivers.map((driver) => driver.told("came")))
    const whole = async () => {
      for (const driver of drivers) driver.say("status")
      const told = await Promise.all(drivers.map((driver) => driver.told("whole")))
      return told.reduce((sum, status) => sum + (status["whole"] ?? 0), 0)
    }
    await until(async () => (await whole()) === devices, {
      what: "each device to have all its commands",
      timeoutMs: LIMIT_MS,
    })
  } finally {
    await Promise.all(drivers.map((driver) => driver.stop()))
  }
}
