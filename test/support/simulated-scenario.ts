/**
 * Scenarios: what happens to a simulated fleet, as a list of actions that fast-check makes and
 * shrinks, and their performance. Checks nothing; what it notes on the way is for whoever does.
 */

import fc from "fast-check"
import { PRESENCE_EXCHANGE } from "../../src/broker/topology.ts"
import {
  queueOf,
  type SeenConnection,
  type SentCommand,
  SimulatedFleet,
} from "./simulated-fleet.ts"
import { QUEUES } from "./simulated-worker.ts"

/** Few, so that scenarios meet the same again. */
export const NAMES = ["a", "b"] as const
const MESSAGE_IDS = ["m0", "m1"]
export const MAX_ACTIONS = 40
/** Takes every message of the presence exchange. */
export const PRESENCE = "presence"

const LINKS = {
  publishing: ["publishing"],
  consuming: ["consuming"],
  both: ["publishing", "consuming"],
} as const

const slot = fc.nat({ max: 3 })
const name = fc.constantFrom(...NAMES)
/** Which of the connections there have been, counted around. */
const nth = fc.nat({ max: 7 })

/** A value in all but one of `freq` cases. */
function mostly<T>(arbitrary: fc.Arbitrary<T>, freq: number): fc.Arbitrary<T | null> {
  return fc.option(arbitrary, { nil: null, freq })
}

/** Null in all but one of `freq` cases. */
function seldom<T>(arbitrary: fc.Arbitrary<T>, freq: number): fc.Arbitrary<T | null> {
  return fc
    .nat({ max: freq - 1 })
    .chain((drawn) => (drawn === freq - 1 ? arbitrary : fc.constant(null)))
}

const supersedeKey = seldom(fc.constantFrom("k", "l"), 3)
const asks = seldom(fc.constantFrom("next" as const, "r" as const), 4)

const command = fc.record({
  seq: seldom(fc.nat({ max: 3 }), 3),
  messageId: seldom(fc.constantFrom(...MESSAGE_IDS), 3),
  expirationMs: seldom(fc.constantFrom(0, 300, 5_000, 20_000, 40_000), 4),
  dated: fc.boolean(),
  wantsReceipt: fc.boolean(),
  supersedeKey,
  asks,
})

function of<A extends string, T extends object>(
  act: A,
  fields: { [K in keyof T]: fc.Arbitrary<T[K]> },
) {
  return fc.record({ kind: fc.constant(act), ...fields } as {
    [K in keyof (T & { kind: A })]: fc.Arbitrary<(T & { kind: A })[K]>
  })
}

const publishToDevice = of("publish_to_device", { name, command })
const publishToConnection = of("publish_to_connection", { nth, command })
/** In the queue of a worker, whoever has the device. */
const publishToWorker = of("publish_to_worker", { slot, name, command })
const send = of("send", {
  slot,
  to: fc.oneof(name, nth),
  messageId: seldom(fc.constantFrom(...MESSAGE_IDS), 3),
  ttlMs: seldom(fc.constantFrom(300, 5_000), 3),
  supersedeKey,
  asks,
})
const connect = of("connect", { slot, name: mostly(name, 4) })
const hangUp = of("hang_up", { nth })
/** The device sends a line. */
const say = of("say", { nth, line: fc.constantFrom("r", "other") })
/** The device reads so many bytes more. */
const read = of("read", { nth, room: fc.constantFrom(0, 1, 2, 4, Number.POSITIVE_INFINITY) })
const cut = of("cut", {
  slot,
  links: fc.constantFrom("publishing", "consuming", "both"),
  first: fc.constantFrom("client", "broker"),
})
const kill = of("kill", { slot })
const start = of("start", { slot })
const drain = of("drain", { slot })
// Mostly few, so that what follows comes in the middle of something.
const run = of("run", {
  count: fc.oneof({ weight: 3, arbitrary: fc.nat({ max: 8 }) }, fc.nat({ max: 40 })),
  seed: fc.integer(),
})
const pass = of("pass", { ms: fc.constantFrom(0, 250, 700, 2_500, 16_000) })
const jump = of("jump", { ms: fc.constantFrom(1, 700, 3_000, 16_000) })

