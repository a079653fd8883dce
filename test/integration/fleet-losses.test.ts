/**
 * What a fleet does when a part of it is lost: an instance, a worker, the broker, or the
 * connections to it. Devices with names come back somewhere, and are reachable there at once.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import type { DeviceView } from "../../src/fleet/device-view.ts"
import { TestFleet } from "../support/fleet.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 180_000
/**
 * What is sent in the milliseconds until all have heard where a device is may be led to a worker
 * that is dead, and is sent again, as a caller would. Longer than the fleet takes to say no, with
 * dead workers among those asked.
 */
const SEND_TIMEOUT_MS = 2_000
let fleet: TestFleet

beforeAll(async () => {
  fleet = await TestFleet.start(2, { SEND_TIMEOUT_MS: String(SEND_TIMEOUT_MS) })
}, LIMIT_MS)

afterEach(() => fleet.releaseDevices())

afterAll(() => fleet?.stop(), LIMIT_MS)

/** Sends to a device by every way in, and expects each to reach that connection. */
async function expectReachable(name: string, view: DeviceView, at: readonly number[]) {
  for (const each of at) {
    const reached = async () => {
      const response = await fleet.send(each, name, `http ${each}`)
      return response.status === 504 ? null : [response.status, await response.json()]
    }
    const answer = await until(reached, { what: "an answer" })
    expect(answer).toMatchObject([200, { connection_id: view.connection_id }])
  }
  const sent = await fleet.backEnd.send({ body: "by queue", device: name })
  expect(await fleet.receiptOf(sent)).toMatchObject({
    outcome: "written",
    connection_id: view.connection_id,
  })
}

describe("an instance that is killed", () => {
  test(
    "its devices are reachable elsewhere at once; its commands end; it comes back",
    async () => {
      const [moved, lost] = [fleet.newName(), fleet.newName()]
      const before = await fleet.admit(1, moved)
      const stays = await fleet.admit(1, lost)
      await expectReachable(moved, before.view, [0, 1])
      await fleet.kill(1)

      // Before anybody can know: both go to the queue of a worker that is dead.
      const byName = fleet.backEnd.send({
        body: "to the moved device",
        device: moved,
        queue: `owsla.worker.${before.view.worker}`,
      })
      const byConnection = fleet.backEnd.send({
        body: "to the lost connection",
        connection: stays.view.connection_id,
      })
      const after = await fleet.admit(0, moved)
      await expectReachable(moved, after.view, [0])

      expect(await fleet.receiptOf(await byName, 60_000)).toMatchObject({
        outcome: "written",
        connection_id: after.view.connection_id,
      })
      expect((await fleet.receiptOf(await byConnection, 60_000)).outcome).toBe("offline")
      await until(
        () => fleet.backEnd.undelivered.some(({ body }) => body === "to the lost connection"),
        { what: "the lost command to be kept" },
      )
      const response = await fleet.send(0, lost, "to nobody")
      expect(response.status).toBe(404)
      await fleet.startInstance(1)
      await fleet.acquainted()
      const again = await fleet.admit(1, lost)
      await expectReachable(lost, again.view, [0, 1])
    },
    LIMIT_MS,
  )
})

describe("a worker that is killed", () => {
  test(
    "is replaced, and its device is reachable wherever it comes back",
    async () => {
      const name = fleet.newName()
      const { device, view } = await fleet.admit(0, name)
      const slot = Number(view.worker.at(-1))
      const pid = fleet.instance(0).workers().get(slot)
      if (pid === undefined) throw new Error("no such worker")
      process.kill(pid, "SIGKILL")
      await device.closed
      // A worker that has just started says 503 for devices elsewhere until it has its broker.
      await fleet.instance(0).successorOf(slot, pid)
      await fleet.ready(0)
      const again = await fleet.admit(0, name)
      await expectReachable(name, again.view, [0, 1])
      await fleet.acquainted()
      const { devices } = await fleet.list(fleet.instance(1), `?prefix=${name}`)
      expect(devices.map(({ connection_id }) => connection_id)).toEqual([again.view.connection_id])
    },
    LIMIT_MS,
  )
})

describe("connections to the broker that are lost", () => {
  test(
    "devices stay, commands on their way have one outcome each, and none is written twice",
    async () => {
      const names = Array.from({ length: 8 }, () => fleet.newName())
      const held = await Promise.all(names.map((name, at) => fleet.admit(at % 2, name)))
      const sent: number[] = []
      let cut = false
      const cutting = (async () => {
        await fleet.cutConnections()
        cut = true
      })()
      for (let at = 0; !cut || at < 200; at += 1) {
        const device = names[at % names.length] ?? ""
        sent.push(await fleet.backEnd.send({ body: `c${at}`, device, messageId: `cut-${at}` }))
      }
      await cutting
      await until(() => sent.every((command) => fleet.backEnd.receiptOf(command)), {
        what: "a receipt for each command",
        timeoutMs: 40_000,
      })
      const written = sent.filter(
        (command) => fleet.backEnd.receiptOf(command)?.outcome === "written",
      )
      const lines = () => held.flatMap(({ device }) => device.lines)
      await until(() => lines().length >= written.length, { what: "every line that was written" })
      expect(new Set(lines()).size).toBe(lines().length)
      for (const [at, { view }] of held.entries()) {
        await expectReachable(names[at] ?? "", view, [0, 1])
      }
    },
    LIMIT_MS,
  )
})

describe("a broker that is stopped and started", () => {
  test(
    "devices stay and are found again; who moved meanwhile is taken over then",
    async () => {
      const [stays, moves] = [fleet.newName(), fleet.newName()]
      const steady = await fleet.admit(0, stays)
      const older = await fleet.admit(0, moves)
      await fleet.backEnd.close()
      await fleet.broker.stop()
      const newer = await fleet.connect(1, moves)
      await until(
        async () => {
          const response = await fleet.instance(1).fetch(`/devices/${moves}`)
          // Each worker can only speak for itself now.
          return response.ok
        },
        { what: "the newer connection to be admitted" },
      )
      expect((await fleet.send(1, stays, "not here")).status).toBe(503)
      await fleet.broker.start()
      expect((await older.device.closed).by).toBe("peer")
      await fleet.acquainted()
      await fleet.connectBackEnd()
      await expectReachable(stays, steady.view, [0, 1])
      const response = await fleet.send(0, moves, "to the newer")
      expect(response.status).toBe(200)
      expect(await newer.nextLine()).toBe("to the newer")
    },
    LIMIT_MS,
  )
})
