/** Tapes over a fleet: the real code of several workers on a simulated broker. */

import { describe, expect, test } from "bun:test"
import type { TapeItem } from "../../../src/fleet/tape/entry.ts"
import type { TapeRead, TapeReader } from "../../../src/fleet/tape/tape-reader.ts"
import { FleetNetwork, type NetworkWorker } from "../../support/fleet-network.ts"
import { mulberry32 } from "../../support/random.ts"

const NAME = "lock:1"
const REQUEST = { minutes: 1, payload: "text", maxBytes: 65_536 } as const
/** Longer than entries wait for their confirms, and than the sweep takes. */
const SENT_MS = 1_500
const MINUTE_MS = 60_000

function network(workers: number): FleetNetwork {
  const made = new FleetNetwork({ shards: 16, random: mulberry32(7) })
  for (let at = 0; at < workers; at += 1) made.start(at)
  made.pass(2_000)
  return made
}

/** The result of a promise, with the time that it takes in the simulation. */
function awaited<T>(net: FleetNetwork, worker: NetworkWorker, make: () => Promise<T>): T {
  const results: T[] = []
  net.run(worker, () => {
    void make().then((result) => results.push(result))
  })
  net.pass(1_500)
  if (results.length === 0) throw new Error("no result")
  return results[0] as T
}

const start = (net: FleetNetwork, worker: NetworkWorker, name = NAME, about: object = {}) =>
  awaited(net, worker, () => worker.fleet.tapes.start(name, { ...REQUEST, ...about }))

function at(net: FleetNetwork, index: number): NetworkWorker {
  const worker = net.workers[index]
  if (worker === undefined) throw new Error(`no worker ${index}`)
  return worker
}

function readOn(net: FleetNetwork, worker: NetworkWorker, reader: TapeReader | null): TapeRead {
  if (reader === null) throw new Error("no tape")
  const read = awaited(net, worker, () => reader.read())
  if (typeof read === "string") throw new Error(read)
  return read
}

const entries = (net: FleetNetwork, worker: NetworkWorker, name = NAME): TapeItem[] =>
  readOn(net, worker, worker.fleet.tapes.reader(name)).items.map(({ item }) => item)

function short(item: TapeItem): string {
  switch (item.kind) {
    case "in":
      return `${item.confirmed_at === undefined ? "unconfirmed " : ""}${item.line}`
    case "out":
      return `${item.outcome}`
    case "dropped":
      return `dropped ${item.count}`
    case "disconnected":
      return `disconnected ${item.reason ?? ""}`
    default:
      return item.kind
  }
}

const shorts = (items: readonly TapeItem[]) => items.map(short)

