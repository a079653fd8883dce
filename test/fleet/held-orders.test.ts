/**
 * Held commands in every order of events: the real code of several workers on a simulated broker,
 * with devices that come and go, connections to the broker that are lost, and workers that are
 * killed. In the end the devices are connected for good.
 *
 *   - Each command is written, and its back-end has a receipt that says so.
 *   - Without losses it is written once and has one receipt.
 *   - Lost connections to the broker and drains repeat no line on one connection, and the receipt of
 *     a second delivery says "duplicate". Only a worker that is killed may have written a command
 *     and reported it to no other worker.
 */

import { test } from "bun:test"
import fc from "fast-check"
import { checkAsync } from "../support/property.ts"
import { REPLIES, type SentCommand, SimulatedFleet } from "../support/simulated-fleet.ts"
import { DEFAULT_LIMITS } from "../support/simulated-worker.ts"

const RUNS = 60
const HOLD_MS = 600_000_000
const NAMES = ["a", "b"]
/** Longer than workers take to get acquainted, and than a shard takes to change its keeper. */
const ACQUAINTED_MS = 30_000
const WORKERS = 3

const slot = fc.nat(WORKERS - 1)
const name = fc.constantFrom(...NAMES)
const calmAction = fc.oneof(
  { weight: 5, arbitrary: fc.record({ kind: fc.constant("hold" as const), name }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("connect" as const), slot, name }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("hang_up" as const), name }) },
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant("run" as const),
      count: fc.integer({ min: 1, max: 60 }),
      seed: fc.nat(),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("pass" as const), ms: fc.nat(3_000) }) },
)
const loss = fc.oneof(
  fc.record({
    kind: fc.constant("cut" as const),
    slot,
    links: fc.constantFrom(
      ["publishing"] as const,
      ["consuming"] as const,
      ["publishing", "consuming"] as const,
    ),
  }),
)
const kill = fc.record({ kind: fc.constant("kill" as const), slot })
const drain = fc.record({ kind: fc.constant("drain" as const), slot })

type Action =
  typeof calmAction extends fc.Arbitrary<infer A>
    ?
        | A
        | (typeof loss extends fc.Arbitrary<infer L> ? L : never)
        | { kind: "kill" | "drain"; slot: number }
    : never

function perform(fleet: SimulatedFleet, action: Action): void {
  switch (action.kind) {
    case "hold":
      fleet.publish({
        ...{ deviceId: action.name, holdMs: HOLD_MS, wantsReceipt: true },
        messageId: `m${fleet.commands.length}`,
      })
      break
    case "connect":
      fleet.connect(action.slot, action.name)
      break
    case "hang_up":
      for (const seen of fleet.openOf(action.name)) fleet.hangUp(seen)
      break
    case "run":
      fleet.run(action.count, action.seed)
      break
    case "pass":
      fleet.pass(action.ms)
      break
    case "cut":
      fleet.cut(action.slot, action.links)
      break
    case "kill":
      fleet.kill(action.slot)
      fleet.start(action.slot)
      break
    case "drain":
      fleet.drain(action.slot)
      break
  }
}

/** Starts all workers again and connects all devices for good. */
function finish(fleet: SimulatedFleet): void {
  // Those that drain end.
  fleet.pass(ACQUAINTED_MS)
  for (let at = 0; at < WORKERS; at += 1) fleet.start(at)
  fleet.pass(ACQUAINTED_MS)
  for (const each of NAMES) {
    for (const seen of fleet.openOf(each)) fleet.readAll(seen)
    const serving = fleet.workers.findIndex(({ state }) => state === "serving")
    if (fleet.openOf(each).length === 0) fleet.connect(serving, each)
  }
  fleet.pass(ACQUAINTED_MS)
  fleet.calm()
}

function wiresOf(fleet: SimulatedFleet, { body, deviceId }: SentCommand): number {
  return fleet.connections
    .filter((seen) => seen.name === deviceId)
    .flatMap(({ device }) => device.socket.lines.filter((line) => line === body)).length
}

/** Whether one connection has got it more than once. */
function hasRepeat(fleet: SimulatedFleet, { body, deviceId }: SentCommand): boolean {
  return fleet.connections
    .filter((seen) => seen.name === deviceId)
    .some(({ device }) => device.socket.lines.filter((line) => line === body).length > 1)
}

function receiptsOf(fleet: SimulatedFleet, { number }: SentCommand): string[] {
  return fleet.broker
    .waiting(REPLIES)
    .filter(({ properties }) => properties.correlationId === String(number))
    .map(({ body }) => (JSON.parse(Buffer.from(body).toString()) as { outcome: string }).outcome)
}

function verify(fleet: SimulatedFleet, actions: readonly Action[]): void {
  const happened = new Set(actions.map(({ kind }) => kind))
  const isLossless = !happened.has("cut") && !happened.has("kill") && !happened.has("drain")
  for (const command of fleet.commands) {
    const wires = wiresOf(fleet, command)
    const receipts = receiptsOf(fleet, command)
    const about = `${command.body} for ${command.deviceId}: on the wire ${wires} times, ${receipts}`
    if (wires === 0 || receipts.length === 0) throw new Error(`lost: ${about}`)
    const isOther = (outcome: string) =>
      outcome !== "written" && (isLossless || outcome !== "duplicate")
    if (!receipts.includes("written") || receipts.some(isOther)) {
      throw new Error(`not written: ${about}`)
    }
    const isRepeated = isLossless ? wires > 1 : hasRepeat(fleet, command)
    if (isRepeated && !happened.has("kill")) throw new Error(`repeated: ${about}`)
    if (isLossless && receipts.length > 1) throw new Error(`receipts: ${about}`)
  }
}

test.each([
  ["devices that come and go", calmAction],
  [
    "lost connections to the broker",
    fc.oneof({ weight: 8, arbitrary: calmAction }, { weight: 1, arbitrary: loss }),
  ],
  [
    "workers that are killed or drained",
    fc.oneof(
      { weight: 10, arbitrary: calmAction },
      { weight: 1, arbitrary: loss },
      { weight: 1, arbitrary: kill },
      { weight: 1, arbitrary: drain },
    ),
  ],
] as const)(
  "held commands are written, with %s",
  async (_, action) => {
    await checkAsync(
      fc.asyncProperty(
        fc.array(action as fc.Arbitrary<Action>, { maxLength: 40, size: "max" }),
        // With the small one, held commands wait for each other's receipts.
        fc.constantFrom(8, DEFAULT_LIMITS.prefetch),
        async (actions, prefetch) => {
          const fleet = new SimulatedFleet({ workers: WORKERS, limits: { prefetch } })
          fleet.pass(3_000)
          for (const each of actions) perform(fleet, each)
          finish(fleet)
          verify(fleet, actions)
        },
      ),
      RUNS,
    )
  },
  120_000,
)
