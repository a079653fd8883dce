/**
 * A worker in the test's hands: the parts of `src/process/worker.ts` put together as there, on a simulated
 * broker, in a simulated process, with scripted sockets instead of a listener. What it would do by itself
 * (a turn's end, a timer, the sweep, a socket that closes) is a step; see `pending`.
 */

import { OutboundMessages } from "../../src/broker/outbound-messages.ts"
import { brokerSetup } from "../../src/broker/setup.ts"
import { fleetQueue, isGatewayQueue } from "../../src/broker/topology.ts"
import { Consumer } from "../../src/commands/consumer.ts"
import { CommandIds } from "../../src/commands/forwarding.ts"
import { HttpSender, type SendRequest, type SendResult } from "../../src/commands/http-sender.ts"
import { Outcomes } from "../../src/commands/outcomes.ts"
import { CommandRouter } from "../../src/commands/router.ts"
import { UnacknowledgedCommands } from "../../src/commands/unacknowledged-commands.ts"
import { Counters } from "../../src/counters.ts"
import { Backpressure } from "../../src/device/backpressure.ts"
import type { CloseReason } from "../../src/device/close-reason.ts"
import type { Command } from "../../src/device/command.ts"
import { Connection, type ConnectionContext } from "../../src/device/connection.ts"
import { Connections, PAUSED_MS, SWEEP_EVERY_MS } from "../../src/device/connections.ts"
import { FlushScheduler } from "../../src/device/flush-scheduler.ts"
import { ConnectionIds, type WorkerProcess } from "../../src/device/ids.ts"
import { BATCH_BYTES } from "../../src/device/outgoing.ts"
import type { DeviceSocket } from "../../src/device/peer.ts"
import { UnfinishedLines } from "../../src/device/unfinished-lines.ts"
import { Fleet } from "../../src/fleet/fleet.ts"
import { drain } from "../../src/process/drain.ts"
import { FLEET_KEYS, RANDOM_PART } from "./fleet-keys.ts"
import type { SimulatedBroker, SimulatedClient, Step } from "./simulated-broker.ts"
import { SimulatedProcess } from "./simulated-process.ts"