describe("a tape", () => {
  test("has the lines of a device of another worker, and each worker can read it", () => {
    const net = network(3)
    const device = at(net, 1).come(NAME)
    expect(start(net, at(net, 0))).toMatchObject({ device_id: NAME, payload: "text" })
    device.send("a")
    device.send("b")
    net.pass(SENT_MS)
    for (const worker of net.workers) {
      expect(shorts(entries(net, worker))).toEqual(["connected", "a", "b"])
      expect(worker.fleet.tapes.list()).toMatchObject([
        { device_id: NAME, recording: true, worker: at(net, 0).self.worker },
      ])
    }
    expect(entries(net, at(net, 2))[0]).toMatchObject({ at: device.recipient.epoch })
  })

  test("follows a device from worker to worker, and waits for one that is away", () => {
    const net = network(3)
    start(net, at(net, 0))
    const first = at(net, 1).come(NAME)
    first.send("a")
    net.pass(SENT_MS)
    at(net, 2).come(NAME).send("b")
    net.pass(SENT_MS)
    at(net, 2).go(NAME)
    net.pass(SENT_MS)
    at(net, 0).come(NAME).send("c")
    net.pass(SENT_MS)
    const read = shorts(entries(net, at(net, 1)))
    expect(read.toSorted()).toEqual(
      [
        ...["connected", "a", "disconnected taken_over"],
        ...["connected", "b", "disconnected peer_closed"],
        ...["connected", "c"],
      ].toSorted(),
    )
    expect(read.filter((each) => each.length === 1)).toEqual(["a", "b", "c"])
  })

  test("costs nothing before it begins and after it ends: no confirm is reported", () => {
    const net = network(2)
    const device = at(net, 1).come(NAME)
    expect(net.workers.map(({ lines }) => lines.taping)).toEqual([false, false])
    let messages = 0
    net.refuses = ({ body }) => {
      if (Buffer.from(body).includes('"type":"tape')) messages += 1
      return false
    }
    net.pass(10 * MINUTE_MS)
    expect(messages).toBe(0)
    start(net, at(net, 0))
    expect(at(net, 1).lines.taping).toBe(true)
    expect(device.tape).not.toBeNull()
    awaited(net, at(net, 1), () => at(net, 1).fleet.tapes.stop(NAME))
    expect(net.workers.map(({ lines }) => lines.taping)).toEqual([false, false])
    expect(device.tape).toBeNull()
    net.pass(SENT_MS)
    messages = 0
    net.pass(10 * MINUTE_MS)
    expect(messages).toBe(0)
  })

  test("ends by its time, can still be read, and is discarded ten minutes later", () => {
    const net = network(2)
    const device = at(net, 1).come(NAME)
    start(net, at(net, 0))
    const reader = at(net, 1).fleet.tapes.reader(NAME)
    device.send("in time")
    net.pass(MINUTE_MS)
    device.send("too late")
    net.pass(2_000)
    const read = readOn(net, at(net, 1), reader)
    expect(shorts(read.items.map(({ item }) => item))).toEqual(["connected", "in time"])
    expect(read.end).toBe("over")
    expect(at(net, 1).lines.taping).toBe(false)
    net.pass(9 * MINUTE_MS)
    expect(shorts(entries(net, at(net, 1)))).toEqual(["connected", "in time"])
    net.pass(2 * MINUTE_MS)
    for (const { fleet } of net.workers) {
      expect([fleet.tapes.list(), fleet.tapes.reader(NAME)]).toEqual([[], null])
    }
  })

  test("is replaced by a newer one of its device, whoever owns them", () => {
    const net = network(3)
    const device = at(net, 1).come(NAME)
    start(net, at(net, 0))
    device.send("a")
    net.pass(SENT_MS)
    const reader = at(net, 1).fleet.tapes.reader(NAME)
    start(net, at(net, 2), NAME, { payload: "hex" })
    device.send("b")
    net.pass(SENT_MS)
    expect(readOn(net, at(net, 1), reader).end).toBe("discarded")
    for (const worker of net.workers) {
      expect(worker.fleet.tapes.list()).toMatchObject([{ payload: "hex" }])
      expect(entries(net, worker)).toMatchObject([{ kind: "connected" }, { hex: "62" }])
    }
    start(net, at(net, 2), NAME)
    expect(at(net, 2).fleet.tapes.list()).toMatchObject([{ payload: "text" }])
  })

  test("records a connection without a name by its id, and a named one by its name alone", () => {
    const net = network(2)
    const named = at(net, 1).come(NAME)
    start(net, at(net, 0), named.id)
    named.send("a")
    net.pass(SENT_MS)
    expect(entries(net, at(net, 0), named.id)).toEqual([])
  })

  test("is unreachable without the broker", () => {
    const net = network(2)
    at(net, 0).cut()
    expect(start(net, at(net, 0))).toBe("unreachable")
    expect(at(net, 0).fleet.tapes.list()).toEqual([])
  })
})

describe("at most 20 devices are recorded", () => {
  test("in the whole fleet, and one more when one has ended", () => {
    const net = network(4)
    for (let n = 0; n < 20; n += 1) {
      expect(start(net, at(net, n % 4), `d${n}`)).toMatchObject({ device_id: `d${n}` })
    }
    for (const worker of net.workers) expect(start(net, worker, "d20")).toBe("full")
    // Another tape of a device that is recorded takes no room.
    expect(start(net, at(net, 3), "d0")).toMatchObject({ device_id: "d0" })
    expect(awaited(net, at(net, 2), () => at(net, 2).fleet.tapes.stop("d7"))).toMatchObject({
      device_id: "d7",
    })
    expect(start(net, at(net, 1), "d20")).toMatchObject({ device_id: "d20" })
    expect(at(net, 0).fleet.tapes.list()).toHaveLength(20)
  })

  test("also when many are started at the same time", () => {
    const net = network(4)
    const results: unknown[] = []
    for (let n = 0; n < 40; n += 1) {
      const worker = at(net, n % 4)
      net.run(worker, () => {
        void worker.fleet.tapes.start(`d${n}`, REQUEST).then((result) => results.push(result))
      })
    }
    net.pass(3_000)
    expect(results).toHaveLength(40)
    const started = results.filter((result) => typeof result !== "string")
    expect(started).toHaveLength(20)
    for (const worker of net.workers) {
      expect(worker.fleet.tapes.list()).toHaveLength(20)
    }
  })

  test("a device of them can be recorded anew, also when one worker owns all", () => {
    const net = network(2)
    for (let n = 0; n < 20; n += 1) start(net, at(net, 0), `d${n}`)
    expect(start(net, at(net, 0), "d7", { payload: "hex" })).toMatchObject({ payload: "hex" })
    for (const worker of net.workers) {
      const listed = worker.fleet.tapes.list()
      expect(listed).toHaveLength(20)
      expect(listed.filter(({ payload }) => payload === "hex")).toMatchObject([{ device_id: "d7" }])
    }
    expect(start(net, at(net, 1), "d20")).toBe("full")
  })

  test("those that are over do not count, and an owner keeps 20 in all", () => {
    const net = network(1)
    for (let n = 0; n < 20; n += 1) start(net, at(net, 0), `d${n}`)
    net.pass(MINUTE_MS)
    expect(start(net, at(net, 0), "d20")).toMatchObject({ device_id: "d20" })
    const names = at(net, 0)
      .fleet.tapes.list()
      .map(({ device_id }) => device_id)
    expect([names.length, names.includes("d0"), names.includes("d20")]).toEqual([20, false, true])
  })
})

