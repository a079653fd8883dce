/**
 * The fleet: three instances of the real program with two workers each on one RabbitMQ, devices
 * with names on any of them, and a back-end that does not know where.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import type { DeviceView } from "../../src/fleet/device-view.ts"
import { type FleetList, TestFleet } from "../support/fleet.ts"
import type { TestGateway } from "../support/gateway.ts"
import type { TestDevice } from "../support/tls-device.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 60_000
const INSTANCES = [0, 1, 2]
/**
 * Longer than numbered commands take from all over the fleet to their device, on a busy machine
 * too.
 */
const GAP_TIMEOUT_MS = 5_000
let fleet: TestFleet

beforeAll(async () => {
  fleet = await TestFleet.start(INSTANCES.length, { SEQ_GAP_TIMEOUT_MS: String(GAP_TIMEOUT_MS) })
}, LIMIT_MS)

afterEach(() => fleet.releaseDevices())

afterAll(() => fleet?.stop(), LIMIT_MS)

/** The view of a device from an instance, once the worker that holds it answers. */
function described(at: number, id: string): Promise<DeviceView> {
  const answered = async () => {
    const response = await fleet.instance(at).fetch(`/devices/${id}`)
    return response.ok ? ((await response.json()) as DeviceView) : null
  }
  return until(answered, { what: `instance ${at} to describe ${id}` })
}

describe("a command reaches its device wherever it is, once", () => {
  test(
    "by device id and connection id, by all ways in",
    async () => {
      const name = fleet.newName()
      const { device, view } = await fleet.admit(1, name)
      await device.send("a line")
      await until(() => fleet.backEnd.lines.some((line) => line.device === name), {
        what: "the line",
      })
      const replyTo = fleet.backEnd.lines.find((line) => line.device === name)?.replyTo ?? ""
      const { connection_id: connection } = view
      const sent = [
        await fleet.backEnd.send({ body: "1 to_device, device", device: name }),
        await fleet.backEnd.send({ body: "2 to_device, connection", connection }),
        await fleet.backEnd.send({ body: "3 reply_to, device", device: name, queue: replyTo }),
        await fleet.backEnd.send({ body: "4 reply_to, connection", connection, queue: replyTo }),
      ]
      for (const command of sent) expect((await fleet.receiptOf(command))?.outcome).toBe("written")
      for (const at of INSTANCES) {
        for (const id of [name, connection]) {
          const response = await fleet.send(at, id, `http ${at} ${id}`)
          expect(response.status).toBe(200)
          expect(await response.json()).toMatchObject({ connection_id: connection })
        }
      }
      const expected = [
        "1 to_device, device",
        "2 to_device, connection",
        "3 reply_to, device",
        "4 reply_to, connection",
        ...INSTANCES.flatMap((at) => [`http ${at} ${name}`, `http ${at} ${connection}`]),
      ]
      const lines = await device.waitLines(expected.length)
      expect(lines.toSorted()).toEqual(expected.toSorted())
    },
    LIMIT_MS,
  )

  test(
    "a thousand for devices all over the fleet",
    async () => {
      const names = Array.from({ length: 30 }, () => fleet.newName())
      const held = await Promise.all(names.map((name, at) => fleet.admit(at % 3, name)))
      const sent = await Promise.all(
        Array.from({ length: 1_000 }, (_, at) =>
          fleet.backEnd.send({ body: `command ${at}`, device: names[at % names.length] ?? "" }),
        ),
      )
      await until(() => sent.every((command) => fleet.backEnd.receiptOf(command)), {
        what: "receipts",
      })
      for (const command of sent) expect(fleet.backEnd.receiptOf(command)?.outcome).toBe("written")
      for (const [at, { device }] of held.entries()) {
        const expected = Array.from({ length: 1_000 }, (_, each) => each)
          .filter((each) => each % names.length === at)
          .map((each) => `command ${each}`)
        const lines = await device.waitLines(expected.length)
        expect(lines.toSorted()).toEqual(expected.toSorted())
      }
    },
    LIMIT_MS,
  )

  test(
    "offline, by HTTP and by receipt, and kept",
    async () => {
      for (const at of INSTANCES) {
        expect((await fleet.send(at, "nobody", `to nobody ${at}`)).status).toBe(404)
      }
      const receipt = await fleet.receiptOf(
        await fleet.backEnd.send({ body: "to nobody", device: "nobody" }),
      )
      expect(receipt?.outcome).toBe("offline")
      const kept = ["to nobody", "to nobody 0", "to nobody 1", "to nobody 2"]
      const bodies = () => fleet.backEnd.undelivered.map(({ body }) => body)
      await until(() => kept.every((body) => bodies().includes(body)), { what: "kept commands" })
    },
    LIMIT_MS,
  )

  test(
    "a device that is here costs no hop",
    async () => {
      const name = fleet.newName()
      const { view } = await fleet.admit(0, name)
      const forwarded = () => fleet.instance(0).metric("owsla_commands_forwarded_total")
      const before = await forwarded()
      const queue = `owsla.worker.${view.worker}`
      const sent = await fleet.backEnd.send({ body: "straight", device: name, queue })
      expect((await fleet.receiptOf(sent)).outcome).toBe("written")
      await until(async () => (await forwarded()) === before, { what: "no hop" })
    },
    LIMIT_MS,
  )
})

