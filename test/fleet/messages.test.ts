/**
 * The messages between workers: each message of the list is unchanged after JSON, and no other text
 * is a message.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { type FleetMessage, MAX_ROWS, parseFleetMessage } from "../../src/fleet/messages.ts"
import { isNewer } from "../../src/fleet/registration.ts"
import type { AnnouncedRow } from "../../src/fleet/tape/announced-tapes.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const SENDER = { from: "gw.1", incarnation: "mb2k3f9zq7x2" }
const CONNECTION = "gw.1.mb2k3f9zq7x2.1a"
const NOW_MS = 1_750_000_000_000
const DAY_MS = 86_400_000

/** One of each type; the compiler misses none. */
const TAPE: AnnouncedRow = {
  ...{ id: "t1", device_id: "lock:1", payload: "hidden", max_bytes: 65_536 },
  ...{ started_at: 5, until: 60_005, left_ms: 60_000 },
}

const MESSAGES: { readonly [T in FleetMessage["type"]]: Extract<FleetMessage, { type: T }> } = {
  alive: { type: "alive", ...SENDER, asks: true },
  leaving: { type: "leaving", ...SENDER },
  devices: {
    type: "devices",
    ...SENDER,
    here: [["lock:1", CONNECTION, 1_750_000_000_000]],
    gone: [["bell:2", CONNECTION]],
  },
  kept: {
    type: "kept",
    ...SENDER,
    n: 3,
    raised: [["lock:1", "gw.9.mb2k3f9zq7x2.1a", 7]],
    held: ["lock:1"],
    refused: ["bell:2"],
  },
  newer: { type: "newer", ...SENDER, devices: [["lock:1", "gw.9.mb2k3f9zq7x2.1a", 7]] },
  find: { type: "find", ...SENDER, ask: 8, devices: ["lock:1", "bell:2"] },
  found: {
    type: "found",
    ...SENDER,
    ask: 8,
    devices: [["lock:1", "gw.9.mb2k3f9zq7x2.1a", 7]],
    absent: ["bell:2"],
  },
  where: { type: "where", ...SENDER, ask: 0, devices: ["lock:1", "bell:2"] },
  there: { type: "there", ...SENDER, ask: 1, devices: [["lock:1", CONNECTION, 5]] },
  list: { type: "list", ...SENDER, ask: 2, prefix: "lock", after: "", limit: 100 },
  listed: { type: "listed", ...SENDER, ask: 3, devices: [{ device_id: "lock:1" }], total: 9 },
  describe: { type: "describe", ...SENDER, ask: 4, connection: CONNECTION },
  described: { type: "described", ...SENDER, ask: 5, device: { device_id: "lock:1" } },
  kick: { type: "kick", ...SENDER, ask: 6, connection: CONNECTION },
  kicked: { type: "kicked", ...SENDER, ask: 7, device: null },
  held_waits: { type: "held_waits", ...SENDER, connections: [CONNECTION] },
  held_done: { type: "held_done", ...SENDER, connections: [CONNECTION] },
  held_list: { type: "held_list", ...SENDER, ask: 10, device: "lock:1", lines: true },
  held_listed: { type: "held_listed", ...SENDER, ask: 11, held: [{ message_id: "m" }] },
  held_cancel: { type: "held_cancel", ...SENDER, ask: 12, device: "lock:1", message_id: null },
  held_cancelled: { type: "held_cancelled", ...SENDER, ask: 13, cancelled: 2 },
  refusals_list: { type: "refusals_list", ...SENDER, ask: 14, limit: 100 },
  refusals_listed: { type: "refusals_listed", ...SENDER, ask: 15, refusals: [{ at: 5 }] },
  connections_list: { type: "connections_list", ...SENDER, ask: 16, device: "lock:1" },
  connections_listed: { type: "connections_listed", ...SENDER, ask: 17, connections: [{}] },
  gate: {
    type: "gate",
    ...SENDER,
    gate: { open: false, prefix: "lock:", retry_after_ms: 5_000, set_at: 6, set_by: "gw1.0" },
  },
  broadcast: {
    type: "broadcast",
    ...SENDER,
    ...{ id: "b1", key: null, again: false, line: "b3Blbg==", supersede_key: "door" },
    to: { kind: "ids", ids: ["lock:1", CONNECTION] },
  },
  broadcast_matched: {
    type: "broadcast_matched",
    ...SENDER,
    ...{ id: "b1", matched: 5, outcomes: { written: 2, closed: 1 } },
  },
  broadcast_go: { type: "broadcast_go", ...SENDER, id: "b1", per_s: 12.5 },
  broadcast_report: {
    type: "broadcast_report",
    ...SENDER,
    ...{ id: "b1", outcomes: { written: 5 }, ended: true },
  },
  broadcast_end: { type: "broadcast_end", ...SENDER, id: "b1" },
  tapes: { type: "tapes", ...SENDER, tapes: [TAPE] },
  tapes_told: { type: "tapes_told", ...SENDER, ask: 1, tapes: [] },
  tape_entries: {
    ...{ type: "tape_entries", ...SENDER, id: "t1", first: 3, open: [] },
    rows: [{ kind: "dropped", count: 1 }],
  },
  tape_read: { type: "tape_read", ...SENDER, ask: 1, id: "t1", first: 0 },
  tape_part: {
    ...{ type: "tape_part", ...SENDER, ask: 1, is_over: false },
    part: { first: 0, before: 0, items: [], end: 0 },
  },
  tape_stop: { type: "tape_stop", ...SENDER, ask: 1, id: "t1" },
  tape_stopped: { type: "tape_stopped", ...SENDER, ask: 1, stopped: true },
  bans: { type: "bans", ...SENDER, bans: [{ device_id: "lock:1", at: 5, until: 6, connects: 4 }] },
}

