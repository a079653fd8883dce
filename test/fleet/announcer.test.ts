/**
 * The announcer: the announcements of this worker's devices, their number of messages, and which of
 * two connections of one device stays. With real connections, and a channel that the test settles.
 */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import type { PublishResult } from "../../src/broker/broker.ts"
import { Counters } from "../../src/counters.ts"
import { Backpressure } from "../../src/device/backpressure.ts"
import type { CloseReason } from "../../src/device/close-reason.ts"
import { Connection, type ConnectionContext } from "../../src/device/connection.ts"
import { Connections } from "../../src/device/connections.ts"
import { UNKNOWN_PEER } from "../../src/device/peer.ts"
import { UnfinishedLines } from "../../src/device/unfinished-lines.ts"
import { Announcer } from "../../src/fleet/announcer.ts"
import type { Channel } from "../../src/fleet/channel.ts"
import { LocationCache } from "../../src/fleet/location-cache.ts"
import { type FleetContent, MAX_ROWS } from "../../src/fleet/messages.ts"
import type { Registration } from "../../src/fleet/registration.ts"

const GATHER_MS = 20
const EPOCH = 1_750_000_000_000
const REANNOUNCE_MS = 300_000
const OTHER = { from: "gw.1", incarnation: "mb2k3f9zq7x3" }

type Told = { to: string } & Partial<Extract<FleetContent, { type: "devices" }>>

/** Keeps sent messages until the test settles them. */
class ScriptedChannel {
  open = true
  readonly told: Told[] = []
  readonly #unsettled: ((result: PublishResult) => void)[] = []

  broadcast(content: FleetContent, settled: (result: PublishResult) => void): void {
    this.told.push({ to: "all", ...content } as Told)
    this.#unsettled.push(settled)
  }

  tell({ worker }: { worker: string }, content: FleetContent): void {
    this.told.push({ to: worker, ...content } as Told)
  }

  settle(result: PublishResult = "confirmed"): void {
    this.#unsettled.shift()?.(result)
  }

  /** What was said since this was last asked. */
  take(): Told[] {
    return this.told.splice(0)
  }
}

class Subject {
  readonly channel = new ScriptedChannel()
  readonly locationCache = new LocationCache()
  readonly connections = new Connections({
    handshakeTimeoutMs: 1,
    identifyTimeoutMs: 1,
    idleTimeoutMs: 1,
  })
  readonly announcer = new Announcer(
    this.channel as unknown as Channel,
    this.connections,
    this.locationCache,
  )
  readonly closed: (readonly [string, CloseReason])[] = []
  readonly #context: ConnectionContext = {
    limits: {
      framing: "line",
      maxLineBytes: 1,
      maxOutgoingBytes: 1,
      slowDeviceTimeoutMs: 1,
      windowCommands: 1,
      gapTimeoutMs: 1,
    },
    counters: new Counters(),
    backpressure: new Backpressure(1, { hasRoom: true }, () => undefined),
    unfinishedLines: new UnfinishedLines({ maxPartialBytes: 1e9, lineTimeoutMs: 1e9 }),
    scratch: new Uint8Array(0),
    nowMs: () => EPOCH,
    steadyMs: () => 0,
    lines: { take: () => undefined },
    flushSoon: () => undefined,
    commandsWait: () => undefined,
    rateOf: () => null,
    rateReached: () => undefined,
    lifetimeMs: () => Number.POSITIVE_INFINITY,
    aged: () => undefined,
    goodbye: null,
    closed: (connection, reason) => {
      this.connections.leave(connection)
      this.closed.push([connection.id, reason])
    },
  }

  /** A device that is here, without being announced. */
  hold(deviceId: string, connectionId: string, epoch = EPOCH): Connection {
    const socket = {
      write: () => 0,
      shutdown: () => undefined,
      terminate: () => undefined,
      pause: () => undefined,
      resume: () => undefined,
    }
    const connection = new Connection(connectionId, socket, "192.0.2.1", this.#context)
    this.connections.add(connection)
    const peer = { ...UNKNOWN_PEER, tlsVersion: "TLSv1.3" }
    connection.admit(deviceId, epoch, peer)
    this.connections.enter(connection)
    return connection
  }

  /** A device comes, and is announced as the fleet does. */
  come(deviceId: string, connectionId: string, epoch = EPOCH): Connection {
    const connection = this.hold(deviceId, connectionId, epoch)
    this.announcer.come(connection)
    return connection
  }

  heard(here: Registration[], gone: (readonly [string, string])[] = []): void {
    this.announcer.heard({ type: "devices", ...OTHER, here, gone })
  }
}

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

