/**
 * The herd: all devices of one run, how they connect, and how they come back.
 *
 *   device   idle ──ramp──► connected ──its connection ended──► waiting ──backoff──► connected
 *            any ──stop sending──► what is open stays; nobody connects any more
 *
 * One sweep serves all devices: no device has a timer. Never sends a line again: what is lost is lost, so
 * that the ledger tells. Bounds: `--handshakes` at a time, each `HANDSHAKE_TIMEOUT_MS`; waits between
 * tries from the first to the longest that `--backoff-*` say, with jitter (`backoff.ts`).
 */

import { backoffMs } from "../backoff.ts"
import { type ConnectionEnd, DeviceConnection, type LineCounts, type Shared } from "./connection.ts"
import type { Credentials, Issuer } from "./credentials.ts"
import { handshakeSucceeded } from "./handshake.ts"
import { Histogram } from "./histogram.ts"
import type { LedgerFile } from "./ledger.ts"
import { deviceName, type LineWriter, MAX } from "./line.ts"
import type { RunOptions } from "./options.ts"

/** Longer than the gateway's own, so that a slow one shows as the gateway's close. */
const HANDSHAKE_TIMEOUT_MS = 15_000
/** With nobody to tell what arrived: long enough for a gateway that is not held back to have read it. */
const QUIET_MS = 1_000
/** Closed in one sweep: their gateway has others to serve. */
const CLOSE_AT_ONCE = 500

/** Why connections failed or ended before their time. */
export interface Failures {
  /** TCP. */
  connect: number
  handshake: number
  timeout: number
  /** Open, and then closed by the other side or cut. */
  broken: number
}

interface Device {
  readonly name: string
  readonly quota: { left: number }
  attempts: number
  /** Tries since it was last connected for a while. */
  failures: number
  wasOpen: boolean
  retryAtMs: number
  connection: DeviceConnection | null
}

/** What a socket knows. */
interface Dialled {
  readonly device: Device
  readonly connection: DeviceConnection
  readonly hello: string
}

export class Herd {
  readonly connects = new Histogram()
  readonly failures: Failures = { connect: 0, handshake: 0, timeout: 0, broken: 0 }
  readonly #options: RunOptions
  readonly #issuer: Issuer
  readonly #shared: Shared
  readonly #devices: Device[] = []
  readonly #handlers: Bun.SocketHandler<Dialled>
  #startedAtMs: number | null = null
  /** Devices whose first try was begun, in their order. */
  #launched = 0
  #handshakes = 0
  #open = 0
  #connections = 0
  #stage: "sending" | "settling" | "closing" = "sending"
  /** Where the next search for a device that may connect begins, so that none is passed over. */
  #searchFrom = 0