const action = fc.oneof(
  { weight: 5, arbitrary: publishToDevice },
  { weight: 3, arbitrary: publishToConnection },
  { weight: 2, arbitrary: publishToWorker },
  { weight: 2, arbitrary: send },
  { weight: 5, arbitrary: connect },
  { weight: 1, arbitrary: hangUp },
  { weight: 3, arbitrary: say },
  { weight: 3, arbitrary: read },
  { weight: 4, arbitrary: cut },
  { weight: 1, arbitrary: kill },
  { weight: 2, arbitrary: start },
  { weight: 1, arbitrary: drain },
  { weight: 9, arbitrary: run },
  { weight: 3, arbitrary: pass },
  { weight: 1, arbitrary: jump },
)

type Made<T> = T extends fc.Arbitrary<infer A> ? A : never
export type Action = Made<typeof action>

const everything = fc.record({
  workers: fc.integer({ min: 1, max: 4 }),
  /** Whether the devices read nothing at first. */
  stalled: fc.constant(false as boolean),
  /** Policies of the operator's on `to_device` and on the queues of the workers. */
  deliveryLimit: seldom(fc.constantFrom(0, 1, 2), 3),
  maxLength: seldom(fc.constantFrom(1, 4), 8),
  /** Whether workers that have ended are started again at last. */
  restored: fc.boolean(),
  confirmsInOrder: fc.boolean(),
  /** Where the devices are at first. */
  placed: fc.array(mostly(slot, 4), { minLength: NAMES.length, maxLength: NAMES.length }),
  // "max", since short ones are rarely of any interest.
  actions: fc.array(action, { maxLength: MAX_ACTIONS, size: "max" }),
})
/**
 * Commands that wait for a device that reads little, with connections to the broker that are lost
 * meanwhile.
 */
const slowDevices = fc.record({
  workers: fc.integer({ min: 1, max: 2 }),
  stalled: fc.constant(true as boolean),
  deliveryLimit: seldom(fc.constantFrom(0, 1, 2), 4),
  maxLength: fc.constant(null),
  restored: fc.constant(true),
  confirmsInOrder: fc.boolean(),
  placed: fc.array(slot, { minLength: NAMES.length, maxLength: NAMES.length }),
  actions: fc.array(
    fc.oneof(
      { weight: 6, arbitrary: publishToDevice },
      { weight: 6, arbitrary: publishToConnection },
      { weight: 1, arbitrary: publishToWorker },
      { weight: 4, arbitrary: cut },
      { weight: 4, arbitrary: read },
      { weight: 2, arbitrary: say },
      { weight: 1, arbitrary: connect },
      { weight: 1, arbitrary: hangUp },
      { weight: 8, arbitrary: run },
      { weight: 4, arbitrary: pass },
      { weight: 1, arbitrary: jump },
    ),
    { maxLength: MAX_ACTIONS, size: "max" },
  ),
})

export const scenario: fc.Arbitrary<Scenario> = fc.oneof(
  { weight: 2, arbitrary: everything },
  { weight: 1, arbitrary: slowDevices },
)
export type Scenario = Made<typeof everything>

/**
 * A command that was sent while its connection was there, everybody knew it, and nothing was on its
 * way.
 */
export interface PlainCase {
  readonly on: SeenConnection
  /** What had been lost by then. */
  readonly losses: number
}

export interface Performed {
  readonly fleet: SimulatedFleet
  readonly plain: ReadonlyMap<SentCommand, PlainCase>
  readonly killed: boolean
  readonly jumped: boolean
  /** The broker may have given up what waited in a queue. */
  readonly limited: boolean
  /** When the last action was over. */
  readonly lastActionAtMs: number
}

/**
 * Performs a scenario, and lets time pass until no command is left anywhere. Throws when some are.
 */
