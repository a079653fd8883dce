/** A fleet query on a scripted channel, with connections that were admitted. */

import type { PublishResult } from "../../src/broker/broker.ts"
import { Counters } from "../../src/counters.ts"
import { Backpressure } from "../../src/device/backpressure.ts"
import type { CloseReason } from "../../src/device/close-reason.ts"
import { Connection, type ConnectionContext } from "../../src/device/connection.ts"
import { Connections } from "../../src/device/connections.ts"
import { UNKNOWN_PEER } from "../../src/device/peer.ts"
import { WrittenIds } from "../../src/device/remembered-ids.ts"
import { UnfinishedLines } from "../../src/device/unfinished-lines.ts"
import type { Channel } from "../../src/fleet/channel.ts"
import type { DeviceView } from "../../src/fleet/device-view.ts"
import { FleetQuery, type FleetQueryFailure } from "../../src/fleet/fleet-query.ts"
import type { Located, Locator } from "../../src/fleet/locator.ts"
import { Members } from "../../src/fleet/members.ts"
import type { Answer, FleetContent } from "../../src/fleet/messages.ts"

export const NOW_MS = 1_750_000_000_000
export const ANSWER_TIMEOUT_MS = 1_000
export const QUESTION_TIMEOUT_MS = 3_000
export const MAX_ASKS = 100
export const INCARNATION = "mb2k3f9zq7x2"
export const SELF = { worker: "gw.0", incarnation: INCARNATION }
/** A connection of that worker. */
export const at = (worker: string, counter = "1") => `${worker}.${INCARNATION}.${counter}`
export const ALL = { prefix: "", after: "", limit: 100 }

export type Said = { to: string; type: string; ask: number } & Record<string, unknown>

/** Keeps sent messages until the test settles them. */
export class ScriptedChannel {
  open = true
  readonly said: Said[] = []
  readonly #unsettled: (((result: PublishResult) => void) | undefined)[] = []

  broadcast(content: FleetContent, settled?: (result: PublishResult) => void): void {
    this.said.push({ to: "all", ...content } as Said)
    this.#unsettled.push(settled)
  }

  tell(to: { worker: string; incarnation: string }, content: FleetContent, settled?: () => void) {
    this.said.push({ to: `${to.worker}.${to.incarnation}`, ...content } as Said)
    this.#unsettled.push(settled)
  }

  settle(result: PublishResult): void {
    this.#unsettled.shift()?.(result)
  }
}

export class Subject {
  nowMs = NOW_MS
  steadyMs = 5_000
  readonly counters = new Counters()
  /** Look-ups that the fleet query has ended. */
  readonly forgotten: string[] = []
  readonly channel = new ScriptedChannel()
  readonly members = new Members()
  readonly located: { id: string; trusting: boolean; found: (place: Located) => void }[] = []
  readonly closed: (readonly [string, CloseReason])[] = []
  readonly connections = new Connections({
    handshakeTimeoutMs: 1,
    identifyTimeoutMs: 1,
    idleTimeoutMs: 1,
  })
  readonly fleetQuery: FleetQuery
  readonly #context: ConnectionContext = {
    limits: {
      framing: "line",
      maxLineBytes: 10,
      maxOutgoingBytes: 10,
      slowDeviceTimeoutMs: 1,
      windowCommands: 1,
      gapTimeoutMs: 1,
    },
    counters: this.counters,
    backpressure: new Backpressure(1, { hasRoom: true }, () => undefined),
    unfinishedLines: new UnfinishedLines({ maxPartialBytes: 1e9, lineTimeoutMs: 1e9 }),
    writtenIds: new WrittenIds(),
    scratch: new Uint8Array(10),
    nowMs: () => this.nowMs,
    steadyMs: () => this.steadyMs,
    lines: { take: () => undefined },
    flushSoon: () => undefined,
    commandsWait: () => undefined,
    repliesWait: () => undefined,
    rateOf: () => null,
    rateReached: () => undefined,
    lifetimeMs: () => Number.POSITIVE_INFINITY,
    aged: () => undefined,
    goodbye: null,
    closed: (connection, reason) => {
      this.connections.leave(connection)
      this.closed.push([connection.id, reason])
    },
  }

  constructor(...workers: string[]) {
    for (const worker of workers) this.members.heard(worker, INCARNATION, NOW_MS)
    const locator = {
      locate: (id: string, trusting: boolean, found: (place: Located) => void) =>
        void this.located.push({ id, trusting, found }),
      forget: (id: string) => void this.forgotten.push(id),
    }
    this.fleetQuery = new FleetQuery(
      SELF,
      this.channel as unknown as Channel,
      this.members,
      this.connections,
      locator as unknown as Locator,
      { nowMs: () => this.nowMs, steadyMs: () => this.steadyMs, counters: this.counters },
    )
  }

  /** A device that is here. */
  hold(deviceId: string, counter: string = deviceId): Connection {
    const socket = {
      write: () => 0,
      shutdown: () => undefined,
      terminate: () => undefined,
      pause: () => undefined,
      resume: () => undefined,
    }
    const connection = new Connection(at("gw.0", counter), socket, "192.0.2.1", this.#context)
    this.connections.add(connection)
    const peer = { ...UNKNOWN_PEER, tlsVersion: "TLSv1.3" }
    connection.admit(deviceId, NOW_MS, peer)
    this.connections.enter(connection)
    return connection
  }

  /** Another worker answers with its devices. */
  listed(from: string, devices: string[], total = devices.length, ask = 0): void {
    const rows = devices.map((id) => viewOf(from, id))
    this.answer({ type: "listed", from, incarnation: INCARNATION, ask, devices: rows, total })
  }

  answer(answer: Answer): void {
    this.fleetQuery.answered(answer)
  }

  pass(ms: number): void {
    this.nowMs += ms
    this.steadyMs += ms
    this.fleetQuery.sweep()
  }
}

/** Another worker's view of a device that it holds. */
export function viewOf(worker: string, deviceId: string): Record<string, unknown> & DeviceView {
  return {
    device_id: deviceId,
    connection_id: at(worker),
    epoch: NOW_MS,
    instance: "gw",
    worker,
    state: "open",
    remote_address: "192.0.2.2",
    tls_version: "TLSv1.2",
    lines_in: 1,
    lines_out: 2,
    last_activity: NOW_MS,
    reading_paused_by: [],
    outgoing_bytes: 0,
    reorder: { held: 0, gaps: 0 },
  }
}

/** Fills with what the promise resolves to. */
export function watched<T>(promise: Promise<T>): T[] {
  const results: T[] = []
  void promise.then((result) => results.push(result))
  return results
}

/** Lets everything happen that needs no time. */
export async function settled(): Promise<void> {
  for (let n = 0; n < 20; n += 1) await Promise.resolve()
}

export function idsOf(list: { devices: readonly DeviceView[] } | FleetQueryFailure): string[] {
  return typeof list === "string" ? [list] : list.devices.map(({ device_id }) => device_id)
}
