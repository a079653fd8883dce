/**
 * What is remembered of lost commands: which of several that are alike a redelivery or a dead
 * letter is taken for, how long, and how many.
 */

import { describe, expect, test } from "bun:test"
import {
  type LostCommand,
  LostCommands,
  type LostState,
  MAX_REMEMBERED,
  REMEMBERED_MS,
} from "../../src/commands/lost-commands.ts"

function lost(state: LostState, about: Partial<LostCommand<string>> = {}): LostCommand<string> {
  return {
    fingerprint: "f",
    copyKey: null,
    mayExpire: false,
    command: state === "unfinished" ? "command" : null,
    forwardedAs: null,
    forwards: 0,
    decided: null,
    state,
    ...about,
  }
}

function commands(...all: LostCommand<string>[]): LostCommands<string> {
  const remembered = new LostCommands<string>()
  for (const each of all) remembered.add(each)
  return remembered
}

describe("of several that are alike", () => {
  test("those never acknowledged are recognised before those that were dropped and those that were acknowledged", () => {
    const all = (["acknowledged", "dropped", "ended", "unfinished"] as const).map((state) =>
      lost(state),
    )
    const remembered = commands(...all)
    const recognised = all.map(() => remembered.recognise("f", null, false)?.state)
    expect(recognised).toEqual(["unfinished", "ended", "dropped", "acknowledged"])
    expect(remembered.recognise("f", null, false)).toBeNull()
    expect(remembered.count).toBe(0)
  })

  test("one that is not alike is none of them", () => {
    expect(commands(lost("ended")).recognise("g", null, false)).toBeNull()
  })
})

describe("a message that was forwarded", () => {
  const forwarded = { commandId: "id", copyKeys: ["id", "id 2"], forwards: 0 }

  test("is the lost one with its key, before one that came without another worker", () => {
    const [direct, same] = [lost("unfinished"), lost("ended", { copyKey: "id" })]
    const remembered = commands(direct, same, lost("unfinished", { copyKey: "other" }))
    expect(remembered.recognise("f", forwarded, false)).toBe(same)
    expect(remembered.recognise("f", forwarded, false)).toBe(direct)
    expect(remembered.recognise("f", forwarded, false)).toBeNull()
  })

  test("and left in this worker's queue since is the one that was taken before", () => {
    const [other, before] = [lost("ended", { copyKey: "id 3" }), lost("ended", { copyKey: "id 2" })]
    expect(commands(other, before).recognise("f", forwarded, false)).toBe(before)
  })

  test("from here is not the command that was lost here after it had been forwarded", () => {
    const remembered = commands(lost("acknowledged", { forwardedAs: "id" }))
    expect(remembered.recognise("f", forwarded, false)).toBeNull()
    expect(remembered.recognise("f", null, false)?.state).toBe("acknowledged")
  })

  test("again after it was given up is not the dead letter that was lost here, which comes with the same count", () => {
    const remembered = commands(lost("acknowledged", { copyKey: "id", forwardedAs: "id" }))
    expect(remembered.recognise("f", { ...forwarded, forwards: 1 }, false)).toBeNull()
    expect(remembered.recognise("f", forwarded, false)?.state).toBe("acknowledged")
  })

  test("after it was given up is the command that was lost where it was to be written", () => {
    const remembered = commands(lost("unfinished", { copyKey: "id" }))
    const recognised = remembered.recognise("f", { ...forwarded, forwards: 1 }, false)
    expect(recognised?.state).toBe("unfinished")
  })

  test("is not one that came by another worker, when it comes without one", () => {
    expect(commands(lost("ended", { copyKey: "id" })).recognise("f", null, false)).toBeNull()
  })
})

test("a message that expired is only one that could expire", () => {
  const mortal = lost("unfinished", { mayExpire: true })
  const remembered = commands(lost("unfinished"), mortal)
  expect(remembered.recognise("f", null, true)).toBe(mortal)
  expect(remembered.recognise("f", null, true)).toBeNull()
})

describe("what is remembered", () => {
  test("is forgotten after its time, unless its outcome is still to come", () => {
    const remembered = commands(
      lost("ended"),
      lost("unfinished"),
      lost("dropped", { fingerprint: "g" }),
    )
    remembered.pass(REMEMBERED_MS - 1)
    expect(remembered.count).toBe(3)
    remembered.pass(1)
    expect(remembered.count).toBe(1)
    remembered.pass(10 * REMEMBERED_MS)
    expect(remembered.recognise("f", null, false)?.state).toBe("unfinished")
  })

  test("outlives an unfinished one that was lost before it by its own time only", () => {
    const remembered = commands(lost("unfinished"))
    remembered.pass(REMEMBERED_MS / 2)
    remembered.add(lost("ended", { fingerprint: "g" }))
    remembered.pass(REMEMBERED_MS / 2)
    expect(remembered.count).toBe(2)
    remembered.pass(REMEMBERED_MS / 2)
    expect(remembered.recognise("g", null, false)).toBeNull()
  })

  test("is bounded: the oldest goes first, but none whose outcome is still to come", () => {
    const remembered = commands(lost("unfinished", { fingerprint: "first" }))
    for (let n = 0; n <= MAX_REMEMBERED; n += 1) {
      remembered.add(lost("acknowledged", { fingerprint: String(n) }))
    }
    expect(remembered.count).toBe(MAX_REMEMBERED)
    expect(remembered.recognise("0", null, false)).toBeNull()
    expect(remembered.recognise("1", null, false)).toBeNull()
    expect(remembered.recognise("2", null, false)).not.toBeNull()
    expect(remembered.recognise("first", null, false)).not.toBeNull()
  })
})
