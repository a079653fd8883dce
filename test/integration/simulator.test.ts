/**
 * The simulator against the real gateway and a real RabbitMQ: what it reports, what its ledger
 * proves, and how it ends.
 */

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test"
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createCertificateAuthority } from "../../src/ops/certificates.ts"
import { HOSTILE_KINDS } from "../../src/simulator/hostile-kinds.ts"
import type { RunReport } from "../../src/simulator/report.ts"
import type { Verdict } from "../../src/simulator/verdict.ts"
import { ownQueues, startGateway, type TestGateway, testCaFile } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { until } from "../support/wait.ts"

const MAIN_FILE = join(import.meta.dir, "../../src/simulator/main.ts")
const LIMIT_MS = 60_000
const SECRET = "a-secret-of-the-devices-0123456789"
const name = uniqueNames("simulator")
/**
 * One of its own: gateways of other tests at the same broker would keep held commands, and a killed
 * one delays look-ups for seconds.
 */
let broker: PrivateBroker
let directory: string

beforeAll(async () => {
  broker = await startRabbitMq()
}, LIMIT_MS)

afterAll(() => broker?.dispose(), LIMIT_MS)

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "owsla-simulator-"))
})

afterEach(() => rmSync(directory, { recursive: true, force: true }))

interface Ended<T> {
  readonly status: number
  readonly said: T
  readonly complaint: string
}

function spawn(args: readonly string[]) {
  const process_ = Bun.spawn([process.execPath, MAIN_FILE, ...args, "--json"], {
    env: { PATH: process.env["PATH"] ?? "" },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: LIMIT_MS,
    killSignal: "SIGKILL",
  })
  const ended = async <T>(): Promise<Ended<T>> => {
    const [output, complaint] = await Promise.all([process_.stdout.text(), process_.stderr.text()])
    const status = await process_.exited
    return { status, said: output === "" ? null : JSON.parse(output), complaint }
  }
  return { process: process_, ended }
}

function simulate(gateway: TestGateway, queues: ReturnType<typeof ownQueues>, args: string[]) {
  return spawn([
    ...["--port", String(gateway.devicePort), "--ca", testCaFile(), "--ledger", directory],
    ...["--backend", "--amqp-url", broker.url],
    ...["--from-device", queues.FROM_DEVICE_QUEUE, "--to-device", queues.TO_DEVICE_QUEUE],
    ...args,
  ])
}

function verify(...args: string[]): Promise<Ended<Verdict>> {
  return spawn(["verify", "--ledger", directory, ...args]).ended<Verdict>()
}

