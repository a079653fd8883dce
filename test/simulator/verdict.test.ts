/**
 * The verdict: an example for each count, and all of them against a judge that goes line by line.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import {
  emptyLedger,
  type Ledger,
  type SentConnection,
  take,
} from "../../src/simulator/ledger-reader.ts"
import { Ranges } from "../../src/simulator/ranges.ts"
import { judge, type Rules, type Verdict } from "../../src/simulator/verdict.ts"
import { check } from "../support/property.ts"

const RULES: Rules = { allowLost: 0, allowRepeats: 0, noRepeats: false, order: "first" }
const A = "run1 sim-0 1"
const B = "run1 sim-0 2"

interface Sent {
  readonly sent: number
  readonly offered?: number
  readonly end?: SentConnection["end"]
  readonly acked?: readonly number[]
}

/**
 * One message: its connection id, the device's connection, n, its number, and whether it was
 * delivered before.
 */
type Taken = readonly [
  connectionId: string,
  connection: string,
  n: number,
  seq?: number,
  redelivered?: boolean,
]

function ledgerOf(sent: Readonly<Record<string, Sent>>, taken: readonly Taken[]): Ledger {
  const ledger = emptyLedger()
  for (const [connection, says] of Object.entries(sent)) {
    const acked = new Ranges()
    for (const n of says.acked ?? []) acked.add(n, n)
    const offered = says.offered ?? says.sent
    ledger.sent.set(connection, { sent: says.sent, offered, end: says.end ?? "drained", acked })
  }
  for (const [connectionId, connection, n, seq = n, redelivered = false] of taken) {
    take(ledger, connectionId, { connection, n, seq, redelivered, count: 1 })
  }
  return ledger
}

/** Lines `numbers` of connection A under its connection id a. */
function takenOf(...numbers: number[]): Taken[] {
  return numbers.map((n) => ["a", A, n])
}

const COUNTS = [
  "lost",
  "undecided",
  "recovered",
  "duplicated",
  "unexpected",
  "outOfOrder",
  "neverInOrder",
  "lateAgain",
  "mislabelled",
] as const

/** Only the counts that are not 0. */
function countsOf(verdict: Verdict): Partial<Record<(typeof COUNTS)[number], number>> {
  const entries = COUNTS.map((name) => [name, verdict[name]] as const)
  return Object.fromEntries(entries.filter(([, count]) => count > 0))
}

function judged(sent: Readonly<Record<string, Sent>>, taken: readonly Taken[], rules = RULES) {
  const verdict = judge(ledgerOf(sent, taken), rules)
  return { kept: verdict.kept, ...countsOf(verdict) }
}

describe("the promise was kept", () => {
  test("when every line came once and in order", () => {
    const ledger = ledgerOf({ [A]: { sent: 3, acked: [0, 1] } }, takenOf(0, 1, 2))
    expect(judge(ledger, RULES)).toMatchObject({
      kept: true,
      connections: 1,
      sent: 3,
      acknowledged: 2,
      taken: 3,
      examples: [],
    })
  })

  test("when nothing was sent", () => {
    expect(judged({}, [])).toEqual({ kept: true })
    expect(judged({ [A]: { sent: 0 } }, [])).toEqual({ kept: true })
  })

  test("when a device came again under another connection id", () => {
    const taken: Taken[] = [...takenOf(0, 1), ["b", B, 0]]
    expect(judged({ [A]: { sent: 2 }, [B]: { sent: 1 } }, taken)).toEqual({ kept: true })
  })
})

describe("lost", () => {
  test("is a line of a drained connection that never came", () => {
    const verdict = judge(ledgerOf({ [A]: { sent: 4 } }, takenOf(0, 3)), RULES)
    expect({ kept: verdict.kept, ...countsOf(verdict) }).toEqual({ kept: false, lost: 2 })
    expect(verdict.examples).toEqual([`lost: lines 1 to 2 of ${A}`])
  })

  test.each(["broken", "unended"] as const)("is one that was acknowledged, %s or not", (end) => {
    const sent = { [A]: { sent: 4, offered: 5, end, acked: [0, 1, 2] } }
    expect(judged(sent, takenOf(0, 1))).toEqual({ kept: false, lost: 1, undecided: 1 })
  })

  test("is one that was acknowledged although the socket was not seen to take all of it", () => {
    const sent = { [A]: { sent: 1, offered: 2, end: "broken", acked: [0, 1] } as const }
    expect(judged(sent, takenOf(0))).toEqual({ kept: false, lost: 1 })
  })

  test("may be allowed, up to a number", () => {
    const sent = { [A]: { sent: 4 } }
    expect(judged(sent, takenOf(0, 3), { ...RULES, allowLost: 2 })).toEqual({ kept: true, lost: 2 })
    expect(judged(sent, takenOf(0), { ...RULES, allowLost: 2 }).kept).toBe(false)
  })
})

test.each(["broken", "unended"] as const)(
  "undecided is what was sent and not acknowledged on a connection that is %s",
  (end) => {
    expect(judged({ [A]: { sent: 4, end } }, takenOf(0, 1))).toEqual({ kept: true, undecided: 2 })
  },
)

