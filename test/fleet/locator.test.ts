/**
 * The locator: the location of a named device, from announcements or from a question to the fleet,
 * and when it is nowhere. The test controls the clock and answers for the members.
 */

import { describe, expect, test } from "bun:test"
import type { PublishResult } from "../../src/broker/broker.ts"
import { Counters } from "../../src/counters.ts"
import type { Channel } from "../../src/fleet/channel.ts"
import { LocationCache } from "../../src/fleet/location-cache.ts"
import { ASK_TIMEOUT_MS, type Located, Locator, SLOW_TIMEOUT_MS } from "../../src/fleet/locator.ts"
import { Members } from "../../src/fleet/members.ts"
import { type FleetContent, MAX_ROWS } from "../../src/fleet/messages.ts"

const NOW_MS = 1_750_000_000_000
const ACQUAINT_MS = 600
const MAX_ASKS = 16
const INCARNATION = "mb2k3f9zq7x2"
/** A connection of that worker. */
const at = (worker: string) => `${worker}.${INCARNATION}.1`
const withWorker = (worker: string): Located => ({
  kind: "worker",
  worker,
  connectionId: at(worker),
})
const NOWHERE: Located = { kind: "nowhere", detail: "not connected to any worker" }

type Where = Extract<FleetContent, { type: "where" }>

/** Keeps sent questions until the test settles them. */
class ScriptedChannel {
  open = true
  hasRoom = true
  readonly asked: Where[] = []
  readonly #unsettled: ((result: PublishResult) => void)[] = []

  broadcast(content: FleetContent, settled: (result: PublishResult) => void): void {
    this.asked.push(content as Where)
    this.#unsettled.push(settled)
  }

  settle(result: PublishResult): void {
    this.#unsettled.shift()?.(result)
  }
}

class Subject {
  nowMs = NOW_MS
  readonly channel = new ScriptedChannel()
  readonly members = new Members()
  readonly locationCache = new LocationCache()
  readonly counters = new Counters()
  /** Look-ups at keepers that are not answered. */
  readonly atKeeper = new Map<string, (place: Located | null) => void>()
  readonly locator = new Locator(
    this.channel as unknown as Channel,
    this.members,
    this.locationCache,
    (deviceId, found) => void this.atKeeper.set(deviceId, found),
    { steadyMs: () => this.nowMs, counters: this.counters },
  )

  /** A locator that has been with the broker for long, and these other workers. */
  constructor(...workers: string[]) {
    this.locator.opened()
    this.nowMs += ACQUAINT_MS
    for (const worker of workers) this.members.heard(worker, INCARNATION, this.nowMs)
  }

  /** Looks for a device; the list grows by each answer. */
  locate(deviceId = "lock:1", trusting = false): Located[] {
    const places: Located[] = []
    this.locator.locate(deviceId, trusting, (place) => places.push(place))
    return places
  }

  /** A member answers which of the requested devices it holds. */
  answer(from: string, ask: number, ...devices: string[]): void {
    this.locator.answered({
      type: "there",
      from,
      incarnation: INCARNATION,
      ask,
      devices: devices.map((deviceId) => [deviceId, at(from), 5]),
    })
  }

  pass(ms: number): void {
    this.nowMs += ms
    this.locator.sweep(this.nowMs)
  }
}

