/**
 * The location cache: with look-ups in any order, the newest connection of a device stays,
 * until it is gone or its room is needed for others.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { KEPT_MS, LocationCache, MAX_CACHED_LOCATIONS } from "../../src/fleet/location-cache.ts"
import { isNewer, type Registration } from "../../src/fleet/registration.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

function heard(...registrations: Registration[]): LocationCache {
  const locationCache = new LocationCache()
  for (const registration of registrations) locationCache.add(registration, 0)
  return locationCache
}

describe("the connection of a device", () => {
  test("is the one that was looked up", () => {
    expect(heard(["lock", "c1", 5]).find("lock", 0)).toBe("c1")
  })

  test("is unknown before a look-up", () => {
    expect(heard(["lock", "c1", 5]).find("bell", 0)).toBeUndefined()
  })

  test("is the one with the larger epoch, in either order", () => {
    expect(heard(["lock", "c9", 5], ["lock", "c1", 6]).find("lock", 0)).toBe("c1")
    expect(heard(["lock", "c1", 6], ["lock", "c9", 5]).find("lock", 0)).toBe("c1")
  })

  test("is the one with the larger id when the epochs are equal, in either order", () => {
    expect(heard(["lock", "c1", 5], ["lock", "c2", 5]).find("lock", 0)).toBe("c2")
    expect(heard(["lock", "c2", 5], ["lock", "c1", 5]).find("lock", 0)).toBe("c2")
  })

  test("is the newest of all ones that were looked up, in any order", () => {
    const registration = fc.tuple(fc.constant("lock"), fc.string(), fc.integer({ min: -2, max: 2 }))
    check(
      fc.property(fc.array(registration, { minLength: 1 }), (registrations) => {
        const newest = registrations.reduce((a, b) => (isNewer(b[2], b[1], a[2], a[1]) ? b : a))
        const locationCache = heard(...registrations)
        expect(locationCache.find("lock", 0)).toBe(newest[1])
        expect(locationCache.count).toBe(1)
      }),
      CHEAP_RUNS,
    )
  })

  test("is unknown after that connection is gone", () => {
    const locationCache = heard(["lock", "c1", 5])
    locationCache.gone(["lock", "c1"])
    expect([locationCache.find("lock", 0), locationCache.count]).toEqual([undefined, 0])
  })

  test("stays when an older one is reported as gone later", () => {
    const locationCache = heard(["lock", "c1", 5], ["lock", "c2", 6])
    locationCache.gone(["lock", "c1"])
    expect(locationCache.find("lock", 0)).toBe("c2")
  })

  test("stays when that of another device is gone", () => {
    const locationCache = heard(["lock", "c1", 5], ["bell", "c2", 5])
    locationCache.gone(["bell", "c2"])
    expect(locationCache.find("lock", 0)).toBe("c1")
  })

  test("is forgotten after a while, since it may have moved", () => {
    const locationCache = heard(["lock", "c1", 5])
    expect(locationCache.find("lock", KEPT_MS - 1)).toBe("c1")
    expect([locationCache.find("lock", KEPT_MS), locationCache.count]).toEqual([undefined, 0])
  })

  test("is the one that the device has moved to, if it was looked up", () => {
    const locationCache = heard(["lock", "c1", 5])
    locationCache.moved(["lock", "c2", 6], 0)
    locationCache.moved(["bell", "c3", 6], 0)
    expect([locationCache.find("lock", 0), locationCache.find("bell", 0)]).toEqual([
      "c2",
      undefined,
    ])
  })

  test("works for ids like the properties of all objects", () => {
    const locationCache = new LocationCache()
    expect(locationCache.find("__proto__", 0)).toBeUndefined()
    locationCache.add(["__proto__", "c1", 5], 0)
    expect(locationCache.find("__proto__", 0)).toBe("c1")
  })
})

describe("beyond the bound", () => {
  const many = (most: number, ...devices: string[]) => {
    const locationCache = new LocationCache(most)
    for (const device of devices) locationCache.add([device, `c-${device}`, 5], 0)
    return locationCache
  }

  test("the device with the oldest look-up is removed", () => {
    const locationCache = many(2, "a", "b", "c")
    expect(["a", "b", "c"].map((id) => locationCache.find(id, 0))).toEqual([
      undefined,
      "c-b",
      "c-c",
    ])
    expect(locationCache.count).toBe(2)
  })

  test("a repeated look-up makes a device the newest", () => {
    const locationCache = many(2, "a", "b", "a", "c")
    expect(["a", "b", "c"].map((id) => locationCache.find(id, 0))).toEqual([
      "c-a",
      undefined,
      "c-c",
    ])
  })

  test("a repeated look-up removes no other device", () => {
    const locationCache = many(2, "a", "b", "b", "a", "b")
    expect(["a", "b"].map((id) => locationCache.find(id, 0))).toEqual(["c-a", "c-b"])
  })

  test("one that is gone makes room", () => {
    const locationCache = many(2, "a", "b")
    locationCache.gone(["b", "c-b"])
    locationCache.add(["c", "c-c", 5], 0)
    expect(["a", "b", "c"].map((id) => locationCache.find(id, 0))).toEqual([
      "c-a",
      undefined,
      "c-c",
    ])
  })

  test("which is 200,000 devices by default", () => {
    expect(MAX_CACHED_LOCATIONS).toBe(200_000)
    const locationCache = new LocationCache()
    for (let n = 0; n <= MAX_CACHED_LOCATIONS; n += 1) locationCache.add([`d${n}`, "c", n], 0)
    expect(locationCache.count).toBe(MAX_CACHED_LOCATIONS)
    expect([locationCache.find("d0", 0), locationCache.find("d1", 0)]).toEqual([undefined, "c"])
  })
})
