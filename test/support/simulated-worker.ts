/**
 * A worker in the test's hands: the real `Worker` on a simulated broker, in a simulated process,
 * with scripted sockets in place of a listener. What it would do by itself (a turn's end, a timer,
 * the sweep, a socket that closes) is a step; see `pending`.
 */

import { CommandIds } from "../../src/commands/forwarding.ts"
import type { SendRequest, SendResult } from "../../src/commands/http-sender.ts"
import { type Config, loadConfig } from "../../src/config/config.ts"
import { Counters } from "../../src/counters.ts"
import type { CloseReason } from "../../src/device/close-reason.ts"
import type { Command } from "../../src/device/command.ts"
import { Connection, type ConnectionContext } from "../../src/device/connection.ts"
import { SWEEP_EVERY_MS } from "../../src/device/connections.ts"
import type { WorkerProcess } from "../../src/device/ids.ts"
import type { ListenerParts } from "../../src/device/listener.ts"
import { type DeviceSocket, UNKNOWN_PEER } from "../../src/device/peer.ts"
import { EventBus } from "../../src/events.ts"
import { type DeviceListener, Worker } from "../../src/process/worker.ts"
import { FLEET_KEYS, RANDOM_PART } from "./fleet-keys.ts"
import type { SimulatedBroker, SimulatedClient, Step } from "./simulated-broker.ts"
import { SimulatedProcess } from "./simulated-process.ts"

export const QUEUES = {
  fromDeviceQueue: "from_device",
  fromDevicePartitions: 1,
  toDeviceQueue: "to_device",
  undeliveredQueue: "to_device.undelivered",
  queueType: "quorum",
} as const

export interface SimulatedWorkerLimits {
  readonly maxLineBytes: number
  readonly maxOutgoingBytes: number
  readonly slowDeviceTimeoutMs: number
  readonly windowCommands: number
  readonly gapTimeoutMs: number
  readonly idleTimeoutMs: number
  readonly prefetch: number
  readonly maxHeldBytes: number
  readonly sendTimeoutMs: number
  readonly confirmTimeoutMs: number
  readonly drainTimeoutMs: number
}

export const DEFAULT_LIMITS: SimulatedWorkerLimits = {
  maxLineBytes: 1_024,
  maxOutgoingBytes: 1_048_576,
  slowDeviceTimeoutMs: 30_000,
  windowCommands: 1_024,
  gapTimeoutMs: 2_000,
  idleTimeoutMs: 86_400_000,
  prefetch: 8_192,
  maxHeldBytes: 67_108_864,
  sendTimeoutMs: 5_000,
  confirmTimeoutMs: 15_000,
  drainTimeoutMs: 60_000,
}

/** The other end of one connection. */
export class SimulatedSocket implements DeviceSocket {
  /** What the device has read. */
  wire = ""
  /** Bytes that it takes before it takes none. */
  room = Number.POSITIVE_INFINITY
  /** It has taken less than it was offered, once at least. */
  stalled = false
  state: "open" | "ended" | "gone" = "open"
  /** Where `terminate` leads. */
  closed: () => void = () => undefined

  write(bytes: Uint8Array): number {
    if (this.state !== "open") return -1
    const taken = Math.min(this.room, bytes.length)
    this.room -= taken
    this.stalled ||= taken < bytes.length
    this.wire += Buffer.from(bytes.subarray(0, taken)).toString()
    return taken
  }

  shutdown(): void {
    if (this.state === "open") this.state = "ended"
  }

  terminate(): void {
    this.state = "gone"
    this.closed()
  }

  pause(): void {}

  resume(): void {}

  /** Whole lines that the device has read. */
  get lines(): string[] {
    return this.wire.split("\n").slice(0, -1)
  }
}

export interface HeldDevice {
  readonly connection: Connection
  readonly socket: SimulatedSocket
  /** Set once it has begun to close. */
  reason: CloseReason | null
}

