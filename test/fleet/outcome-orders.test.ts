/**
 * Orders of events that have each shown a fault, step by step, for one command and one device. The
 * real code of several workers runs on a simulated broker. Steps that are not named happen at once.
 * `one-outcome.test.ts` tests all orders.
 */

import { describe, expect, test } from "bun:test"
import {
  queueOf,
  REPLIES,
  type SeenConnection,
  type SentCommand,
  SimulatedFleet,
} from "../support/simulated-fleet.ts"
import { QUEUES } from "../support/simulated-worker.ts"

const ENDS_WITHIN_MS = 60_000

describe("a forwarded command", () => {
  test("follows a device that moves twice, and is written once", () => {
    const fleet = settled(3)
    // Until each shard has a keeper.
    fleet.pass(1_000)
    connect(fleet, 1, "a")
    const command = publish(fleet, { deviceId: "a", queue: queueOf(0), wantsReceipt: true })
    fleet.settle(/"c0" comes/)
    const coming = /"c0" comes from owsla.worker/
    fleet.step(coming)
    fleet.settle(coming)
    connect(fleet, 2, "a")
    fleet.pass(100, coming)
    fleet.step(coming)
    fleet.settle(coming)
    const last = connect(fleet, 0, "a")
    fleet.pass(100, coming)
    fleet.calm()
    expect(outcomes(command)).toEqual(["written"])
    expect(command.hops).toBe(3)
    expect(wires(fleet, command)).toEqual([last.id])
    expect(receipts(fleet, command)).toEqual(["written"])
  })

  test("ends as offline when the device always moves before it, and is not forwarded any more", () => {
    const fleet = settled(3)
    connect(fleet, 1, "a")
    const command = publish(fleet, { deviceId: "a" })
    const coming = /"c0" comes from owsla.worker/
    for (const slot of [2, 1, 2, 1, 2, 1]) {
      fleet.settle(coming)
      connect(fleet, slot, "a")
      fleet.settle(coming)
      if (fleet.pending().some((step) => coming.test(step.what()))) fleet.step(coming)
    }
    fleet.calm()
    expect(outcomes(command)).toHaveLength(1)
    expect(command.hops).toBeLessThanOrEqual(3)
    expect(kept(fleet, command)).toEqual(outcomes(command).filter((each) => each !== "written"))
  })

  test("is published twice when the confirm is lost, and written once", () => {
    const fleet = settled(2)
    const device = connect(fleet, 1, "a")
    const command = publish(fleet, { deviceId: "a", queue: queueOf(0), wantsReceipt: true })
    fleet.settle(/confirmed: "c0" of lane 1 of gw0.0/)
    fleet.cut(0, ["publishing"])
    fleet.calm()
    expect(command.disturbed.cut).toBe(1)
    expect(fleet.workers[1]?.counters.commandsRedelivered).toBe(1)
    expect(wires(fleet, command)).toEqual([device.id])
    expect(receipts(fleet, command)).toEqual(["written"])
  })

  test("is published twice, and both copies meet a device that has moved", () => {
    const fleet = settled(3)
    connect(fleet, 1, "a")
    const command = publish(fleet, { deviceId: "a", queue: queueOf(0) })
    fleet.settle(/confirmed: "c0" of lane 1 of gw0.0|"c0" comes from owsla.worker.gw0.1/)
    const device = connect(fleet, 2, "a")
    // The worker of the older connection is told.
    fleet.pass(500, /confirmed: "c0" of lane 1 of gw0.0|"c0" comes from owsla.worker.gw0.1/)
    fleet.cut(0, ["publishing"])
    fleet.calm()
    expect(wires(fleet, command)).toEqual([device.id])
    expect(outcomes(command)).toEqual(["written"])
  })

  test("is redelivered to a worker that still looks for its device: the lost delivery has no effect", () => {
    const fleet = settled(2)
    const command = publish(fleet, { deviceId: "a", queue: queueOf(0), wantsReceipt: true })
    const answer = /"there".* comes from owsla.fleet.gw0.0/
    fleet.settle(answer)
    fleet.cut(0, ["consuming"])
    fleet.settle(answer)
    const device = connect(fleet, 0, "a")
    fleet.calm()
    expect(command.disturbed.requeued).toBe(1)
    expect(wires(fleet, command)).toEqual([device.id])
    expect(receipts(fleet, command)).toEqual(["written"])
  })
})

