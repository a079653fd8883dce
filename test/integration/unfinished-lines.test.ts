/**
 * Lines whose end does not come: what a device, or a stranger, can make a worker hold is bounded in
 * bytes and in time, and shown in the metrics; a device that the gateway itself does not read is
 * not to blame.
 */

import { afterEach, describe, expect, test } from "bun:test"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 60_000
/** Just below the default of MAX_LINE_BYTES. */
const PART_BYTES = 65_500

let gateway: TestGateway | undefined
let broker: PrivateBroker | undefined

afterEach(async () => {
  await gateway?.stop()
  await broker?.stop()
  gateway = undefined
  broker = undefined
}, LIMIT_MS)

const connect = () => connectDevice({ port: gateway?.devicePort ?? 0 })

/** A device that has sent the beginning of a line; resolves when the gateway has read it. */
async function withPart(bytes: number): Promise<TestDevice> {
  const before = await partialBytes()
  const device = await connect()
  await device.sendBytes(Buffer.alloc(bytes, "x"))
  await until(async () => (await partialBytes()) === before + bytes, {
    what: `${bytes} more bytes of unfinished lines`,
  })
  return device
}

async function partialBytes(): Promise<number> {
  return (await gateway?.metric("owsla_partial_line_bytes")) ?? -1
}

async function ended(): Promise<number> {
  return (await gateway?.metric("owsla_connections_closed_total", "line_timeout")) ?? -1
}

describe("unfinished lines", () => {
  test(
    "show in a gauge and never exceed MAX_PARTIAL_BYTES: the oldest ends as line_timeout, the others go on",
    async () => {
      gateway = await startGateway({ MAX_PARTIAL_BYTES: "300000", DEVICE_ACK: "seq" })
      const devices: TestDevice[] = []
      for (let n = 0; n < 4; n += 1) devices.push(await withPart(PART_BYTES))
      expect([await partialBytes(), await ended()]).toEqual([4 * PART_BYTES, 0])

      const fifth = await connect()
      await fifth.sendBytes(Buffer.alloc(PART_BYTES, "x"))
      const [oldest, ...others] = devices
      expect((await within(oldest?.closed ?? expect.unreachable(), { what: "the end" })).by).toBe(
        "peer",
      )
      expect(await ended()).toBe(1)
      expect(await partialBytes()).toBe(4 * PART_BYTES)
      for (const device of [...others, fifth]) {
        await device.send("the end")
        expect(await device.nextLine()).toBe("ACK 0")
      }
      expect([await partialBytes(), await ended()]).toEqual([0, 1])
    },
    LIMIT_MS,
  )

  test(
    "of a peer that sends a byte now and then end LINE_TIMEOUT_MS after the first, and one that ends its lines stays",
    async () => {
      gateway = await startGateway({ LINE_TIMEOUT_MS: "1500", DEVICE_ACK: "seq" })
      const honest = await connect()
      const slow = await connect()
      let open = true
      void slow.closed.then(() => {
        open = false
      })
      let lines = 0
      await until(
        async () => {
          if (open) await slow.sendBytes(Buffer.from("x")).catch(() => undefined)
          await honest.send("a line")
          lines += 1
          return !open
        },
        { what: "the peer without an end of its line to be closed" },
      )
      expect(await ended()).toBe(1)
      await honest.send("another")
      expect((await honest.waitLines(lines + 1)).at(-1)).toBe(`ACK ${lines}`)
      expect(await partialBytes()).toBe(0)
    },
    LIMIT_MS,
  )

  test(
    "of a device that is not read because the window is full have their time again when it is read",
    async () => {
      broker = await startRabbitMq()
      const queues = ownQueues(uniqueNames("unfinished"))
      gateway = await startGateway({
        ...{ AMQP_URL: broker.url, ...queues, WORKERS: "1", DEVICE_ACK: "seq" },
        ...{ PUBLISH_WINDOW_LINES: "1", LINE_TIMEOUT_MS: "5000", CONFIRM_TIMEOUT_MS: "60000" },
      })
      await gateway.ready()
      const unread = await withPart(3)
      const read = await withPart(5)
      broker.pause()
      const filler = await connect()
      await filler.send("fills the window")
      await until(async () => (await gateway?.metric("owsla_window_lines")) === 1, {
        what: "the window to be full",
      })
      await unread.sendBytes(Buffer.from("more"))
      await until(async () => (await gateway?.metric("owsla_waiting_for_room")) === 1, {
        what: "the device to be paused",
      })
      // It sends nothing more, so it is not paused and its time passes, which began after the
      // other's.
      await within(read.closed, { what: "the device that is read to be closed" })
      expect(await ended()).toBe(1)

      broker.resume()
      await until(async () => (await gateway?.metric("owsla_waiting_for_room")) === 0, {
        what: "the device to be read again",
      })
      await unread.send("and its end")
      expect(await unread.nextLine()).toBe("ACK 0")
      expect(await filler.nextLine()).toBe("ACK 0")
      expect(await ended()).toBe(1)
    },
    LIMIT_MS,
  )
})
