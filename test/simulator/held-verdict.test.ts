/**
 * The verdict on held commands: an example for each count, and what breaks the promise.
 */

import { describe, expect, test } from "bun:test"
import { type HeldVerdict, judgeHeld } from "../../src/simulator/held-verdict.ts"
import {
  emptyLedger,
  type HeldReceipt,
  type Ledger,
  type SentConnection,
} from "../../src/simulator/ledger-reader.ts"
import { Ranges } from "../../src/simulator/ranges.ts"
import { judge } from "../../src/simulator/verdict.ts"

const DEVICE = "run1 sim-0"

interface Held {
  readonly sent?: number
  readonly unconfirmed?: readonly number[]
  /** Numbers; negative: late, as -1 - n. */
  readonly came?: readonly number[]
  readonly receipts?: readonly (readonly [n: number, outcome?: string, again?: boolean])[]
  readonly end?: SentConnection["end"]
}

function ledgerOf({ sent = 2, unconfirmed = [], came = [], receipts, end }: Held): Ledger {
  const ledger = emptyLedger()
  const all = receipts ?? Array.from({ length: sent }, (_, n) => [n] as const)
  const ranges = new Ranges()
  ranges.add(0, sent - 1)
  const notConfirmed = new Ranges()
  for (const n of unconfirmed) notConfirmed.add(n, n)
  ledger.held.set(DEVICE, {
    sent: ranges,
    unconfirmed: notConfirmed,
    arrivals: came.map((n) => (n < 0 ? { n: -1 - n, late: true } : { n, late: false })),
    receipts: all.map(([n, outcome = "written", again = false]): HeldReceipt => {
      return { n, outcome, again }
    }),
  })
  const connection = { sent: 0, offered: 0, end: end ?? "drained", acked: new Ranges() }
  ledger.sent.set(`${DEVICE} 1`, connection)
  return ledger
}

/** Only the counts that are not 0, without those of what was sent and came. */
function countsOf(verdict: HeldVerdict | null): Partial<Record<keyof HeldVerdict, unknown>> {
  const { sent: _, written: __, receipts: ___, examples: ____, ...counts } = verdict ?? {}
  return Object.fromEntries(Object.entries(counts).filter(([, count]) => count !== 0))
}

function judged(held: Held, allowRepeats = 0) {
  const ledger = ledgerOf(held)
  const { kept } = judge(ledger, { allowLost: 0, allowRepeats, noRepeats: false, order: "first" })
  return { kept, ...countsOf(judgeHeld(ledger)) }
}

describe("the promise was kept", () => {
  test("when each command came once, in order, with one receipt", () => {
    expect(judged({ came: [0, 1] })).toEqual({ kept: true })
    expect(judgeHeld(ledgerOf({ came: [0, 1] }))).toMatchObject({
      ...{ sent: 2, written: 2, receipts: { written: 2 }, examples: [] },
    })
  })

  test("when nothing was held", () => {
    expect(judgeHeld(emptyLedger())).toBeNull()
  })

  test("when a command that the broker has not confirmed came, or did not", () => {
    expect(judged({ came: [0], unconfirmed: [1], receipts: [[0]] })).toEqual({ kept: true })
    expect(judged({ came: [0, 1], unconfirmed: [1] })).toEqual({ kept: true })
  })

  test("when the broker delivered a receipt again", () => {
    const receipts = [[0], [1], [1, "written", true]] as const
    expect(judged({ came: [0, 1], receipts })).toEqual({ kept: true })
  })

  test("when a command was written to a connection that broke", () => {
    expect(judged({ came: [0], end: "broken" })).toEqual({ kept: true, undecided: 1 })
    const receipts = [[0], [1, "closed"]] as const
    expect(judged({ came: [0], end: "broken", receipts })).toEqual({ kept: true, undecided: 1 })
    const ledger = ledgerOf({ came: [0], end: "broken" })
    const later = { sent: 0, offered: 0, end: "drained", acked: new Ranges() } as const
    ledger.sent.set(`${DEVICE} 2`, { ...later })
    expect(countsOf(judgeHeld(ledger))).toEqual({ undecided: 1 })
  })

  test("when the simulator was killed before commands and receipts came", () => {
    const ledger = ledgerOf({ receipts: [[0]] })
    ledger.unfinished.add("run1")
    expect(countsOf(judgeHeld(ledger))).toEqual({ undecided: 2 })
  })

  test("when the run was stopped before the device connected", () => {
    const ledger = ledgerOf({ receipts: [] })
    ledger.sent.clear()
    expect(countsOf(judgeHeld(ledger))).toEqual({ undecided: 2 })
  })

  test("when commands of a run that is not in the ledger came", () => {
    const ledger = ledgerOf({ came: [0, 1] })
    const none = { sent: new Ranges(), unconfirmed: new Ranges(), receipts: [] }
    ledger.held.set("run0 sim-0", { ...none, arrivals: [{ n: 5, late: true }] })
    expect(countsOf(judgeHeld(ledger))).toEqual({})
  })
})

