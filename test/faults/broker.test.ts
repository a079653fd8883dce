/**
 * Faults of the broker: RabbitMQ closed, paused, alarmed, stopped, killed, full. Whatever it is,
 * devices stay connected, no line that was read is lost, and each connection's lines are in order.
 */

import { afterAll, afterEach, beforeAll, expect } from "bun:test"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { connectDevice } from "../support/tls-device.ts"
import { pikaConsume } from "../support/tools.ts"
import { until } from "../support/wait.ts"
import { expectKept, FaultBed, type RunningHerd, residentMegabytes } from "./bed.ts"
import { type Fault, type Figures, fault, last, sized } from "./fault.ts"

const LIMIT_MS = 240_000
const DEVICES = sized(100, 30)
const RATE = 20
const KEPT = "devices stay, lost 0, in order"
/**
 * Memory of a worker while the broker takes nothing: what it starts with and its buffers' bounds.
 */
const MAX_RESIDENT_MB = 300
/** What the window may repeat after each loss, for each worker. */
const WINDOW_LINES = 2_000
let bed: FaultBed
let herd: RunningHerd | null = null

beforeAll(async () => {
  bed = await FaultBed.start()
}, LIMIT_MS)

afterEach(async () => {
  await herd?.kill()
  herd = null
})

afterAll(() => bed?.stop(), LIMIT_MS)

/** A fault that `act` makes and undoes while a herd sends; then everything must have arrived. */
function brokerFault(
  described: Omit<Fault, "promise"> & { readonly promise?: string },
  act: (herd: RunningHerd) => Promise<Figures>,
  repeats: "none" | "window" = "window",
): void {
  const { promise = KEPT } = described
  fault(
    { ...described, promise },
    async () => {
      herd = await bed.herd({ devices: DEVICES, rate: RATE })
      const lossesBefore = await bed.gateway.metric("owsla_broker_losses_total")
      const figures = await act(herd)
      await bed.ready()
      const kept = expectKept(await herd.end(), DEVICES)
      const losses = (await bed.gateway.metric("owsla_broker_losses_total")) - lossesBefore
      const most = repeats === "none" ? 0 : losses * WINDOW_LINES
      expect(kept["repeated"]).toBeLessThanOrEqual(most)
      return { ...kept, ...figures }
    },
    LIMIT_MS,
  )
}

brokerFault(
  {
    fault: "connection closed, again and again",
    made: `rabbitmqctl close_all_connections, every ${sized(5, 2)} s for ${sized(60, 4)} s`,
  },
  async () => {
    let slowestMs = 0
    const times = sized(12, 2)
    for (let at = 0; at < times; at += 1) {
      const connects = await bed.gateway.metric("owsla_broker_connects_total")
      await bed.broker.closeAllConnections("a fault")
      const closedAtMs = performance.now()
      const workers = bed.gateway.workers().size
      const back = async () =>
        (await bed.gateway.metric("owsla_broker_connects_total")) >= connects + workers
      await until(back, { what: "every worker to be back", timeoutMs: 30_000 })
      slowestMs = Math.max(slowestMs, performance.now() - closedAtMs)
      await last(sized(5, 2) - (performance.now() - closedAtMs) / 1_000)
    }
    return { closed: times, "slowest return, ms": Math.round(slowestMs) }
  },
)

brokerFault(
  { fault: "broker paused and resumed", made: `SIGSTOP, ${sized(30, 3)} s, SIGCONT` },
  async () => {
    bed.broker.pause()
    await last(sized(30, 3))
    const resident = residentMegabytes(bed.gateway)
    expect(resident).toBeLessThan(MAX_RESIDENT_MB)
    bed.broker.resume()
    return { "confirming again after, ms": await bed.flowsAgain(), "largest worker, MB": resident }
  },
)

brokerFault(
  {
    fault: "memory alarm",
    made: `set_vm_memory_high_watermark 0, ${sized(30, 2)} s, then 0.4`,
    promise: `${KEPT}, /ready 503 meanwhile, /health 200`,
  },
  async () => {
    await bed.broker.ctl("set_vm_memory_high_watermark", "0")
    await bed.notReady()
    await last(sized(30, 2))
    await bed.broker.ctl("set_vm_memory_high_watermark", "0.4")
    return { "confirming again after, ms": await bed.flowsAgain() }
  },
  "none",
)

brokerFault(
  {
    fault: "disk alarm",
    made: `set_disk_free_limit beyond the disk, ${sized(30, 2)} s, then 50 MB`,
    promise: `${KEPT}, /ready 503 meanwhile, /health 200`,
  },
  async () => {
    await bed.broker.ctl("set_disk_free_limit", "100000GB")
    await bed.notReady()
    await last(sized(30, 2))
    await bed.broker.ctl("set_disk_free_limit", "50MB")
    return { "confirming again after, ms": await bed.flowsAgain() }
  },
  "none",
)

brokerFault(
  {
    fault: "broker stopped and started",
    made: "rabbitmqctl stop, then started anew",
    promise: `${KEPT}, /ready 503 meanwhile, /health 200`,
  },
  async () => {
    await bed.broker.stop()
    await bed.notReady()
    await bed.broker.start()
    return { "confirming again after it answers, ms": await bed.flowsAgain() }
  },
)