export interface SimulatedWorkerHooks {
  /** A connection shows every command that it is offered, before it takes it. */
  readonly offered?: (command: Command) => void
}

/** Does nothing: sockets come by `SimulatedWorker.connect`. */
class NoListener implements DeviceListener {
  readonly port = 0
  readonly refusing = null
  readonly bestRatePerS = 0
  readonly admission = {
    ...{ waiting: 0, handshakes_in_progress: 0, handshake_limit: 0, handshakes_per_s: 0 },
    estimated_wait_ms: null,
  }

  sweep(): void {}

  listen(): void {}

  renew(): void {}

  refuseAll(): void {}

  resume(): void {}

  stop(): void {}
}

export class SimulatedWorker {
  readonly self: WorkerProcess
  readonly counters = new Counters()
  readonly process: SimulatedProcess
  readonly client: SimulatedClient
  readonly worker: Worker
  /** Those whose sockets are not gone, by connection id. */
  readonly devices = new Map<string, HeldDevice>()
  state: "serving" | "draining" | "gone" = "serving"
  /** The last phase of its drain. */
  ended: "done" | "cut_short" | "killed" | null = null
  readonly #nowMs: () => number
  readonly #parts: ListenerParts
  readonly #hooks: SimulatedWorkerHooks
  #sweepDueMs: number

  constructor(
    broker: SimulatedBroker,
    self: WorkerProcess,
    limits: SimulatedWorkerLimits,
    hooks: SimulatedWorkerHooks = {},
  ) {
    const nowMs = () => broker.nowMs
    this.self = self
    this.#hooks = hooks
    this.#nowMs = nowMs
    this.#sweepDueMs = nowMs() + SWEEP_EVERY_MS
    this.process = new SimulatedProcess(`${self.worker}.${self.incarnation}`, nowMs)
    this.client = broker.client(this.process.name, this.process.run)
    const events = new EventBus()
    events.on("fault", ({ error }) => {
      throw error
    })
    events.on("connection_closed", ({ connection, reason }) => {
      const device = this.devices.get(connection.id)
      if (device !== undefined) device.reason = reason
    })
    let listenerParts: ListenerParts | null = null
    this.worker = new Worker({
      config: configOf(limits),
      self,
      events,
      counters: this.counters,
      clock: { nowMs, steadyMs: nowMs, exactMs: nowMs },
      keys: FLEET_KEYS,
      tokenVerifier: null,
      commandIds: new CommandIds(self, RANDOM_PART),
      rules: null,
      rulesChanged: () => undefined,
      broker: this.client,
      maxConnections: 1_000,
      makeListener: (parts) => {
        listenerParts = parts
        return new NoListener()
      },
      serveHttp: async () => ({ port: 0, busyCount: 0, stop: async () => undefined }),
    })
    if (listenerParts === null) throw new Error("the worker has made no listener")
    this.#parts = listenerParts
  }

  start(): void {
    const tls = { certPem: "", keyPem: "", clientCaPem: null }
    this.process.run(() => void this.worker.start(tls))
  }

