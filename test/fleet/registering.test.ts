/**
 * Registrations and look-ups in a small fleet (`fleet-network.ts`): what happens, how fast, and
 * with how many messages.
 */

import { describe, expect, test } from "bun:test"
import type { OutgoingMessage } from "../../src/broker/broker.ts"
import type { Located } from "../../src/fleet/locator.ts"
import { GATHER_MS } from "../../src/fleet/send-schedule.ts"
import { FleetNetwork, type NetworkOptions, type NetworkWorker } from "../support/fleet-network.ts"
import { mulberry32 } from "../support/random.ts"

const SETTLED_MS = 2_000

function fleetOf(workers: number, options: Partial<NetworkOptions> = {}) {
  const network = new FleetNetwork({ shards: 256, random: mulberry32(1), ...options })
  for (let at = 0; at < workers; at += 1) network.start(at)
  network.pass(SETTLED_MS)
  return network
}

function at(network: FleetNetwork, index: number): NetworkWorker {
  const worker = network.workers[index]
  if (worker === undefined) throw new Error(`no worker ${index}`)
  return worker
}

function keeperOf(network: FleetNetwork, deviceId: string): NetworkWorker {
  for (const worker of network.workers) {
    const { keepers } = worker.fleet
    const shard = Bun.hash.xxHash32(deviceId) % keepers.shards
    if (keepers.kept.has(shard)) return worker
  }
  throw new Error(`nobody keeps the shard of ${deviceId}`)
}

/** A device that worker 2 keeps, so that workers 0 and 1 are others. */
function keptBy(network: FleetNetwork, index: number): string {
  for (let n = 0; n < 1_000; n += 1) {
    if (keeperOf(network, `lock:${n}`) === at(network, index)) return `lock:${n}`
  }
  throw new Error("no such device")
}

function located(worker: NetworkWorker, deviceId: string, trusting = true): Located[] {
  const places: Located[] = []
  worker.locate(deviceId, trusting, (place) => places.push(place))
  return places
}

describe("a device that connects elsewhere", () => {
  test("has one connection soon, the newer one", () => {
    for (const keeper of [0, 1, 2]) {
      const network = fleetOf(3)
      const name = keptBy(network, keeper)
      const older = at(network, 0).come(name)
      network.pass(500)
      const newer = at(network, 1).come(name)
      network.pass(100)
      expect([older.closedBecause, newer.closedBecause]).toEqual(["taken_over", null])
    }
  })

  test("has one connection within a second when its keeper is paused, killed or cut off", () => {
    for (const fault of ["pause", "kill", "cut"] as const) {
      const network = fleetOf(3)
      const name = keptBy(network, 2)
      const older = at(network, 0).come(name)
      network.pass(500)
      at(network, 2)[fault]()
      const newer = at(network, 1).come(name)
      network.pass(1_000)
      expect([fault, older.closedBecause, newer.closedBecause]).toEqual([fault, "taken_over", null])
    }
  })

  test("keeps the later connection when the clock of its worker is behind, with a larger epoch", () => {
    for (const keeper of [0, 1, 2]) {
      const network = fleetOf(3, { skewOf: (worker) => (worker === 0 ? 60_000 : 0) })
      const name = keptBy(network, keeper)
      const older = at(network, 0).come(name)
      network.pass(5_000)
      const newer = at(network, 1).come(name)
      network.pass(3 * GATHER_MS)
      expect([older.closedBecause, newer.closedBecause]).toEqual(["taken_over", null])
      const epochs = [older, newer].map(
        ({ connection }) => connection.endpoint?.recipient.epoch ?? 0,
      )
      expect(epochs[1]).toBeGreaterThan(epochs[0] as number)
      // The event of the later connection has the larger epoch too.
      expect(located(at(network, 2), name, false)).toEqual([])
      network.pass(100)
      expect(at(network, 1).fleet.settled).toBe(true)
    }
  })

  test("is known to the worker that keeps its shard after all, when the workers change", () => {
    const network = fleetOf(2)
    const names = Array.from({ length: 40 }, (_, n) => `lock:${n}`)
    for (const name of names) at(network, 0).come(name)
    network.pass(200)
    network.start(2)
    network.pass(SETTLED_MS)
    expect(at(network, 2).fleet.keepers.kept.size).toBeGreaterThan(0)
    at(network, 1).counters.locationsAsked = 0
    const places = names.map((name) => located(at(network, 1), name))
    network.pass(100)
    for (const place of places) expect(place).toMatchObject([{ kind: "worker", worker: "gw0.0" }])
    expect(at(network, 1).counters.locationsAsked).toBe(0)
  })
})

