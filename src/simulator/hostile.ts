/**
 * Devices that misbehave, beside the good ones and counted separately.
 *
 *   silent           completes the TLS handshake and sends nothing
 *   half-handshake   sends the beginning of a ClientHello
 *   slow-reader      sends lines and reads nothing; with --command-every the back-end sends it long commands, and its
 *                    socket is full after some 20 s
 *   byte-at-a-time   sends lines one byte each `TICK_MS`
 *   endless-line     sends bytes without end and no LF
 *   garbage          random bytes in place of TLS
 *   duplicate-id     all connect with the same device id and take over from each other
 *   flapping         completes the handshake and closes, repeatedly
 *
 * When a connection ends, its device connects again after `RETURN_MS`; flapping ones at once. Their
 * lines begin with "hostile" and are in no ledger. Bounds: the requested number of sockets,
 * `CHUNK_BYTES` each `TICK_MS` for each. Bytes that a socket does not accept are dropped.
 */

import type { Credentials, Issuer } from "./credentials.ts"
import { handshakeSucceeded } from "./handshake.ts"
import type { HostileKind } from "./hostile-kinds.ts"
import { hostileLine } from "./line.ts"
import type { RunOptions } from "./options.ts"

const TICK_MS = 50
const RETURN_MS = 1_000
const CHUNK_BYTES = 4_096
/** The header of a TLS record with a ClientHello of 512 bytes, and its first bytes. */
const HALF_HELLO = Buffer.from("160301020001000001fc0303", "hex")

interface Manner {
  /** False: bytes go to the plain TCP connection. */
  readonly tls: boolean
  /** Stops reading after connecting. */
  readonly deaf?: boolean
  /** Closes after connecting, and connects again at once. */
  readonly flaps?: boolean
  /** All of a kind have one device id. */
  readonly oneId?: boolean
  /** The bytes for tick `tick` of a connection, counted from 0; null for none. */
  readonly bytes: (tick: number) => Uint8Array | null
}

const nothing = () => null

const MANNERS: Readonly<Record<HostileKind, Manner>> = {
  silent: { tls: true, bytes: nothing },
  "half-handshake": { tls: false, bytes: (tick) => (tick === 0 ? HALF_HELLO : null) },
  "slow-reader": {
    tls: true,
    deaf: true,
    bytes: (tick) => Buffer.from(`${hostileLine("slow-reader", tick)}\n`),
  },
  "byte-at-a-time": {
    tls: true,
    bytes: (tick) => {
      const line = `${hostileLine("byte-at-a-time", 0)}\n`
      return Buffer.from(line.charAt(tick % line.length))
    },
  },
  "endless-line": { tls: true, bytes: () => Buffer.alloc(CHUNK_BYTES, "x") },
  garbage: { tls: false, bytes: () => crypto.getRandomValues(new Uint8Array(256)) },
  "duplicate-id": { tls: true, oneId: true, bytes: nothing },
  flapping: { tls: true, flaps: true, bytes: nothing },
}

export interface HostileReport {
  readonly kind: HostileKind
  readonly count: number
  /** Connections that were made, of TLS or, for some kinds, of TCP. */
  opened: number
  /** Connections that the gateway closed, or that broke. */
  closedByGateway: number
  /** Connections that failed. */
  failed: number
  sentBytes: number
  /** Connections that were open when sending ended. */
  open: number
}

interface Place {
  readonly manner: Manner
  readonly report: HostileReport
  readonly deviceId: string
  state: "away" | "connecting" | "open"
  returnAtMs: number
  ticks: number
  /** The unsent part of its hello, if it has one. */
  hello: string
  socket: Bun.Socket<Place> | null
  closing: boolean
}

export class Hostiles {
  readonly reports: readonly HostileReport[]
  readonly #options: RunOptions
  readonly #issuer: Issuer
  readonly #places: Place[] = []
  #nextTickMs = 0
  #stopped = false

  constructor(options: RunOptions, issuer: Issuer) {
    this.#options = options
    this.#issuer = issuer
    this.reports = options.hostile.map(({ kind, count }) => {
      const report = {
        kind,
        count,
        opened: 0,
        closedByGateway: 0,
        failed: 0,
        sentBytes: 0,
        open: 0,
      }
      const manner = MANNERS[kind]
      for (let number = 0; number < count; number += 1) {
        const deviceId = `${options.name}-${kind}-${manner.oneId === true ? "all" : number}`
        const fresh = { state: "away", returnAtMs: 0, ticks: 0, hello: "", socket: null } as const
        this.#places.push({ ...fresh, manner, report, deviceId, closing: false })
      }
      return report
    })
  }

  sweep(nowMs: number): void {
    if (nowMs < this.#nextTickMs || this.#stopped) return
    this.#nextTickMs = nowMs + TICK_MS
    for (const place of this.#places) {
      if (place.state === "open") this.#misbehave(place)
      if (place.state === "away" && nowMs >= place.returnAtMs) this.#connect(place)
    }
  }

  /** Resets all connections for good. */
  stop(): void {
    this.#stopped = true
    for (const place of this.#places) {
      place.closing = true
      place.socket?.terminate()
    }
  }

  #misbehave(place: Place): void {
    if (place.manner.flaps === true) {
      place.closing = true
      place.socket?.end()
      return
    }
    const bytes = place.manner.bytes(place.ticks)
    if (bytes === null) return
    const taken = place.socket?.write(bytes) ?? -1
    // A socket that is not read does not report that it is closed.
    if (taken < 0) place.socket?.terminate()
    if (taken <= 0) return
    place.report.sentBytes += taken
    place.ticks += 1
  }

  #connect(place: Place): void {
    place.state = "connecting"
    place.closing = false
    this.#issuer.of(place.deviceId).then(
      (credentials) => this.#dial(place, credentials),
      () => this.#ended(place),
    )
  }

  #dial(place: Place, { tls, hello }: Credentials): void {
    const { host, port } = this.#options
    if (this.#stopped) return
    place.hello = hello
    Bun.connect<Place>({
      hostname: host,
      port,
      ...(place.manner.tls ? { tls } : {}),
      data: place,
      socket: {
        open: (socket) => {
          place.socket = socket
          if (this.#stopped) socket.terminate()
          else if (!place.manner.tls) this.#opened(place)
        },
        handshake: (socket, success, error) => {
          if (handshakeSucceeded(success, error, this.#issuer.checksGateway)) this.#opened(place)
          else socket.terminate()
        },
        data: () => undefined,
        drain: () => undefined,
        close: () => this.#ended(place),
        error: (socket) => {
          socket.terminate()
        },
        connectError: () => this.#ended(place),
      },
    }).catch(() => this.#ended(place))
  }

  #opened(place: Place): void {
    const { manner, report } = place
    place.state = "open"
    place.ticks = 0
    report.opened += 1
    report.open += 1
    // Silent devices do not send their hello either.
    if (manner.tls && report.kind !== "silent") place.socket?.write(place.hello)
    if (manner.deaf === true) place.socket?.pause()
  }

  /** May be called twice for one connection. */
  #ended(place: Place): void {
    if (place.state === "away") return
    if (this.#stopped) {
      // The report has the state of that time.
    } else if (place.state === "open") {
      place.report.open -= 1
      if (!place.closing) place.report.closedByGateway += 1
    } else place.report.failed += 1
    place.state = "away"
    place.socket = null
    const waitMs = place.manner.flaps === true ? 0 : RETURN_MS
    place.returnAtMs = performance.now() + waitMs
  }
}