/**
 * Waits for the end of this tick, when its changes are announced, and for the time in which changes
 * are gathered.
 */
async function turn(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve))
  jest.advanceTimersByTime(GATHER_MS)
  await new Promise((resolve) => setImmediate(resolve))
}

describe("a device", () => {
  test("that connects is announced to all, with its connection and epoch", async () => {
    const subject = new Subject()
    subject.come("lock:1", "c1", EPOCH + 7)
    await turn()
    expect(subject.channel.told).toEqual([
      { to: "all", type: "devices", here: [["lock:1", "c1", EPOCH + 7]], gone: [] },
    ])
  })

  test("that disconnects is announced to all, with its connection", async () => {
    const { announcer, channel } = new Subject()
    announcer.gone("lock:1", "c1")
    await turn()
    expect(channel.told).toEqual([
      { to: "all", type: "devices", here: [], gone: [["lock:1", "c1"]] },
    ])
  })

  test("whose id is its connection id is not announced", async () => {
    const subject = new Subject()
    subject.come("gw.0.mb2k3f9zq7x2.1", "gw.0.mb2k3f9zq7x2.1")
    subject.announcer.announceAll(EPOCH)
    await turn()
    expect(subject.channel.told).toEqual([])
    expect(subject.announcer.pendingCount).toBe(0)
  })

  test("that was not admitted is not announced", async () => {
    const subject = new Subject()
    const connection = new Connection("c1", {} as never, "192.0.2.1", {
      steadyMs: () => 0,
    } as never)
    subject.announcer.come(connection)
    await turn()
    expect(subject.channel.told).toEqual([])
  })

  test("that connects and disconnects in one tick is announced only as gone", async () => {
    const subject = new Subject()
    subject.come("lock:1", "c1")
    subject.announcer.gone("lock:1", "c1")
    await turn()
    expect(subject.channel.told).toMatchObject([{ here: [], gone: [["lock:1", "c1"]] }])
  })

  test("that disconnects and connects in one tick is announced only as here", async () => {
    const subject = new Subject()
    subject.announcer.gone("lock:1", "c1")
    subject.come("lock:1", "c2")
    await turn()
    expect(subject.channel.told).toMatchObject([{ here: [["lock:1", "c2", EPOCH]], gone: [] }])
  })

  test("that connects twice in one tick is announced with its latest connection", async () => {
    const subject = new Subject()
    subject.come("lock:1", "c1")
    subject.come("lock:1", "c2", EPOCH + 1)
    await turn()
    expect(subject.channel.told).toMatchObject([{ here: [["lock:1", "c2", EPOCH + 1]], gone: [] }])
  })
})

