/**
 * The formats of device, worker and connection ids. A connection id contains the id of its worker,
 * so that any worker can route a command to it without a look-up.
 *
 *   instance    gw1                       one machine, at most 32 characters
 *   worker      gw1.0                     instance and slot; unchanged by a restart
 *   connection  gw1.0.mb2k3f9zq7x2.1a     worker, incarnation of its process, counter
 *
 * Pure. An incarnation consists of the start time and four random characters. Two incarnations of a
 * worker are equal only if both start in the same millisecond (after the clock was set back) and
 * draw the same of 1.7 million values.
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

/**
 * The worker that generated this connection id, or null when the id does not have the form of a
 * connection id.
 */
export function workerOfConnection(connectionId: string): string | null {
  if (!MINTED_CONNECTION_ID.test(connectionId)) return null
  // Called for each command: a slice is cheaper than the capture groups of a match.
  return connectionId.slice(0, connectionId.lastIndexOf(".", connectionId.lastIndexOf(".") - 1))
}

/** A worker process: a worker and its incarnation. */
export interface WorkerProcess {
  readonly worker: string
  readonly incarnation: string
}

/**
 * The process that generated this connection id: no other process can hold the connection. Null as
 * above.
 */
export function processOfConnection(connectionId: string): WorkerProcess | null {
  const [, worker, incarnation] = MINTED_CONNECTION_ID.exec(connectionId) ?? []
  return worker === undefined || incarnation === undefined ? null : { worker, incarnation }
}

/** The rule of `isDeviceName`, for messages. */
export const DEVICE_NAME_RULE =
  "a device id has 1 to 128 characters of A-Z a-z 0-9 . _ : -, is not . or .., and is not of the form of a connection id"

/**
 * Whether this is a valid device id. An id that has the form of a connection id is not valid,
 * because it names a connection. Clients remove the segments `.` and `..` from a URL, escaped or
 * not (RFC 3986, section 5.2.4), so no route could reach a device with such an id.
 */
export function isDeviceName(id: string): boolean {
  return DEVICE_ID.test(id) && id !== "." && id !== ".." && !MINTED_CONNECTION_ID.test(id)
}

/** @param random in [0, 1), drawn once for each process. */
export function incarnation(startedAtMs: number, random: number): string {
  const suffix = Math.floor(random * 36 ** 4)
  return startedAtMs.toString(36).padStart(8, "0") + suffix.toString(36).padStart(4, "0")
}

/** Generates the connection ids of one worker process. */
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

/** Whether both are connections of one process, and the first was not made after the second. */
export function isSameOrEarlier(a: string, b: string): boolean {
  const at = a.lastIndexOf(".")
  if (at !== b.lastIndexOf(".") || !b.startsWith(a.slice(0, at + 1))) return false
  return Number.parseInt(a.slice(at + 1), 36) <= Number.parseInt(b.slice(at + 1), 36)
}
