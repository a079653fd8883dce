/**
 * How many devices a machine holds, by the formulas of docs/SCALE.md: the least of what its
 * workers, its memory and its open files allow. Pure.
 *
 * CPU time limits the rate at which devices connect and send, and not their number.
 */

/** *n*: the most connections of one worker so far. */
const WORKER_DEVICES = 16_667
/** *m* and *M*: memory of an idle connection, without and with a client certificate. */
const DEVICE_BYTES = { plain: 7.1 * 1_024, certificate: 12 * 1_024 }
/** *w*: memory of a worker without connections. */
const WORKER_BYTES = 67e6
/** The part of each core that stays free. */
const SPARE = 0.2

export interface CapacityOptions {
  readonly workers: number
  readonly cores: number
  /** Memory that is available now. */
  readonly memoryBytes: number
  /** Devices that a worker accepts, by its open files or `MAX_CONNECTIONS`. */
  readonly devicesOfWorker: number
  readonly hasCertificates: boolean
  /** CPU time of one connection. */
  readonly connectionUs: number
}

export interface Capacity {
  readonly devices: number
  /** What allows no more. */
  readonly limit: "workers" | "memory" | "open files or MAX_CONNECTIONS"
  /** How long it takes until all of them have connected again after an outage. */
  readonly reconnectS: number
}

export function capacityOf(options: CapacityOptions): Capacity {
  const { workers, cores, memoryBytes, devicesOfWorker, hasCertificates, connectionUs } = options
  const deviceBytes = hasCertificates ? DEVICE_BYTES.certificate : DEVICE_BYTES.plain
  const limits = {
    workers: workers * WORKER_DEVICES,
    memory: Math.max(0, Math.floor((memoryBytes - workers * WORKER_BYTES) / deviceBytes)),
    "open files or MAX_CONNECTIONS": workers * devicesOfWorker,
  } as const
  const devices = Math.min(...Object.values(limits))
  const limit = (Object.keys(limits) as (keyof typeof limits)[]).find(
    (name) => limits[name] === devices,
  ) as Capacity["limit"]
  const perS = ((1 - SPARE) * Math.min(workers, cores) * 1e6) / connectionUs
  return { devices, limit, reconnectS: devices / perS }
}