describe("a storm of devices", () => {
  test("in one tick is one message", async () => {
    const subject = new Subject()
    for (let n = 0; n < 100; n += 1) subject.come(`d${n}`, `c${n}`)
    expect(subject.announcer.pendingCount).toBe(100)
    await turn()
    expect(subject.channel.told.map(({ here }) => here?.length)).toEqual([100])
    expect(subject.announcer.pendingCount).toBe(0)
  })

  test("during an unconfirmed message waits for its confirm, and is one more message", async () => {
    const subject = new Subject()
    subject.come("first", "c0")
    await turn()
    for (let n = 0; n < 3; n += 1) {
      subject.come(`d${n}`, `c${n}`)
      await turn()
    }
    expect(subject.channel.take().length).toBe(1)
    expect(subject.announcer.pendingCount).toBe(3)
    subject.channel.settle()
    await turn()
    expect(subject.channel.take()).toMatchObject([
      {
        here: [
          ["d0", "c0", EPOCH],
          ["d1", "c1", EPOCH],
          ["d2", "c2", EPOCH],
        ],
      },
    ])
  })

  test("has at most a thousand devices in each message, including those that disconnect", async () => {
    const subject = new Subject()
    for (let n = 0; n < MAX_ROWS; n += 1) subject.come(`d${n}`, `c${n}`)
    for (let n = 0; n < MAX_ROWS + 1; n += 1) subject.announcer.gone(`g${n}`, `c${n}`)
    const sizes: number[] = []
    for (let n = 0; n < 4; n += 1) {
      await turn()
      for (const { here, gone } of subject.channel.take()) {
        sizes.push((here?.length ?? 0) + (gone?.length ?? 0))
      }
      subject.channel.settle()
    }
    expect(sizes).toEqual([MAX_ROWS, MAX_ROWS, 1])
  })

  test.each<PublishResult>(["confirmed", "returned", "nacked", "cut", "unencodable"])(
    "goes on however its message ended: %s",
    async (result) => {
      const subject = new Subject()
      subject.come("first", "c1")
      await turn()
      subject.come("second", "c2")
      subject.channel.take()
      subject.channel.settle(result)
      await turn()
      expect(subject.channel.take()).toMatchObject([{ here: [["second", "c2", EPOCH]] }])
    },
  )

  test("causes no messages after its end", async () => {
    const subject = new Subject()
    subject.come("lock:1", "c1")
    await turn()
    subject.channel.take()
    subject.channel.settle()
    await turn()
    expect(subject.channel.take()).toEqual([])
  })
})

describe("all devices are announced again", () => {
  test("when the broker connection returns, including those that connected in between", async () => {
    const subject = new Subject()
    subject.come("old", "c1")
    await turn()
    subject.channel.take()
    subject.channel.open = false
    subject.channel.settle("cut")
    subject.come("new", "c2")
    subject.announcer.gone("gone", "c3")
    await turn()
    expect(subject.channel.take()).toEqual([])
    // Nothing waits for a broker that may never come.
    expect(subject.announcer.pendingCount).toBe(0)

    subject.channel.open = true
    subject.announcer.announceAll(EPOCH)
    await turn()
    expect(subject.channel.take()).toMatchObject([
      {
        here: [
          ["old", "c1", EPOCH],
          ["new", "c2", EPOCH],
        ],
        gone: [],
      },
    ])
  })

  test("every five minutes", async () => {
    const subject = new Subject()
    subject.hold("lock:1", "c1")
    subject.announcer.announceAll(EPOCH)
    await turn()
    subject.channel.settle()
    subject.channel.take()
    subject.announcer.sweep(EPOCH + REANNOUNCE_MS - 1)
    await turn()
    expect(subject.channel.take()).toEqual([])
    subject.announcer.sweep(EPOCH + REANNOUNCE_MS)
    await turn()
    subject.channel.settle()
    expect(subject.channel.take()).toMatchObject([{ here: [["lock:1", "c1", EPOCH]] }])
    subject.announcer.sweep(EPOCH + REANNOUNCE_MS + 1)
    await turn()
    expect(subject.channel.take()).toEqual([])
  })

  test("without those whose connection is closing", async () => {
    const subject = new Subject()
    subject.hold("stays", "c1")
    subject.hold("goes", "c2").close("idle")
    subject.announcer.announceAll(EPOCH)
    await turn()
    expect(subject.channel.told).toMatchObject([{ here: [["stays", "c1", EPOCH]] }])
  })
})