describe("while messages of a worker wait behind a large one", () => {
  test("its registrations wait too, and are sent afterwards", () => {
    const network = fleetOf(3)
    const name = keptBy(network, 2)
    const older = at(network, 0).come(name)
    network.pass(500)
    at(network, 1).block(true)
    const newer = at(network, 1).come(name)
    network.pass(300)
    at(network, 1).block(false)
    network.pass(100)
    expect([older.closedBecause, newer.closedBecause]).toEqual(["taken_over", null])
  })

  test("its notices as a keeper wait too", () => {
    const network = fleetOf(3)
    const name = keptBy(network, 2)
    const older = at(network, 0).come(name)
    network.pass(500)
    at(network, 2).block(true)
    at(network, 1).come(name)
    network.pass(200)
    at(network, 2).block(false)
    network.pass(100)
    expect(older.closedBecause).toBe("taken_over")
  })
})

describe("the keeper's answer", () => {
  test("says whether commands are held for the device", () => {
    const network = fleetOf(3)
    const [held, other] = [keptBy(network, 2), "bell:1"]
    network.held.add(held)
    at(network, 0).come(held)
    at(network, 0).come(other)
    network.pass(100)
    expect(at(network, 0).answered).toHaveLength(2)
    expect(at(network, 0).answered).toContainEqual(
      expect.objectContaining({ deviceId: held, hasHeld: true }),
    )
    expect(at(network, 0).answered).toContainEqual(
      expect.objectContaining({ deviceId: other, hasHeld: false }),
    )
  })

  test("counts when it is late, because the keeper was slow", () => {
    const network = fleetOf(3)
    const held = keptBy(network, 2)
    network.held.add(held)
    // The keeper has told that it has held commands.
    network.pass(500)
    at(network, 2).pause()
    at(network, 0).come(held)
    network.pass(1_500)
    at(network, 2).resume()
    network.pass(500)
    expect(at(network, 0).answered).toMatchObject([{ deviceId: held, hasHeld: true }])
  })

  test("counts as no after a second when nothing is held and the keeper has died", () => {
    const network = fleetOf(3)
    const name = keptBy(network, 2)
    at(network, 0).come(name)
    network.pass(1)
    at(network, 2).kill()
    const killedAtMs = network.nowMs
    network.pass(6_000)
    expect(at(network, 0).answered).toMatchObject([{ deviceId: name, hasHeld: false }])
    expect((at(network, 0).answered[0]?.atMs ?? 0) - killedAtMs).toBeLessThan(1_500)
  })

  test("comes from the next keeper, or counts as no after some seconds", () => {
    const network = fleetOf(3)
    const name = keptBy(network, 2)
    at(network, 2).pause()
    at(network, 0).come(name)
    network.pass(6_000)
    expect(at(network, 0).answered).toMatchObject([{ deviceId: name, hasHeld: false }])
  })
})