/** Waits for the end of this tick, when its look-ups are sent. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

describe("a device that was located before", () => {
  test("is with the responsive member that held it, at once and without a question", async () => {
    const subject = new Subject("gw.1")
    subject.locationCache.add(["lock:1", at("gw.1"), 5], subject.nowMs)
    expect(subject.locate("lock:1", true)).toEqual([withWorker("gw.1")])
    await turn()
    expect(subject.channel.asked).toEqual([])
  })

  test("is looked up at all workers by a caller for whom that was wrong", async () => {
    const subject = new Subject("gw.1")
    subject.locationCache.add(["lock:1", at("gw.1"), 5], subject.nowMs)
    expect(subject.locate("lock:1", false)).toEqual([])
    await turn()
    expect(subject.channel.asked).toEqual([{ type: "where", ask: 0, devices: ["lock:1"] }])
  })

  test("is looked up when that member is silent", async () => {
    const subject = new Subject("gw.1", "gw.2")
    subject.locationCache.add(["lock:1", at("gw.1"), 5], subject.nowMs)
    subject.members.missed("gw.1")
    expect(subject.locate("lock:1", true)).toEqual([])
    expect([...subject.atKeeper.keys()]).toEqual(["lock:1"])
  })

  test("is looked up when that process was replaced", async () => {
    const subject = new Subject("gw.1")
    subject.locationCache.add(["lock:1", at("gw.1"), 5], subject.nowMs)
    subject.members.heard("gw.1", "mb2k3f9zzzzz", NOW_MS)
    expect(subject.locate("lock:1", true)).toEqual([])
    expect([...subject.atKeeper.keys()]).toEqual(["lock:1"])
  })

  test("is looked up when that worker is unknown", async () => {
    const subject = new Subject("gw.1")
    subject.locationCache.add(["lock:1", at("gw.7"), 5], subject.nowMs)
    expect(subject.locate("lock:1", true)).toEqual([])
    expect([...subject.atKeeper.keys()]).toEqual(["lock:1"])
  })

  test("is looked up when the announced connection id is not valid", async () => {
    const subject = new Subject("gw.1")
    subject.locationCache.add(["lock:1", "made-up", 5], subject.nowMs)
    expect(subject.locate("lock:1", true)).toEqual([])
    expect([...subject.atKeeper.keys()]).toEqual(["lock:1"])
  })
})

describe("a look-up at the keeper", () => {
  test("ends where the keeper says, for all callers", async () => {
    const subject = new Subject("gw.1")
    const places = [subject.locate("lock:1", true), subject.locate("lock:1", true)]
    expect(subject.locator.pendingCount).toBe(1)
    subject.atKeeper.get("lock:1")?.(withWorker("gw.1"))
    await turn()
    expect(places).toEqual([[withWorker("gw.1")], [withWorker("gw.1")]])
    expect(subject.channel.asked).toEqual([])
    expect(subject.locator.pendingCount).toBe(0)
  })

  test("goes on at all workers when the keeper does not know", async () => {
    const subject = new Subject("gw.1")
    const places = subject.locate("lock:1", true)
    subject.atKeeper.get("lock:1")?.(null)
    await turn()
    subject.answer("gw.1", 0, "lock:1")
    expect(places).toEqual([withWorker("gw.1")])
  })

  test("is forgotten", async () => {
    const subject = new Subject("gw.1")
    const places: Located[] = []
    const found = (place: Located) => places.push(place)
    subject.locator.locate("lock:1", true, found)
    subject.locator.forget("lock:1", found)
    subject.atKeeper.get("lock:1")?.(null)
    await turn()
    expect([places, subject.channel.asked, subject.locator.pendingCount]).toEqual([[], [], 0])
  })
})

describe("a look-up at all workers", () => {
  test("ends when one member holds the device, before the others answer", async () => {
    const subject = new Subject("gw.1", "gw.2", "gw.3")
    const places = subject.locate()
    await turn()
    subject.answer("gw.1", 0)
    expect(places).toEqual([])
    subject.answer("gw.2", 0, "lock:1")
    expect(places).toEqual([withWorker("gw.2")])
    expect(subject.locator.pendingCount).toBe(0)
  })

  test("calls back once, although two members hold the device", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const places = subject.locate()
    await turn()
    subject.answer("gw.1", 0, "lock:1")
    subject.answer("gw.2", 0, "lock:1")
    expect(places).toEqual([withWorker("gw.1")])
  })

  test("ends as nowhere when no member holds the device", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const places = subject.locate()
    await turn()
    subject.answer("gw.1", 0)
    expect(places).toEqual([])
    subject.answer("gw.2", 0)
    expect(places).toEqual([NOWHERE])
    expect(subject.locator.pendingCount).toBe(0)
  })

  test("does not count two answers of one member", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const places = subject.locate()
    await turn()
    subject.answer("gw.1", 0)
    subject.answer("gw.1", 0)
    subject.answer("gw.3", 0)
    expect(places).toEqual([])
  })

  test("ends as nowhere at once when there are no other members", async () => {
    const subject = new Subject()
    const places = subject.locate()
    await turn()
    expect(places).toEqual([NOWHERE])
    expect(subject.channel.asked).toEqual([])
  })

  test("ignores the answer to another question", async () => {
    const subject = new Subject("gw.1")
    const places = subject.locate()
    await turn()
    subject.answer("gw.1", 7, "lock:1")
    expect(places).toEqual([])
  })

  test("ignores a connection id that is not valid", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const places = subject.locate()
    await turn()
    subject.locator.answered({
      type: "there",
      from: "gw.1",
      incarnation: INCARNATION,
      ask: 0,
      devices: [["lock:1", "made-up", 5]],
    })
    expect(places).toEqual([])
    subject.answer("gw.2", 0, "lock:1")
    expect(places).toEqual([withWorker("gw.2")])
  })

  test("ignores an answer about another device", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const places = subject.locate()
    await turn()
    subject.answer("gw.1", 0, "bell:2")
    expect(places).toEqual([])
  })
})

describe("a member that does not answer", () => {
  test("makes a device nowhere after the time-out when it is silent, and is named", async () => {
    const subject = new Subject("gw.1", "gw.2")
    subject.members.missed("gw.2")
    const places = subject.locate()
    await turn()
    subject.answer("gw.1", 0)
    subject.pass(ASK_TIMEOUT_MS - 1)
    expect(places).toEqual([])
    subject.pass(1)
    expect(places).toEqual([{ kind: "nowhere", detail: "no answer from gw.2" }])
    expect(subject.locator.pendingCount).toBe(0)
  })

  test("is waited for when it is slow only", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const places = subject.locate()
    await turn()
    subject.answer("gw.1", 0)
    subject.pass(ASK_TIMEOUT_MS)
    expect(places).toEqual([])
    subject.answer("gw.2", 0, "lock:1")
    expect(places).toEqual([withWorker("gw.2")])
  })

  test("and then answers no is asked again with all others, whose answers are old", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const places = subject.locate()
    await turn()
    subject.answer("gw.1", 0)
    subject.pass(2_000)
    subject.answer("gw.2", 0)
    await turn()
    expect(places).toEqual([])
    expect(subject.channel.asked.length).toBe(2)
    subject.answer("gw.1", 1, "lock:1")
    expect(places).toEqual([withWorker("gw.1")])
  })

  test("although it sends other messages makes a device nowhere in the end", async () => {
    const subject = new Subject("gw.1")
    const places = subject.locate()
    await turn()
    for (let passed = 0; passed < 2 * SLOW_TIMEOUT_MS; passed += 1_000) {
      expect(places).toEqual([])
      subject.members.heard("gw.1", INCARNATION, subject.nowMs)
      subject.pass(1_000)
      await turn()
    }
    expect(places).toEqual([{ kind: "nowhere", detail: "no answer from gw.1" }])
    expect(subject.locator.pendingCount).toBe(0)
  })

  test("is silent soon when it sends nothing else, unlike those that answered", async () => {
    const subject = new Subject("gw.1", "gw.2")
    subject.locate()
    await turn()
    subject.answer("gw.1", 0)
    subject.pass(3_000)
    const member = (worker: string) => ({ worker, incarnation: INCARNATION })
    expect(subject.members.answers(member("gw.1"))).toBe(true)
    expect(subject.members.answers(member("gw.2"))).toBe(false)
  })

  test("is among at most five that are named", async () => {
    const subject = new Subject(...Array.from({ length: 9 }, (_, n) => `gw.${n}`))
    for (let n = 0; n < 9; n += 1) subject.members.missed(`gw.${n}`)
    const places = subject.locate()
    await turn()
    subject.pass(ASK_TIMEOUT_MS)
    const detail = "no answer from gw.0, gw.1, gw.2, gw.3, gw.4"
    expect(places).toEqual([{ kind: "nowhere", detail }])
  })

  test("and answers late has no effect on that question", async () => {
    const subject = new Subject("gw.1")
    subject.members.missed("gw.1")
    const places = subject.locate()
    await turn()
    subject.pass(ASK_TIMEOUT_MS)
    subject.answer("gw.1", 0, "lock:1")
    expect(places.length).toBe(1)
  })
})

describe("a broker connection that is lost during a question", () => {
  test("repeats the question, and calls back once", async () => {
    const subject = new Subject("gw.1")
    const places = subject.locate()
    await turn()
    subject.channel.open = false
    subject.channel.settle("cut")
    await turn()
    expect(subject.channel.asked.length).toBe(1)
    expect(subject.locator.pendingCount).toBe(1)

    subject.channel.open = true
    subject.locator.opened()
    await turn()
    expect(subject.channel.asked).toMatchObject([{ devices: ["lock:1"] }, { devices: ["lock:1"] }])
    subject.answer("gw.1", 1, "lock:1")
    expect(places).toEqual([withWorker("gw.1")])
  })

  test("a full channel is not used until a sweep finds that it has room", async () => {
    const subject = new Subject("gw.1")
    subject.channel.hasRoom = false
    subject.locate()
    await turn()
    await turn()
    expect(subject.channel.asked.length).toBe(0)
    subject.channel.hasRoom = true
    subject.pass(0)
    await turn()
    expect(subject.channel.asked).toMatchObject([{ devices: ["lock:1"] }])
  })

  test("makes answers to the first question invalid", async () => {
    const subject = new Subject("gw.1")
    const places = subject.locate()
    await turn()
    subject.channel.open = false
    subject.channel.settle("cut")
    subject.answer("gw.1", 0)
    subject.pass(ASK_TIMEOUT_MS)
    expect(places).toEqual([])
  })

  test("repeats the question only for devices that were not found yet", async () => {
    const subject = new Subject("gw.1", "gw.2")
    subject.locate("lock:1")
    subject.locate("bell:2")
    await turn()
    subject.answer("gw.1", 0, "lock:1")
    subject.channel.settle("cut")
    await turn()
    expect(subject.channel.asked[1]?.devices).toEqual(["bell:2"])
  })

  test("calls back earlier and later callers with one answer", async () => {
    const subject = new Subject("gw.1")
    const first = subject.locate()
    await turn()
    subject.channel.open = false
    const second = subject.locate()
    subject.channel.settle("cut")
    const third = subject.locate()
    await turn()
    subject.channel.open = true
    subject.locator.opened()
    await turn()
    expect(subject.channel.asked.length).toBe(2)
    subject.answer("gw.1", 1, "lock:1")
    expect([first, second, third]).toEqual(Array(3).fill([withWorker("gw.1")]))
  })

  test("has no effect when the question has ended", async () => {
    const subject = new Subject("gw.1")
    const places = subject.locate()
    await turn()
    subject.answer("gw.1", 0, "lock:1")
    subject.channel.settle("cut")
    await turn()
    expect(subject.channel.asked.length).toBe(1)
    expect(places.length).toBe(1)
  })

  test("before the question was sent delays it until the connection returns", async () => {
    const subject = new Subject("gw.1")
    subject.channel.open = false
    const places = subject.locate()
    await turn()
    subject.pass(ASK_TIMEOUT_MS * 100)
    expect([places, subject.channel.asked]).toEqual([[], []])
    subject.channel.open = true
    subject.locator.opened()
    await turn()
    expect(subject.channel.asked.length).toBe(1)
  })
})

describe("in the first 600 ms of a broker connection", () => {
  /** A locator that has just met the broker. */
  function unacquainted(...workers: string[]): Subject {
    const subject = new Subject(...workers)
    subject.locator.opened()
    return subject
  }

  test("all workers are asked although none is known, and no device is nowhere", async () => {
    const subject = unacquainted()
    const places = subject.locate()
    await turn()
    expect(subject.channel.asked.length).toBe(1)
    subject.pass(ACQUAINT_MS - 1)
    expect(places).toEqual([])
    subject.pass(1)
    expect(places).toEqual([NOWHERE])
  })

  test("negative answers of all known members are not final", async () => {
    const subject = unacquainted("gw.1")
    const places = subject.locate()
    await turn()
    subject.answer("gw.1", 0)
    expect(places).toEqual([])
    subject.pass(ACQUAINT_MS)
    expect(places).toEqual([NOWHERE])
  })

  test("a device is found on a worker that was unknown when the question was sent", async () => {
    const subject = unacquainted()
    const places = subject.locate()
    await turn()
    subject.answer("gw.9", 0, "lock:1")
    expect(places).toEqual([withWorker("gw.9")])
  })

  test("a question has its usual time-out, which may end later", async () => {
    const subject = unacquainted("gw.1")
    subject.pass(ACQUAINT_MS - 1)
    const places = subject.locate()
    await turn()
    subject.pass(ASK_TIMEOUT_MS - 1)
    expect(places).toEqual([])
    subject.answer("gw.1", 0)
    expect(places).toEqual([NOWHERE])
  })
})

