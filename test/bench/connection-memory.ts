/**
 * What the gateway's own objects hold for one connection, part by part: the real classes in many
 * copies, over a socket that does nothing, by the engine's own count of its heap. TLS, the kernel
 * and the engine's socket are not in it; the bare server of the admission benches has those alone.
 */

import { heapStats } from "bun:jsc"
import { Counters } from "../../src/counters.ts"
import { Backpressure } from "../../src/device/backpressure.ts"
import { Connection, type ConnectionContext } from "../../src/device/connection.ts"
import { Connections } from "../../src/device/connections.ts"
import { ConnectionIds } from "../../src/device/ids.ts"
import { BATCH_BYTES } from "../../src/device/outgoing.ts"
import { type DeviceSocket, UNKNOWN_PEER } from "../../src/device/peer.ts"
import { WrittenIds } from "../../src/device/remembered-ids.ts"
import { UnfinishedLines } from "../../src/device/unfinished-lines.ts"
import { testCommand } from "../support/commands.ts"
import { type BenchResult, round } from "./harness.ts"

export interface ConnectionMemoryParameters {
  readonly connections: number
}

const SOCKET: DeviceSocket = {
  write: (bytes) => bytes.length,
  shutdown: () => undefined,
  terminate: () => undefined,
  pause: () => undefined,
  resume: () => undefined,
}
const DEADLINES = { handshakeTimeoutMs: 1e9, identifyTimeoutMs: 1e9, idleTimeoutMs: 1e9 }
const LIMITS = {
  framing: "line" as const,
  maxLineBytes: 65_536,
  maxOutgoingBytes: 1_048_576,
  slowDeviceTimeoutMs: 1e9,
  windowCommands: 64,
  gapTimeoutMs: 1_000,
}

/** What happens to each connection, in this order; each is measured after it happened to all. */
const PARTS: readonly [string, (connection: Connection, at: number) => void][] = [
  [
    "admitted: identity, peer and place among the named",
    (connection, at) => {
      connection.identify()
      const peer = { ...UNKNOWN_PEER, tlsVersion: "TLSv1.3" }
      connection.admit(`lock:${at}`, 1_750_000_000_000 + at, peer)
    },
  ],
  ["its first line: a framer", (connection) => connection.received(Buffer.from("a line\n"))],
  ["half a line", (connection) => connection.received(Buffer.from("half a line"))],
  ["its first command: an outgoing queue", (connection) => offer(connection, null, null)],
  ["a numbered one: a reorder buffer", (connection) => offer(connection, 0, null)],
  ["one with an id: remembered ids", (connection, at) => offer(connection, null, `m${at}`)],
]

export function connectionMemory({ connections }: ConnectionMemoryParameters): BenchResult {
  const all = new Connections(DEADLINES)
  const ids = new ConnectionIds({ worker: "gw1.0", incarnation: "mb2k3f9zq7x2" })
  const context = makeContext()
  const figures: Record<string, number> = {}
  let before = heapBytes()
  const measured = (part: string) => {
    const now = heapBytes()
    figures[`${part}, bytes`] = Math.round((now - before) / connections)
    before = now
  }
  for (let at = 0; at < connections; at += 1) {
    all.add(new Connection(ids.mint(), SOCKET, `192.0.2.${all.count % 256}`, context))
  }
  measured("accepted: the connection, its id and its place among all")
  for (const [part, happen] of PARTS) {
    let at = 0
    all.forEach((connection) => {
      happen(connection, at)
      all.enter(connection)
      connection.flush()
      at += 1
    })
    measured(part)
  }
  const idle = Object.values(figures)
    .slice(0, 2)
    .reduce((a, b) => a + b, 0)
  figures["idle and never spoken to, in all, KiB"] = round(idle / 1024)
  return { bench: "connection-memory", parameters: { connections }, figures }
}

function offer(connection: Connection, seq: number | null, messageId: string | null): void {
  const command = testCommand({ body: Buffer.from("a command"), seq, messageId })
  connection.offer(command)
}

function makeContext(): ConnectionContext {
  return {
    limits: LIMITS,
    counters: new Counters(),
    backpressure: new Backpressure(1e9, { hasRoom: true }, () => undefined),
    unfinishedLines: new UnfinishedLines({ maxPartialBytes: 1e9, lineTimeoutMs: 1e9 }),
    writtenIds: new WrittenIds(),
    scratch: new Uint8Array(BATCH_BYTES),
    nowMs: () => 0,
    steadyMs: () => 0,
    lines: { take: () => undefined },
    flushSoon: () => undefined,
    commandsWait: () => undefined,
    repliesWait: () => undefined,
    rateOf: () => null,
    rateReached: () => undefined,
    lifetimeMs: () => Number.POSITIVE_INFINITY,
    aged: () => undefined,
    goodbye: null,
    closed: () => undefined,
  }
}

function heapBytes(): number {
  Bun.gc(true)
  const { heapSize, extraMemorySize } = heapStats()
  return heapSize + extraMemorySize
}