describe("a look-up", () => {
  test("asks the keeper only, and the next one nobody", () => {
    const network = fleetOf(4)
    const name = keptBy(network, 2)
    at(network, 0).come(name)
    network.pass(200)
    const { counters } = at(network, 1)
    const [sent, asked] = [counters.fleetMessagesSent, counters.locationsAsked]
    const place = located(at(network, 1), name)
    network.pass(20)
    expect(place).toMatchObject([{ kind: "worker", worker: "gw0.0" }])
    expect(located(at(network, 1), name)).toHaveLength(1)
    expect([counters.fleetMessagesSent - sent, counters.locationsAsked - asked]).toEqual([1, 0])
  })

  test("asks all workers before it says that none has the device, in a small fleet", () => {
    const network = fleetOf(4)
    const place = located(at(network, 1), "lock:absent")
    network.pass(50)
    expect(place).toMatchObject([{ kind: "nowhere" }])
    expect(at(network, 1).counters.locationsAsked).toBe(1)
  })

  test("asks the keeper twice, and not all workers, in a large fleet", () => {
    const network = fleetOf(40)
    const name = keptBy(network, 2)
    const place = located(at(network, 1), name)
    network.pass(190)
    expect(place).toEqual([])
    network.pass(60)
    expect(place).toMatchObject([{ kind: "nowhere" }])
    expect(at(network, 1).counters.locationsAsked).toBe(0)
  })

  test("finds a device whose keeper does not answer", () => {
    for (const fault of ["pause", "kill", "cut"] as const) {
      const network = fleetOf(3)
      const name = keptBy(network, 2)
      at(network, 0).come(name)
      network.pass(200)
      at(network, 2)[fault]()
      const place = located(at(network, 1), name)
      network.pass(1_300)
      expect([fault, ...place]).toMatchObject([fault, { kind: "worker", worker: "gw0.0" }])
    }
  })
})

/** The `devices` message of a worker, null for any other message. */
function devicesFrom({ body }: OutgoingMessage, { self }: NetworkWorker) {
  const message = JSON.parse(Buffer.from(body).toString())
  return message.type === "devices" && message.from === self.worker ? message : null
}

describe("a look-up in all workers", () => {
  function fleetWithDevice(): FleetNetwork {
    const network = fleetOf(3)
    at(network, 1).come("lock:1")
    network.pass(500)
    return network
  }

  /** The broker loses all queues, and worker 0 is connected again first. */
  function restart(network: FleetNetwork): void {
    network.restartBroker(100)
    network.pass(101)
    at(network, 0).connect()
  }

  test("is put again to a worker whose queue was lost with the question", () => {
    const network = fleetWithDevice()
    restart(network)
    const places = located(at(network, 0), "lock:1", false)
    network.pass(1_000)
    expect(places).toMatchObject([{ kind: "worker", worker: "gw0.1" }])
  })

  test("is put again by a worker whose queue was lost with the answers", () => {
    const network = fleetWithDevice()
    at(network, 1).pause()
    const places = located(at(network, 0), "lock:1", false)
    network.pass(700)
    restart(network)
    at(network, 1).resume()
    network.pass(1_500)
    expect(places).toMatchObject([{ kind: "worker", worker: "gw0.1" }])
  })
})

