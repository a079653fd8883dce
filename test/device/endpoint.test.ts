/** The decisions of an endpoint, one by one. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { check, RUNS } from "../support/property.ts"

/** One for all, as a queue's consumer is. */
import { type About, brief, command, endpointOf, GAP_TIMEOUT_MS } from "./endpoint-harness.ts"

describe("lines in", () => {
  test("are numbered from 0", () => {
    const endpoint = endpointOf()
    expect([endpoint.linesIn, endpoint.numberLine(), endpoint.numberLine()]).toEqual([0, 0, 1])
    expect([endpoint.linesIn, endpoint.linesOut]).toEqual([2, 0])
  })

  test("are numbered after the close too, because lines that were read are still published", () => {
    const endpoint = endpointOf()
    endpoint.numberLine()
    endpoint.close()
    expect(endpoint.numberLine()).toBe(1)
  })
})

describe("commands without a number", () => {
  test("are written in order of arrival, equal ones too", () => {
    const endpoint = endpointOf()
    for (let i = 0; i < 3; i += 1) {
      const each = command({ redelivered: i === 2 })
      expect(brief(endpoint.offer(each, 0))).toEqual([["write", each]])
    }
    expect(endpoint.linesOut).toBe(0)
  })

  test("do not wait behind a gap", () => {
    const endpoint = endpointOf()
    expect(endpoint.offer(command({ seq: 3 }), 0)).toEqual([])
    const each = command()
    expect(brief(endpoint.offer(each, 0))).toEqual([["write", each]])
    expect(endpoint.heldCommands).toBe(1)
  })
})

describe("a message id", () => {
  test("that waits or was written makes a second command a duplicate", () => {
    const endpoint = endpointOf()
    const first = command({ messageId: "m" })
    endpoint.offer(first, 0)
    const second = command({ messageId: "m" })
    expect(brief(endpoint.offer(second, 0))).toEqual([["duplicate", second]])
    endpoint.written(first)
    const third = command({ messageId: "m" })
    expect(brief(endpoint.offer(third, 0))).toEqual([["duplicate", third]])
  })

  test("that waits behind a gap does so too, for any number of the second command", () => {
    const endpoint = endpointOf()
    endpoint.offer(command({ messageId: "m", seq: 3 }), 0)
    for (const seq of [null, 0, 3, 4]) {
      const second = command({ messageId: "m", seq })
      expect(brief(endpoint.offer(second, 0))).toEqual([["duplicate", second]])
    }
    expect([endpoint.heldCommands, endpoint.gaps]).toEqual([1, 0])
  })

  test("whose command ended unwritten may be written later", () => {
    const endpoint = endpointOf()
    const first = command({ messageId: "m" })
    endpoint.offer(first, 0)
    endpoint.unwritten(first)
    const second = command({ messageId: "m" })
    expect(brief(endpoint.offer(second, 0))).toEqual([["write", second]])
  })

  test("of a command that was late may be written later under another number", () => {
    const endpoint = endpointOf()
    endpoint.offer(command({ seq: 2 }), 0)
    endpoint.expire(GAP_TIMEOUT_MS)
    const late = command({ messageId: "m", seq: 0 })
    expect(brief(endpoint.offer(late, 0))).toEqual([["late", late]])
    const next = command({ messageId: "m", seq: 3 })
    expect(brief(endpoint.offer(next, 0))).toEqual([["write", next]])
  })

  test("is remembered for 1,024 commands, not counting lost, late and duplicate ones", () => {
    const endpoint = endpointOf()
    const writeOther = (id: string) => {
      const other = command({ messageId: id })
      endpoint.offer(other, 0)
      endpoint.written(other)
    }
    writeOther("m")
    for (let i = 0; i < 1_023; i += 1) {
      writeOther(`other-${i}`)
      endpoint.offer(command({ messageId: "other-0" }), 0)
    }
    const repeat = command({ messageId: "m" })
    expect(brief(endpoint.offer(repeat, 0))).toEqual([["duplicate", repeat]])
    writeOther("one more")
    const forgotten = command({ messageId: "m" })
    expect(brief(endpoint.offer(forgotten, 0))).toEqual([["write", forgotten]])
  })

  test("in any order of 1,100 ids is never decided twice within 1,024 commands", () => {
    const ids = fc.array(fc.nat(1_100), { minLength: 2_000, maxLength: 2_000, size: "max" })
    check(
      fc.property(ids, (numbers) => {
        const endpoint = endpointOf()
        const lastWrite = new Map<number, number>()
        for (const [at, number] of numbers.entries()) {
          const each = command({ messageId: String(number) })
          if (endpoint.offer(each, 0)[0]?.kind !== "write") continue
          endpoint.written(each)
          expect(at - (lastWrite.get(number) ?? -Infinity)).toBeGreaterThan(1_024)
          lastWrite.set(number, at)
        }
      }),
      RUNS / 10,
    )
  })

  test("that was written stays so when an older command with it, long forgotten, ends unwritten", () => {
    const endpoint = endpointOf()
    const old = command({ messageId: "m", seq: 1 })
    endpoint.offer(old, 0)
    for (let i = 0; i < 1_024; i += 1) {
      const other = command({ messageId: `other-${i}` })
      endpoint.offer(other, 0)
      endpoint.written(other)
    }
    const newer = command({ messageId: "m" })
    expect(brief(endpoint.offer(newer, 0))).toEqual([["write", newer]])
    endpoint.written(newer)
    expect(brief(endpoint.expire(GAP_TIMEOUT_MS))).toEqual([["write", old]])
    endpoint.unwritten(old)
    const third = command({ messageId: "m" })
    expect(brief(endpoint.offer(third, 20))).toEqual([["duplicate", third]])
  })
})