describe("the promise is broken", () => {
  test("by a command that is missing", () => {
    expect(judged({ came: [0] })).toEqual({ kept: false, missing: 1 })
    expect(judgeHeld(ledgerOf({ came: [0] }))?.examples).toEqual([
      `missing: held command 1 of ${DEVICE}`,
    ])
  })

  test("by one that ended otherwise, even when the connection broke", () => {
    const receipts = [[0], [1, "hold_full"]] as const
    const held = { came: [0], end: "broken", receipts } as const
    expect(judged(held)).toEqual({ kept: false, missing: 1 })
    expect(judgeHeld(ledgerOf(held))?.receipts).toEqual({ written: 1, hold_full: 1 })
  })

  test("by one that came twice, each time", () => {
    expect(judged({ came: [0, 0, 1, 0] })).toEqual({ kept: false, twice: 2 })
  })

  test("by one that came after a later one", () => {
    expect(judged({ sent: 3, came: [2, 0, 1] })).toEqual({ kept: false, outOfOrder: 2 })
  })

  test("by one that came after a newer command", () => {
    expect(judged({ came: [0, -2] })).toEqual({ kept: false, late: 1 })
  })

  test("by one that was not sent", () => {
    expect(judged({ came: [0, 1, 2] })).toEqual({ kept: false, unexpected: 1 })
    const ledger = { ...ledgerOf({ came: [0, 1] }), misdirected: 1 }
    expect(countsOf(judgeHeld(ledger))).toEqual({ unexpected: 1 })
  })

  test("by one without a receipt", () => {
    expect(judged({ came: [0, 1], receipts: [[0]] })).toEqual({ kept: false, withoutReceipt: 1 })
  })

  test("by a second receipt", () => {
    const counts = { kept: false, receiptsTwice: 1 }
    expect(judged({ came: [0, 1], receipts: [[0], [1], [1]] })).toEqual(counts)
  })

  test("by a second receipt with another outcome, even when it was delivered again", () => {
    const receipts = [[0], [1], [1, "expired", true]] as const
    expect(judged({ came: [0, 1], receipts }, 9)).toEqual({ kept: false, contradicted: 1 })
  })

  test("by one that came although its receipt says otherwise", () => {
    const receipts = [[0], [1, "expired"]] as const
    expect(judged({ came: [0, 1], receipts })).toEqual({ kept: false, contradicted: 1 })
  })
})

test("repeats may be allowed, up to a number of commands and of receipts", () => {
  const held = { came: [0, 0, 1, 1], receipts: [[0], [0], [1], [1]] } as const
  expect(judged(held, 2)).toEqual({ kept: true, twice: 2, receiptsTwice: 2 })
  expect(judged(held, 1).kept).toBe(false)
  expect(judged({ came: [0] }, 9)).toEqual({ kept: false, missing: 1 })
})

test("of each fault the first few are named", () => {
  const verdict = judgeHeld(ledgerOf({ sent: 50 }))
  expect(verdict?.missing).toBe(50)
  expect(verdict?.examples).toHaveLength(5)
})
