import { beforeEach, describe, expect, test } from "bun:test"
import { fleetQueue } from "../../../src/broker/topology.ts"
import {
  type HeldForward,
  HeldForwards,
  SLOW_MS,
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
  let forwards: HeldForwards
  const ids = { near: new ConnectionIds(NEAR), far: new ConnectionIds(FAR) }

  beforeEach(() => {
    nowMs = 0
    published = []
    answers = []
    waits = []
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

  function send(id: string, to: "near" | "far" = "near"): HeldForward {
    return forwards.send(heldCommand(id, { deviceId: id }), ids[to].mint(), {
      wanted: () => true,
      answered: (forward, { outcome }: Receipt) => {
        answers.push(`${forward.command.id} ${outcome}`)
        forwards.end(forward)
      },
    })
  }

  const sendMany = (count: number, prefix = "") =>
    Array.from({ length: count }, (_, n) => send(`${prefix}${n}`))

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
    sendMany(MAX_ON_THE_WAY + 2)
    send("other", "far")
    expect(commandsTo(NEAR)).toHaveLength(MAX_ON_THE_WAY)
    expect(commandsTo(FAR)).toEqual(["other"])
  })

  test("each receipt lets the next one go, in order", () => {
    sendMany(MAX_ON_THE_WAY + 2)
    expect(deliverReceipt(published[2])).toBe(true)
    expect(answers).toEqual(["2 written"])
    expect(commandsTo(NEAR).slice(MAX_ON_THE_WAY)).toEqual([`${MAX_ON_THE_WAY}`])
    // It arrives twice when the forward was repeated.
    expect(deliverReceipt(published[2])).toBe(false)
    expect(commandsTo(NEAR)).toHaveLength(MAX_ON_THE_WAY + 1)
    deliverReceipt(published[0])
    expect(commandsTo(NEAR).slice(MAX_ON_THE_WAY + 1)).toEqual([`${MAX_ON_THE_WAY + 1}`])
  })

  test("one that is ended while it waits is not sent", () => {
    const sent = sendMany(MAX_ON_THE_WAY + 2)
    forwards.end(sent[MAX_ON_THE_WAY] as HeldForward)
    forwards.end(sent[0] as HeldForward)
    forwards.end(sent[0] as HeldForward)
    forwards.sweep(nowMs)
    expect(commandsTo(NEAR).slice(MAX_ON_THE_WAY)).toEqual([`${MAX_ON_THE_WAY + 1}`])
  })

  test("the next one of a device goes before those of devices that wait", () => {
    const connection = ids.near.mint()
    forwards.send(heldCommand("first"), connection, {
      wanted: () => true,
      answered: (forward) => {
        forwards.end(forward)
        forwards.send(heldCommand("second"), connection, {
          wanted: () => true,
          answered: () => undefined,
        })
      },
    })
    sendMany(MAX_ON_THE_WAY)
    deliverReceipt(published[0])
    expect(commandsTo(NEAR).slice(MAX_ON_THE_WAY)).toEqual(["second"])
  })

  test("the workers of those that wait are told so", () => {
    const sent = sendMany(7 * MAX_ON_THE_WAY)
    // Each time the devices of those on the way are slow, and as many others go.
    for (nowMs = SLOW_MS; nowMs < WAITS_MS; nowMs += SLOW_MS) forwards.sweep(nowMs)
    expect(waits).toEqual([])
    forwards.sweep(nowMs)
    forwards.sweep(nowMs)
    expect(waits).toEqual(sent.slice(-MAX_ON_THE_WAY).map(({ connectionId }) => connectionId))
  })

  test("slow devices hold up those of others for a moment only", () => {
    sendMany(MAX_ON_THE_WAY, "slow-")
    send("quick")
    nowMs = SLOW_MS - 1
    forwards.sweep(nowMs)
    expect(commandsTo(NEAR)).not.toContain("quick")
    nowMs = SLOW_MS
    forwards.sweep(nowMs)
    expect(commandsTo(NEAR)).toContain("quick")
    // A late receipt counts, and lets no further one go.
    sendMany(MAX_ON_THE_WAY, "late-")
    const before = published.length
    deliverReceipt(published[0])
    expect(answers).toEqual(["slow-0 written"])
    expect(published).toHaveLength(before)
  })

  test("all to a process that has ended are answered", async () => {
    sendMany(MAX_ON_THE_WAY + 2)
    ended.add(NEAR.worker)
    for (const forward of published.slice(0, 2)) forward.done("returned")
    await Promise.resolve()
    expect(answers.toSorted()).toEqual(
      ["0", "1", `${MAX_ON_THE_WAY}`, `${MAX_ON_THE_WAY + 1}`].map((id) => `${id} closed`).sort(),
    )
  })

  test("one without a receipt is sent again with the same ids", () => {
    send("lost")
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
})
