/**
 * One scenario for all examples of back-ends at the same time, against one gateway and RabbitMQ. Each example
 * consumes one partition, into which one device sends. It has the permissions that docs/PROTOCOL.md gives to a
 * back-end.
 *
 *   lines ─► each is taken and answered
 *     ─► lines, and meanwhile `rabbitmqctl close_all_user_connections` ─► each is taken and answered
 *
 * The verdict: the example has taken each line once and in order, the device has got one answer to each line that
 * is not itself an answer (`done: `), and each answer of the back-end has a receipt. An example that fails does not end the scenario for the others; its waits end at
 * their limits.
 */

import { lineQueues } from "../../src/broker/topology.ts"
import { helloLine } from "../../src/device/hello.ts"
import { partitionOf } from "../../src/lines/partitions.ts"
import { ownQueues, startGateway } from "../support/gateway.ts"
import { type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import type { Built, Finding } from "./finding.ts"
import { Subject } from "./subject.ts"

const SECRET = "a-secret-of-the-devices-0123456789"
const USER = "backend"
/** Lines before the connections are closed, and after that. */
const LINES = 20
/** One line of so many is the device's answer to a command. */
const DONE_EVERY = 5

class Consumer extends Subject {
  readonly device: TestDevice
  #sent = 0

  constructor(built: Built, device: TestDevice, settings: Readonly<Record<string, string>>) {
    super(built, { ...settings, BACKOFF_MS: "100" })
    this.device = device
  }

  get sent(): number {
    return this.#sent
  }

  async send(): Promise<void> {
    await this.device.send(lineOf(this.#sent))
    this.#sent += 1
  }

  /** All lines so far are taken and answered, and the answers have receipts. */
  answered(): Promise<void> {
    const answers = toAnswer(linesOf(this.#sent)).length
    return this.reaches(`receipt of ${answers} answers`, () => {
      const receipts = new Set(
        this.program.after("receipt").map((receipt) => receipt.split(" ")[0]),
      )
      return receipts.size >= answers && this.device.lines.length >= answers
    })
  }
}

/** @param permissions of a back-end in docs/PROTOCOL.md: configure, write, read. */
export async function runBackEnds(
  built: readonly Built[],
  broker: TestBroker,
  permissions: readonly string[],
): Promise<Finding[]> {
  // With one partition the gateway would not number its queue.
  const partitions = Math.max(2, built.length)
  const queues = ownQueues(uniqueNames("from_device"))
  const lineQueue = lineQueues(queues.FROM_DEVICE_QUEUE, partitions)
  const url = new URL(broker.url)
  url.username = USER
  url.password = USER
  await broker.ctl("add_user", USER, USER)
  const narrowed = permissions.map((permission) =>
    permission.replace("from_device", `${RegExp.escape(queues.FROM_DEVICE_QUEUE)}\\.[0-9]+`),
  )
  await broker.ctl("set_permissions", USER, ...narrowed)
  const gateway = await startGateway({
    ...{ ...queues, AMQP_URL: broker.url, WORKERS: "2" },
    ...{ DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET },
    FROM_DEVICE_PARTITIONS: String(partitions),
  })
  const subjects: Consumer[] = []
  try {
    await gateway.ready()
    for (const [at, each] of built.entries()) {
      const device = await connectDevice({ port: gateway.devicePort })
      await device.send(helloLine(deviceOf(at, partitions), SECRET))
      const settings = {
        AMQP_URL: url.href,
        FROM_DEVICE: lineQueue[at] ?? "",
        RECEIPTS: `backend.receipts.${at}`,
      }
      subjects.push(new Consumer(each, device, settings))
    }
    const sendAll = () => Promise.all(subjects.map((subject) => subject.send()))
    for (let line = 0; line < LINES; line += 1) await sendAll()
    await Promise.all(subjects.map((subject) => subject.answered()))

    let closed = false
    const closing = broker.ctl("close_all_user_connections", USER, "maintenance").then(() => {
      closed = true
    })
    while (!closed) {
      await sendAll()
      // So that they are sent during the whole command, and not all at its begin.
      await Bun.sleep(10)
    }
    await closing
    for (let line = 0; line < LINES; line += 1) await sendAll()
    await Promise.all(
      subjects.map(async (subject) => {
        const begun = () => subject.program.lines.filter((line) => line === "consuming").length
        await subject.reaches("second connection", () => begun() >= 2)
        await subject.answered()
      }),
    )
    return subjects.map(judge)
  } finally {
    for (const { program, device } of subjects) {
      device.end()
      await program.end()
    }
    await gateway.stop()
  }
}

function judge({ example, program, device, sent, faults }: Consumer): Finding {
  const all = linesOf(sent)
  // "<message id> <line>"
  const taken = program.after("line").map((line) => line.slice(line.indexOf(" ") + 1))
  expectEqual("the lines that it took", taken, all, faults)
  const answers = toAnswer(all).map((line) => `thank you for ${line}`)
  expectEqual("the answers at the device", device.lines.toSorted(), answers.toSorted(), faults)
  const outcomes = program.after("receipt").map((receipt) => receipt.split(" "))
  const written = outcomes.filter(([, outcome]) => outcome === "written")
  if (new Set(written.map(([id]) => id)).size !== answers.length) {
    faults.push(`receipts: ${written.length} as written of ${answers.length}`)
  }
  // An answer that was published again has the outcome `duplicate` in its second receipt.
  const others = outcomes.filter(([, outcome]) => outcome !== "written")
  for (const [, outcome] of others) {
    if (outcome !== "duplicate") faults.push(`a receipt with the outcome ${outcome}`)
  }
  const seen = [
    `lines: ${taken.length}, each taken once and in order`,
    `answers at the device: ${device.lines.length}`,
    `receipts: ${written.length} written, ${others.length} duplicate`,
    "connections closed by the broker: 1",
  ]
  return { example, faults, seen: seen.join("; ") }
}

function expectEqual(
  what: string,
  found: readonly string[],
  expected: readonly string[],
  faults: string[],
): void {
  const at = Array.from({ length: Math.max(found.length, expected.length) }).findIndex(
    (_, index) => found[index] !== expected[index],
  )
  if (at !== -1) {
    faults.push(`${what}: number ${at} is "${found[at]}" and not "${expected[at]}"`)
  }
}

function lineOf(number: number): string {
  return number % DONE_EVERY === 0 ? `done: ${number}` : `line ${number}`
}

function linesOf(count: number): string[] {
  return Array.from({ length: count }, (_, number) => lineOf(number))
}

function toAnswer(lines: readonly string[]): string[] {
  return lines.filter((line) => !line.startsWith("done: "))
}

function deviceOf(partition: number, partitions: number): string {
  for (let n = 0; ; n += 1) {
    if (partitionOf(`device-${n}`, partitions) === partition) return `device-${n}`
  }
}