describe("a number", () => {
  test("that was written makes a second command a duplicate", () => {
    const endpoint = endpointOf()
    const first = command({ seq: 0 })
    endpoint.offer(first, 0)
    endpoint.written(first)
    const second = command({ seq: 0 })
    expect(brief(endpoint.offer(second, 0))).toEqual([["duplicate", second]])
  })

  test("whose command was not written makes no second command a duplicate, which would not be kept", () => {
    const endpoint = endpointOf()
    const first = command({ seq: 0 })
    endpoint.offer(first, 0)
    endpoint.unwritten(first)
    const second = command({ seq: 0 })
    const [decision] = endpoint.offer(second, 0)
    expect(decision).not.toMatchObject({ outcome: "duplicate" })
  })

  test("determines the order, and one offer returns all its decisions", () => {
    const endpoint = endpointOf()
    const [zero, one, two] = [0, 1, 2].map((seq) => command({ seq }))
    if (!zero || !one || !two) throw new Error("three commands")
    expect(endpoint.offer(two, 0)).toEqual([])
    expect(endpoint.offer(one, 0)).toEqual([])
    expect(brief(endpoint.offer(zero, 5))).toEqual([
      ["write", zero],
      ["write", one],
      ["write", two],
    ])
    expect([endpoint.heldCommands, endpoint.gaps]).toEqual([0, 0])
  })
})