const read = (text: string) => parseFleetMessage(text, NOW_MS)
const parsed = (message: object) => read(JSON.stringify(message))?.message ?? null
const changed = (type: FleetMessage["type"], change: object) =>
  parsed({ ...MESSAGES[type], ...change })

describe("a message", () => {
  test.each(Object.values(MESSAGES))("of its type is parsed unchanged: %j", (message) => {
    expect(parsed(message)).toEqual(message)
  })

  test("may have no devices", () => {
    expect(changed("devices", { here: [], gone: [] })).toMatchObject({ here: [], gone: [] })
    expect(changed("there", { devices: [] })).toMatchObject({ devices: [] })
  })

  test("may have the maximum number of devices", () => {
    const here = Array.from({ length: MAX_ROWS }, (_, n) => [`d${n}`, CONNECTION, n])
    expect(changed("devices", { here })).toMatchObject({ here })
  })

  test("of a later version is read without its additional fields", () => {
    expect(changed("alive", { mood: "good" })).toEqual(MESSAGES.alive)
  })
})

describe("fields that an earlier version does not send are optional", () => {
  test("the claim of a worker", () => {
    const keeps = { of: 16, since: 5, version: 1, shards: [0, 15] }
    expect(changed("alive", { keeps })).toEqual({ ...MESSAGES.alive, keeps })
    for (const wrong of [{ ...keeps, of: 0 }, { ...keeps, shards: [-1] }, { of: 16 }, null]) {
      expect(changed("alive", { keeps: wrong })).toBeNull()
    }
  })

  test("the number of a registration message, and what it begins and ends to tell", () => {
    const told = { n: 3, tells: [0, 15], told: [0, 15] }
    expect(changed("devices", told)).toEqual({ ...MESSAGES.devices, ...told })
    for (const wrong of [{ n: -1 }, { tells: ["0"] }, { told: [4_096] }]) {
      expect(changed("devices", wrong)).toBeNull()
    }
  })

  test("the mark of a device that has just connected", () => {
    const row = ["lock:1", CONNECTION, 5]
    expect(changed("devices", { here: [[...row, 1]] })).toMatchObject({ here: [[...row, 1]] })
    expect(
      changed("devices", {
        here: [
          [...row, 2],
          [...row, 1, 1],
        ],
      }),
    ).toMatchObject({ here: [] })
  })

  test("the deadline of a kick and the clock for it", () => {
    const told = { clock_ms: 5.25, until_ms: 7.5, overdue: true }
    for (const [type, name] of [
      ["described", "clock_ms"],
      ["kick", "until_ms"],
      ["kicked", "overdue"],
    ] as const) {
      const value = told[name]
      expect(changed(type, { [name]: value })).toEqual({ ...MESSAGES[type], [name]: value })
      for (const wrong of ["5", null, {}]) expect(changed(type, { [name]: wrong })).toBeNull()
    }
  })

  test("and a total is a count", () => {
    for (const total of [-1, 1.5, "9", null]) expect(changed("listed", { total })).toBeNull()
  })
})

