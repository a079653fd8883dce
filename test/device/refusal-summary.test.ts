/** Refused connections are logged without flooding the log. The test sets the clock. */

import { describe, expect, test } from "bun:test"
import { RefusalSummary, SUMMARY_EVERY_MS } from "../../src/device/refusal-summary.ts"

const UNTRUSTED = "unable to get issuer certificate"

class Subject {
  readonly told: string[] = []
  readonly summary = new RefusalSummary((message) => this.told.push(message))
}

describe("refusals", () => {
  test("are told of at once, each reason once", () => {
    const { summary, told } = new Subject()
    for (let n = 0; n < 1_000; n += 1) {
      summary.add("refused", UNTRUSTED, "192.0.2.1", n)
      summary.add("not_identified", "no certificate", "192.0.2.2", n)
      summary.sweep(n)
    }
    expect(told).toEqual([
      `a connection from 192.0.2.1 ended as refused: ${UNTRUSTED}`,
      "a connection from 192.0.2.2 ended as not_identified: no certificate",
    ])
  })

  test("are counted and told of once a minute, with the latest detail", () => {
    const { summary, told } = new Subject()
    summary.add("refused", UNTRUSTED, "192.0.2.1", 0)
    for (let n = 1; n <= 40; n += 1) summary.add("refused", `fault ${n}`, `192.0.2.${n}`, n)
    summary.sweep(SUMMARY_EVERY_MS - 1)
    expect(told.length).toBe(1)
    summary.sweep(SUMMARY_EVERY_MS)
    expect(told[1]).toBe(
      "40 more connections ended as refused within 60 s, the latest from 192.0.2.40: fault 40",
    )
    summary.add("refused", UNTRUSTED, "192.0.2.7", SUMMARY_EVERY_MS + 1)
    summary.sweep(2 * SUMMARY_EVERY_MS)
    expect(told[2]).toBe(
      `1 more connection ended as refused within 60 s, the latest from 192.0.2.7: ${UNTRUSTED}`,
    )
    expect(told.length).toBe(3)
  })

  test("after a quiet minute are told of at once again", () => {
    const { summary, told } = new Subject()
    summary.add("denied", "lock:1 is on the denylist", "192.0.2.1", 0)
    summary.sweep(SUMMARY_EVERY_MS)
    summary.add("denied", "lock:1 is on the denylist", "192.0.2.1", SUMMARY_EVERY_MS + 1)
    expect(told.length).toBe(2)
    expect(told[1]).toBe(told[0] as string)
  })
})