describe("the forward of a command that was written from a redelivery", () => {
  const bodyHash = 1
  const redelivery = { ...command({ messageId: "m", redelivered: true }), bodyHash }
  const forward = () => ({ ...command({ messageId: "m", forwarded: true }), bodyHash })

  test("has an outcome when it was held, because its keeper waits for one", () => {
    const endpoint = endpointOf()
    endpoint.offer(redelivery, 0)
    endpoint.written(redelivery)
    const held = { ...forward(), wasHeld: true }
    expect(brief(endpoint.offer(held, 0))).toEqual([["duplicate", held]])
  })

  test("is the same command: it has no outcome of its own", () => {
    const endpoint = endpointOf()
    endpoint.offer(redelivery, 0)
    endpoint.written(redelivery)
    const first = forward()
    expect(brief(endpoint.offer(first, 0))).toEqual([["acknowledge", first]])
    const second = forward()
    expect(brief(endpoint.offer(second, 0))).toEqual([["duplicate", second]])
  })

  test("replaces the redelivery while that waits for the socket", () => {
    const endpoint = endpointOf()
    endpoint.offer(redelivery, 0)
    const first = forward()
    expect(endpoint.offer(first, 0)).toEqual([
      { kind: "replace", command: first, waiting: redelivery },
    ])
    // Another with this id is a command of its own, before and after the first was written.
    const second = forward()
    expect(brief(endpoint.offer(second, 0))).toEqual([["duplicate", second]])
    endpoint.written(redelivery)
    const third = forward()
    expect(brief(endpoint.offer(third, 0))).toEqual([["duplicate", third]])
  })

  test.each([{ messageId: "m" }, { messageId: "m", seq: 1 }, { seq: 1 }])(
    "replaces the redelivery also when it is redelivered itself: %p",
    (about) => {
      const endpoint = endpointOf()
      const waiting = command({ ...about, redelivered: true })
      endpoint.offer(waiting, 0)
      const again = command({ ...about, forwarded: true, redelivered: true })
      expect(endpoint.offer(again, 0)).toEqual([{ kind: "replace", command: again, waiting }])
    },
  )

  test("is a duplicate when it was not forwarded, differs, or when the first was not a redelivery", () => {
    for (const [before, after] of [
      [redelivery, command({ messageId: "m" })],
      [redelivery, { ...forward(), body: Buffer.from("y"), bodyHash: 2 }],
      [command({ messageId: "m" }), forward()],
    ] as const) {
      const endpoint = endpointOf()
      endpoint.offer(before, 0)
      expect(brief(endpoint.offer(after, 0))).toEqual([["duplicate", after]])
      endpoint.written(before)
      expect(brief(endpoint.offer(after, 0))).toEqual([["duplicate", after]])
    }
  })
})

describe("a number more than 1,000,000 beyond the next", () => {
  test("makes the command invalid, names the rule, and leaves numbers and message id as they were", () => {
    const endpoint = endpointOf()
    const zero = command({ seq: 0 })
    endpoint.offer(zero, 0)
    const far = command({ seq: 1_000_002, messageId: "m", redelivered: true })
    const detail = "to_device_seq 1000002 is more than 1000000 beyond the next number, 1"
    const invalid = { kind: "settle", command: far, outcome: "invalid", detail } as const
    expect(endpoint.offer(far, 0)).toEqual([invalid])
    expect(endpoint.offer(far, 0)).toEqual([invalid])
    endpoint.unwritten(far)
    expect(endpoint.expire(1_000)).toEqual([])
    expect([endpoint.heldCommands, endpoint.gaps]).toEqual([0, 0])
    const next = command({ seq: 1, messageId: "m" })
    expect(brief(endpoint.offer(next, 0))).toEqual([["write", next]])
  })

  test("is decided by the connection: 1,000,000 beyond waits", () => {
    const endpoint = endpointOf()
    expect(endpoint.offer(command({ seq: 1_000_000 }), 0)).toEqual([])
    expect(endpoint.heldCommands).toBe(1)
  })
})

describe("a redelivered command", () => {
  test.each([{ messageId: "m" }, { messageId: "m", seq: 1 }, { seq: 1 }, { seq: 0 }])(
    "that another worker forwarded is acknowledged while the first waits here: %p",
    (about) => {
      const endpoint = endpointOf()
      endpoint.offer(command(about), 0)
      const again = command({ ...about, redelivered: true })
      expect(brief(endpoint.offer(again, 5))).toEqual([["acknowledge", again]])
    },
  )

  test.each([
    ["by its id", { messageId: "m" }],
    ["by its number", { seq: 0 }],
    ["by both", { messageId: "m", seq: 0 }],
  ])("that was written is acknowledged without a second outcome, known %s", (_name, about) => {
    const endpoint = endpointOf()
    const first = command(about)
    endpoint.offer(first, 0)
    endpoint.written(first)
    const again = command({ ...about, redelivered: true })
    expect(brief(endpoint.offer(again, 0))).toEqual([["acknowledge", again]])
  })

  test("does not replace a different command with the same number", () => {
    const endpoint = endpointOf()
    const first = command({ messageId: "a", seq: 1 })
    endpoint.offer(first, 0)
    const other = command({ messageId: "b", seq: 1, redelivered: true })
    expect(brief(endpoint.offer(other, 0))).toEqual([["duplicate", other]])
  })

  test("that is new to this connection is handled like any other", () => {
    const endpoint = endpointOf()
    const unseen = command({ messageId: "m", seq: 0, redelivered: true })
    expect(brief(endpoint.offer(unseen, 0))).toEqual([["write", unseen]])
  })
})