test("settings may be missing, have names of a later version, and are dropped when invalid", () => {
  const settings = { DEVICE_FRAMING: "line", SETTING_OF_A_LATER_VERSION: 7 }
  expect(parsed({ ...MESSAGES.alive, settings })).toEqual({ ...MESSAGES.alive, settings })
  expect(parsed(MESSAGES.alive)).toEqual(MESSAGES.alive)
  for (const invalid of [null, 1, { DEVICE_FRAMING: null }, { a: 1 }, { A: "x".repeat(256) }]) {
    expect(parsed({ ...MESSAGES.alive, settings: invalid })).toEqual(MESSAGES.alive)
  }
})

describe("an invalid message", () => {
  test.each(Object.values(MESSAGES))("is one with a missing field: %j", (message) => {
    for (const name of Object.keys(message)) {
      const { [name]: _, ...others } = message as unknown as Record<string, unknown>
      expect(parsed(others)).toBeNull()
    }
  })

  test.each([
    ["nothing", ""],
    ["no JSON", "alive"],
    ["half of one", JSON.stringify(MESSAGES.alive).slice(0, -1)],
    ["null", "null"],
    ["a number", "1e999"],
    ["a string", '"alive"'],
    ["a list", "[]"],
    ["a list of one", JSON.stringify([MESSAGES.alive])],
    ["an empty object", "{}"],
    ["a type by inheritance", `{"__proto__":${JSON.stringify(MESSAGES.alive)}}`],
    ["deep beyond measure", "[".repeat(100_000) + "]".repeat(100_000)],
  ])("is %s", (_, text) => {
    expect(read(text)).toBeNull()
  })

  test.each([[""], ["ALIVE"], ["constructor"], ["adopt"], [null], [1], [["alive"]]])(
    "is one of another version: type %j",
    (type) => {
      expect(changed("alive", { type })).toBeNull()
    },
  )

  const WRONG: [FleetMessage["type"], object][] = [
    ["alive", { asks: 1 }],
    ["alive", { from: 7 }],
    ["alive", { incarnation: null }],
    ["devices", { here: {} }],
    ["where", { devices: {} }],
    ["where", { ask: 0.5 }],
    ["where", { ask: "0" }],
    ["where", { ask: 2 ** 53 }],
    ["there", { devices: {} }],
    ["list", { limit: -1 }],
    ["list", { limit: 0.5 }],
    ["list", { limit: MAX_ROWS + 1 }],
    ["list", { prefix: null }],
    ["list", { after: 7 }],
    ["listed", { devices: [7] }],
    ["listed", { devices: [null] }],
    ["listed", { total: "9" }],
    ["describe", { connection: 7 }],
    ["described", { device: 7 }],
    ["described", { device: "lock:1" }],
    ["kick", { connection: null }],
    ["kicked", { device: true }],
    ["broadcast", { id: "x".repeat(65) }],
    ["broadcast", { to: { kind: "ids", ids: "lock:1" } }],
    ["broadcast", { to: { kind: "ids", ids: new Array(10_001).fill("lock:1") } }],
    ["broadcast", { to: { kind: "tag" } }],
    ["broadcast", { line: 7 }],
    ["broadcast_matched", { matched: -1 }],
    ["broadcast_matched", { outcomes: { written: 0.5 } }],
    ["broadcast_matched", { outcomes: { "no outcome": 1 } }],
    ["broadcast_go", { per_s: 0 }],
    ["broadcast_go", { per_s: 100_001 }],
    ["broadcast_report", { outcomes: [1] }],
    ["broadcast_report", { ended: 1 }],
  ]

  test.each(WRONG)("is a %s with an invalid field: %j", (type, change) => {
    expect(changed(type, change)).toBeNull()
  })

  test("is any text that contains a message", () => {
    const json = JSON.stringify(MESSAGES.alive)
    check(
      fc.property(fc.string(), fc.string({ minLength: 1 }), (before, after) => {
        fc.pre(`${before}${after}`.trim() !== "")
        expect(read(`${before}${json}${after}`)).toBeNull()
      }),
      CHEAP_RUNS,
    )
  })

  test("is any other JSON, without an exception", () => {
    check(
      fc.property(fc.json(), (text) => {
        expect(read(text)).toBeNull()
      }),
      CHEAP_RUNS,
    )
  })
})

