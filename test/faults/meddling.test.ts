/**
 * Faults of what the broker says: confirms that are late, out of order, many at once, negative or
 * never come, and a channel that is closed for no fault of ours. A real RabbitMQ behind a proxy
 * that meddles.
 */

import { afterAll, afterEach, beforeAll, expect } from "bun:test"
import { type AmqpFrame, type Meddle, methodFrame, methodOf } from "../support/amqp-proxy.ts"
import { until } from "../support/wait.ts"
import { expectKept, FaultBed, type RunningHerd } from "./bed.ts"
import { type Fault, type Figures, fault, sized } from "./fault.ts"

const LIMIT_MS = 240_000
const DEVICES = sized(100, 20)
const CONFIRM_TIMEOUT_MS = sized(15_000, 2_000)
const CONFIRM = "60.80"
let bed: FaultBed
let herd: RunningHerd | null = null

beforeAll(async () => {
  bed = await FaultBed.start({ CONFIRM_TIMEOUT_MS: String(CONFIRM_TIMEOUT_MS) }, "proxied")
}, LIMIT_MS)

afterEach(async () => {
  meddle((frame) => [frame])
  await herd?.kill()
  herd = null
  // Confirms that were held back: their lines are published again, and belong to no later herd.
  const unconfirmed = async () =>
    (await bed.gateway.metric("owsla_lines_in_total")) - (await bed.confirmed())
  await until(async () => (await unconfirmed()) === 0, {
    what: "every line to be confirmed",
    timeoutMs: 60_000,
  })
  await bed.broker.ctl("purge_queue", bed.queues.FROM_DEVICE_QUEUE)
}, LIMIT_MS)

afterAll(() => bed?.stop(), LIMIT_MS)

function meddle(how: Meddle): void {
  if (bed.proxy !== null) bed.proxy.meddle = how
}

function meddlingFault(described: Omit<Fault, "promise">, act: () => Promise<Figures>): void {
  fault(
    { ...described, promise: "devices stay, lost 0, in order for who follows the numbers" },
    async () => {
      herd = await bed.herd({ devices: DEVICES, rate: 50 })
      const figures = await act()
      meddle((frame) => [frame])
      await bed.ready()
      return { ...expectKept(await herd.end(), DEVICES), ...figures }
    },
    LIMIT_MS,
  )
}

async function linesPass(count: number): Promise<void> {
  const before = await bed.confirmed()
  const passed = async () => (await bed.confirmed()) >= before + count
  await until(passed, { what: `${count} lines to be confirmed`, timeoutMs: 60_000 })
}

const ACK_MULTIPLE = 1

meddlingFault(
  { fault: "lines nacked", made: "every fiftieth confirm becomes a nack" },
  async () => {
    let seen = 0
    const before = await bed.gateway.metric("owsla_lines_nacked_total")
    meddle((frame) => {
      if (methodOf(frame) !== CONFIRM) return [frame]
      seen += 1
      if (seen % 50 > 0) return [frame]
      return [methodFrame(frame.channel, 60, 120, frame.payload.subarray(4))]
    })
    const nacked = async () => (await bed.gateway.metric("owsla_lines_nacked_total")) - before
    await until(async () => (await nacked()) >= 20, { what: "nacks", timeoutMs: 60_000 })
    return { nacked: await nacked() }
  },
)

meddlingFault(
  { fault: "confirms out of order", made: "each eight confirms of a connection arrive reversed" },
  async () => {
    const held = new Map<string, AmqpFrame[]>()
    let reversed = 0
    meddle((frame, { number }) => {
      // One that stands for all before it cannot come before them.
      if (methodOf(frame) !== CONFIRM || frame.payload.at(-1) === ACK_MULTIPLE) return [frame]
      const key = `${number} ${frame.channel}`
      const waiting = [...(held.get(key) ?? []), frame]
      held.set(key, waiting.length === 8 ? [] : waiting)
      if (waiting.length < 8) return []
      reversed += 1
      return waiting.reverse()
    })
    await until(() => reversed >= 20, { what: "confirms to be reversed", timeoutMs: 60_000 })
    return { "times reversed": reversed }
  },
)

meddlingFault(
  { fault: "confirms of many at once", made: "of five confirms the last speaks for all" },
  async () => {
    const count = new Map<string, number>()
    let joined = 0
    meddle((frame, { number }) => {
      if (methodOf(frame) !== CONFIRM) return [frame]
      const key = `${number} ${frame.channel}`
      const seen = (count.get(key) ?? 0) + 1
      count.set(key, seen % 5)
      if (seen < 5) return []
      joined += 1
      const payload = Buffer.from(frame.payload)
      payload.writeUInt8(ACK_MULTIPLE, payload.length - 1)
      return [{ ...frame, payload }]
    })
    await linesPass(500)
    expect(joined).toBeGreaterThan(0)
    return { joined }
  },
)

meddlingFault(
  { fault: "confirms that never come", made: "every confirm is dropped, until it is noticed" },
  async () => {
    const mute = () =>
      bed.gateway.log.filter(({ msg }) => msg.includes("no publisher confirm")).length
    const before = mute()
    const startedAtMs = performance.now()
    meddle((frame) => (methodOf(frame) === CONFIRM ? [] : [frame]))
    await until(() => mute() > before, {
      what: "the broker to be taken for mute",
      timeoutMs: CONFIRM_TIMEOUT_MS + 30_000,
    })
    const noticedMs = Math.round(performance.now() - startedAtMs)
    meddle((frame) => [frame])
    await bed.flowsAgain()
    return { "noticed after, ms": noticedMs, "CONFIRM_TIMEOUT_MS, ms": CONFIRM_TIMEOUT_MS }
  },
)

meddlingFault(
  {
    fault: "channel closed by the broker",
    made: "404 NOT_FOUND due to timeout, as an overloaded node says, in the place of a confirm",
  },
  async () => {
    let closed = 0
    meddle((frame, { number }) => {
      if (methodOf(frame) !== CONFIRM || closed > 0) return [frame]
      closed = number + 1
      const text = Buffer.from("NOT_FOUND - failed to perform operation on queue due to timeout")
      const code = Buffer.from([404 >> 8, 404 & 255, text.length])
      return [methodFrame(frame.channel, 20, 40, code, text, Buffer.from([0, 60, 0, 40]))]
    })
    await until(() => closed > 0, { what: "the channel to be closed", timeoutMs: 60_000 })
    await linesPass(500)
    return { closed: 1 }
  },
)