describe("many look-ups", () => {
  test("of one device are one question, and all callers are called back", async () => {
    const subject = new Subject("gw.1")
    const places = [subject.locate(), subject.locate(), subject.locate()]
    expect(subject.locator.pendingCount).toBe(1)
    await turn()
    expect(subject.channel.asked).toEqual([{ type: "where", ask: 0, devices: ["lock:1"] }])
    subject.answer("gw.1", 0, "lock:1")
    expect(places).toEqual(Array(3).fill([withWorker("gw.1")]))
    expect(subject.counters.locationsAsked).toBe(1)
  })

  test("in one tick are one question, and each caller gets its own result", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const [a, b, c] = [subject.locate("a"), subject.locate("b"), subject.locate("c")]
    await turn()
    expect(subject.channel.asked).toMatchObject([{ devices: ["a", "b", "c"] }])
    subject.answer("gw.1", 0, "b")
    subject.answer("gw.2", 0, "a")
    expect([a, b, c]).toEqual([[withWorker("gw.2")], [withWorker("gw.1")], [NOWHERE]])
  })

  test("are sent with a thousand devices in each message, and none is lost", async () => {
    const subject = new Subject("gw.1")
    const places = Array.from({ length: 2 * MAX_ROWS + 1 }, (_, n) => subject.locate(`d${n}`))
    for (let n = 0; n < 3; n += 1) await turn()
    expect(subject.channel.asked.map(({ devices }) => devices.length)).toEqual([
      MAX_ROWS,
      MAX_ROWS,
      1,
    ])
    for (const { ask, devices } of subject.channel.asked) {
      subject.answer("gw.1", ask, ...devices)
    }
    expect(places).toEqual(places.map(() => [withWorker("gw.1")]))
    expect(subject.counters.locationsAsked).toBe(2 * MAX_ROWS + 1)
  })

  test("are at most sixteen questions at a time, and the next when one has ended", async () => {
    const subject = new Subject("gw.1")
    const places: Located[][] = []
    for (let n = 0; n < MAX_ASKS + 2; n += 1) {
      places.push(subject.locate(`d${n}`))
      await turn()
    }
    expect(subject.channel.asked.length).toBe(MAX_ASKS)
    expect(subject.locator.pendingCount).toBe(MAX_ASKS + 2)
    subject.answer("gw.1", 3, "d3")
    await turn()
    // Those that waited for it are one question.
    expect(subject.channel.asked.length).toBe(MAX_ASKS + 1)
    expect(subject.channel.asked[MAX_ASKS]?.devices).toEqual([`d${MAX_ASKS}`, `d${MAX_ASKS + 1}`])
    expect(places.filter((each) => each.length > 0).length).toBe(1)
  })

  test("all end when no worker answers", async () => {
    const subject = new Subject("gw.1")
    subject.members.missed("gw.1")
    const places: Located[][] = []
    for (let n = 0; n < MAX_ASKS + 2; n += 1) {
      places.push(subject.locate(`d${n}`))
      await turn()
    }
    for (let n = 0; n < 2; n += 1) {
      subject.pass(ASK_TIMEOUT_MS)
      await turn()
    }
    expect(places.map((each) => each.length)).toEqual(places.map(() => 1))
    expect(subject.locator.pendingCount).toBe(0)
  })
})

