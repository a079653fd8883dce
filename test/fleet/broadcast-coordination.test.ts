/** What the coordinator of a broadcast concludes from answers, reports and silence. */

import { describe, expect, test } from "bun:test"
import { BroadcastCoordination } from "../../src/fleet/broadcast-coordination.ts"

const worker = (name: string) => ({ worker: name, incarnation: "mb2k3f9zq7x2" })
const [A, B, C] = [worker("gw.0"), worker("gw.1"), worker("gw.2")] as const
const NAMES = [A, B, C].map((each) => each.worker)

/** All three have answered, with 10, 30 and no devices, and have begun. */
function writing(perS = 40) {
  const coordination = new BroadcastCoordination(perS, NAMES, 0)
  coordination.answered(A, 10, {}, 1)
  coordination.answered(B, 30, {}, 2)
  coordination.answered(C, 0, {}, 3)
  return { coordination, shares: coordination.begin(4) }
}

describe("matching", () => {
  test("ends when all have answered, or after a second", () => {
    const coordination = new BroadcastCoordination(1, NAMES, 0)
    coordination.answered(A, 1, {}, 1)
    coordination.answered(B, 1, {}, 1)
    expect([coordination.isMatched(999), coordination.isMatched(1_000)]).toEqual([false, true])
    coordination.answered(C, 1, {}, 2)
    expect(coordination.isMatched(2)).toBe(true)
  })

  test("gives shares to those that have lines to write", () => {
    expect(writing().shares).toEqual([
      { member: A, perS: 10 },
      { member: B, perS: 30 },
    ])
  })

  test("leaves out a worker that answers late, twice, or is not a member", () => {
    const coordination = new BroadcastCoordination(10, [A.worker, B.worker], 0)
    coordination.answered(A, 5, {}, 1)
    coordination.answered(A, 7, {}, 1)
    coordination.answered(C, 9, {}, 1)
    coordination.begin(1_000)
    coordination.answered(B, 4, {}, 1_001)
    expect(coordination.counts()).toMatchObject({ workers: 1, matched: 5, unfinished: 5 })
  })

  test("is in vain when a worker has no room", () => {
    const coordination = new BroadcastCoordination(10, [A.worker, B.worker], 0)
    coordination.answered(A, 5, {}, 1)
    coordination.answered(B, null, {}, 1)
    expect([coordination.isMatched(1), coordination.isBusy]).toEqual([true, true])
  })

  test("refuses a broadcast that takes longer than 20 minutes", () => {
    const coordination = new BroadcastCoordination(1, [A.worker], 0)
    coordination.answered(A, 1_201, {}, 1)
    expect(coordination.fault).toBe("1201 lines take 1201 s at per_s, at most 1200 s are allowed")
    const shorter = new BroadcastCoordination(1, [A.worker], 0)
    shorter.answered(A, 1_200, {}, 1)
    expect(shorter.fault).toBeNull()
  })

  test("without a device ends the broadcast", () => {
    const coordination = new BroadcastCoordination(1, [A.worker], 0)
    coordination.answered(A, 0, {}, 1)
    expect(coordination.begin(1)).toEqual([])
    expect(coordination.state).toBe("ended")
    expect(coordination.counts()).toMatchObject({ workers: 1, matched: 0, unfinished: 0 })
  })

  test("counts what was written before, and divides the rate by what is left", () => {
    const coordination = new BroadcastCoordination(10, NAMES, 0)
    coordination.answered(A, 10, { written: 5 }, 1)
    coordination.answered(B, 15, {}, 1)
    coordination.answered(C, 7, { written: 6, closed: 1 }, 1)
    expect(coordination.begin(2)).toEqual([
      { member: A, perS: 2.5 },
      { member: B, perS: 7.5 },
    ])
    expect(coordination.counts().outcomes).toEqual({ written: 11, closed: 1 })
  })
})

describe("writing", () => {
  test("ends when all have, and the counts are the sums", () => {
    const { coordination } = writing()
    coordination.reported(A, { written: 9, closed: 1 }, true, 10)
    coordination.reported(B, { written: 10 }, false, 10)
    expect(coordination.state).toBe("writing")
    expect(coordination.counts()).toMatchObject({ matched: 40, unfinished: 20 })
    coordination.reported(B, { written: 28, closed: 1, superseded: 1 }, true, 11)
    expect(coordination.state).toBe("ended")
    expect(coordination.counts()).toEqual({
      kind: "counts",
      workers: 3,
      matched: 40,
      outcomes: { written: 37, closed: 2, superseded: 1 },
      unfinished: 0,
    })
  })

  test("waits no longer for a worker that is silent, and counts its rest as unfinished", () => {
    const { coordination } = writing()
    coordination.reported(A, { written: 10 }, true, 10)
    coordination.reported(B, { written: 12 }, false, 5_000)
    coordination.sweep(14_999, true)
    expect(coordination.state).toBe("writing")
    coordination.sweep(15_000, true)
    expect(coordination.state).toBe("ended")
    expect(coordination.counts()).toMatchObject({ outcomes: { written: 22 }, unfinished: 18 })
  })

  test("takes no silence for a death while no report can arrive", () => {
    const { coordination } = writing()
    coordination.sweep(15_000, false)
    coordination.sweep(24_999, true)
    expect(coordination.state).toBe("writing")
  })

  test("ignores reports of a later process of a worker", () => {
    const { coordination } = writing()
    coordination.reported({ ...A, incarnation: "mb2k3f9zzzzz" }, { written: 10 }, true, 10)
    expect(coordination.counts().unfinished).toBe(40)
  })

  test("ends some time after the last line was due, whatever is reported", () => {
    const { coordination } = writing()
    coordination.reported(B, {}, false, 1_499_999)
    coordination.reported(A, {}, false, 1_499_999)
    coordination.sweep(1_500_000, true)
    expect(coordination.state).toBe("ended")
  })
})
