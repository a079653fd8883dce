import { beforeEach, describe, expect, test } from "bun:test"
import { fleetQueue } from "../../../src/broker/topology.ts"
import {
  type HeldForward,
  HeldForwards,
  SLOW_MS,
  type Turn,
  WAITS_MS,
} from "../../../src/commands/hold/held-forwards.ts"
import { type Receipt, receipt } from "../../../src/commands/outcomes.ts"
import type { Forward } from "../../../src/commands/router.ts"
import { ConnectionIds, incarnation, type WorkerProcess } from "../../../src/device/ids.ts"
import { heldCommand } from "./held-commands.ts"

const MAX_ON_THE_WAY = 3

const NEAR = { worker: "near.0", incarnation: incarnation(1, 0.1) }
const FAR = { worker: "far.0", incarnation: incarnation(2, 0.2) }

describe("HeldForwards", () => {
  let nowMs = 0
  let published: Forward[] = []
  let ended: Set<string>
  let answers: string[] = []
  let waits: string[] = []
  let begun: string[] = []
  let forwards: HeldForwards
  const ids = { near: new ConnectionIds(NEAR), far: new ConnectionIds(FAR) }

  beforeEach(() => {
    nowMs = 0
    published = []
    answers = []
    waits = []
    begun = []
    ended = new Set()
    forwards = new HeldForwards(
      {
        forward: (forward) => published.push(forward),
        forwardedProperties: ({ headers = {} }, { commandId }) => ({
          headers: { ...headers, command_id: commandId },
        }),
      },
      {
        mayLive: ({ worker }: WorkerProcess) => !ended.has(worker),
        maxOnTheWay: MAX_ON_THE_WAY,
        waits: (connectionId) => waits.push(connectionId),
        replyQueue: "answers",
        maxLineBytes: 1_024,
        nowMs: () => nowMs,
        steadyMs: () => nowMs,
      },
    )
  })

  function sendTo(connectionId: string, id: string): HeldForward {
    return forwards.send(heldCommand(id, { deviceId: id }), connectionId, {
      wanted: () => true,
      answered: (forward, { outcome }: Receipt) => {
        answers.push(`${forward.command.id} ${outcome}`)
        forwards.end(forward)
      },
    })
  }

  /** What the shard does for a device. */
  function offer(id: string, to: "near" | "far" = "near"): HeldForward | Turn {
    const connectionId = ids[to].mint()
    if (forwards.hasRoom(connectionId)) return sendTo(connectionId, id)
    return forwards.wait(connectionId, () => {
      begun.push(id)
      sendTo(connectionId, id)
    })
  }

  const offerMany = (count: number, prefix = "") =>
    Array.from({ length: count }, (_, n) => offer(`${prefix}${n}`))

  const commandsTo = (process: WorkerProcess) =>
    published
      .filter(({ queue }) => queue === fleetQueue(process))
      .map(({ properties }) => properties.headers?.["command_id"])

  function deliverReceipt(forward: Forward | undefined): boolean {
    const written = receipt("written", "", null, null, nowMs)
    const { correlationId = "" } = forward?.properties ?? {}
    const body = Buffer.from(JSON.stringify(written))
    const delivery = { queue: "answers", redelivered: false, lost: false, body }
    const settled = { acknowledge: () => undefined, settled: false }
    return forwards.deliverReceipt({ ...delivery, ...settled, properties: { correlationId } })
  }

  test("only so many are on the way to one process, and others go on", () => {
    offerMany(MAX_ON_THE_WAY + 2)
    offer("other", "far")
    expect(commandsTo(NEAR)).toHaveLength(MAX_ON_THE_WAY)
    expect(commandsTo(FAR)).toEqual(["other"])
  })

  test("each receipt begins the next turn, in order", () => {
    offerMany(MAX_ON_THE_WAY + 2)
    expect(deliverReceipt(published[2])).toBe(true)
    expect(answers).toEqual(["2 written"])
    expect(begun).toEqual([`${MAX_ON_THE_WAY}`])
    // It arrives twice when the forward was repeated.
    expect(deliverReceipt(published[2])).toBe(false)
    expect(begun).toHaveLength(1)
    deliverReceipt(published[0])
    expect(begun).toEqual([`${MAX_ON_THE_WAY}`, `${MAX_ON_THE_WAY + 1}`])
  })

  test("one that is ended leaves room, and one that does not wait any more gets no turn", () => {
    const offered = offerMany(MAX_ON_THE_WAY + 2)
    forwards.leave(offered[MAX_ON_THE_WAY] as Turn)
    forwards.end(offered[0] as HeldForward)
    forwards.end(offered[0] as HeldForward)
    forwards.sweep(nowMs)
    expect(begun).toEqual([`${MAX_ON_THE_WAY + 1}`])
  })

  test("the next one of a device goes before the turns of others", () => {
    const connection = ids.near.mint()
    forwards.send(heldCommand("first"), connection, {
      wanted: () => true,
      answered: (forward) => {
        forwards.end(forward)
        expect(forwards.hasRoom(connection)).toBe(true)
        sendTo(connection, "second")
      },
    })
    offerMany(MAX_ON_THE_WAY)
    deliverReceipt(published[0])
    expect(commandsTo(NEAR).slice(MAX_ON_THE_WAY)).toEqual(["second"])
    expect(begun).toEqual([])
  })

  test("the workers of those that wait are told so", () => {
    const rounds = WAITS_MS / SLOW_MS + 2
    const offered = offerMany(rounds * MAX_ON_THE_WAY)
    // Each time the devices of those on the way are slow, and as many others go.
    for (nowMs = SLOW_MS; nowMs < WAITS_MS; nowMs += SLOW_MS) forwards.sweep(nowMs)
    expect(waits).toEqual([])
    forwards.sweep(nowMs)
    forwards.sweep(nowMs)
    expect(waits).toEqual(offered.slice(-MAX_ON_THE_WAY).map(({ connectionId }) => connectionId))
  })

  test("slow devices hold up those of others for a moment only", () => {
    offerMany(MAX_ON_THE_WAY, "slow-")
    offer("quick")
    nowMs = SLOW_MS - 1
    forwards.sweep(nowMs)
    expect(begun).toEqual([])
    nowMs = SLOW_MS
    forwards.sweep(nowMs)
    expect(begun).toEqual(["quick"])
    // A late receipt counts, and begins no further turn.
    offerMany(MAX_ON_THE_WAY, "late-")
    deliverReceipt(published[0])
    expect(answers).toEqual(["slow-0 written"])
    expect(begun).toEqual(["quick"])
  })

  test("all to a process that has ended are answered", async () => {
    offerMany(MAX_ON_THE_WAY + 2)
    ended.add(NEAR.worker)
    for (const forward of published.slice(0, 2)) forward.done("returned")
    await Promise.resolve()
    expect(answers.toSorted()).toEqual(
      ["0", "1", `${MAX_ON_THE_WAY}`, `${MAX_ON_THE_WAY + 1}`].map((id) => `${id} closed`).sort(),
    )
  })

  test("one without a receipt is sent again with the same ids", () => {
    offer("lost")
    nowMs = 5_000
    forwards.sweep(nowMs)
    expect(published).toHaveLength(2)
    expect(published[1]?.properties).toEqual(published[0]?.properties ?? {})
    deliverReceipt(published[1])
    nowMs = 10_000
    forwards.sweep(nowMs)
    expect(published).toHaveLength(2)
    expect(answers).toEqual(["lost written"])
  })

  test("one that was not published, or not again, is sent again and has no outcome before", () => {
    offer("first")
    published[0]?.done("withdrawn")
    expect(answers).toEqual([])
    forwards.sweep(nowMs)
    expect(published).toHaveLength(2)
    deliverReceipt(published[0])
    expect(answers).toEqual(["first written"])
  })
})
