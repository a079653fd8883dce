/**
 * The herd: all devices of one run, with their connections and reconnections.
 *
 *   device   idle ──ramp──► connected ──its connection ended──► waiting ──backoff──► connected
 *            any ──stop sending──► open connections stay; no device connects any more
 *
 * One sweep serves all devices; no device has a timer. No line is sent again, so that the ledger
 * shows lost lines. Bounds: `--handshakes` at a time, each for `HANDSHAKE_TIMEOUT_MS`; waits
 * between tries by a goodbye line, or by `--backoff-first` and `--backoff-most`, with jitter.
 */

import { backoffMs } from "../backoff.ts"
import {
  type ConnectionEnd,
  DeviceConnection,
  type DeviceHistory,
  type LineCounts,
  type Shared,
} from "./connection.ts"
import type { Credentials, Issuer } from "./credentials.ts"
import { handshakeSucceeded } from "./handshake.ts"
import { Histogram } from "./histogram.ts"
import type { LedgerFile } from "./ledger.ts"
import { deviceName, type LineWriter, MAX } from "./line.ts"
import type { RunOptions } from "./options.ts"

/** Longer than the gateway's time-out, so that a slow handshake is closed by the gateway. */
const HANDSHAKE_TIMEOUT_MS = 15_000
/**
 * Without a back-end or acknowledgements: long enough for a gateway without backpressure to read
 * everything.
 */
const QUIET_MS = 1_000
/** Connections that are closed in one sweep, to spare the gateway. */
const CLOSE_AT_ONCE = 500

/** The numbers of connections that failed or ended too early, by reason. */
export interface Failures {
  /** TCP. */
  connect: number
  handshake: number
  timeout: number
  /** Closed by the gateway, or cut, after they were open. */
  broken: number
}

interface Device {
  readonly index: number
  readonly name: string
  readonly quota: { left: number }
  readonly history: DeviceHistory
  attempts: number
  /** Failed tries since it was last connected for some time. */
  failures: number
  wasOpen: boolean
  retryAtMs: number
  /** Whether it connects to the other gateway next. */
  isElsewhere: boolean
  connection: DeviceConnection | null
}

/** The data of a socket. */
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
  /** The number of devices whose first try has started, in their order. */
  #launched = 0
  #handshakes = 0
  #open = 0
  #connections = 0
  #stage: "sending" | "settling" | "closing" = "sending"
  /** Where the next search for a device that may connect starts, so that no device is skipped. */
  #searchFrom = 0

  constructor(options: RunOptions, issuer: Issuer, writer: LineWriter, ledger: LedgerFile | null) {
    this.#options = options
    this.#issuer = issuer
    this.#handlers = this.#makeHandlers()
    this.#shared = {
      writer,
      ledger,
      goodbye: options.goodbye,
      intervalMs: options.ratePerS === 0 ? 0 : 1000 / options.ratePerS,
      confirms: new Histogram(),
      counts: {
        ...{ sent: 0, cutOff: 0, acked: 0, commands: 0, unanswered: 0, others: 0 },
        ...{ held: 0, goodbyes: 0 },
      },
    }
    for (let index = 0; index < options.devices; index += 1) {
      this.#devices.push({
        index,
        name: deviceName(options.name, index),
        quota: { left: options.lines ?? Number.POSITIVE_INFINITY },
        history: { wasCommanded: false },
        attempts: 0,
        failures: 0,
        wasOpen: false,
        retryAtMs: 0,
        isElsewhere: false,
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

  /** All first tries have ended. */
  get ramped(): boolean {
    return this.#launched === this.#devices.length && this.#handshakes === 0
  }

  /** Connects devices and sends lines that are due. */
  sweep(nowMs: number): void {
    if (this.#stage === "sending") this.#connectSome(nowMs)
    for (const { connection } of this.#devices) {
      if (connection === null) continue
      if (connection.state === "connecting") this.#expire(connection, nowMs)
      else if (this.#stage !== "closing") connection.sweep(nowMs)
    }
  }

  /** Stops sending lines; commands are still answered. */
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

  /** Closes some connections; returns the number of those that are left. */
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

  /** Resets all remaining connections. */
  terminate(): void {
    for (const { connection } of this.#devices) connection?.terminate()
  }

  /** Writes new records to the ledger. */
  record(): void {
    for (const { connection } of this.#devices) connection?.record()
    this.#shared.ledger?.flush()
  }

  /** The back-end of this process has consumed this line. */
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
    // Devices that were connected before go first: they are few, and have waited for their backoff.
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
      history: device.history,
      nowMs: performance.now(),
      ended: (end) => this.#ended(device, connection, end),
    })
    device.connection = connection
    this.#issuer.of(device.name).then(
      (credentials) => this.#dial(device, connection, credentials),
      () => {
        // The certificate could not be made.
        if (connection.state === "connecting") this.failures.handshake += 1
        connection.closed(true)
      },
    )
  }

  #dial(device: Device, connection: DeviceConnection, { tls, hello }: Credentials): void {
    if (connection.state !== "connecting") return
    // The time for the certificate does not count as connecting.
    connection.startedAtMs = performance.now()
    const { other } = this.#options
    const { host, port } = device.isElsewhere && other !== null ? other : this.#options
    const data = { device, connection, hello }
    const socket = this.#handlers
    // `localAddress` works and is not in the types.
    const from = this.#localAddressOf(device)
    const options = { hostname: host, port, tls, data, socket, ...from }
    const dialling = Bun.connect<Dialled>(options)
    dialling.catch(() => this.#unreached(connection))
  }

  #localAddressOf(device: Device): { readonly localAddress?: string } {
    const { addresses } = this.#options
    if (addresses === 0) return {}
    const at = device.index % addresses
    return { localAddress: `127.1.${at >> 8}.${at & 255}` }
  }

  /** One object for all sockets, since closures would be a tenth of the memory of a device. */
  #makeHandlers(): Bun.SocketHandler<Dialled> {
    const verifies = this.#issuer.checksGateway
    return {
      open: (socket) => {
        const { connection } = socket.data
        connection.socket = socket
        // The try was abandoned during the TCP connect.
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

  /** The TCP connect failed. May be called twice. */
  #unreached(connection: DeviceConnection): void {
    if (connection.state !== "connecting") return
    this.failures.connect += 1
    connection.closed(true)
  }

  /** The TLS handshake failed, or its connection. */
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
    // It connected during the settling, and sends nothing.
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
      // After a short connection the waits keep growing.
      const lastedMs = nowMs - connection.openedAtMs
      if (lastedMs >= this.#options.backoff.maxMs) device.failures = 0
    }
    const waitMs =
      connection.retryAfterMs ?? backoffMs(device.failures, this.#options.backoff, Math.random())
    device.retryAtMs = nowMs + waitMs
    device.failures += 1
    device.isElsewhere = !device.isElsewhere
  }
}