describe("an announcement of another worker", () => {
  test("is cached, and removed when the device is gone", () => {
    const subject = new Subject()
    subject.heard([
      ["lock:1", "c1", 5],
      ["bell:2", "c2", 5],
    ])
    expect(subject.locationCache.find("lock:1")).toBe("c1")
    subject.heard([], [["lock:1", "c1"]])
    expect(subject.locationCache.find("lock:1")).toBeUndefined()
    expect(subject.locationCache.find("bell:2")).toBe("c2")
  })

  test("of one device as both gone and here leaves it here", () => {
    const subject = new Subject()
    subject.heard([["lock:1", "c1", 5]])
    subject.heard([["lock:1", "c2", 6]], [["lock:1", "c1"]])
    expect(subject.locationCache.find("lock:1")).toBe("c2")
  })

  test("is not answered when none of its devices is here", () => {
    const subject = new Subject()
    subject.hold("bell:2", "c2")
    subject.heard([["lock:1", "c1", 5]])
    expect(subject.channel.told).toEqual([])
  })
})

describe("a device that is here and elsewhere", () => {
  test("newer elsewhere, is closed here as taken_over, and its new location is cached", () => {
    const subject = new Subject()
    subject.hold("lock:1", "gw.0.c1", EPOCH)
    subject.heard([["lock:1", "gw.1.c1", EPOCH + 1]])
    expect(subject.closed).toEqual([["gw.0.c1", "taken_over"]])
    expect(subject.locationCache.find("lock:1")).toBe("gw.1.c1")
    expect(subject.channel.told).toEqual([])
  })

  test("older elsewhere, stays, and the other worker gets the newer connection", () => {
    const subject = new Subject()
    subject.hold("lock:1", "gw.0.c1", EPOCH)
    subject.heard([["lock:1", "gw.1.c1", EPOCH - 1]])
    expect(subject.closed).toEqual([])
    expect(subject.locationCache.find("lock:1")).toBeUndefined()
    expect(subject.channel.told).toEqual([
      { to: "gw.1", type: "devices", here: [["lock:1", "gw.0.c1", EPOCH]], gone: [] },
    ])
  })

  test("with equal epochs, stays where the connection id is larger", () => {
    const subject = new Subject()
    subject.hold("lower", "gw.0.c1", EPOCH)
    subject.hold("higher", "gw.2.c1", EPOCH)
    subject.heard([
      ["lower", "gw.1.c1", EPOCH],
      ["higher", "gw.1.c2", EPOCH],
    ])
    expect(subject.closed).toEqual([["gw.0.c1", "taken_over"]])
    expect(subject.channel.told).toMatchObject([
      { to: "gw.1", here: [["higher", "gw.2.c1", EPOCH]] },
    ])
  })

  test("is announced in one message with others like it", () => {
    const subject = new Subject()
    for (const id of ["a", "b", "c"]) subject.hold(id, `gw.0.${id}`, EPOCH)
    subject.heard(["a", "b", "c"].map((id) => [id, `gw.1.${id}`, EPOCH - 1] as const))
    expect(subject.channel.told.length).toBe(1)
    expect(subject.channel.told[0]?.here?.length).toBe(3)
  })

  test("stays when its connection elsewhere is gone", () => {
    const subject = new Subject()
    subject.hold("lock:1", "gw.0.c1")
    subject.heard([], [["lock:1", "gw.1.c1"]])
    expect(subject.closed).toEqual([])
  })

  test("is closed on exactly one of two workers, in either order of announcements", () => {
    for (const [mine, theirs] of [
      [EPOCH, EPOCH + 1],
      [EPOCH + 1, EPOCH],
      [EPOCH, EPOCH],
    ] as const) {
      const [here, there] = [new Subject(), new Subject()]
      here.hold("lock:1", "gw.0.c1", mine)
      there.hold("lock:1", "gw.1.c1", theirs)
      here.heard([["lock:1", "gw.1.c1", theirs]])
      there.heard([["lock:1", "gw.0.c1", mine]])
      expect([...here.closed, ...there.closed].length).toBe(1)
    }
  })
})