describe("a command whose delivery is lost while it is forwarded, and that comes to the other worker itself", () => {
  const forward = /"c0" comes from owsla.worker.gw0.1/
  const redelivery = /"c0" comes from to_device/

  /**
   * Worker 0 has forwarded the command to worker 1, which has not got it yet, and loses its
   * delivery.
   */
  function forwardedAndLost(seq: number | null = null) {
    const fleet = settled(2)
    const device = connect(fleet, 1, "a")
    fleet.settle()
    fleet.cut(1, ["consuming"])
    const command = publish(fleet, { deviceId: "a", messageId: "m0", seq, wantsReceipt: true })
    fleet.settle(/confirmed: "c0" of lane 1 of gw0.0|gw0.1.* connects to consume/)
    fleet.step(/gw0.1.* connects to consume/)
    const waiting = /"c0" comes from|confirmed: "c0" of lane 1 of gw0.0|gw0.0.* connects to consume/
    fleet.settle(waiting)
    fleet.cut(0, ["consuming"])
    fleet.settle(waiting)
    return { fleet, device, command }
  }

  test("before the forward: it is written once and has one receipt", () => {
    const { fleet, device, command } = forwardedAndLost()
    fleet.step(redelivery)
    fleet.settle(forward)
    expect(wires(fleet, command)).toEqual([device.id])
    fleet.calm()
    expect(wires(fleet, command)).toEqual([device.id])
    expect(receipts(fleet, command)).toEqual(["written"])
  })

  test("after the forward: it is written once and has one receipt", () => {
    const { fleet, device, command } = forwardedAndLost()
    fleet.step(forward)
    fleet.settle(redelivery)
    expect(wires(fleet, command)).toEqual([device.id])
    fleet.calm()
    expect(wires(fleet, command)).toEqual([device.id])
    expect(receipts(fleet, command)).toEqual(["written"])
  })

  test("before the forward, and is lost again while the device takes it: it is written once, and nothing stays in hand", () => {
    const fleet = settled(2)
    const device = connect(fleet, 1, "a")
    fleet.settle()
    fleet.cut(1, ["consuming"])
    const command = publish(fleet, { deviceId: "a", messageId: "m0", wantsReceipt: true })
    const published = 'take "c0" from lane 1 of gw0.0|gw0.0.* connects to consume'
    fleet.settle(new RegExp(`${published}|gw0.1.* connects to consume`))
    fleet.step(/gw0.1.* connects to consume/)
    fleet.settle(new RegExp(published))
    fleet.cut(0, ["consuming"])
    device.device.socket.room = 1
    fleet.settle(new RegExp(published))
    expect(device.device.socket.wire).toBe("c")
    // The forward arrives at the next connection before the redelivery.
    fleet.cut(1, ["consuming"])
    const again = /dispatch again "c0" from to_device|gw0.0.* connects to consume/
    fleet.settle(again)
    fleet.readAll(device)
    fleet.calm()
    expect(wires(fleet, command)).toEqual([device.id])
    expect(receipts(fleet, command)).toEqual(["written"])
    for (const { worker } of fleet.workers) {
      expect(worker.commands.unacknowledged.count).toBe(0)
    }
    expect(fleet.broker.waiting(queueOf(1))).toEqual([])
  })

  test("before the forward, and is lost again while it waits for a number: it is written once", () => {
    const { fleet, device, command } = forwardedAndLost(1)
    fleet.step(redelivery)
    fleet.settle()
    fleet.cut(1, ["consuming"])
    fleet.calm()
    expect(wires(fleet, command)).toEqual([device.id])
    expect(receipts(fleet, command)).toEqual(["written"])
  })

  test("before the forward, which is redelivered too, and is lost again while it waits for a number: it is written once", () => {
    const { fleet, device, command } = forwardedAndLost(1)
    const other = /gw0.0.* connects to consume/
    fleet.cut(1, ["consuming"])
    fleet.settle(/"c0" comes|gw0.0.* connects to consume/)
    fleet.step(redelivery)
    fleet.settle(other)
    fleet.cut(1, ["consuming"])
    // The worker that has forwarded the command gets what is delivered from `to_device`.
    fleet.settle(/gw0.1.* connects to consume/)
    fleet.calm()
    expect(wires(fleet, command)).toEqual([device.id])
    expect(receipts(fleet, command)).toEqual(["written"])
  })

  test("before the forward, and is then sent once more by its back-end: that one is a duplicate", () => {
    const { fleet, device, command } = forwardedAndLost()
    fleet.calm()
    const again = publish(fleet, { deviceId: "a", messageId: "m0", wantsReceipt: true })
    fleet.calm()
    expect(wires(fleet, command)).toEqual([device.id])
    expect([receipts(fleet, command), receipts(fleet, again)]).toEqual([["written"], ["duplicate"]])
  })
})

