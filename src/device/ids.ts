/**
 * The ids of devices, workers and connections: their alphabets, and how a connection id carries the
 * id of the worker that holds it, so that any worker can send a command there without a look-up.
 *
 *   instance    gw1                       one machine, at most 32 characters
 *   worker      gw1.0                     instance and slot; the same again after a restart
 *   connection  gw1.0.mb2k3f9zq7x2.1a     worker, incarnation of its process, counter
 *
 * Pure. The incarnation holds the start time and four random characters: for a connection id to be
 * minted twice, a worker would have to start twice in one millisecond, by a clock that was set back, and
 * draw the same of 1.7 million.
 */

export const DEVICE_ID = /^[A-Za-z0-9._:-]{1,128}$/
export const CONNECTION_ID = /^[A-Za-z0-9._-]{1,64}$/
/** 32 leaves room for slot, incarnation and counter in the 64 characters of a connection id. */
export const INSTANCE_ID = /^[A-Za-z0-9._-]{1,32}$/

const MINTED_CONNECTION_ID =
  /^([A-Za-z0-9._-]{1,32}\.[0-9]{1,4})\.([a-z0-9]{10,13})\.[a-z0-9]{1,11}$/

export function workerId(instanceId: string, slot: number): string {
  return `${instanceId}.${slot}`
}

/** The worker that minted this connection id, or null when no worker can have done so. */
export function workerOfConnection(connectionId: string): string | null {
  if (!MINTED_CONNECTION_ID.test(connectionId)) return null
  // Asked for each command: a slice costs less than what a match hands out.
  return connectionId.slice(0, connectionId.lastIndexOf(".", connectionId.lastIndexOf(".") - 1))
}

/** The process that minted this connection id: a worker and its incarnation. */
export interface WorkerProcess {
  readonly worker: string
  readonly incarnation: string
}

/** The same with the incarnation of the worker's process, which alone can still hold it. */
export function processOfConnection(connectionId: string): WorkerProcess | null {
  const [, worker, incarnation] = MINTED_CONNECTION_ID.exec(connectionId) ?? []
  return worker === undefined || incarnation === undefined ? null : { worker, incarnation }
}

/** The rule of `isDeviceName`, for messages. */
export const DEVICE_NAME_RULE =
  "a device id has 1 to 128 characters of A-Z a-z 0-9 . _ : -, is not . or .., and is not of the form of a connection id"

/**
 * Whether this is a valid device id. An id of the form that the gateway generates names a connection. The segments
 * `.` and `..` are removed from a URL by every client, escaped or not (RFC 3986, section 5.2.4), so no route
 * would reach such a device.
 */
export function isDeviceName(id: string): boolean {
  return DEVICE_ID.test(id) && id !== "." && id !== ".." && !MINTED_CONNECTION_ID.test(id)
}

/** @param random in [0, 1), drawn once for a process. */
export function incarnation(startedAtMs: number, random: number): string {
  const suffix = Math.floor(random * 36 ** 4)
  return startedAtMs.toString(36).padStart(8, "0") + suffix.toString(36).padStart(4, "0")
}

/** Mints the connection ids of one incarnation of one worker. */
export class ConnectionIds {
  readonly #prefix: string
  #next = 0

  constructor({ worker, incarnation }: WorkerProcess) {
    this.#prefix = `${worker}.${incarnation}.`
  }

  mint(): string {
    const id = this.#prefix + this.#next.toString(36)
    this.#next += 1
    return id
  }
}