describe("a caller that gives up", () => {
  const search = (subject: Subject, deviceId: string) => {
    const places: Located[] = []
    const tell = (place: Located) => void places.push(place)
    subject.locator.locate(deviceId, false, tell)
    return { places, forget: () => subject.locator.forget(deviceId, tell) }
  }

  test("is not called back, before and after the question was sent; others are", async () => {
    const subject = new Subject("gw.1")
    const before = search(subject, "lock:1")
    const after = search(subject, "lock:1")
    const stays = search(subject, "lock:1")
    before.forget()
    await turn()
    after.forget()
    subject.answer("gw.1", 0, "lock:1")
    expect(before.places).toEqual([])
    expect(after.places).toEqual([])
    expect(stays.places).toEqual([withWorker("gw.1")])
  })

  test("leaves no question, now or when the broker connection returns", async () => {
    const subject = new Subject("gw.1")
    search(subject, "lock:1").forget()
    await turn()
    expect(subject.channel.asked).toEqual([])
    const asked = search(subject, "lock:2")
    await turn()
    asked.forget()
    subject.channel.settle("cut")
    await turn()
    expect(subject.channel.asked.length).toBe(1)
    expect(subject.locator.pendingCount).toBe(0)
  })

  test("may do so twice, and after it was called back", async () => {
    const subject = new Subject("gw.1")
    const told = search(subject, "lock:1")
    await turn()
    subject.answer("gw.1", 0, "lock:1")
    told.forget()
    told.forget()
    expect(told.places).toEqual([withWorker("gw.1")])
  })
})