describe("recovered", () => {
  test("is a line whose message came again under the same id, however often", () => {
    const taken = takenOf(0, 1, 2, 1, 2, 3, 2, 3)
    expect(judged({ [A]: { sent: 4 } }, taken)).toEqual({ kept: true, recovered: 3 })
  })

  test("is duplicated when nothing failed, each time that it came", () => {
    const rules = { ...RULES, noRepeats: true }
    const taken = takenOf(0, 1, 0, 1, 0, 1)
    const counts = { kept: false, recovered: 2, duplicated: 4 }
    expect(judged({ [A]: { sent: 2 } }, taken, rules)).toEqual(counts)
  })
})

describe("duplicated", () => {
  test("is a line that came under two connection ids", () => {
    const taken: Taken[] = [...takenOf(0, 1), ["b", A, 0], ["b", A, 1]]
    expect(judged({ [A]: { sent: 2 } }, taken)).toEqual({ kept: false, duplicated: 2 })
  })

  test("is one that came under two numbers, which are mislabelled too", () => {
    const taken: Taken[] = [...takenOf(0, 1), ["a", A, 1, 2]]
    const counts = { kept: false, duplicated: 1, mislabelled: 1 }
    expect(judged({ [A]: { sent: 2 } }, taken)).toEqual(counts)
  })
})

describe("unexpected", () => {
  test("is a line of a connection that no device had", () => {
    const taken: Taken[] = [...takenOf(0), ["x", "run1 sim-9 1", 0]]
    expect(judged({ [A]: { sent: 1 } }, taken)).toEqual({ kept: false, unexpected: 1 })
  })

  test("is a line beyond those that were offered to the socket", () => {
    const sent = { [A]: { sent: 1, offered: 2, end: "broken" } as const }
    expect(judged(sent, takenOf(0, 1))).toEqual({ kept: true })
    expect(judged(sent, takenOf(0, 1, 2))).toEqual({ kept: false, unexpected: 1 })
  })

  test("is an acknowledgement of such a line", () => {
    const sent = { [A]: { sent: 1, acked: [0, 1] } }
    expect(judged(sent, takenOf(0))).toEqual({ kept: false, unexpected: 1 })
  })

  test("is what no simulated device writes", () => {
    expect(judge({ ...emptyLedger(), stray: 2 }, RULES)).toMatchObject({
      kept: false,
      unexpected: 2,
    })
  })

  test("is nothing of a herd that was killed before it wrote everything down", () => {
    const ledger = ledgerOf({}, [["x", "run1 sim-9 1", 0]])
    ledger.unfinished.add("run1")
    expect(judge(ledger, RULES)).toMatchObject({ kept: true, unexpected: 0, unfinished: 1 })
  })
})

describe("out of order", () => {
  test("is a line that came first after a later one", () => {
    const counts = { kept: false, outOfOrder: 3, neverInOrder: 2 }
    expect(judged({ [A]: { sent: 4 } }, takenOf(3, 1, 0, 2))).toEqual(counts)
  })

  test("is judged by first messages, or by what a back-end that follows the numbers finds", () => {
    const sent = { [A]: { sent: 4 } }
    const taken = takenOf(0, 2, 3, 1, 2, 3)
    const counts = { recovered: 2, outOfOrder: 1 }
    expect(judged(sent, taken)).toEqual({ kept: false, ...counts })
    const follow = { ...RULES, order: "follow" } as const
    expect(judged(sent, taken, follow)).toEqual({ kept: true, ...counts })
    expect(judge(ledgerOf(sent, taken), follow).examples).toEqual([])
    expect(judge(ledgerOf(sent, taken), RULES).examples).toHaveLength(1)
    expect(judged(sent, takenOf(0, 2, 1, 3), follow).kept).toBe(false)
    expect(judge(ledgerOf(sent, takenOf(0, 2, 1, 3)), follow).examples).toHaveLength(1)
  })

  test("is no line that the broker took back from a lost connection", () => {
    const sent = { [A]: { sent: 4 } }
    const again: Taken = ["a", A, 1, 1, true]
    const taken = [...takenOf(0, 2), again, ...takenOf(3)]
    for (const order of ["first", "follow"] as const) {
      expect(judged(sent, taken, { ...RULES, order })).toEqual({ kept: true, lateAgain: 1 })
    }
  })

  test("is no line that comes again, and no gap", () => {
    const sent = { [A]: { sent: 5, end: "broken" } as const }
    expect(judged(sent, takenOf(0, 1, 4, 0, 1, 4))).toEqual({
      kept: true,
      recovered: 3,
      undecided: 2,
    })
  })
})

describe("mislabelled", () => {
  test("is a line whose number on its connection is another than the device's", () => {
    const taken: Taken[] = [
      ["a", A, 0],
      ["a", A, 1, 2],
    ]
    expect(judged({ [A]: { sent: 2 } }, taken)).toEqual({ kept: false, mislabelled: 1 })
  })

  test("is a line under the connection id of another connection", () => {
    const taken: Taken[] = [...takenOf(0), ["a", B, 0]]
    const sent = { [A]: { sent: 1 }, [B]: { sent: 1 } }
    expect(judged(sent, taken)).toEqual({ kept: false, mislabelled: 1 })
  })

  test("is what the back-end found so", () => {
    expect(judge({ ...emptyLedger(), mislabelled: 1 }, RULES)).toMatchObject({
      kept: false,
      mislabelled: 1,
    })
  })
})

