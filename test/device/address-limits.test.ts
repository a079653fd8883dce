/** How many connections an address may have, and how fast it may make them. */

import { describe, expect, test } from "bun:test"
import { AddressLimits } from "../../src/device/address-limits.ts"

describe("connections", () => {
  test("are limited for each address, until one is released", () => {
    const limits = new AddressLimits({ maxConnections: 2, handshakesPerS: 0 })
    const take = (address: string) => limits.take(address, 0)
    expect(["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"].map(take)).toEqual([
      ...[true, true, false, true],
    ])
    limits.release("192.0.2.1")
    expect(take("192.0.2.1")).toBe(true)
    expect(take("192.0.2.1")).toBe(false)
  })

  test("are counted for an IPv6 /64", () => {
    const limits = new AddressLimits({ maxConnections: 1, handshakesPerS: 0 })
    expect(limits.take("2001:db8:1:2::1", 0)).toBe(true)
    expect(limits.take("2001:db8:1:2:ffff::1", 0)).toBe(false)
    expect(limits.take("2001:db8:1:3::1", 0)).toBe(true)
    limits.release("2001:db8:1:2::9")
    expect(limits.take("2001:db8:1:2::1", 0)).toBe(true)
  })

  test("released more often than counted do not give more", () => {
    const limits = new AddressLimits({ maxConnections: 1, handshakesPerS: 0 })
    limits.release("192.0.2.1")
    limits.release("192.0.2.1")
    expect(limits.take("192.0.2.1", 0)).toBe(true)
    expect(limits.take("192.0.2.1", 0)).toBe(false)
  })
})

describe("handshakes a second", () => {
  test("may come at once, then at the rate", () => {
    const limits = new AddressLimits({ maxConnections: 0, handshakesPerS: 3 })
    const taken = (atMs: number) => {
      let count = 0
      while (limits.take("192.0.2.1", atMs)) count += 1
      return count
    }
    expect([0, 300, 334, 10_000].map(taken)).toEqual([3, 0, 1, 3])
    expect(limits.take("192.0.2.2", 10_000)).toBe(true)
  })

  test("of the address that connected longest ago are forgotten beyond 100,000 addresses", () => {
    const limits = new AddressLimits({ maxConnections: 0, handshakesPerS: 1 })
    const address = (n: number) => `10.${n >> 16}.${(n >> 8) & 255}.${n & 255}`
    for (let n = 0; n < 100_000; n += 1) limits.take(address(n), 0)
    expect(limits.take(address(0), 0)).toBe(false)
    limits.take(address(100_000), 0)
    expect(limits.take(address(0), 0)).toBe(true)
    expect(limits.take(address(2), 0)).toBe(false)
  })
})