describe("a worker that is killed", () => {
  test("while it holds the device: its connection ends without a reason, and the tape goes on", () => {
    const net = network(3)
    const device = at(net, 1).come(NAME)
    start(net, at(net, 0))
    device.send("sent on")
    net.pass(SENT_MS)
    device.send("lost")
    at(net, 1).kill()
    at(net, 2).come(NAME).send("b")
    net.start(1)
    net.pass(3_000)
    expect(shorts(entries(net, at(net, 2))).toSorted()).toEqual(
      ["connected", "sent on", "disconnected ", "connected", "b"].toSorted(),
    )
  })

  test("while it owns the tape: the tape is lost, and its readers are told", () => {
    const net = network(3)
    const device = at(net, 1).come(NAME)
    start(net, at(net, 0))
    const reader = at(net, 2).fleet.tapes.reader(NAME)
    device.send("a")
    at(net, 0).kill()
    net.start(0)
    net.pass(3_000)
    expect(readOn(net, at(net, 2), reader).end).toBe("lost")
    for (const worker of net.workers) expect(worker.fleet.tapes.list()).toEqual([])
    expect([device.tape, at(net, 1).lines.taping]).toEqual([null, false])
  })

  test("a worker that starts records too", () => {
    const net = network(2)
    start(net, at(net, 0))
    const later = net.start(2)
    net.pass(1_000)
    later.come(NAME).send("a")
    net.pass(SENT_MS)
    expect(shorts(entries(net, at(net, 1)))).toEqual(["connected", "a"])
  })
})

describe("a worker that drains", () => {
  test("sends what it has recorded", () => {
    const net = network(2)
    const device = at(net, 1).come(NAME)
    start(net, at(net, 0))
    device.send("last")
    at(net, 1).close(device, "drained")
    net.run(at(net, 1), () => at(net, 1).fleet.leave())
    net.pass(100)
    expect(shorts(entries(net, at(net, 0)))).toEqual([
      "connected",
      "unconfirmed last",
      "disconnected drained",
    ])
  })

  test("discards its tapes, and their readers are told", () => {
    const net = network(2)
    const device = at(net, 1).come(NAME)
    start(net, at(net, 0))
    const reader = at(net, 1).fleet.tapes.reader(NAME)
    net.run(at(net, 0), () => at(net, 0).fleet.leave())
    net.pass(100)
    expect(readOn(net, at(net, 1), reader).end).toBe("discarded")
    expect([device.tape, at(net, 1).fleet.tapes.list()]).toEqual([null, []])
  })
})

describe("messages that are lost", () => {
  test("show as dropped entries, also when nothing follows", () => {
    const net = network(2)
    const device = at(net, 1).come(NAME)
    start(net, at(net, 0))
    net.pass(SENT_MS)
    device.send("a")
    device.send("b")
    net.refuses = () => true
    net.pass(SENT_MS)
    net.refuses = () => false
    net.pass(SENT_MS)
    expect(shorts(entries(net, at(net, 0)))).toEqual(["connected", "dropped 2"])
    device.send("c")
    net.pass(SENT_MS)
    expect(shorts(entries(net, at(net, 1)))).toEqual(["connected", "dropped 2", "c"])
  })

  test("while a worker is cut off: its entries wait, up to a bound, and a reader keeps its place", () => {
    const net = network(2)
    const device = at(net, 1).come(NAME)
    start(net, at(net, 0))
    const reader = at(net, 1).fleet.tapes.reader(NAME)
    net.pass(SENT_MS)
    expect(readOn(net, at(net, 1), reader).items).toHaveLength(1)
    at(net, 1).cut()
    for (let n = 0; n < 3_000; n += 1) device.send(String(n))
    net.pass(SENT_MS)
    expect(awaited(net, at(net, 1), async () => reader?.read())).toBe("unreachable")
    at(net, 1).connectSoon()
    net.pass(5_000)
    const items: TapeItem[] = []
    for (;;) {
      const read = readOn(net, at(net, 1), reader)
      items.push(...read.items.map(({ item }) => item))
      if (read.isCaughtUp) break
    }
    const seen = items.map((item) => (item.kind === "dropped" ? item.count : 1))
    expect(seen.reduce((sum, count) => sum + count, 0)).toBe(3_000)
  })

  test("of a worker of an earlier version, which answers nothing, delay a start and nothing else", () => {
    const net = network(2)
    const old = at(net, 1)
    const { deliver } = old.fleet
    old.fleet.deliver = function (delivery) {
      if (!Buffer.from(delivery.body).includes('"type":"tape')) deliver.call(this, delivery)
    }
    expect(start(net, at(net, 0))).toMatchObject({ device_id: NAME })
    expect(at(net, 0).fleet.gauges().members).toBe(1)
    at(net, 0).come(NAME).send("a")
    net.pass(SENT_MS)
    expect(shorts(entries(net, at(net, 0)))).toEqual(["connected", "a"])
  })
})