describe("with DEVICE_ACK=seq", () => {
  const queues = ownQueues(uniqueNames("simulator-acks"))
  let gateway: TestGateway

  beforeAll(async () => {
    gateway = await startGateway({ AMQP_URL: broker.url, ...queues, DEVICE_ACK: "seq" })
  }, LIMIT_MS)

  afterAll(() => gateway?.stop(), LIMIT_MS)

  test(
    "every line of fifty devices is accounted for, and a ledger that lacks one or has one more is not",
    async () => {
      const args = ["--devices", "50", "--ramp", "0", "--rate", "50", "--lines", "12"]
      const more = ["--device-ack", "--command-every", "10"]
      const run = await simulate(gateway, queues, [...args, ...more]).ended<RunReport>()
      expect(run.said?.faults).toEqual([])
      expect(run.status).toBe(0)
      const { devices, lines, backEnd, latencyMs } = run.said
      expect(devices).toMatchObject({ wanted: 50, neverConnected: 0, connections: 50 })
      const commands = backEnd?.commandsAnswered ?? 0
      expect(commands).toBeGreaterThan(0)
      // Each device sends its lines, and one more for each command.
      expect(lines).toMatchObject({ sent: 600 + commands, acked: 600 + commands, cutOff: 0 })
      expect(latencyMs.connect.count).toBe(50)
      expect(latencyMs.command.count).toBe(commands)
      expect(latencyMs.confirm.p99).toBeGreaterThan(0)

      const good = await verify("--no-repeats")
      expect(good.status).toBe(0)
      expect(good.said).toMatchObject({ kept: true, sent: lines.sent, taken: lines.sent, lost: 0 })

      const file = readdirSync(directory).find((each) => each.endsWith(".back-end")) ?? ""
      const path = join(directory, file)
      const records = readFileSync(path, "utf8").split("\n")
      const [first = ""] = records
      expect(first).toStartWith("took ")
      const counted = Number(first.split(" ").at(-1))
      writeFileSync(path, records.slice(1).join("\n"))
      expect(await verify()).toMatchObject({ status: 1, said: { kept: false, lost: counted } })
      expect((await verify("--allow-lost", String(counted))).status).toBe(0)
      const invented = first.replace(/ sim-\d+ /, " sim-99 ")
      writeFileSync(path, [first, invented, ...records.slice(1)].join("\n"))
      expect(await verify()).toMatchObject({ status: 1, said: { lost: 0, unexpected: counted } })
    },
    LIMIT_MS,
  )

  test(
    "a killed worker's devices come back, and no acknowledged line is lost",
    async () => {
      const before = await gateway.metric("owsla_lines_in_total")
      const args = ["--devices", "20", "--ramp", "0", "--rate", "50", "--lines", "200"]
      const run = simulate(gateway, queues, [...args, "--device-ack"])
      await until(async () => (await gateway.metric("owsla_lines_in_total")) > before + 500, {
        what: "500 lines",
      })
      process.kill(gateway.workers().get(0) ?? 0, "SIGKILL")
      const { status, said } = await run.ended<RunReport>()
      expect(said?.faults).toEqual([])
      expect(status).toBe(0)
      expect(said.devices.connections).toBeGreaterThan(20)
      expect(said.devices.failures.broken).toBe(said.devices.connections - 20)
      expect(await verify()).toMatchObject({ status: 0, said: { lost: 0, unexpected: 0 } })
    },
    LIMIT_MS,
  )

  test(
    "an interrupted run reports and its ledger is complete",
    async () => {
      const before = await gateway.metric("owsla_lines_in_total")
      const args = ["--devices", "5", "--ramp", "0", "--rate", "50", "--duration", "600"]
      const run = simulate(gateway, queues, [...args, "--device-ack"])
      await until(async () => (await gateway.metric("owsla_lines_in_total")) > before + 50, {
        what: "50 lines",
      })
      run.process.kill("SIGINT")
      const { status, said } = await run.ended<RunReport>()
      expect(said?.faults).toEqual([])
      expect(status).toBe(0)
      const verdict = await verify("--no-repeats")
      expect(verdict).toMatchObject({ status: 0, said: { sent: said.lines.sent, unfinished: 0 } })
    },
    LIMIT_MS,
  )
})

describe("with DEVICE_AUTH=hello", () => {
  const queues = ownQueues(uniqueNames("simulator-hello"))
  let gateway: TestGateway

  beforeAll(async () => {
    gateway = await startGateway({
      ...{ AMQP_URL: broker.url, ...queues, DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET },
      ...{ IDENTIFY_TIMEOUT_MS: "1500", HANDSHAKE_TIMEOUT_MS: "1500" },
    })
  }, LIMIT_MS)

  afterAll(() => gateway?.stop(), LIMIT_MS)

  test(
    "good devices lose nothing beside three of each hostile kind",
    async () => {
      const hostile = HOSTILE_KINDS.flatMap((kind) => ["--hostile", `${kind}:3`])
      const args = ["--devices", "10", "--ramp", "0", "--rate", "20", "--lines", "80"]
      const run = await simulate(gateway, queues, [
        ...["--auth", "hello", "--secret", SECRET, "--command-every", "10"],
        ...args,
        ...hostile,
      ]).ended<RunReport>()
      expect(run.said?.faults).toEqual([])
      expect(run.status).toBe(0)
      expect(run.said.lines.sent).toBe(800 + (run.said.backEnd?.commandsAnswered ?? 0))
      expect(run.said.backEnd?.hostile).toBeGreaterThan(0)
      const { hostile: reports } = run.said
      expect(reports.map(({ kind }) => kind)).toEqual([...HOSTILE_KINDS])
      expect(reports.filter(({ opened }) => opened < 3)).toEqual([])
      const kindsWith = (count: "closedByGateway" | "sentBytes") =>
        reports.filter((report) => report[count] > 0).map(({ kind }) => kind)
      // Those that a gateway must not bear were thrown out, and came again.
      const thrownOut = ["silent", "half-handshake", "endless-line", "garbage", "duplicate-id"]
      expect(kindsWith("closedByGateway")).toEqual(expect.arrayContaining(thrownOut))
      const speaking = ["slow-reader", "byte-at-a-time", "endless-line", "garbage"]
      expect(kindsWith("sentBytes")).toEqual(expect.arrayContaining(speaking))
      expect(await verify("--no-repeats")).toMatchObject({ status: 0, said: { kept: true } })
    },
    LIMIT_MS,
  )

  test(
    "held commands are written once, in order and before newer ones, and a ledger that says otherwise fails",
    async () => {
      const run = await simulate(gateway, queues, [
        ...["--auth", "hello", "--secret", SECRET, "--name", "away", "--hold", "4", "--away", "4"],
        ...["--devices", "20", "--ramp", "0", "--rate", "20", "--lines", "20"],
      ]).ended<RunReport>()
      expect(run.said?.faults).toEqual([])
      expect(run.status).toBe(0)
      const { held, lines, backEnd } = run.said
      expect(held).toMatchObject({ sent: 80, receipts: { written: 80 }, withoutReceipt: 0 })
      // Each device's first line is answered by a newer command.
      expect(lines).toMatchObject({ held: 80, commands: 20 })
      expect(backEnd?.commandsAnswered).toBe(20)
      const good = await verify("--no-repeats")
      expect(good).toMatchObject({ status: 0, said: { kept: true, held: { written: 80 } } })

      const path = join(directory, `${run.said.run}.devices`)
      const records = readFileSync(path, "utf8")
      const judgedWith = (record: string) => {
        writeFileSync(path, records.replace(/^got away-7 1 \S+ 3\n/m, record))
        return verify()
      }
      expect(await judgedWith("")).toMatchObject({ status: 1, said: { held: { missing: 1 } } })
      const late = await judgedWith(`got away-7 1 ${run.said.run} 3 late\n`)
      expect(late).toMatchObject({ status: 1, said: { held: { missing: 0, late: 1 } } })
    },
    LIMIT_MS,
  )

  test(
    "devices with a wrong secret fail the run",
    async () => {
      const secret = ["--auth", "hello", "--secret", "another-one"]
      const args = ["--devices", "3", "--ramp", "0", "--duration", "1"]
      const run = await simulate(gateway, queues, [...secret, ...args]).ended<RunReport>()
      expect(run.status).toBe(1)
      expect(run.said.faults).toEqual(["3 devices were not connected when sending ended"])
      expect(run.said.lines.sent).toBe(0)
    },
    LIMIT_MS,
  )
})