describe("a message that the broker refuses", () => {
  test("makes no device absent for its keeper, when it is one of many", () => {
    const network = fleetOf(3)
    const [holder, asking, keeper] = [at(network, 0), at(network, 1), at(network, 2)]
    const candidates = Array.from({ length: 10_000 }, (_, n) => `lock:${n}`)
    const names = candidates.filter((name) => keeperOf(network, name) === keeper).slice(0, 2_500)
    for (const name of names) holder.come(name)
    network.pass(SETTLED_MS)
    let full = 0
    const absent: string[] = []
    network.refuses = (message) => {
      const { type, absent: more = [] } = JSON.parse(Buffer.from(message.body).toString())
      if (type === "found") absent.push(...more)
      if (devicesFrom(message, holder)?.here.length !== 1_000) return false
      full += 1
      return full === 2
    }
    // It is told all devices again.
    keeper.cut()
    keeper.connect()
    const places: Located[] = []
    for (let asked = 0; asked < names.length; asked += 1) {
      if (asked % 10 === 0) network.pass(2)
      const name = names[(asked * 1_009) % names.length] as string
      asking.locate(name, true, (place) => places.push(place))
    }
    network.pass(SETTLED_MS)
    expect([names.length, places.length]).toEqual([2_500, 2_500])
    expect(full).toBeGreaterThan(2)
    expect(absent).toEqual([])
  })

  test("to the worker of an older connection is sent again", () => {
    const network = fleetOf(3)
    const name = keptBy(network, 2)
    const older = at(network, 0).come(name)
    network.pass(500)
    let refused = 0
    network.refuses = ({ body }) => {
      if (refused > 0 || JSON.parse(Buffer.from(body).toString()).type !== "newer") return false
      refused += 1
      return true
    }
    const newer = at(network, 1).come(name)
    network.pass(1_000)
    expect(refused).toBe(1)
    expect([older.closedBecause, newer.closedBecause]).toEqual(["taken_over", null])
  })

  test("to all workers, because the keeper does not answer, is sent again", () => {
    const network = fleetOf(3)
    const name = keptBy(network, 2)
    const older = at(network, 0).come(name)
    network.pass(500)
    at(network, 2).pause()
    let refused = 0
    network.refuses = (message) => {
      const isFirst = message.exchange !== "" && refused === 0
      if (!isFirst || devicesFrom(message, at(network, 1)) === null) return false
      refused += 1
      return true
    }
    const newer = at(network, 1).come(name)
    network.pass(1_000)
    expect(refused).toBe(1)
    expect([older.closedBecause, newer.closedBecause]).toEqual(["taken_over", null])
  })

  test("is followed by larger numbers, so that no late answer counts for a later message", () => {
    const network = fleetOf(3)
    const numbers: number[] = []
    network.refuses = (message) => {
      const n = devicesFrom(message, at(network, 0))?.n
      if (n === undefined || message.routingKey !== at(network, 2).queue) return false
      numbers.push(n)
      return numbers.length === 3
    }
    for (let n = 0; n < 40; n += 1) {
      at(network, 0).come(`lock:${n}`)
      network.pass(30)
    }
    network.pass(SETTLED_MS)
    expect(numbers.length).toBeGreaterThan(4)
    expect(numbers).toEqual([...new Set(numbers)].sort((a, b) => a - b))
  })
})

describe("a device that connects while its keeper's process ends", () => {
  test("is registered before the fleet counts as settled", () => {
    const network = fleetOf(4)
    const name = keptBy(network, 2)
    const older = at(network, 0).come(name)
    network.pass(500)
    at(network, 2).kill()
    at(network, 1).cut()
    const newer = at(network, 1).come(name)
    at(network, 1).connect()
    network.start(2)
    for (let passed = 0; passed < 1_000; passed += 5) {
      network.pass(5)
      const isSettled = network.workers.every(
        ({ isConnected, fleet }) => isConnected && fleet.settled,
      )
      if (isSettled && older.closedBecause === null) throw new Error(`settled after ${passed} ms`)
    }
    expect([older.closedBecause, newer.closedBecause]).toEqual(["taken_over", null])
  })
})

test("a device that connects or goes costs as many messages in a large fleet as in a small one", () => {
  const costs = [3, 16, 40].map((workers) => {
    const network = fleetOf(workers)
    const name = keptBy(network, 2)
    let deliveries = 0
    network.refuses = ({ exchange, body }) => {
      const { type } = JSON.parse(Buffer.from(body).toString())
      if (["devices", "kept", "newer"].includes(type)) deliveries += exchange === "" ? 1 : workers
      return false
    }
    at(network, 0).come(name)
    network.pass(60)
    at(network, 0).go(name)
    network.pass(60)
    return deliveries
  })
  // Registered and answered, both times.
  expect(costs).toEqual([4, 4, 4])
})