  /**
   * A device that has proven its name connects; without a name its connection id is its device id.
   */
  connect(deviceId: string | null): HeldDevice {
    const { ids, context, connections, admitter } = this.#parts
    const socket = new SimulatedSocket()
    const id = ids.mint()
    const connection = new ShownConnection(id, socket, context, this.#hooks)
    const device: HeldDevice = { connection, socket, reason: null }
    socket.closed = () => this.#socketClosed(device)
    this.process.run(() => {
      this.devices.set(id, device)
      connections.add(connection)
      connection.identify()
      const peer = { ...UNKNOWN_PEER, tlsVersion: "TLSv1.3" }
      admitter.admit(connection, deviceId ?? id, peer)
    })
    return device
  }

  /** The device closes. */
  hangUp(device: HeldDevice): void {
    this.process.run(() => this.#socketClosed(device))
  }

  /** The device reads again, `room` bytes at most. */
  read(device: HeldDevice, room = Number.POSITIVE_INFINITY): void {
    device.socket.room = room
    this.process.run(() => device.connection.flush())
  }

  /** The device sends a line. */
  receive(device: HeldDevice, line: string): void {
    this.process.run(() => device.connection.received(Buffer.from(`${line}\n`)))
  }

  /** `answered` is called when the promise of `HttpSender.send` has resolved. */
  send(request: SendRequest, answered: (result: SendResult) => void): void {
    this.process.run(() => void this.worker.commands.sender.send(request).then(answered))
  }

  drain(): void {
    if (this.state !== "serving") return
    this.state = "draining"
    this.process.run(() => void this.worker.drain().then((result) => this.#gone(result)))
  }

  /** The process is gone, and its sockets with it. */
  kill(): void {
    this.client.kill()
    for (const device of this.devices.values()) device.socket.state = "gone"
    this.#gone("killed")
  }

  /** What it could do next by itself. */
  pending(): Step[] {
    if (this.state === "gone") return []
    const { name } = this.process
    const steps: Step[] = []
    if (this.process.turnIsDue) {
      steps.push({ what: () => `${name} ends its turn`, run: () => this.process.endTurn() })
    }
    if (this.process.nextTimerMs <= this.#nowMs()) {
      steps.push({ what: () => `${name} is woken`, run: () => this.process.runNextTimer() })
    }
    if (this.#sweepDueMs <= this.#nowMs()) {
      steps.push({ what: () => `${name} sweeps`, run: () => this.process.run(this.#sweep) })
    }
    for (const device of this.devices.values()) {
      if (device.socket.state !== "ended") continue
      const what = () => `the socket of ${device.connection.id} closes`
      steps.push({ what, run: () => this.hangUp(device) })
    }
    return steps
  }

  /** When it will next do something by itself. */
  get nextMs(): number {
    return this.state === "gone"
      ? Number.POSITIVE_INFINITY
      : Math.min(this.process.nextTimerMs, this.#sweepDueMs)
  }

  /** True when nothing waits here for an outcome, an answer or the broker. */
  get idle(): boolean {
    const { commands, fleet } = this.worker
    return (
      this.state === "gone" ||
      (this.state === "serving" &&
        commands.settled &&
        fleet.settled &&
        fleet.locator.pendingCount === 0)
    )
  }

  readonly #sweep = (): void => {
    this.#sweepDueMs = this.#nowMs() + SWEEP_EVERY_MS
    this.worker.sweep()
  }

  #socketClosed(device: HeldDevice): void {
    device.socket.state = "gone"
    device.connection.socketClosed()
    this.devices.delete(device.connection.id)
    this.#parts.connections.remove(device.connection)
  }

  #gone(how: "done" | "cut_short" | "killed"): void {
    this.state = "gone"
    this.ended = how
    this.process.end()
  }
}

/** The defaults of the settings, with these limits; no device sends a line here. */
function configOf(limits: SimulatedWorkerLimits): Config {
  const config = loadConfig({}, () => null)
  return {
    ...config,
    device: { ...config.device, ...limits, maxHeldBytes: Number.POSITIVE_INFINITY },
    broker: {
      ...{ ...config.broker, ...QUEUES },
      prefetch: limits.prefetch,
      maxCommandBytes: limits.maxHeldBytes,
      confirmTimeoutMs: limits.confirmTimeoutMs,
    },
    http: { ...config.http, sendTimeoutMs: limits.sendTimeoutMs },
    drainTimeoutMs: limits.drainTimeoutMs,
  }
}

class ShownConnection extends Connection {
  readonly #hooks: SimulatedWorkerHooks

  constructor(
    id: string,
    socket: SimulatedSocket,
    context: ConnectionContext,
    hooks: SimulatedWorkerHooks,
  ) {
    super(id, socket, "192.0.2.1", context)
    this.#hooks = hooks
  }

  override offer(command: Command): void {
    this.#hooks.offered?.(command)
    super.offer(command)
  }
}