export function perform(scenario: Scenario, trace: (what: string) => void): Performed {
  const { workers, stalled, restored, confirmsInOrder, deliveryLimit, maxLength, placed, actions } =
    scenario
  const fleet = new SimulatedFleet({ workers, confirmsInOrder, trace })
  // The queues are there before any back-end publishes.
  fleet.settle()
  listenToPresence(fleet)
  for (const queue of [QUEUES.toDeviceQueue, ...fleet.workers.map((_, slot) => queueOf(slot))]) {
    if (deliveryLimit !== null) fleet.broker.setPolicy(queue, { "delivery-limit": deliveryLimit })
    if (maxLength !== null) fleet.broker.setPolicy(queue, { "max-length": maxLength })
  }
  for (const [n, name] of NAMES.entries()) {
    const slot = placed[n]
    const seen = typeof slot === "number" ? fleet.connect(slot % workers, name) : null
    if (seen !== null && stalled) seen.device.socket.room = 0
  }
  fleet.settle()
  const plain = new Map<SentCommand, PlainCase>()
  for (const each of actions) {
    trace(`== ${JSON.stringify(each)}`)
    const sent = fleet.commands.length
    const quiet = fleet.pending().length === 0
    act(fleet, each, workers)
    for (const command of fleet.commands.slice(sent)) {
      const id = command.connectionId ?? command.deviceId
      const open = fleet.connections.filter(
        (seen) => (seen.id === id || seen.name === id) && fleet.isOpen(seen),
      )
      const [on] = open
      if (on !== undefined && open.length === 1 && quiet) {
        plain.set(command, { on, losses: fleet.losses })
      }
    }
  }
  trace("== the last action is over")
  while (fleet.workers.some(({ state }) => state === "draining")) fleet.pass(1_000)
  const nobodyIsLeft = fleet.workers.every(({ state }) => state === "gone")
  for (let slot = 0; slot < workers; slot += 1) {
    if (restored || (nobodyIsLeft && slot === 0)) fleet.start(slot)
  }
  const lastActionAtMs = fleet.nowMs
  fleet.calm()
  const killed = actions.some((each) => each.kind === "kill")
  const jumped = actions.some((each) => each.kind === "jump")
  return { fleet, plain, killed, jumped, limited: maxLength !== null, lastActionAtMs }
}

function act(fleet: SimulatedFleet, action: Action, workers: number): void {
  const at = (slot: number) => slot % workers
  const connection = (nth: number) => fleet.connections[nth % Math.max(1, fleet.connections.length)]
  switch (action.kind) {
    case "publish_to_device":
      fleet.publish({ deviceId: action.name, ...action.command })
      break
    case "publish_to_connection": {
      const to = connection(action.nth)
      if (to !== undefined) fleet.publish({ connectionId: to.id, ...action.command })
      break
    }
    case "publish_to_worker": {
      const queue = queueOf(at(action.slot))
      fleet.publish({ deviceId: action.name, queue, ...action.command })
      break
    }
    case "send": {
      const { to, messageId, ttlMs, supersedeKey, asks } = action
      const id = typeof to === "string" ? to : connection(to)?.id
      if (id !== undefined)
        fleet.send(at(action.slot), id, { messageId, ttlMs, supersedeKey, asks })
      break
    }
    case "connect":
      fleet.connect(at(action.slot), action.name)
      break
    case "hang_up": {
      const seen = connection(action.nth)
      if (seen !== undefined) fleet.hangUp(seen)
      break
    }
    case "say": {
      const seen = connection(action.nth)
      if (seen !== undefined) fleet.says(seen, action.line)
      break
    }
    case "read": {
      const seen = connection(action.nth)
      if (seen !== undefined) seen.worker.read(seen.device, action.room)
      break
    }
    case "cut":
      fleet.cut(at(action.slot), LINKS[action.links], action.first)
      break
    case "kill":
      fleet.kill(at(action.slot))
      break
    case "start":
      fleet.start(at(action.slot))
      break
    case "drain":
      fleet.drain(at(action.slot))
      break
    case "run":
      fleet.run(action.count, action.seed)
      break
    case "pass":
      fleet.pass(action.ms)
      break
    case "jump":
      fleet.advance(action.ms)
      break
  }
}

function listenToPresence(fleet: SimulatedFleet): void {
  const queue = {
    name: PRESENCE,
    durable: true,
    arguments: {},
    boundTo: [{ exchange: PRESENCE_EXCHANGE, routingKey: "#" }],
  }
  fleet.broker.declare({ exchanges: [], queues: [queue] })
}
