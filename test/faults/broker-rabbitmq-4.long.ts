/** Faults of RabbitMQ 4, one node. Needs what `sh test/install long` installs. */

import { afterAll, beforeAll, describe } from "bun:test"
import { type PrivateBroker, startRabbitMq } from "../support/rabbitmq.ts"
import { last, sized } from "./fault.ts"
import { KEPT, LIMIT_MS, loadedFault } from "./loaded-fault.ts"
import { streamAsFromDevice } from "./stream-as-from-device.ts"

const EVERY_S = 5
const TIMES = sized(6, 2)

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

  streamAsFromDevice("RabbitMQ 4: stream as from_device", () => broker, LIMIT_MS)
})