test(
  "with DEVICE_AUTH=mtls each device has its own certificate",
  async () => {
    const ca = await createCertificateAuthority()
    const files = { cert: join(directory, "ca.crt"), key: join(directory, "ca.key") }
    writeFileSync(files.cert, ca.certPem)
    writeFileSync(files.key, ca.keyPem)
    const queues = ownQueues(name)
    const gateway = await startGateway({
      ...{ AMQP_URL: broker.url, ...queues, DEVICE_AUTH: "mtls", TLS_CLIENT_CA_FILE: files.cert },
    })
    try {
      const run = await simulate(gateway, queues, [
        ...["--auth", "mtls", "--client-ca-cert", files.cert, "--client-ca-key", files.key],
        ...["--devices", "5", "--ramp", "0", "--rate", "20", "--lines", "10"],
      ]).ended<RunReport>()
      expect(run.said?.faults).toEqual([])
      expect(run.status).toBe(0)
      // A device's id in the messages is the one in its lines, else they would be mislabelled.
      const verdict = await verify("--no-repeats")
      expect(verdict).toMatchObject({ status: 0, said: { taken: 50, mislabelled: 0 } })
    } finally {
      await gateway.stop()
    }
  },
  LIMIT_MS,
)

describe("without a gateway", () => {
  test(
    "devices never connect, and the run ends all the same",
    async () => {
      // A port that was free a moment ago.
      const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } })
      const port = String(listener.port)
      listener.stop(true)
      const args = ["--port", port, "--devices", "3", "--ramp", "0", "--duration", "1"]
      const { status, said } = await spawn(args).ended<RunReport>()
      expect(status).toBe(1)
      expect(said.faults).toEqual(["3 devices never connected"])
      expect(said.devices.failures.connect).toBeGreaterThan(2)
    },
    LIMIT_MS,
  )

  test("wrong usage is status 2, with every fault", async () => {
    const { status, said, complaint } = await spawn(["--port", "0", "--prot"]).ended()
    expect(status).toBe(2)
    expect(said).toBeNull()
    expect(complaint).toContain("--prot is no flag\n--port must be")
  })

  test.each([
    [["verify", "--ledger", "/nowhere/at/all"], "/nowhere/at/all cannot be read"],
    [["--ca", "/nowhere/ca.crt"], "/nowhere/ca.crt cannot be read"],
  ])("%p is status 2", async (args, message) => {
    const { status, complaint } = await spawn(args).ended()
    expect(status).toBe(2)
    expect(complaint).toContain(message)
  })
})