describe("a lost command", () => {
  const lost = (about: About) => ({ ...command(about), lost: true })

  test("that was not offered is written in order after its redelivery", () => {
    const endpoint = endpointOf()
    const [zero, one] = [lost({ seq: 0 }), lost({ seq: 1 })]
    const three = lost({ seq: 3, messageId: "m" })
    endpoint.offer(zero, 0)
    endpoint.offer(one, 0)
    endpoint.offer(three, 0)
    // The socket was offered bytes of the first.
    expect(endpoint.withdrawLost([one])).toEqual([three])
    expect(endpoint.heldCommands).toBe(0)
    endpoint.written(zero)
    const again = command({ seq: 3, messageId: "m", redelivered: true })
    expect(endpoint.offer(again, 0)).toEqual([])
    const two = command({ seq: 2 })
    expect(endpoint.offer(two, 0)).toEqual([])
    const oneAgain = command({ seq: 1, redelivered: true })
    expect(brief(endpoint.offer(oneAgain, 0))).toEqual([
      ["write", oneAgain],
      ["write", two],
      ["write", again],
    ])
  })

  test("leaves numbers that were given up in the meantime late, and does not wait for them", () => {
    const endpoint = endpointOf()
    const first = lost({ seq: 0 })
    endpoint.offer(first, 0)
    const third = lost({ seq: 2 })
    endpoint.offer(third, 0)
    expect(brief(endpoint.expire(GAP_TIMEOUT_MS))).toEqual([["write", third]])
    expect(endpoint.withdrawLost([first, third])).toEqual([])
    const second = command({ seq: 1 })
    expect(brief(endpoint.offer(second, 20))).toEqual([["late", second]])
    const [again, last] = [
      command({ seq: 0, redelivered: true }),
      command({ seq: 2, redelivered: true }),
    ]
    expect(endpoint.offer(last, 20)).toEqual([])
    expect(brief(endpoint.offer(again, 20))).toEqual([
      ["write", again],
      ["write", last],
    ])
  })
})

test("the lowest gap can be given up before its time", () => {
  const endpoint = endpointOf()
  expect(endpoint.giveUpGap()).toEqual([])
  const [five, three] = [command({ seq: 5 }), command({ seq: 3 })]
  endpoint.offer(five, 0)
  endpoint.offer(three, 0)
  expect([endpoint.isHeld(three), endpoint.isHeld(command({ seq: 3 }))]).toEqual([true, false])
  expect(brief(endpoint.giveUpGap())).toEqual([["write", three]])
  expect([endpoint.gaps, endpoint.heldCommands]).toEqual([1, 1])
})

describe("a closed endpoint", () => {
  test("settles held commands in order, and all later ones", () => {
    const endpoint = endpointOf()
    const [three, one] = [command({ seq: 3 }), command({ seq: 1 })]
    endpoint.offer(three, 0)
    endpoint.offer(one, 0)
    expect(brief(endpoint.close())).toEqual([
      ["closed", one],
      ["closed", three],
    ])
    for (const about of [{}, { seq: 0 }, { seq: 1, redelivered: true }, { messageId: "m" }]) {
      const after = command(about)
      expect(brief(endpoint.offer(after, 0))).toEqual([["closed", after]])
    }
    expect(endpoint.expire(1_000)).toEqual([])
    expect(endpoint.close()).toEqual([])
  })
})
