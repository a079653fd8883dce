/** The goodbye line: for whom, and when devices may come back. */

import { describe, expect, test } from "bun:test"
import { CLOSE_REASONS } from "../../src/device/close-reason.ts"
import { Goodbye } from "../../src/device/goodbye.ts"

function goodbye(perS: number, random = 0, template = "BYE {reason} {retry_after_ms}") {
  const clock = { nowMs: 5_000 }
  return {
    clock,
    goodbye: new Goodbye({
      template,
      returnsPerS: () => perS,
      steadyMs: () => clock.nowMs,
      random: () => random,
    }),
  }
}

test("goes to devices that the gateway sends away, and to no other", () => {
  const reasons = CLOSE_REASONS.filter((reason) => goodbye(1).goodbye.textFor(reason) !== null)
  expect(reasons.join(" ")).toBe("denied gated flapping taken_over kicked aged drained")
})

test("fills in what its template asks for, any number of times", () => {
  const say = (template: string) => goodbye(10, 0, template).goodbye.textFor("aged")
  expect(say("BYE {reason} {retry_after_ms}")).toBe("BYE aged 600")
  expect(say("{reason}/{reason} in {retry_after_ms}")).toBe("aged/aged in 600")
  expect(say("bye {other} $& $1")).toBe("bye {other} $& $1")
})

test("has the time that is known, without taking a slot", () => {
  const { goodbye: subject } = goodbye(10)
  expect(subject.textFor("flapping", 299_000.4)).toBe("BYE flapping 299000")
  expect(subject.textFor("gated", 0)).toBe("BYE gated 0")
  expect(subject.textFor("gated")).toBe("BYE gated 600")
})

describe("the time after which to come back", () => {
  const timeOf = (text: string | null) => Number(text?.split(" ").at(-1))

  test("is one slot after another, at the rate of the rest of the fleet", () => {
    const { goodbye: subject, clock } = goodbye(10)
    const next = () => timeOf(subject.textFor("drained"))
    expect([next(), next(), next()]).toEqual([600, 700, 800])
    clock.nowMs += 200
    expect(next()).toBe(700)
    clock.nowMs += 60_000
    expect(next()).toBe(600)
  })

  test("of 20,000 devices closed at once spreads them over 20,000 slots", () => {
    const { goodbye: subject } = goodbye(2_000)
    const times = Array.from({ length: 20_000 }, () => timeOf(subject.textFor("drained")))
    for (const second of [1, 5, 9]) {
      const within = times.filter((ms) => ms > second * 1_000 && ms <= (second + 1) * 1_000)
      expect(Math.abs(within.length - 2_000)).toBeLessThanOrEqual(1)
    }
  })

  test("has a random part below a second, and a bound of an hour", () => {
    expect(timeOf(goodbye(10, 0.999).goodbye.textFor("kicked"))).toBe(1_599)
    const { goodbye: subject } = goodbye(0.0001)
    expect(timeOf(subject.textFor("kicked"))).toBe(3_600_000)
  })
})