brokerFault(
  {
    fault: "broker killed and started",
    made: "SIGKILL, then started anew",
    promise: `${KEPT}, /ready 503 meanwhile, /health 200`,
  },
  async () => {
    await bed.broker.kill()
    await bed.notReady()
    await bed.broker.start()
    return { "confirming again after it answers, ms": await bed.flowsAgain() }
  },
)

brokerFault(
  {
    fault: "credentials refused",
    made: `change_password and connections closed, ${sized(30, 3)} s, then the old password`,
    promise: `${KEPT}, /ready 503 meanwhile, /health 200`,
  },
  async () => {
    const { username, password } = new URL(bed.broker.url)
    await bed.broker.ctl("change_password", username, "another")
    await bed.broker.closeAllConnections("a fault")
    await bed.notReady()
    await last(sized(30, 3))
    await bed.broker.ctl("change_password", username, password)
    return { "confirming again after, ms": await bed.flowsAgain() }
  },
)

fault(
  {
    fault: "queue deleted",
    made: "rabbitmqctl delete_queue from_device; what comes is unroutable until it is declared again",
    promise: "devices stay, and every line sent from then on arrives, in order",
  },
  async () => {
    const queue = bed.queues.FROM_DEVICE_QUEUE
    const returnedBefore = await bed.gateway.metric("owsla_lines_returned_total")
    const devices = await Promise.all(
      Array.from({ length: 20 }, () => connectDevice({ port: bed.gateway.devicePort })),
    )
    await bed.broker.ctl("delete_queue", queue)
    const before = await bed.confirmed()
    const lines = Array.from({ length: 500 }, (_, n) => `line ${n}\n`).join("")
    await Promise.all(devices.map((device) => device.sendBytes(Buffer.from(lines))))
    const all = devices.length * 500
    const arrived = async () => (await bed.confirmed()) === before + all
    await until(arrived, { what: "every line to be confirmed", timeoutMs: 60_000 })
    const count = await bed.broker.queueDepth(queue)
    const messages = await pikaConsume({ url: bed.broker.url, queue, count, timeoutMs: 60_000 })
    expectFollowed(messages, devices.length, 500)
    const returned = (await bed.gateway.metric("owsla_lines_returned_total")) - returnedBefore
    expect(returned).toBeGreaterThan(0)
    const stay = async () => (await bed.gateway.metric("owsla_connections")) === devices.length
    await until(stay, { what: "every device to be there" })
    for (const device of devices) device.end()
    return { "lines sent": all, lost: 0, returned, repeated: messages.length - all }
  },
  LIMIT_MS,
)

fault(
  {
    fault: "queue full, with other arguments",
    made: "from_device declared beforehand: classic, x-max-length 200, x-overflow reject-publish; emptied later",
    promise: "it is used as it is, with a warning; devices stay, lost 0, in order",
  },
  async () => {
    const { FROM_DEVICE_QUEUE: queue } = bed.queues
    await bed.gateway.stop()
    await bed.broker.ctl("delete_queue", queue)
    const backEnd = new AMQPClient(bed.broker.url)
    await backEnd.connect()
    const channel = await backEnd.channel()
    const args = { "x-max-length": 200, "x-overflow": "reject-publish" }
    await channel.queueDeclare(queue, { durable: true }, args)
    const gateway = await bed.startGateway()
    const warned = () => gateway.log.some(({ msg }) => msg.includes("other arguments"))
    await until(warned, { what: "the warning" })
    const devices = await Promise.all(
      Array.from({ length: 20 }, () => connectDevice({ port: gateway.devicePort })),
    )
    const lines = Array.from({ length: 100 }, (_, n) => `line ${n}\n`).join("")
    await Promise.all(devices.map((device) => device.sendBytes(Buffer.from(lines))))
    const nacked = async () => (await gateway.metric("owsla_lines_nacked_total")) > 0
    await until(nacked, { what: "lines to be refused" })
    const messages: { headers: Record<string, unknown> }[] = []
    await channel.basicConsume(queue, { noAck: false }, (message) => {
      messages.push({ headers: message.properties.headers ?? {} })
      void message.ack()
    })
    const all = async () => (await bed.confirmed()) === devices.length * 100
    await until(all, { what: "every line to be confirmed", timeoutMs: 60_000 })
    const empty = async () => (await bed.broker.queueDepth(queue)) === 0
    await until(empty, { what: "the back-end to take them" })
    expectFollowed(messages, devices.length, 100)
    const refused = await gateway.metric("owsla_lines_nacked_total")
    for (const device of devices) device.end()
    await backEnd.close()
    const sent = devices.length * 100
    return { "lines sent": sent, lost: 0, refused, repeated: messages.length - sent }
  },
  LIMIT_MS,
)

/** A back-end that takes of each connection only the number that comes next gets them all. */
function expectFollowed(
  messages: readonly { headers: Record<string, unknown> }[],
  connections: number,
  lines: number,
) {
  const next = new Map<string, number>()
  for (const { headers } of messages) {
    const id = String(headers["connection_id"])
    const expected = next.get(id) ?? 0
    if (headers["from_device_seq"] === expected) next.set(id, expected + 1)
  }
  expect([...next.values()]).toEqual(Array(connections).fill(lines))
}