describe("a command that a worker calls offline, and whose copy may not have reached the broker when both connections are lost", () => {
  const other = /gw0.1.* connects to consume/

  /**
   * Worker 0 has decided and published, and loses its connections before the broker has taken
   * anything.
   */
  function decidedAndLost() {
    const fleet = settled(2)
    fleet.cut(1, ["consuming"])
    const command = publish(fleet, { deviceId: "a", wantsReceipt: true })
    fleet.pass(12_000, /gw0.1.* connects to consume|take "c0" from lane/)
    fleet.cut(0, ["publishing", "consuming"])
    return { fleet, command }
  }

  test("is written by the worker that has the device by then, and by nobody else called offline", () => {
    const { fleet, command } = decidedAndLost()
    const device = connect(fleet, 1, "a")
    fleet.step(other)
    fleet.settle(/gw0.0.* connects/)
    expect(wires(fleet, command)).toEqual([device.id])
    fleet.calm()
    expect(receipts(fleet, command)).toEqual(["written"])
    expect(kept(fleet, command)).toEqual([])
  })

  test("ends as offline once, when it comes to the same worker again, though its device has come", () => {
    const { fleet, command } = decidedAndLost()
    fleet.settle(other)
    connect(fleet, 0, "a")
    fleet.calm()
    expect(receipts(fleet, command)).toEqual(["offline"])
    expect(kept(fleet, command)).toEqual(["offline"])
    expect(wires(fleet, command)).toEqual([])
  })
})

describe("a command in the queue of a worker that was killed", () => {
  /**
   * Leaves a command in the queue of a worker that its device is connected to, and kills the
   * worker.
   */
  function orphan(fleet: SimulatedFleet): SentCommand {
    connect(fleet, 1, "a")
    const command = publish(fleet, { deviceId: "a" })
    fleet.settle(/dispatch "c0" from owsla.worker.gw0.1/)
    if (command.hops !== 1) throw new Error("not in its queue")
    fleet.kill(1)
    return command
  }

  /** A worker that does not hold the device consumes the command from `to_device`. */
  function fleetOf(workers: number): SimulatedFleet {
    const fleet = settled(workers)
    fleet.cut(1, ["consuming"])
    fleet.step(/gw0.1.* connects to consume/)
    fleet.settle(/dispatch .* from to_device to gw0.1/)
    return fleet
  }

  test("is kept within 60 s when the device is nowhere", () => {
    const fleet = fleetOf(2)
    const command = orphan(fleet)
    fleet.pass(ENDS_WITHIN_MS)
    expect(outcomes(command)).toEqual(["offline"])
    expect(kept(fleet, command)).toEqual(["offline"])
  })

  test("is written within 60 s when the device is with another worker by then", () => {
    const fleet = fleetOf(3)
    const command = orphan(fleet)
    const device = connect(fleet, 2, "a")
    fleet.pass(ENDS_WITHIN_MS)
    expect(outcomes(command)).toEqual(["written"])
    expect(wires(fleet, command)).toEqual([device.id])
  })

  test("is consumed by the successor at once", () => {
    const fleet = fleetOf(3)
    const command = orphan(fleet)
    fleet.start(1)
    const device = connect(fleet, 2, "a")
    fleet.pass(5_000)
    expect(wires(fleet, command)).toEqual([device.id])
  })

  test("is written within 60 s though the next worker of its device is killed too", () => {
    const fleet = fleetOf(4)
    const command = orphan(fleet)
    connect(fleet, 2, "a")
    fleet.pass(ENDS_WITHIN_MS, /dispatch "c0" from owsla.worker.gw1.0/)
    // Were it taken to be there for long, the command would be given up first.
    expect(outcomes(command).length).toBeLessThanOrEqual(1)
    fleet.kill(2)
    const device = connect(fleet, 3, "a")
    fleet.pass(ENDS_WITHIN_MS)
    expect(outcomes(command)).toHaveLength(1)
    if (outcomes(command)[0] === "written") expect(wires(fleet, command)).toEqual([device.id])
    else expect(kept(fleet, command)).toEqual(outcomes(command))
  })
})