describe("an invalid row is removed, and the others are read", () => {
  const good = ["lock:1", CONNECTION, NOW_MS]
  const deregistration = ["bell:2", CONNECTION]

  test.each([
    ["without an epoch", ["lock:1", CONNECTION]],
    ["with more than an epoch", ["lock:1", CONNECTION, 5, 6]],
    ["with a string for the epoch", ["lock:1", CONNECTION, "5"]],
    ["with half an epoch", ["lock:1", CONNECTION, 0.5]],
    ["with a negative epoch", ["lock:1", CONNECTION, -1]],
    ["with an epoch a day ahead", ["lock:1", CONNECTION, NOW_MS + DAY_MS + 1]],
    ["with the largest epoch", ["lock:1", CONNECTION, 2 ** 53 - 1]],
    ["with a number for the device", [7, CONNECTION, 5]],
    ["with a space in the device", ["lock 1", CONNECTION, 5]],
    ["with nothing for the connection", ["lock:1", null, 5]],
    ["with a connection of another process", ["lock:1", "gw.1.mb2k3f9zzzzz.1a", 5]],
    ["with a connection of another worker", ["lock:1", "gw.2.mb2k3f9zq7x2.1a", 5]],
    ["that is a string", "lock:1"],
    ["that is nothing", null],
    ["that is an object", { length: 3, 0: "lock:1", 1: CONNECTION, 2: 5 }],
  ])("a registration %s", (_, row) => {
    for (const type of ["devices", "there"] as const) {
      const name = type === "devices" ? "here" : "devices"
      const text = JSON.stringify({ ...MESSAGES[type], [name]: [good, row, good] })
      expect(read(text)?.message).toMatchObject({ [name]: [good, good] })
      expect(read(text)?.refusedRows).toBe(1)
    }
  })

  test.each([
    ["with an epoch", ["lock:1", CONNECTION, 5]],
    ["without a connection", ["lock:1"]],
    ["with a number for the connection", ["lock:1", 7]],
    ["with a connection of another worker", ["lock:1", "gw.2.mb2k3f9zq7x2.1a"]],
  ])("a deregistration %s", (_, row) => {
    const text = JSON.stringify({
      ...MESSAGES.devices,
      gone: [deregistration, row, deregistration],
    })
    expect(read(text)?.message).toMatchObject({ gone: [deregistration, deregistration] })
    expect(read(text)?.refusedRows).toBe(1)
  })

  test("a device that is looked for", () => {
    const devices = ["lock:1", 7, "lock 2", "", "x".repeat(129), null, "bell:2"]
    const text = JSON.stringify({ ...MESSAGES.where, devices })
    expect(read(text)?.message).toMatchObject({ devices: ["lock:1", "bell:2"] })
    expect(read(text)?.refusedRows).toBe(5)
  })

  test("and any JSON in its place causes no exception", () => {
    check(
      fc.property(fc.jsonValue(), fc.jsonValue(), (row, other) => {
        const text = JSON.stringify({ ...MESSAGES.devices, here: [row, good], gone: [other] })
        expect(read(text)?.message).toMatchObject({ here: [good] })
      }),
      CHEAP_RUNS,
    )
  })
})

describe("an id", () => {
  const longest = "x".repeat(128)
  const PLACES: [FleetMessage["type"], (id: string) => object][] = [
    ["alive", (from) => ({ from })],
    ["alive", (incarnation) => ({ incarnation })],
    ["describe", (connection) => ({ connection })],
    ["kick", (connection) => ({ connection })],
  ]

  test.each(PLACES)("has 128 characters at most, in %s %#", (type, change) => {
    expect(changed(type, change(longest))).toMatchObject(change(longest))
    expect(changed(type, change(`${longest}x`))).toBeNull()
  })
})

describe("the newer of two connections of one device", () => {
  test("has the larger epoch", () => {
    expect([isNewer(6, "a", 5, "b"), isNewer(5, "b", 6, "a")]).toEqual([true, false])
  })

  test("or, with equal epochs, the larger id", () => {
    expect([isNewer(5, "b", 5, "a"), isNewer(5, "a", 5, "b")]).toEqual([true, false])
  })

  test("is not the same connection", () => {
    expect(isNewer(5, "a", 5, "a")).toBe(false)
  })

  test("is the same one for every worker", () => {
    const connection = fc.tuple(fc.integer({ min: 0, max: 2 }), fc.string({ maxLength: 2 }))
    check(
      fc.property(connection, connection, ([epoch, id], [otherEpoch, otherId]) => {
        fc.pre(epoch !== otherEpoch || id !== otherId)
        expect(isNewer(epoch, id, otherEpoch, otherId)).not.toBe(
          isNewer(otherEpoch, otherId, epoch, id),
        )
      }),
      CHEAP_RUNS,
    )
  })
})
