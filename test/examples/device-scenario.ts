/**
 * One scenario for all examples of devices at the same time, against one gateway and RabbitMQ:
 *
 *   wrong CA, wrong name ─► nothing is sent to them
 *   gateway a ─► first readings ─► commands, each answered by a line
 *     ─► the broker no longer answers; commands by HTTP, whose answers get no ACK; SIGKILL
 *   gateway b ─► the answers again ─► drained, while gateway c takes new connections
 *   gateway c ─► back after the time of the goodbye line ─► longer without a reading than the idle time-out
 *
 * The verdict comes from what the broker got: each reading once or repeated, in order and without a gap. An
 * example that fails does not end the scenario for the others; its waits end at their limits.
 */

import { writeFileSync } from "node:fs"
import { join } from "node:path"
import { helloLine } from "../../src/device/hello.ts"
import { AmqpProxy } from "../support/amqp-proxy.ts"
import { BackEnd } from "../support/back-end.ts"
import { clientCertificate, makeAuthority } from "../support/client-certificates.ts"
import { ownQueues, startGateway, type TestGateway, testCaFile } from "../support/gateway.ts"
import { type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { until } from "../support/wait.ts"
import type { Built, Finding } from "./finding.ts"
import { LoadBalancer } from "./load-balancer.ts"
import { type Example, Program } from "./programs.ts"
import { STEP_MS, Subject } from "./subject.ts"

const SECRET = "a-secret-of-the-devices-0123456789"
/** Longer than the idle time-out, so that signs of life are needed between two readings. */
const TIMES = { INTERVAL_MS: "4000", SIGN_OF_LIFE_MS: "400", BACKOFF_MS: "100" }
const IDLE_TIMEOUT_MS = "2000"
const COMMANDS = ["open the door", "close the door"]
const UNACKNOWLEDGED = ["hold 1", "hold 2", "hold 3"]
/** A reading may have reached the broker when its confirm is held. */
const MAX_REPEATED = 1
/** Sleeps of some runtimes end up to a millisecond early; the clocks are read in whole ones. */
const EARLY_MS = 2
/** For this long the proxy holds the bytes of the broker's connections: longer than any test. */
const HELD_MS = 3_600_000
class Device extends Subject {
  readonly deviceId: string

  constructor(built: Built, at: number, port: number) {
    const deviceId = `example:${at}`
    super(built, {
      ...TIMES,
      GATEWAY: `localhost:${port}`,
      CA_FILE: testCaFile(),
      HELLO_LINE: helloLine(deviceId, SECRET),
    })
    this.deviceId = deviceId
  }
}

export async function runDevices(built: readonly Built[], broker: TestBroker): Promise<Finding[]> {
  const trustFaults = new Map(
    await Promise.all(built.map(async (each) => [each.example, await checkTrust(each)] as const)),
  )
  const ends: (() => unknown)[] = []
  try {
    return await runAll(built, broker, trustFaults, ends)
  } finally {
    for (const end of ends.reverse()) await end()
  }
}

/** @param ends gets what must be called afterwards, the last one first. */
async function runAll(
  built: readonly Built[],
  broker: TestBroker,
  trustFaults: ReadonlyMap<Example, readonly string[]>,
  ends: (() => unknown)[],
): Promise<Finding[]> {
  const queues = ownQueues(uniqueNames("examples"))
  const proxy = await AmqpProxy.start(broker.port)
  ends.push(() => proxy.stop())
  const url = new URL(broker.url)
  url.port = String(proxy.port)
  const settings = {
    ...{ ...queues, AMQP_URL: url.href, WORKERS: "1", IDLE_TIMEOUT_MS },
    ...{ DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET, DEVICE_ACK: "seq" },
    GOODBYE_LINE: "BYE {reason} {retry_after_ms}",
  }
  const front = await LoadBalancer.start()
  ends.push(() => front.stop())
  const start = async (id: string): Promise<TestGateway> => {
    const gateway = await startGateway({ ...settings, INSTANCE_ID: id })
    ends.push(() => gateway.stop())
    await gateway.ready()
    front.target = gateway.devicePort
    return gateway
  }
  const a = await start("a")
  const backEnd = await BackEnd.connect(broker.url, queues)
  ends.push(() => backEnd.close())
  const subjects = built.map((each, at) => new Device(each, at, front.port))
  for (const { program } of subjects) ends.push(() => program.end())
  const all = (what: string, condition: (subject: Device) => unknown) =>
    Promise.all(subjects.map((subject) => subject.reaches(what, () => condition(subject))))
  const linesOf = ({ deviceId }: Device) =>
    backEnd.lines.filter(({ device }) => device === deviceId)
  const has = (subject: Device, line: string) => linesOf(subject).some(({ body }) => body === line)
  await all("first reading", (subject) => has(subject, "reading 0"))

  for (const command of COMMANDS) {
    const headers = { reply_prefix: `done: ${command}` }
    const answers = subjects.map(async (subject) => {
      const number = await backEnd.send({ device: subject.deviceId, body: command, headers })
      await subject.reaches(`answer to "${command}"`, () => backEnd.receiptOf(number))
      const outcome = backEnd.receiptOf(number)?.outcome
      if (outcome !== "answered") subject.fault(`"${command}" ended as ${outcome}`)
    })
    await Promise.all(answers)
  }

  await until(async () => (await a.metric("owsla_window_lines")) === 0, {
    what: "all lines to be confirmed",
  })
  proxy.delayMs = () => HELD_MS
  for (const line of UNACKNOWLEDGED) {
    const send = async (subject: Device) => {
      const path = `/devices/${subject.deviceId}/send`
      const headers = { "content-type": "text/plain" }
      const response = await a.fetch(path, { method: "POST", headers, body: line })
      if (!response.ok) subject.fault(`"${line}": ${await response.text()}`)
    }
    await Promise.all(subjects.map(send))
  }
  const printed = ({ program }: Device, line: string) => program.lines.includes(`command ${line}`)
  await all("command while the broker is silent", (subject) =>
    UNACKNOWLEDGED.every((line) => printed(subject, line)),
  )
  if (subjects.some((subject) => has(subject, "done: hold 1"))) {
    throw new Error("the broker was not silent")
  }
  await killAll(a)
  proxy.closeConnections()
  proxy.delayMs = null

  const b = await start("b")
  await all("lines that were not acknowledged, again", (subject) =>
    UNACKNOWLEDGED.every((line) => has(subject, `done: ${line}`)),
  )

  await start("c")
  const stoppedAtMs = Date.now()
  const drained = b.stop()
  await all("goodbye", ({ program }) => program.after("goodbye drained").length > 0)
  const connectedTo = ({ deviceId }: Device, instance: string) =>
    backEnd.presence.find(
      (event) =>
        event.key === "device.connected" &&
        event.device_id === deviceId &&
        event.instance === instance,
    )
  await all("connection after the goodbye", (subject) => connectedTo(subject, "c"))
  await drained
  const returns = subjects.map((subject) => {
    const askedMs = Number(subject.program.after("goodbye drained")[0])
    const afterMs = (connectedTo(subject, "c")?.epoch ?? Number.NaN) - stoppedAtMs
    if (!(afterMs >= askedMs - EARLY_MS)) {
      subject.fault(`the goodbye said ${askedMs} ms, and it came back after ${afterMs}`)
    }
    return { askedMs, afterMs }
  })

  await all("two readings on one connection", (subject) => {
    const connection = connectedTo(subject, "c")?.connection_id
    const here = linesOf(subject).filter((line) => line.connection === connection)
    return here.filter(({ body }) => body.startsWith("reading ")).length >= 2
  })

  return subjects.map((subject, at) => {
    const { deviceId } = subject
    const ends = backEnd.presence.filter(
      ({ key, device_id }) => key === "device.disconnected" && device_id === deviceId,
    )
    for (const { reason } of ends) {
      if (reason !== "drained") subject.fault(`a connection ended as ${reason}`)
    }
    const lines = linesOf(subject)
    const { repeated, gaps } = followReadings(lines.map(({ body }) => body))
    subject.faults.push(...gaps, ...(trustFaults.get(subject.example) ?? []))
    if (repeated > MAX_REPEATED) subject.fault(`${repeated} acknowledged lines came again`)
    const back = returns[at]
    const seen = [
      `lines: ${lines.length}, none lost, ${UNACKNOWLEDGED.length} of them sent again after the gateway was killed`,
      `commands answered: ${COMMANDS.length + UNACKNOWLEDGED.length}`,
      `goodbye: asked to wait ${back?.askedMs} ms, back after ${back?.afterMs}`,
      "a wrong CA and a wrong name refused",
    ]
    return { example: subject.example, faults: subject.faults, seen: seen.join("; ") }
  })
}

/** SIGKILL to the supervisor first, so that it starts no other worker. */
async function killAll(gateway: TestGateway): Promise<void> {
  const workers = [...gateway.workers().values()]
  gateway.signal("SIGKILL")
  for (const pid of workers) process.kill(pid, "SIGKILL")
  await gateway.exited
}

/** Readings that come for the first time follow each other. A repeat is not newer than the last. */
export function followReadings(lines: readonly string[]): { repeated: number; gaps: string[] } {
  const seen = new Set<string>()
  const gaps: string[] = []
  let next = 0
  let repeated = 0
  for (const line of lines) {
    if (seen.has(line)) repeated += 1
    else if (line.startsWith("reading ")) {
      if (line !== `reading ${next}`) gaps.push(`"${line}" instead of "reading ${next}"`)
      next = Number(line.split(" ")[1]) + 1
    }
    seen.add(line)
  }
  return { repeated, gaps }
}

/** What a server has seen of an example. */
interface Visit {
  readonly connections: number
  readonly bytes: number
}

/**
 * Starts the example with three servers: it sends its first line to the one that its CA has certified for the name,
 * and nothing to those with another CA or another name. Returns the faults.
 */
async function checkTrust({ example, directory }: Built): Promise<string[]> {
  const [ca, otherCa] = await Promise.all([makeAuthority("trusted"), makeAuthority("other")])
  const caFile = join(directory, "ca.crt")
  writeFileSync(caFile, `${ca.certificate.toString("pem")}\n`)
  const visit = async (
    issuer: typeof ca,
    name: string,
    enough: (visit: Visit) => boolean,
  ): Promise<{ visit: Visit; program: Program }> => {
    const names = [{ type: "dns", value: name }] as const
    const { cert, key } = await clientCertificate({ issuer, names, purpose: "serverAuth" })
    const seen = { connections: 0, bytes: 0 }
    const server = Bun.listen({
      hostname: "127.0.0.1",
      port: 0,
      tls: { cert, key },
      socket: {
        open() {
          seen.connections += 1
        },
        data(_, chunk) {
          seen.bytes += chunk.length
        },
        handshake() {},
        error() {},
      },
    })
    const program = new Program(example, directory, {
      ...TIMES,
      GATEWAY: `localhost:${server.port}`,
      CA_FILE: caFile,
      HELLO_LINE: "HELLO lock:17 secret",
    })
    const what = `enough connections to a server named ${name}`
    await until(() => enough(seen), { what, timeoutMs: STEP_MS }).catch(() => undefined)
    await program.end()
    server.stop(true)
    return { visit: seen, program }
  }
  const twice = ({ connections, bytes }: Visit) => connections >= 2 || bytes > 0
  const [good, byOther, named] = await Promise.all([
    visit(ca, "localhost", ({ bytes }) => bytes > 0),
    visit(otherCa, "localhost", twice),
    visit(ca, "gateway.example", twice),
  ])
  const faults: string[] = []
  const complain = (what: string, { visit, program }: typeof good) =>
    faults.push(`${what}: ${JSON.stringify({ ...visit, printed: program.lines.slice(-5) })}`)
  if (good.visit.bytes === 0) complain("it sent nothing to a server of its CA", good)
  for (const [what, stranger] of [
    ["another CA", byOther],
    ["another name", named],
  ] as const) {
    const trusted = stranger.visit.bytes > 0 || stranger.program.lines.includes("connected")
    if (trusted) complain(`it trusted a server with ${what}`, stranger)
    if (stranger.visit.connections < 2) complain(`no second try at a server with ${what}`, stranger)
  }
  return faults
}