describe("takeover", () => {
  test(
    "the newest connection wins on any instance; both events carry their epochs",
    async () => {
      const name = fleet.newName()
      const before = await fleet.admit(0, name)
      let last = before.device
      for (const at of [1, 2, 0, 0]) {
        const next = await fleet.connect(at, name)
        // A second is promised; a busy machine takes longer.
        const closed = await within(last.closed, { what: "the older connection to be closed" })
        expect(closed.by).toBe("peer")
        last = next
      }
      const events = () => fleet.backEnd.presence.filter(({ device_id }) => device_id === name)
      await until(() => events().length === 9, { what: "five connected and four disconnected" })
      // What different workers tell comes in no order between them; the epochs give it.
      const connected = events()
        .filter(({ key }) => key === "device.connected")
        .toSorted((a, b) => a.epoch - b.epoch)
      const gone = events().filter(({ key }) => key === "device.disconnected")
      expect(gone.map(({ reason }) => reason)).toEqual(Array(4).fill("taken_over"))
      const newest = connected.reduce((a, b) => (b.epoch > a.epoch ? b : a))
      expect(new Set(connected.map(({ epoch }) => epoch)).size).toBe(5)
      expect(connected[0]?.epoch).toBe(before.view.epoch)
      for (const event of gone) {
        const itsOwn = connected.find(({ connection_id }) => connection_id === event.connection_id)
        expect(event.epoch).toBe(itsOwn?.epoch as number)
        expect(event.epoch).toBeLessThan(newest.epoch)
      }
      const response = await fleet.send(2, name, "to the newest")
      expect(await response.json()).toMatchObject({ connection_id: newest.connection_id })
      expect(await last.nextLine()).toBe("to the newest")
    },
    LIMIT_MS,
  )

  test(
    "a device that flaps between two instances: each command has one outcome, none twice",
    async () => {
      const name = fleet.newName()
      const flapping: TestDevice[] = []
      const sent: number[] = []
      let stopped = false
      const commanding = (async () => {
        for (let at = 0; !stopped; at += 1) {
          sent.push(
            await fleet.backEnd.send({ body: `flap ${at}`, device: name, messageId: `flap-${at}` }),
          )
          // The period of the commands, not a wait for anything.
          await Bun.sleep(5)
        }
      })()
      for (let at = 0; at < 30; at += 1) {
        flapping.push(await fleet.connect(at % 2, name))
        // The period is the load that is put on it, not a wait for anything.
        await Bun.sleep(100)
      }
      stopped = true
      await commanding
      await until(() => sent.every((command) => fleet.backEnd.receiptOf(command)), {
        what: "receipts",
      })
      const ours = fleet.backEnd.receipts.filter(({ command }) => sent.includes(command))
      expect(ours).toHaveLength(sent.length)
      const written = ours.filter(({ outcome }) => outcome === "written").length
      const lines = flapping.flatMap((device) => device.lines)
      expect(new Set(lines).size).toBe(lines.length)
      // What the kernel took for a connection that was taken over may never have been read.
      expect(lines.length).toBeLessThanOrEqual(written)
      expect(written).toBeGreaterThan(0)
      const kept = () => fleet.backEnd.undelivered.filter(({ body }) => body.startsWith("flap "))
      await until(() => kept().length === sent.length - written, { what: "the rest to be kept" })
      const last = flapping.at(-1)
      for (const device of flapping.slice(0, -1)) expect((await device.closed).by).toBe("peer")
      for (const at of INSTANCES) {
        expect((await fleet.send(at, name, `settled ${at}`)).status).toBe(200)
      }
      await until(() => last?.lines.includes("settled 2") === true, { what: "the last line" })
      const { devices: found } = await fleet.list(fleet.instance(2), `?prefix=${name}`)
      expect(found.filter(({ device_id }) => device_id === name)).toHaveLength(1)
    },
    LIMIT_MS,
  )
})

