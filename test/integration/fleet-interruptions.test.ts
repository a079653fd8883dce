/**
 * The effects of interruptions on a fleet: a worker that is stopped while it is asked, a broker
 * that takes no messages for a while. Two instances of the real program on one RabbitMQ.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { TestFleet } from "../support/fleet.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 60_000
let fleet: TestFleet

beforeAll(async () => {
  fleet = await TestFleet.start(2)
}, LIMIT_MS)

afterEach(() => fleet.releaseDevices())

afterAll(() => fleet?.stop(), LIMIT_MS)

describe("a worker that stands still while it is to close a connection", () => {
  test(
    "does not close it when it goes on and the caller has been told of the time-out",
    async () => {
      const { device, view } = await fleet.admit(1, fleet.newName())
      const slot = Number(view.worker.at(-1))
      const pid = fleet.instance(1).workers().get(slot)
      if (pid === undefined) throw new Error("no such worker")
      process.kill(pid, "SIGSTOP")
      try {
        const path = `/devices/${view.connection_id}/connection`
        const response = await fleet.instance(0).fetch(path, { method: "DELETE" })
        expect(response.status).toBe(504)
        expect(await response.json()).toMatchObject({ error: { code: "timeout" } })
      } finally {
        process.kill(pid, "SIGCONT")
      }
      // Questions that arrived meanwhile come before this one, on the same queue.
      await until(
        async () => {
          const asked = await fleet.instance(0).fetch(`/devices/${view.connection_id}`)
          return asked.status === 200
        },
        { what: "the worker to answer again, with the connection open" },
      )
      expect((await fleet.send(0, view.connection_id, "still here")).status).toBe(200)
      expect(await device.nextLine()).toBe("still here")
    },
    LIMIT_MS,
  )
})

describe("a broker that takes nothing for a while", () => {
  test(
    "the device that moved meanwhile has one connection once it is over",
    async () => {
      const name = fleet.newName()
      const older = await fleet.admit(0, name)
      await fleet.broker.ctl("set_vm_memory_high_watermark", "0")
      const alarmed = async () => (await fleet.counted("owsla_broker_ready_workers")) === 0
      try {
        await until(alarmed, { what: "every worker to be blocked", timeoutMs: 20_000 })
        await fleet.connect(1, name)
        await until(async () => (await fleet.instance(1).fetch(`/devices/${name}`)).ok, {
          what: "the newer connection to be admitted",
        })
      } finally {
        await fleet.broker.ctl("set_vm_memory_high_watermark", "0.4")
      }
      const closed = await within(older.device.closed, {
        what: "the older connection to be taken over",
        timeoutMs: 15_000,
      })
      expect(closed.by).toBe("peer")
      await fleet.acquainted()
      const { devices } = await fleet.list(fleet.instance(0), `?prefix=${name}`)
      expect(devices.map(({ instance }) => instance)).toEqual(["gw1"])
    },
    LIMIT_MS,
  )
})