describe("a redelivered command", () => {
  test("while it waits for a number is written once, in its turn", () => {
    const fleet = settled(2)
    const device = connect(fleet, 0, "a")
    const later = publish(fleet, { connectionId: device.id, seq: 1, wantsReceipt: true })
    fleet.settle()
    fleet.cut(0, ["consuming"])
    fleet.cut(1, ["consuming"])
    fleet.settle()
    const earlier = publish(fleet, { connectionId: device.id, seq: 0, wantsReceipt: true })
    fleet.calm()
    expect(device.device.socket.lines).toEqual([earlier.body, later.body])
    expect(receipts(fleet, earlier)).toEqual(["written"])
    expect(receipts(fleet, later)).toEqual(["written"])
  })

  test("while it waits for a number, and the gap is given up, is written once", () => {
    const fleet = settled(2)
    const device = connect(fleet, 0, "a")
    const command = publish(fleet, { connectionId: device.id, seq: 1, wantsReceipt: true })
    fleet.settle()
    const again = /again "c0" comes/
    fleet.cut(0, ["consuming"])
    fleet.cut(1, ["consuming"])
    fleet.pass(3_000, again)
    fleet.calm()
    expect(wires(fleet, command)).toEqual([device.id])
    expect(receipts(fleet, command)).toEqual(["written"])
  })

  test("after it was written, on another worker, is recognized by its message id", () => {
    const fleet = settled(2)
    const device = connect(fleet, 0, "a")
    const command = publish(fleet, { deviceId: "a", messageId: "m0", wantsReceipt: true })
    fleet.settle(/take "c0" acknowledged/)
    for (const slot of [0, 1]) fleet.cut(slot, ["consuming"])
    fleet.step(/gw0.1.* connects to consume/)
    fleet.settle(/gw0.0.* connects to consume/)
    fleet.calm()
    expect(command.disturbed.requeued).toBeGreaterThan(0)
    expect(wires(fleet, command)).toEqual([device.id])
    expect(receipts(fleet, command)).toEqual(["written"])
  })
})

describe("a worker that has missed messages of the others", () => {
  const late = /gw0.1.* (connects to consume|subscribes)/

  test.each([
    ["since it started, for its second connection came late", 0, 3_000],
    ["for longer than it remembers them", 5_000, 25_000],
  ])("%s, calls no device offline", (_, heardForMs, missedForMs) => {
    const fleet = new SimulatedFleet({ workers: 2 })
    if (heardForMs === 0) fleet.pass(missedForMs, late)
    else {
      fleet.pass(heardForMs)
      fleet.cut(1, ["consuming"])
      fleet.pass(missedForMs, late)
    }
    const device = connect(fleet, 0, "a")
    fleet.settle(late)
    // Only this worker consumes commands.
    fleet.cut(0, ["consuming"])
    const command = publish(fleet, { deviceId: "a" })
    fleet.settle(/(connects to consume|subscribes)/)
    fleet.step(/gw0.1.* connects to consume/)
    const others = /gw0.0.* (connects to consume|subscribes)/
    fleet.settle(others)
    fleet.calm()
    expect(outcomes(command)).toEqual(["written"])
    expect(wires(fleet, command)).toEqual([device.id])
  })
})

describe("the first worker that reconnects to the broker", () => {
  const late = /gw0.0.* (connects to|subscribes)/

  test("calls no device offline that a worker holds that is still reconnecting", () => {
    const fleet = settled(2)
    const device = connect(fleet, 0, "a")
    fleet.settle()
    for (const slot of [0, 1]) fleet.cut(slot, ["publishing", "consuming"])
    // Longer than a member is kept without messages.
    fleet.pass(60_000, /connects to|subscribes/)
    const command = publish(fleet, { deviceId: "a" })
    fleet.pass(5_000, late)
    expect(outcomes(command)).toEqual([])
    fleet.calm()
    expect(outcomes(command)).toEqual(["written"])
    expect(wires(fleet, command)).toEqual([device.id])
  })

  test("does not wait for ever for a worker that does not reconnect", () => {
    const fleet = settled(2)
    connect(fleet, 0, "a")
    fleet.settle()
    fleet.cut(1, ["publishing", "consuming"])
    fleet.kill(0)
    const command = publish(fleet, { deviceId: "a" })
    fleet.pass(ENDS_WITHIN_MS)
    expect(outcomes(command)).toEqual(["offline"])
  })
})