describe("a device that is looked for while the fleet is asked for it", () => {
  /** Notes the order in which callers are answered. */
  async function asked(trusting: boolean) {
    const subject = new Subject("gw.1", "gw.2")
    const told: [string, Located["kind"]][] = []
    const locate = (caller: string) =>
      subject.locator.locate("lock:1", trusting, ({ kind }) => told.push([caller, kind]))
    subject.locate("lock:1", false)
    subject.locator.locate("lock:1", false, ({ kind }) => told.push(["first", kind]))
    await turn()
    locate("second")
    await turn()
    expect([subject.channel.asked.length, subject.atKeeper.size]).toEqual([1, 0])
    return { subject, told }
  }

  test.each([true, false])(
    "has one location for all, in order (trusting: %p)",
    async (trusting) => {
      const { subject, told } = await asked(trusting)
      subject.answer("gw.2", 0, "lock:1")
      expect(told).toEqual([
        ["first", "worker"],
        ["second", "worker"],
      ])
      expect(subject.locator.pendingCount).toBe(0)
    },
  )

  test("is asked for again for those who came later, since it may have connected", async () => {
    const { subject, told } = await asked(true)
    subject.answer("gw.1", 0)
    subject.answer("gw.2", 0)
    expect(told).toEqual([["first", "nowhere"]])
    await turn()
    expect(subject.channel.asked.length).toBe(2)
    subject.answer("gw.1", 1, "lock:1")
    expect(told).toEqual([
      ["first", "nowhere"],
      ["second", "worker"],
    ])
  })

  test("is not asked for again for somebody who has given up", async () => {
    const subject = new Subject("gw.1")
    subject.locate("lock:1", false)
    await turn()
    const never = () => expect.unreachable("it does not wait")
    subject.locator.locate("lock:1", true, never)
    subject.locator.forget("lock:1", never)
    subject.answer("gw.1", 0)
    await turn()
    expect(subject.channel.asked.length).toBe(1)
    expect(subject.locator.pendingCount).toBe(0)
  })

  test("is found by a caller whose keeper has answered meanwhile that all must be asked", async () => {
    const subject = new Subject("gw.1")
    const first = subject.locate("lock:1", true)
    const second = subject.locate("lock:1", false)
    await turn()
    subject.atKeeper.get("lock:1")?.(null)
    await turn()
    expect(subject.channel.asked.length).toBe(1)
    subject.answer("gw.1", 0, "lock:1")
    expect([first, second]).toEqual([[withWorker("gw.1")], [withWorker("gw.1")]])
  })
})
