/** Refused connections are logged without flooding the log. The test sets the clock. */

import { describe, expect, test } from "bun:test"
import type { CloseReason } from "../../src/device/close-reason.ts"
import {
  LINES_PER_S,
  type RefusalLine,
  RefusalLog,
  SUMMARY_EVERY_MS,
} from "../../src/device/refusal-log.ts"

const UNTRUSTED = "unable to get issuer certificate"
/** Lines that may come at once. */
const BURST = 20

class Subject {
  readonly lines: RefusalLine[] = []
  readonly log = new RefusalLog((line) => this.lines.push(line))

  add(reason: CloseReason, detail: string, address: string, atMs: number, deviceId?: string): void {
    this.log.add({ reason, detail, address, deviceId: deviceId ?? null }, atMs)
  }

  get told(): string[] {
    return this.lines.map(({ message }) => message)
  }
}

describe("refusals", () => {
  test("are logged at once, each reason and address once", () => {
    const subject = new Subject()
    for (let n = 0; n < 1_000; n += 1) {
      subject.add("refused", UNTRUSTED, "192.0.2.1", n)
      subject.add("not_identified", "no certificate", "192.0.2.2", n)
      subject.log.sweep(n)
    }
    expect(subject.told).toEqual([
      `a connection from 192.0.2.1 ended as refused: ${UNTRUSTED}`,
      "a connection from 192.0.2.2 ended as not_identified: no certificate",
    ])
  })

  test("are not hidden by those from another address, except within one /64", () => {
    const subject = new Subject()
    const addresses = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:1::1"]
    for (const address of addresses) subject.add("refused", UNTRUSTED, address, 0)
    expect(subject.lines.map(({ fields }) => fields["address"])).toEqual([
      "192.0.2.1",
      "192.0.2.2",
      "2001:db8::1",
      "2001:db8:1::1",
    ])
  })

  test("are counted and logged once a minute in one line, with the latest detail", () => {
    const subject = new Subject()
    subject.add("refused", UNTRUSTED, "192.0.2.1", 0)
    for (let n = 1; n <= 40; n += 1) subject.add("refused", `fault ${n}`, "192.0.2.1", n)
    subject.add("denied", "lock:1 is on the denylist", "192.0.2.9", 50)
    subject.add("denied", "lock:1 is on the denylist", "192.0.2.9", 51)
    subject.log.sweep(SUMMARY_EVERY_MS - 1)
    expect(subject.told.length).toBe(2)
    subject.log.sweep(SUMMARY_EVERY_MS)
    expect(subject.told[2]).toBe(
      "41 more connection(s) refused within 60 s: 40 ended as refused, the latest from 192.0.2.1: fault 40; " +
        "1 ended as denied, the latest from 192.0.2.9: lock:1 is on the denylist",
    )
    expect(subject.lines[2]?.fields).toEqual({ refused: { refused: 40, denied: 1 } })
    subject.log.sweep(2 * SUMMARY_EVERY_MS)
    expect(subject.told.length).toBe(3)
  })

  test("that go on are in the counts only, and after a quiet minute at once again", () => {
    const subject = new Subject()
    const check = (atMs: number) => subject.add("handshake_failed", "left", "192.0.2.1", atMs)
    check(0)
    for (let minute = 1; minute <= 3; minute += 1) {
      subject.log.sweep(minute * SUMMARY_EVERY_MS)
      check(minute * SUMMARY_EVERY_MS + 1)
    }
    expect(subject.told.map((line) => line.startsWith("1 more"))).toEqual([false, true, true])
    for (let minute = 4; minute <= 6; minute += 1) subject.log.sweep(minute * SUMMARY_EVERY_MS)
    check(6 * SUMMARY_EVERY_MS + 1)
    expect(subject.told.at(-1)).toStartWith("a connection from 192.0.2.1")
  })

  test("of a stampede give some lines a second and one summary, and are all counted", () => {
    const subject = new Subject()
    const count = 100_000
    for (let n = 0; n < count; n += 1) {
      subject.add(
        "overloaded",
        "MAX_WAITING is reached",
        `10.${n >> 16}.${(n >> 8) & 255}.${n & 255}`,
        n / 100,
      )
    }
    const lines = subject.lines.length
    expect(lines).toBeLessThanOrEqual(BURST + LINES_PER_S)
    expect(lines).toBeGreaterThanOrEqual(BURST)
    subject.log.sweep(SUMMARY_EVERY_MS)
    expect(subject.lines.at(-1)?.fields).toEqual({ refused: { overloaded: count - lines } })
    expect(subject.lines.length).toBe(lines + 1)
  })

  test("have the device id when it is known, and no control characters", () => {
    const subject = new Subject()
    subject.add("refused", "HELLO as a\u001b[31m\n\u2028: wrong", "192.0.2.1", 0, "lock:1")
    expect(subject.lines[0]).toEqual({
      message:
        "a connection from 192.0.2.1 ended as refused: HELLO as a\\u001b[31m\\u000a\\u2028: wrong",
      fields: {
        reason: "refused",
        address: "192.0.2.1",
        detail: "HELLO as a\\u001b[31m\\u000a\\u2028: wrong",
        deviceId: "lock:1",
      },
    })
  })
})
