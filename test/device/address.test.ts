/** Addresses in one spelling, their groups, and blocks of them. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { AddressBlocks, addressGroup, cidrFault, normalAddress } from "../../src/device/address.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

describe("an address", () => {
  test.each([
    ["192.0.2.1", "192.0.2.1"],
    ["::ffff:192.0.2.1", "192.0.2.1"],
    ["::FFFF:c000:0201", "192.0.2.1"],
    ["2001:DB8:0:0:0:0:0:1", "2001:db8::1"],
    ["fe80::1%eth0", "fe80::1"],
    ["::1", "::1"],
    ["::", "::"],
  ])("%p is written %p", (text, expected) => {
    expect(normalAddress(text)).toBe(expected)
  })

  test.each(["", "192.0.2", "192.0.2.256", "::ffff:192.0.2.256", "1::2::3", "localhost", "[::1]"])(
    "%p is none",
    (text) => {
      expect(normalAddress(text)).toBeNull()
    },
  )

  test("has one spelling for any bytes, with and without zeros left out", () => {
    const words = fc.array(fc.oneof(fc.constant(0), fc.nat(0xffff)), {
      minLength: 8,
      maxLength: 8,
    })
    check(
      fc.property(words, (eight) => {
        const full = eight.map((word) => word.toString(16).padStart(4, "0")).join(":")
        const short = normalAddress(full)
        expect(normalAddress(short ?? "")).toBe(short)
        const sameGroup = [...eight.slice(0, 4), 1, 2, 3, 4].map((word) => word.toString(16))
        // IPv4 in IPv6 counts as the IPv4 address it stands for.
        if (short?.includes(":")) {
          expect(addressGroup(short)).toBe(addressGroup(normalAddress(sameGroup.join(":")) ?? ""))
        }
      }),
      CHEAP_RUNS,
    )
  })
})

test.each([
  ["192.0.2.1", "192.0.2.1"],
  ["2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"],
  ["2001:db8::6", "2001:db8:0:0::/64"],
  ["::1", "0:0:0:0::/64"],
  ["1:2:3:4::", "1:2:3:4::/64"],
])("the group of %p is %p", (address, expected) => {
  expect(addressGroup(address)).toBe(expected)
})

describe("blocks", () => {
  const blocks = new AddressBlocks(["10.0.0.0/8", "192.0.2.7", "fd00::/8", "2001:db8::1"])

  test.each([
    ["10.255.0.1", true],
    ["11.0.0.1", false],
    ["192.0.2.7", true],
    ["192.0.2.8", false],
    ["fd12::1", true],
    ["fe80::1", false],
    ["2001:db8::1", true],
    ["2001:db8::2", false],
  ])("%p: %p", (address, expected) => {
    expect(blocks.has(address)).toBe(expected)
  })

  test("0.0.0.0/0 has all of IPv4 and nothing of IPv6", () => {
    const all = new AddressBlocks(["0.0.0.0/0"])
    expect([all.has("203.0.113.9"), all.has("2001:db8::1")]).toEqual([true, false])
  })

  test.each([
    "10.0.0.0/33",
    "fd00::/129",
    "10.0.0.0/",
    "10.0.0.0/8/8",
    "10.0.0/8",
    "/8",
    "x",
    "::1/08",
  ])("%p is no block", (text) => {
    expect(cidrFault(text)).toContain("must be an address or a block")
  })
})