  constructor(options: RunOptions, issuer: Issuer, writer: LineWriter, ledger: LedgerFile | null) {
    this.#options = options
    this.#issuer = issuer
    this.#handlers = this.#makeHandlers()
    this.#shared = {
      writer,
      ledger,
      intervalMs: options.ratePerS === 0 ? 0 : 1000 / options.ratePerS,
      confirms: new Histogram(),
      counts: { sent: 0, cutOff: 0, acked: 0, commands: 0, unanswered: 0, others: 0 },
    }
    for (let index = 0; index < options.devices; index += 1) {
      this.#devices.push({
        name: deviceName(options.name, index),
        quota: { left: options.lines ?? Number.POSITIVE_INFINITY },
        attempts: 0,
        failures: 0,
        wasOpen: false,
        retryAtMs: 0,
        connection: null,
      })
    }
  }

  get counts(): Readonly<LineCounts> {
    return this.#shared.counts
  }

  get confirms(): Histogram {
    return this.#shared.confirms
  }

  /** Devices that are connected now. */
  get open(): number {
    return this.#open
  }

  /** Connections that were open, over all devices. */
  get connections(): number {
    return this.#connections
  }

  get neverConnected(): number {
    return this.#devices.filter((device) => !device.wasOpen).length
  }

  /** Lines that are still to be sent of `--lines`; infinite without. */
  get linesLeft(): number {
    return this.#devices.reduce((sum, { quota }) => sum + quota.left, 0)
  }

  /** All first tries have been begun, and none of them is still on its way. */
  get ramped(): boolean {
    return this.#launched === this.#devices.length && this.#handshakes === 0
  }

  /** Connects who is to connect and sends what is due. */
  sweep(nowMs: number): void {
    if (this.#stage === "sending") this.#connectSome(nowMs)
    for (const { connection } of this.#devices) {
      if (connection === null) continue
      if (connection.state === "connecting") this.#expire(connection, nowMs)
      else if (this.#stage !== "closing") connection.sweep(nowMs)
    }
  }

  /** From now on only commands are answered. */
  stopSending(): void {
    this.#stage = "settling"
    for (const device of this.#devices) {
      device.quota.left = 0
      if (device.connection?.state === "connecting") device.connection.terminate()
    }
  }

  settled(nowMs: number): boolean {
    const by = { backEnd: this.#options.backEnd !== null, acks: this.#options.deviceAck }
    return this.#devices.every(({ connection }) => connection?.settled(by, nowMs, QUIET_MS) ?? true)
  }

  /** Begins to close some connections in order; returns how many are not gone. */
  closeSome(): number {
    this.#stage = "closing"
    let left = CLOSE_AT_ONCE
    for (const { connection } of this.#devices) {
      if (left > 0 && connection?.state === "open") {
        connection.end()
        left -= 1
      }
    }
    return this.#open
  }

  /** Resets what is still there. */
  terminate(): void {
    for (const { connection } of this.#devices) connection?.terminate()
  }

  /** Writes to the ledger what is new. */
  record(): void {
    for (const { connection } of this.#devices) connection?.record()
    this.#shared.ledger?.flush()
  }

  /** A back-end in this process took this line. */
  taken(device: string, attempt: number, n: number): void {
    const index = Number(device.slice(device.lastIndexOf("-") + 1))
    const { connection } = this.#devices[index] ?? { connection: null }
    if (connection?.attempt === attempt && connection.device === device) connection.taken(n)
  }

  #connectSome(nowMs: number): void {
    this.#startedAtMs ??= nowMs
    const { rampPerS, handshakes } = this.#options
    const devices = this.#devices.length
    const dueByRamp = Math.floor(((nowMs - this.#startedAtMs) * rampPerS) / 1000) + 1
    const due = rampPerS === 0 ? devices : Math.min(devices, dueByRamp)
    // Who was connected before goes first: there are few of them, and their backoff was wait enough.
    for (let seen = 0; seen < devices && this.#handshakes < handshakes; seen += 1) {
      this.#searchFrom = (this.#searchFrom + 1) % devices
      const device = this.#devices[this.#searchFrom]
      if (device === undefined || device.attempts === 0 || device.connection !== null) continue
      if (nowMs >= device.retryAtMs && device.attempts < MAX.attempts) this.#connect(device)
    }
    while (this.#launched < due && this.#handshakes < handshakes) {
      const device = this.#devices[this.#launched]
      this.#launched += 1
      if (device !== undefined) this.#connect(device)
    }
  }

  #expire(connection: DeviceConnection, nowMs: number): void {
    if (nowMs - connection.startedAtMs < HANDSHAKE_TIMEOUT_MS) return
    this.failures.timeout += 1
    connection.terminate()
  }

  #connect(device: Device): void {
    device.attempts += 1
    this.#handshakes += 1
    const connection = new DeviceConnection(this.#shared, {
      device: device.name,
      attempt: device.attempts,
      quota: device.quota,
      nowMs: performance.now(),
      ended: (end) => this.#ended(device, connection, end),
    })
    device.connection = connection
    this.#issuer.of(device.name).then(
      (credentials) => this.#dial(device, connection, credentials),
      () => {
        // No certificate could be made.
        if (connection.state === "connecting") this.failures.handshake += 1
        connection.closed(true)
      },
    )
  }

  #dial(device: Device, connection: DeviceConnection, { tls, hello }: Credentials): void {
    if (connection.state !== "connecting") return
    // Making a certificate is no part of connecting.
    connection.startedAtMs = performance.now()
    const { host, port } = this.#options
    const data = { device, connection, hello }
    const socket = this.#handlers
    const dialling = Bun.connect<Dialled>({ hostname: host, port, tls, data, socket })
    dialling.catch(() => this.#unreached(connection))
  }

  /** One object for all sockets: closures for each would be a tenth of what a device costs. */
  #makeHandlers(): Bun.SocketHandler<Dialled> {
    const verifies = this.#issuer.checksGateway
    return {
      open: (socket) => {
        const { connection } = socket.data
        connection.socket = socket
        // It was given up while TCP connected.
        if (connection.state === "over") socket.terminate()
      },
      handshake: (socket, success, error) => {
        const { device, connection, hello } = socket.data
        if (connection.state !== "connecting") return
        if (handshakeSucceeded(success, error, verifies)) this.#opened(device, connection, hello)
        else this.#lost(connection)
      },
      data: (socket, chunk) => socket.data.connection.received(chunk, performance.now()),
      drain: (socket) => socket.data.connection.drained(performance.now()),
      end: (socket) => socket.data.connection.peerEnded(),
      close: (socket, error) => {
        const { connection } = socket.data
        if (connection.state === "connecting") this.#lost(connection)
        else connection.closed(error !== undefined && error !== null)
      },
      error: (socket) => this.#lost(socket.data.connection),
      connectError: (socket) => this.#unreached(socket.data.connection),
    }
  }

  /** TCP did not come to be. May be called twice. */
  #unreached(connection: DeviceConnection): void {
    if (connection.state !== "connecting") return
    this.failures.connect += 1
    connection.closed(true)
  }

  /** TLS failed, or the connection did by which it was carried. */
  #lost(connection: DeviceConnection): void {
    if (connection.state === "connecting") this.failures.handshake += 1
    connection.terminate()
  }

  #opened(device: Device, connection: DeviceConnection, hello: string): void {
    device.wasOpen = true
    const nowMs = performance.now()
    this.#handshakes -= 1
    this.#open += 1
    this.#connections += 1
    this.connects.record(nowMs - connection.startedAtMs)
    const { intervalMs } = this.#shared
    connection.opened(hello, nowMs, nowMs + Math.random() * intervalMs)
    if (this.#stage === "sending") return
    // It came in while the others settle, and has nothing to say.
    connection.end()
  }

  #ended(device: Device, connection: DeviceConnection, end: ConnectionEnd): void {
    if (device.connection !== connection) return
    device.connection = null
    const nowMs = performance.now()
    const wasOpen = connection.openedAtMs > 0
    if (!wasOpen) this.#handshakes -= 1
    else {
      this.#open -= 1
      if (end === "broken") this.failures.broken += 1
      // One that is let in and thrown out again goes on to wait longer each time.
      const lastedMs = nowMs - connection.openedAtMs
      if (lastedMs >= this.#options.backoff.maxMs) device.failures = 0
    }
    device.retryAtMs = nowMs + backoffMs(device.failures, this.#options.backoff, Math.random())
    device.failures += 1
  }
}
