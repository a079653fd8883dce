/**
 * The ids: each generated id has a valid format and yields its worker, for any instance id. Other
 * texts yield no worker.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import {
  CONNECTION_ID,
  ConnectionIds,
  DEVICE_ID,
  INSTANCE_ID,
  incarnation,
  isDeviceName,
  workerId,
  workerOfConnection,
} from "../../src/device/ids.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const YEAR_3000_MS = 32_503_680_000_000
const startedAtMs = fc.integer({ min: 0, max: YEAR_3000_MS })
const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })
const instanceId = fc.stringMatching(INSTANCE_ID)
const slot = fc.nat(255)

function alphabet(pattern: string): RegExp {
  return new RegExp(`^${pattern}$`)
}

test("the alphabets and lengths are those of the documentation", () => {
  expect(CONNECTION_ID.source).toBe(alphabet("[A-Za-z0-9._-]{1,64}").source)
  expect(DEVICE_ID.source).toBe(alphabet("[A-Za-z0-9._:-]{1,128}").source)
})

const HOSTILE = [
  "",
  " ",
  "a b",
  "a\n",
  "\na",
  "a\r",
  "a\0b",
  "é",
  "ａ",
  "a/b",
  "a#",
  "*",
  "a@b",
  "{x}",
]

test.each(HOSTILE)("%j is not an id of any kind", (id) => {
  for (const pattern of [DEVICE_ID, CONNECTION_ID, INSTANCE_ID]) {
    expect(pattern.test(id)).toBe(false)
    // A pattern with state would answer differently the second time.
    expect(pattern.test(id)).toBe(false)
  }
  expect(workerOfConnection(id)).toBeNull()
})

test.each([
  [DEVICE_ID, 128],
  [CONNECTION_ID, 64],
  [INSTANCE_ID, 32],
])("%p takes up to %d characters", (pattern, most) => {
  expect(pattern.test("x".repeat(most))).toBe(true)
  expect(pattern.test("x".repeat(most + 1))).toBe(false)
})

test("the dot segments of a URL are not device ids, because clients remove them", () => {
  for (const id of [".", ".."]) expect(isDeviceName(id)).toBe(false)
  const name = fc.stringMatching(DEVICE_ID).filter(isDeviceName)
  check(
    fc.property(name, (id) => {
      for (const written of [id, encodeURIComponent(id)]) {
        const { pathname } = new URL(`http://gateway/devices/${written}/send`)
        expect(decodeURIComponent(pathname)).toBe(`/devices/${id}/send`)
      }
    }),
    CHEAP_RUNS,
  )
  for (const id of ["...", ".a", "a.", "a..b", "..-", ":", "-"]) expect(isDeviceName(id)).toBe(true)
})

test("only a device id may hold a colon", () => {
  expect([DEVICE_ID, CONNECTION_ID, INSTANCE_ID].map((id) => id.test("a:b"))).toEqual([
    true,
    false,
    false,
  ])
})

describe("connection ids", () => {
  test("contain the worker that generated them, and fit 64 characters", () => {
    const counter = fc.nat(100)
    check(
      fc.property(instanceId, slot, startedAtMs, random, counter, (instance, slot, atMs, r, n) => {
        const worker = workerId(instance, slot)
        const ids = new ConnectionIds({ worker, incarnation: incarnation(atMs, r) })
        let id = ids.mint()
        for (let i = 0; i < n; i += 1) id = ids.mint()
        expect(id).toMatch(CONNECTION_ID)
        expect(id).toMatch(DEVICE_ID)
        expect(workerOfConnection(id)).toBe(worker)
      }),
      CHEAP_RUNS,
    )
  })

  test.each([
    "gw1",
    "gw1.0",
    "gw1.0.mb2k3f9zq7.1a",
    ".",
    "...",
    "-",
    "_",
    "10.0.0.1",
    "a.b-c_d.1.2",
  ])("an instance called %j is found again", (instance) => {
    for (const slot of [0, 9, 255]) {
      const worker = workerId(instance, slot)
      const id = new ConnectionIds({
        worker,
        incarnation: incarnation(1_770_000_000_000, 0.5),
      }).mint()
      expect(workerOfConnection(id)).toBe(worker)
    }
  })

  test("the longest of each part fits", () => {
    const worker = workerId("x".repeat(32), 255)
    const ids = new ConnectionIds({
      worker,
      incarnation: incarnation(YEAR_3000_MS, 1 - Number.EPSILON),
    })
    expect(ids.mint()).toMatch(CONNECTION_ID)
    const largestCounter = Number.MAX_SAFE_INTEGER.toString(36)
    const id = `${worker}.${incarnation(YEAR_3000_MS, 0)}.${largestCounter}`
    expect(id).toMatch(CONNECTION_ID)
    expect(workerOfConnection(id)).toBe(worker)
  })

  test("no two of one incarnation are the same, and none of two incarnations or workers", () => {
    const minted = new Set<string>()
    const sources = [
      new ConnectionIds({ worker: "gw.0", incarnation: incarnation(1_770_000_000_000, 0.1) }),
      new ConnectionIds({ worker: "gw.0", incarnation: incarnation(1_770_000_000_000, 0.2) }),
      new ConnectionIds({ worker: "gw.0", incarnation: incarnation(1_770_000_000_001, 0.1) }),
      new ConnectionIds({ worker: "gw.1", incarnation: incarnation(1_770_000_000_000, 0.1) }),
    ]
    for (const ids of sources) for (let i = 0; i < 3_000; i += 1) minted.add(ids.mint())
    expect(minted.size).toBe(12_000)
  })

  test.each([
    "gw1",
    "gw1.0",
    "gw1.0.mb2k3f9zq7",
    "gw1.x.mb2k3f9zq7.1a",
    "gw1.00000.mb2k3f9zq7.1a",
    "gw1.0.short.1a",
    "gw1.0.mb2k3f9zq7.",
    "gw1.0.MB2K3F9ZQ7.1a",
    "gw1.0.mb2k3f9zq7.1A",
    "gw1.0.mb2k3f9zq7.1a ",
    "gw1.0.mb2k3f9zq7.1a\n",
    ".0.mb2k3f9zq7.1a",
    `${"x".repeat(33)}.0.mb2k3f9zq7.1a`,
    "urn:owsla:device:a",
  ])("%j is not a connection id", (id) => {
    expect(workerOfConnection(id)).toBeNull()
  })

  test("any text yields no worker or one that could have generated it", () => {
    const text = fc.oneof(
      fc.string({ maxLength: 80, size: "max" }),
      fc.stringMatching(DEVICE_ID),
      fc.stringMatching(/^[a-z.]{1,9}\.[0-9]{1,5}\.[a-z0-9]{9,13}\.[a-z0-9]{1,12}$/),
    )
    check(
      fc.property(text, (id) => {
        const worker = workerOfConnection(id)
        if (worker === null) return
        expect(id).toMatch(CONNECTION_ID)
        expect(id.startsWith(`${worker}.`)).toBe(true)
        expect(worker).toMatch(/^[A-Za-z0-9._-]{1,32}\.[0-9]{1,4}$/)
      }),
      CHEAP_RUNS,
    )
  })
})

describe("an incarnation", () => {
  test("has the same length for the next thirty years, so that ids sort by start", () => {
    for (const atMs of [1_388_534_400_000, 1_770_000_000_000, 2_700_000_000_000]) {
      for (const r of [0, 0.5, 1 - Number.EPSILON]) {
        expect(incarnation(atMs, r)).toMatch(/^[a-z0-9]{12}$/)
      }
    }
  })

  test("tells 1,296 draws within one millisecond apart", () => {
    const all = Array.from({ length: 1_296 }, (_, i) => incarnation(0, (i + 0.5) / 1_296))
    expect(new Set(all).size).toBe(1_296)
  })
})
