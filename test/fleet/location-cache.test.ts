/**
 * Whereabouts: of all that is heard of a device, in whatever order, the newest connection is the one
 * that stands, until it is gone or room is needed for others.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { MAX_WHEREABOUTS, Whereabouts } from "../../src/fleet/location-cache.ts"
import { isNewer, type Sighting } from "../../src/fleet/registration.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

function heard(...sightings: Sighting[]): Whereabouts {
  const whereabouts = new Whereabouts()
  for (const sighting of sightings) whereabouts.here(sighting)
  return whereabouts
}

describe("the connection of a device", () => {
  test("is the one that was announced", () => {
    expect(heard(["lock", "c1", 5]).find("lock")).toBe("c1")
  })

  test("is unknown when none was announced", () => {
    expect(heard(["lock", "c1", 5]).find("bell")).toBeUndefined()
  })

  test("is the one with the larger epoch, heard first or last", () => {
    expect(heard(["lock", "c9", 5], ["lock", "c1", 6]).find("lock")).toBe("c1")
    expect(heard(["lock", "c1", 6], ["lock", "c9", 5]).find("lock")).toBe("c1")
  })

  test("is the one with the larger id when the epochs are alike, heard first or last", () => {
    expect(heard(["lock", "c1", 5], ["lock", "c2", 5]).find("lock")).toBe("c2")
    expect(heard(["lock", "c2", 5], ["lock", "c1", 5]).find("lock")).toBe("c2")
  })

  test("is the newest of all that were heard, in whatever order", () => {
    const sighting = fc.tuple(fc.constant("lock"), fc.string(), fc.integer({ min: -2, max: 2 }))
    check(
      fc.property(fc.array(sighting, { minLength: 1 }), (sightings) => {
        const newest = sightings.reduce((a, b) => (isNewer(b[2], b[1], a[2], a[1]) ? b : a))
        const whereabouts = heard(...sightings)
        expect(whereabouts.find("lock")).toBe(newest[1])
        expect(whereabouts.count).toBe(1)
      }),
      CHEAP_RUNS,
    )
  })

  test("is unknown again when that very one is gone", () => {
    const whereabouts = heard(["lock", "c1", 5])
    whereabouts.gone(["lock", "c1"])
    expect([whereabouts.find("lock"), whereabouts.count]).toEqual([undefined, 0])
  })

  test("stays when it comes late that an older one is gone", () => {
    const whereabouts = heard(["lock", "c1", 5], ["lock", "c2", 6])
    whereabouts.gone(["lock", "c1"])
    expect(whereabouts.find("lock")).toBe("c2")
  })

  test("stays when that of another device is gone", () => {
    const whereabouts = heard(["lock", "c1", 5], ["bell", "c2", 5])
    whereabouts.gone(["bell", "c2"])
    expect(whereabouts.find("lock")).toBe("c1")
  })

  test("of a name that objects have by nature is like any other", () => {
    const whereabouts = new Whereabouts()
    expect(whereabouts.find("__proto__")).toBeUndefined()
    whereabouts.here(["__proto__", "c1", 5])
    expect(whereabouts.find("__proto__")).toBe("c1")
  })
})

describe("beyond the bound", () => {
  const many = (most: number, ...devices: string[]) => {
    const whereabouts = new Whereabouts(most)
    for (const device of devices) whereabouts.here([device, `c-${device}`, 5])
    return whereabouts
  }

  test("the device that was heard of longest ago is forgotten", () => {
    const whereabouts = many(2, "a", "b", "c")
    expect(["a", "b", "c"].map((id) => whereabouts.find(id))).toEqual([undefined, "c-b", "c-c"])
    expect(whereabouts.count).toBe(2)
  })

  test("one that was heard of again counts from then", () => {
    const whereabouts = many(2, "a", "b", "a", "c")
    expect(["a", "b", "c"].map((id) => whereabouts.find(id))).toEqual(["c-a", undefined, "c-c"])
  })

  test("hearing again of a known device costs none its place", () => {
    const whereabouts = many(2, "a", "b", "b", "a", "b")
    expect(["a", "b"].map((id) => whereabouts.find(id))).toEqual(["c-a", "c-b"])
  })

  test("one that is gone makes room", () => {
    const whereabouts = many(2, "a", "b")
    whereabouts.gone(["b", "c-b"])
    whereabouts.here(["c", "c-c", 5])
    expect(["a", "b", "c"].map((id) => whereabouts.find(id))).toEqual(["c-a", undefined, "c-c"])
  })

  test("which is 200,000 devices unless said otherwise", () => {
    expect(MAX_WHEREABOUTS).toBe(200_000)
    const whereabouts = new Whereabouts()
    for (let n = 0; n <= MAX_WHEREABOUTS; n += 1) whereabouts.here([`d${n}`, "c", n])
    expect(whereabouts.count).toBe(MAX_WHEREABOUTS)
    expect([whereabouts.find("d0"), whereabouts.find("d1")]).toEqual([undefined, "c"])
  })
})
