/** Faults of RabbitMQ 4, one node. Needs what `sh test/install long` installs. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { ownQueues, startGateway } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { pikaConsume, pikaPublish } from "../support/tools.ts"
import { until } from "../support/wait.ts"
import { last, sized } from "./fault.ts"
import { KEPT, LIMIT_MS, loadedFault } from "./loaded-fault.ts"
import { streamAsFromDevice } from "./stream-as-from-device.ts"

const EVERY_S = 5
const TIMES = sized(6, 2)
/** RabbitMQ 4 removes a message from a quorum queue at its 21st return, unless told otherwise. */
const RETURNS = 25

describe("RabbitMQ 4", () => {
  let broker: PrivateBroker
  beforeAll(async () => {
    broker = await startRabbitMq({ release: "4" })
  }, LIMIT_MS)
  afterAll(() => broker?.dispose(), LIMIT_MS)
  const where = () => ({ broker, url: broker.url, urls: [broker.url] })

  loadedFault(
    {
      fault: "RabbitMQ 4: connection closed, again and again",
      made: `rabbitmqctl close_all_connections, ${EVERY_S} s apart, ${TIMES} times`,
    },
    where,
    async (bed) => {
      for (let at = 0; at < TIMES; at += 1) {
        await broker.closeAllConnections("a fault")
        await bed.flowsAgain()
        await last(EVERY_S)
      }
      return { closed: TIMES }
    },
  )

  loadedFault(
    {
      fault: "RabbitMQ 4: memory alarm",
      made: `set_vm_memory_high_watermark 0, ${sized(30, 2)} s, then 0.4`,
      promise: `${KEPT}, /ready 503 meanwhile, /health 200`,
    },
    where,
    async (bed) => {
      await broker.ctl("set_vm_memory_high_watermark", "0")
      await bed.notReady()
      await last(sized(30, 2))
      await broker.ctl("set_vm_memory_high_watermark", "0.4")
      return { "confirming again after, ms": await bed.flowsAgain() }
    },
  )

  loadedFault(
    {
      fault: "RabbitMQ 4: broker killed and started",
      made: "SIGKILL, then started again",
      promise: `${KEPT}, /ready 503 meanwhile, /health 200`,
    },
    where,
    async (bed) => {
      await broker.kill()
      await bed.notReady()
      await broker.start()
      return { "confirming again after it answers, ms": await bed.flowsAgain() }
    },
  )

  test(
    "a command whose delivery is lost more often than the default delivery limit is still written",
    async () => {
      const queues = ownQueues(uniqueNames("returned"))
      const gateway = await startGateway({
        ...{ AMQP_URL: broker.url, WORKERS: "1", SEQ_GAP_TIMEOUT_MS: "600000" },
        ...queues,
      })
      try {
        await gateway.ready()
        const device = await connectDevice({ port: gateway.devicePort })
        await device.send("hello")
        const { url } = broker
        const [line] = await pikaConsume({ url, queue: queues.FROM_DEVICE_QUEUE, count: 1 })
        const send = (to_device_seq: number) =>
          pikaPublish({
            url,
            messages: [
              {
                routingKey: queues.TO_DEVICE_QUEUE,
                body: `number ${to_device_seq}`,
                headers: { connection_id: String(line?.headers["connection_id"]), to_device_seq },
              },
            ],
          })
        // It waits for the one before, unacknowledged.
        await send(1)
        const waits = async () => (await gateway.metric("owsla_commands_waiting_for_number")) === 1
        for (let returned = 0; returned < RETURNS; returned += 1) {
          await until(waits, { what: `delivery ${returned + 1}`, timeoutMs: 30_000 })
          const losses = await gateway.metric("owsla_broker_losses_total")
          await broker.closeAllConnections("a fault")
          await until(async () => (await gateway.metric("owsla_broker_losses_total")) > losses, {
            what: "the loss",
          })
          await gateway.ready()
        }
        await until(waits, { what: "the last delivery", timeoutMs: 30_000 })
        await send(0)
        expect(await device.waitLines(2, 30_000)).toEqual(["number 0", "number 1"])
        device.end()
      } finally {
        await gateway.stop()
      }
    },
    LIMIT_MS,
  )

  streamAsFromDevice("RabbitMQ 4: stream as from_device", () => broker, LIMIT_MS)
})