export const QUEUES = {
  fromDeviceQueue: "from_device",
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

export class SimulatedWorker {
  readonly self: WorkerProcess
  readonly counters = new Counters()
  readonly process: SimulatedProcess
  readonly client: SimulatedClient
  readonly connections: Connections
  readonly fleet: Fleet
  readonly unacknowledged: UnacknowledgedCommands
  readonly outcomes: Outcomes
  readonly consumer: Consumer
  readonly sender: HttpSender
  readonly outboundMessages: OutboundMessages
  /** Those whose sockets are not gone, by connection id. */
  readonly devices = new Map<string, HeldDevice>()
  state: "serving" | "draining" | "gone" = "serving"
  /** The last phase of its drain. */
  ended: "done" | "cut_short" | "killed" | null = null
  readonly #nowMs: () => number
  readonly #limits: SimulatedWorkerLimits
  readonly #context: ConnectionContext
  readonly #ids: ConnectionIds
  readonly #hooks: SimulatedWorkerHooks
  #sweepDueMs: number
  #readySinceMs = 0
  #wasReady = false

  constructor(
    broker: SimulatedBroker,
    self: WorkerProcess,
    limits: SimulatedWorkerLimits,
    hooks: SimulatedWorkerHooks = {},
  ) {
    const nowMs = () => broker.nowMs
    this.self = self
    this.#limits = limits
    this.#hooks = hooks
    this.#nowMs = nowMs
    this.#sweepDueMs = nowMs() + SWEEP_EVERY_MS
    this.process = new SimulatedProcess(`${self.worker}.${self.incarnation}`, nowMs)
    this.client = broker.client(this.process.name, this.process.run)
    this.connections = new Connections({
      handshakeTimeoutMs: 10_000,
      identifyTimeoutMs: 10_000,
      idleTimeoutMs: limits.idleTimeoutMs,
    })
    const { counters } = this
    this.outboundMessages = new OutboundMessages(this.client, counters, nowMs)
    const router = new CommandRouter(this.outboundMessages, {
      workerId: self.worker,
      nowMs,
      counters,
      find: (id) => this.connections.find(id),
      locate: (deviceId, trusting, found) => this.fleet.locator.locate(deviceId, trusting, found),
      commandIds: new CommandIds(self, RANDOM_PART),
      commandKey: FLEET_KEYS.commandKey,
    })
    this.unacknowledged = new UnacknowledgedCommands(this.client, limits.maxHeldBytes, counters)
    this.outcomes = new Outcomes(
      this.outboundMessages,
      this.unacknowledged,
      counters,
      QUEUES.undeliveredQueue,
      nowMs,
    )
    this.consumer = new Consumer(router, this.outcomes, this.unacknowledged, {
      workerId: self.worker,
      nowMs,
      counters,
      keys: FLEET_KEYS,
      maxLineBytes: limits.maxLineBytes,
      mayServe: (worker) => this.fleet.mayServe(worker),
      isGatewayQueue: (queue) => isGatewayQueue(QUEUES, queue),
      fault: (error) => {
        throw error
      },
    })
    this.sender = new HttpSender(this.client, this.outboundMessages, router, this.outcomes, {
      nowMs,
      counters,
      replyQueue: fleetQueue(self),
      timeoutMs: limits.sendTimeoutMs,
    })
    this.fleet = new Fleet(this.client, this.connections, {
      self,
      nowMs,
      steadyMs: nowMs,
      counters,
      keys: FLEET_KEYS,
      warn: () => undefined,
    })
    this.#context = {
      limits,
      counters,
      backpressure: new Backpressure(Number.POSITIVE_INFINITY, { hasRoom: true }, () => undefined),
      // Its devices send no lines.
      unfinishedLines: new UnfinishedLines({ maxPartialBytes: 1e9, lineTimeoutMs: 1e9 }),
      scratch: new Uint8Array(BATCH_BYTES),
      nowMs,
      steadyMs: nowMs,
      takeLine: () => undefined,
      flushSoon: new FlushScheduler().soon,
      commandsWait: (connection) => this.connections.commandsWait(connection),
      closed: (connection, reason) => {
        this.connections.leave(connection)
        this.fleet.closed(connection, reason)
        counters.connectionsClosed[reason] += 1
        const device = this.devices.get(connection.id)
        if (device !== undefined) device.reason = reason
      },
    }
    this.#ids = new ConnectionIds(self)
  }

  start(): void {
    const setup = brokerSetup({ ...QUEUES, prefetch: this.#limits.prefetch }, this.self, {
      command: (delivery, prefetch) => this.consumer.deliver(delivery, prefetch),
      deadLetter: (delivery, prefetch) => this.consumer.deliverDeadLetter(delivery, prefetch),
      commandsLost: () => this.unacknowledged.lost(),
      fleetMessage: (delivery) => this.fleet.deliver(delivery),
      receipt: (delivery) => this.sender.deliverReceipt(delivery),
      fault: (error) => {
        throw error
      },
    })
    this.client.start(setup, {
      stateChanged: (state) => {
        const ready = state.kind === "ready"
        if (ready && !this.#wasReady) {
          this.#readySinceMs = this.#nowMs()
          this.fleet.connected()
        }
        this.#wasReady = ready
      },
      warning: () => undefined,
    })
  }

  /** A device that has proven its name connects; without a name its connection id is its device id. */
  connect(deviceId: string | null): HeldDevice {
    const socket = new SimulatedSocket()
    const id = this.#ids.mint()
    const connection = new ShownConnection(id, socket, this.#context, this.#hooks)
    const device: HeldDevice = { connection, socket, reason: null }
    socket.closed = () => this.#socketClosed(device)
    this.process.run(() => {
      this.devices.set(id, device)
      this.connections.add(connection)
      connection.identify()
      const name = deviceId ?? id
      const epoch = this.connections.nextEpoch(name, this.#nowMs(), this.fleet.epochElsewhere(name))
      const peer = { remoteAddress: "192.0.2.1", tlsVersion: "TLSv1.3", fingerprint: null }
      connection.admit(name, epoch, peer)
      this.counters.connectionsAdmitted += 1
      this.connections.enter(connection)?.close("taken_over")
      this.fleet.admitted(connection)
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

  /** `answered` is called when the promise of `HttpSender.send` has resolved. */
  send(request: SendRequest, answered: (result: SendResult) => void): void {
    this.process.run(() => void this.sender.send(request).then(answered))
  }

  /** As `Worker.drain`. */
  drain(): void {
    if (this.state !== "serving") return
    this.state = "draining"
    this.process.run(() => void this.#drain())
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
    return (
      this.state === "gone" ||
      (this.state === "serving" &&
        this.unacknowledged.count === 0 &&
        this.outboundMessages.count === 0 &&
        this.outcomes.late.count === 0 &&
        this.sender.pendingCount === 0 &&
        this.fleet.locator.pendingCount === 0 &&
        this.fleet.told)
    )
  }

  readonly #sweep = (): void => {
    const nowMs = this.#nowMs()
    const sinceMs = nowMs - this.#sweepDueMs + SWEEP_EVERY_MS
    if (this.client.state.kind !== "away") this.unacknowledged.pass(Math.max(0, sinceMs))
    this.consumer.sweep()
    this.outcomes.late.sweep(nowMs)
    this.#sweepDueMs = nowMs + SWEEP_EVERY_MS
    this.connections.sweep(nowMs, nowMs)
    this.fleet.sweep(nowMs)
    if (this.client.state.kind === "blocked" || this.client.state.kind === "closed") return
    if (sinceMs > PAUSED_MS) this.#readySinceMs = nowMs
    const sentByMs = nowMs - this.#limits.confirmTimeoutMs
    if (sentByMs >= this.#readySinceMs)
      this.outboundMessages.giveUp(sentByMs, this.fleet.confirmedAtMs)
    const oldest = [this.outboundMessages.silentSinceMs(), this.fleet.presence.silentSinceMs()]
    const sentAtMs = Math.min(...oldest.filter((atMs) => atMs !== null))
    const unconfirmedMs = nowMs - Math.max(sentAtMs, this.#readySinceMs)
    if (unconfirmedMs < this.#limits.confirmTimeoutMs) return
    this.client.reset(`nothing confirmed for ${unconfirmedMs} ms`)
  }

  #socketClosed(device: HeldDevice): void {
    device.socket.state = "gone"
    device.connection.socketClosed()
    this.devices.delete(device.connection.id)
    this.connections.remove(device.connection)
  }

  async #drain(): Promise<void> {
    const result = await drain(
      {
        acceptNone: async () => {
          this.sender.stop()
          this.fleet.leave()
          this.connections.forEach((connection) => {
            if (connection.state === "open") connection.pause("drain")
            else connection.close("drained")
          })
          await this.client.stopConsuming()
        },
        confirmed: () => true,
        closeSome: (most) => this.connections.closeSome(most, "drained"),
        settled: () =>
          this.connections.count === 0 &&
          this.unacknowledged.count === 0 &&
          this.sender.pendingCount === 0 &&
          this.outboundMessages.count === 0 &&
          this.outcomes.late.count === 0 &&
          this.fleet.told,
        enter: () => undefined,
        nowMs: this.#nowMs,
        sleep: (ms) => new Promise((done) => setTimeout(done, ms)),
      },
      this.#limits.drainTimeoutMs,
    )
    this.outboundMessages.stop()
    this.fleet.stop()
    await this.client.close()
    this.#gone(result)
  }

  #gone(how: "done" | "cut_short" | "killed"): void {
    this.state = "gone"
    this.ended = how
    this.process.end()
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
    super(id, socket, context)
    this.#hooks = hooks
  }

  override offer(command: Command): void {
    this.#hooks.offered?.(command)
    super.offer(command)
  }
}