test("of each fault the first few are told", () => {
  const numbers = Array.from({ length: 50 }, (_, at) => at * 2)
  const { examples, lost } = judge(ledgerOf({ [A]: { sent: 99 } }, takenOf(...numbers)), RULES)
  expect(lost).toBe(49)
  expect(examples).toHaveLength(5)
})

/** The definitions again, one line and one message at a time. */
function judgeLineByLine(sent: Readonly<Record<string, Sent>>, taken: readonly Taken[]) {
  const counts = Object.fromEntries(COUNTS.map((name) => [name, 0])) as Record<
    (typeof COUNTS)[number],
    number
  >
  for (const connection of new Set([...Object.keys(sent), ...taken.map((each) => each[1])])) {
    const says = sent[connection] ?? { sent: 0, offered: 0, end: "broken" }
    const offered = says.offered ?? says.sent
    for (let n = 0; n < 40; n += 1) {
      const ids = taken
        .filter((each) => each[1] === connection && each[2] === n)
        .map(([connectionId, , , seq = n]) => `${connectionId}:${seq}`)
      const times = new Map<string, number>()
      for (const id of ids) times.set(id, (times.get(id) ?? 0) + 1)
      const acked = says.acked?.includes(n) ?? false
      if (n >= offered) counts.unexpected += (ids.length > 0 ? 1 : 0) + (acked ? 1 : 0)
      counts.duplicated += Math.max(0, times.size - 1)
      counts.recovered += [...times.values()].filter((count) => count > 1).length
      const sure = (n < says.sent && says.end === "drained") || (acked && n < offered)
      if (ids.length === 0 && sure) counts.lost += 1
      if (ids.length === 0 && n < says.sent && !sure) counts.undecided += 1
    }
  }
  for (const connectionId of new Set(taken.map((each) => each[0]))) {
    const mine = taken.filter((each) => each[0] === connectionId)
    for (const [, connection, n, seq = n] of mine) {
      if (seq !== n || connection !== mine[0]?.[1]) counts.mislabelled += 1
    }
    const seqs = mine.map(([, , n, seq = n]) => seq)
    const wasDelivered = mine.map(([, , , , redelivered = false]) => redelivered)
    const late = seqs.filter(
      (seq, at) => seqs.indexOf(seq) === at && seqs.slice(0, at).some((before) => before > seq),
    )
    const lateAgain = late.filter((seq) => wasDelivered[seqs.indexOf(seq)])
    counts.lateAgain += lateAgain.length
    counts.outOfOrder += late.length - lateAgain.length
    let reached = -1
    for (const seq of [...new Set(seqs)].sort((a, b) => a - b)) {
      // Whoever follows the numbers is judged where a line is late for another reason.
      if (late.length === lateAgain.length) break
      if (lateAgain.includes(seq)) continue
      const found = seqs.findIndex((each, at) => each === seq && at > reached)
      if (found === -1) counts.neverInOrder += 1
      else reached = found
    }
  }
  return counts
}

test("all counts are what a judge that goes line by line finds", () => {
  const sent = fc.nat(12).chain((count) =>
    fc.record({
      sent: fc.constant(count),
      offered: fc.nat(3).map((more) => count + more),
      end: fc.constantFrom("drained", "broken", "unended"),
      acked: fc.uniqueArray(fc.nat(16)),
    }),
  )
  const message = fc.tuple(
    fc.constantFrom("a", "b"),
    fc.constantFrom(A, A, A, B),
    fc.nat(14),
    fc.constantFrom(0, 0, 0, 0, 1),
    fc.boolean(),
  )
  // Mostly in order, as a gateway gives them, with disturbances.
  const inOrder = fc
    .nat(12)
    .map((count) => Array.from({ length: count }, (_, n) => ["a", A, n, 0, false]))
  const taken = fc
    .tuple(inOrder, fc.array(message, { maxLength: 8 }), fc.array(fc.nat(20), { maxLength: 8 }))
    .map(([plain, odd, places]) => {
      const all = [...plain] as [string, string, number, number, boolean][]
      for (const [at, each] of odd.entries()) all.splice(places[at] ?? 0, 0, each)
      return all.map(
        ([id, connection, n, offset, again]): Taken => [
          ...([id, connection, n] as const),
          n + offset,
          again,
        ],
      )
    })
  check(
    fc.property(sent, fc.option(sent), taken, (a, b, messages) => {
      const all = { [A]: a, ...(b === null ? {} : { [B]: b }) }
      const verdict = judge(ledgerOf(all, messages), RULES)
      expect({ ...countsOf(verdict) }).toEqual(
        Object.fromEntries(
          Object.entries(judgeLineByLine(all, messages)).filter(([, count]) => count > 0),
        ),
      )
    }),
    1_000,
  )
})