describe("order across the fleet", () => {
  /** Fewer than the prefetch of a worker's queue, at which gaps are given up. */
  const COUNT = 200
  const shuffled = (numbers: number[]) => {
    // A fixed shuffle: the multiplier is coprime to the count.
    return numbers.map((_, at) => numbers[(at * 263) % numbers.length] ?? 0)
  }

  test(
    "numbered commands are written in order whoever takes them",
    async () => {
      const { device, view } = await fleet.admit(2, fleet.newName())
      const numbers = shuffled(Array.from({ length: COUNT }, (_, at) => at))
      const connection = view.connection_id
      await Promise.all(
        numbers.map((seq) => fleet.backEnd.send({ body: `n${seq}`, connection, seq })),
      )
      const lines = await device.waitLines(COUNT)
      expect(lines).toEqual(Array.from({ length: COUNT }, (_, at) => `n${at}`))
    },
    LIMIT_MS,
  )

  test(
    "a missing number is waited for, given up, and then late; a used one a duplicate",
    async () => {
      const { device, view } = await fleet.admit(0, fleet.newName())
      const connection = view.connection_id
      const numbers = shuffled(Array.from({ length: COUNT }, (_, at) => at)).filter(
        (seq) => seq !== 7,
      )
      const gapsBefore = await fleet.counted("owsla_gaps_skipped_total")
      const lateBefore = await fleet.counted("owsla_commands_total", "late")
      await Promise.all(
        numbers.map((seq) => fleet.backEnd.send({ body: `g${seq}`, connection, seq })),
      )
      const lines = await device.waitLines(COUNT - 1)
      expect(lines).toEqual(
        Array.from({ length: COUNT }, (_, at) => `g${at}`).filter((line) => line !== "g7"),
      )
      expect(
        (await fleet.receiptOf(await fleet.backEnd.send({ body: "g7", connection, seq: 7 })))
          ?.outcome,
      ).toBe("late")
      expect(
        (await fleet.receiptOf(await fleet.backEnd.send({ body: "g8", connection, seq: 8 })))
          ?.outcome,
      ).toBe("duplicate")
      const counted = async () => [
        await fleet.counted("owsla_gaps_skipped_total"),
        await fleet.counted("owsla_commands_total", "late"),
      ]
      await until(async () => Bun.deepEquals(await counted(), [gapsBefore + 1, lateBefore + 1]), {
        what: "one gap and one late command to be counted",
      })
      expect((await described(1, connection)).reorder).toEqual({ held: 0, gaps: 1 })
    },
    LIMIT_MS,
  )
})

describe("the fleet by HTTP", () => {
  /** Waits for a list with every worker's answer; on a busy machine one may answer too late. */
  function wholeList(gateway: TestGateway, query: string): Promise<FleetList> {
    const whole = async () => {
      const list = await fleet.list(gateway, query)
      return list.answered === list.workers ? list : null
    }
    return until(whole, { what: "every worker to answer" })
  }

  test(
    "lists the devices of all instances, in order, by prefix and page",
    async () => {
      const names = Array.from({ length: 12 }, (_, at) => `page.${String(at).padStart(2, "0")}`)
      await Promise.all(names.map((name, at) => fleet.admit(at % 3, name)))
      for (const gateway of fleet.gateways) {
        const all = await wholeList(gateway, "?prefix=page.")
        expect(all.devices.map(({ device_id }) => device_id)).toEqual(names)
        expect(all).toMatchObject({ total: 12, workers: fleet.workers })
        const page = await wholeList(gateway, "?prefix=page.&limit=5&after=page.04")
        expect(page.devices.map(({ device_id }) => device_id)).toEqual(names.slice(5, 10))
        expect(page.total).toBe(7)
      }
    },
    LIMIT_MS,
  )

  test(
    "describes one, wherever it is",
    async () => {
      const name = fleet.newName()
      const { device, view } = await fleet.admit(2, name)
      await device.send("one")
      await device.send("two")
      for (const at of INSTANCES) {
        await until(async () => (await described(at, name)).lines_in === 2, {
          what: "both lines to be counted",
        })
        expect(await described(at, view.connection_id)).toMatchObject({
          device_id: name,
          connection_id: view.connection_id,
          epoch: view.epoch,
          instance: "gw2",
          state: "open",
          remote_address: "127.0.0.1",
          tls_version: "TLSv1.3",
          lines_in: 2,
          lines_out: 0,
          reading_paused_by: [],
          outgoing_bytes: 0,
          reorder: { held: 0, gaps: 0 },
        })
      }
    },
    LIMIT_MS,
  )

  test(
    "closes one from anywhere (kicked)",
    async () => {
      for (const at of INSTANCES) {
        const name = fleet.newName()
        const { device, view } = await fleet.admit(1, name)
        const path = `/devices/${at === 2 ? view.connection_id : name}/connection`
        const response = await fleet.instance(at).fetch(path, { method: "DELETE" })
        expect(response.status).toBe(200)
        expect(await response.json()).toMatchObject({ connection_id: view.connection_id })
        expect((await device.closed).by).toBe("peer")
        await until(
          () => fleet.backEnd.presence.some((e) => e.device_id === name && e.reason === "kicked"),
          { what: "its last event" },
        )
        expect((await fleet.instance(at).fetch(path, { method: "DELETE" })).status).toBe(404)
      }
    },
    LIMIT_MS,
  )

  test.each([
    ["GET", "/devices/nobody", 404],
    ["GET", "/devices/gw1.0.mb2k3f9zq7.1", 404],
    ["GET", "/devices/gw9.0.mb2k3f9zq7.1", 404],
    ["DELETE", "/devices/nobody/connection", 404],
    ["GET", "/devices/a%20b", 400],
    ["GET", "/devices?limit=0", 400],
    ["GET", "/devices?limit=1001", 400],
    ["GET", "/devices?limit=x", 400],
    ["GET", "/devices?prefix=%2F", 400],
  ])("%s %s is %i", async (method, path, status) => {
    const response = await fleet.instance(0).fetch(path, { method })
    expect(response.status).toBe(status)
    expect(await response.json()).toMatchObject({ error: { code: expect.any(String) } })
  })
})