describe("a worker that looks for a device", () => {
  test("asks again when its question was lost with the broker connection", () => {
    const fleet = settled(2)
    const device = connect(fleet, 0, "a")
    const command = publish(fleet, { deviceId: "a", queue: queueOf(1) })
    fleet.settle(/"devices"|"where"/)
    fleet.cut(1, ["publishing"])
    fleet.calm()
    expect(wires(fleet, command)).toEqual([device.id])
  })

  test("calls none offline before the others have announced themselves", () => {
    const fleet = settled(2)
    const device = connect(fleet, 0, "a")
    fleet.settle()
    fleet.kill(1)
    fleet.start(1)
    const alive = /"alive".* comes from owsla.fleet.gw0.1/
    fleet.settle(alive)
    const command = publish(fleet, { deviceId: "a", queue: queueOf(1) })
    fleet.pass(500, alive)
    expect(outcomes(command)).toEqual([])
    fleet.calm()
    expect(wires(fleet, command)).toEqual([device.id])
  })
})

describe("a command by HTTP", () => {
  test("has its outcome before its worker has drained, though the caller waits no more", () => {
    const fleet = settled(2)
    const command = fleet.send(0, "a")
    if (command === null) throw new Error("nobody to send to")
    // Before it has asked the others.
    fleet.cut(0, ["publishing"])
    fleet.pass(5_000, /gw0.0.* connects to publish/)
    expect(command.answers).toEqual([{ outcome: "timeout" }])
    fleet.drain(0)
    fleet.pass(ENDS_WITHIN_MS)
    expect(fleet.workers[0]?.ended).toBe("done")
    expect(outcomes(command)).toEqual(["offline"])
    expect(kept(fleet, command)).toEqual(["offline"])
  })
})

describe("a device that flaps between workers", () => {
  test("in one millisecond has one connection in the end, and all workers agree on it", () => {
    const fleet = settled(3)
    for (const slot of [0, 1, 2, 1, 0, 2]) fleet.connect(slot, "a")
    const command = publish(fleet, { deviceId: "a" })
    fleet.calm()
    expect(fleet.openOf("a")).toHaveLength(1)
    expect(outcomes(command)).toHaveLength(1)
    for (const slot of [0, 1, 2]) {
      const probe = fleet.send(slot, "a")
      fleet.calm()
      expect(probe?.answers).toMatchObject([
        { outcome: "written", connection_id: fleet.openOf("a")[0]?.id },
      ])
    }
  })

  test("while the workers do not reach each other has one connection after they do", () => {
    const fleet = settled(2)
    fleet.cut(0, ["publishing", "consuming"])
    fleet.cut(1, ["publishing", "consuming"])
    connect(fleet, 0, "a")
    const newest = connect(fleet, 1, "a")
    fleet.pass(5_000, /connects to/)
    expect(fleet.openOf("a")).toHaveLength(2)
    fleet.pass(1_000)
    expect(fleet.openOf("a")).toEqual([newest])
  })
})

function settled(workers: number): SimulatedFleet {
  const fleet = new SimulatedFleet({ workers })
  // Longer than workers take to get acquainted.
  fleet.pass(1_000)
  return fleet
}

/** The device's newest connection. */
function connect(fleet: SimulatedFleet, slot: number, name: string): SeenConnection {
  fleet.advance(1)
  const seen = fleet.connect(slot, name)
  if (seen === null) throw new Error(`no worker ${slot}`)
  return seen
}

function publish(
  fleet: SimulatedFleet,
  publishing: Parameters<SimulatedFleet["publish"]>[0],
): SentCommand {
  const command = fleet.publish(publishing)
  if (command === null) throw new Error("no such queue")
  return command
}

function outcomes(command: SentCommand): string[] {
  return command.endings.map(({ outcome }) => outcome)
}

/** The connections that it is on the wire of, each as often as it is there. */
function wires(fleet: SimulatedFleet, { body }: SentCommand): string[] {
  return fleet.connections.flatMap(({ id, device }) =>
    device.socket.lines.filter((line) => line === body).map(() => id),
  )
}

/** The outcomes of the copies in the undelivered queue. */
function kept(fleet: SimulatedFleet, command: SentCommand): unknown[] {
  return fleet.broker
    .waiting(QUEUES.undeliveredQueue)
    .filter((message) => fleet.commandOf(message) === command)
    .map(({ properties }) => properties.headers?.["owsla-outcome"])
}

function receipts(fleet: SimulatedFleet, command: SentCommand): string[] {
  return fleet.broker
    .waiting(REPLIES)
    .filter((message) => fleet.commandOfReceipt(message) === command)
    .map(({ body }) => JSON.parse(Buffer.from(body).toString()).outcome)
}
