/**
 * One page of the device list: what the workers have answered, merged in order.
 *
 * A worker is asked for its share of the page, with some more, and not for a whole page: in a large
 * fleet most rows would not be used. When a worker's share was too small, later devices of it may
 * belong to the page; it is asked again, for a whole page. Pure. Bound: two pages of each worker.
 */

import type { DeviceFilter } from "./device-filter.ts"
import type { DeviceView } from "./device-view.ts"

export interface ListRequest {
  /** Only device ids that start with this. */
  readonly prefix: string
  /** Only device ids after this one, in the order of character codes; "" for all. */
  readonly after: string
  readonly limit: number
  /** Absent for all devices. */
  readonly filter?: DeviceFilter | undefined
}

export interface DeviceList {
  /** Sorted by device id. */
  readonly devices: readonly DeviceView[]
  /** The number of matching devices, including those beyond the limit. */
  readonly total: number
  /** The number of workers whose answer arrived in time and could be parsed completely. */
  readonly answered: number
  /** The number of known workers of the fleet. */
  readonly workers: number
}

export interface WorkerPage {
  /** Sorted by device id. */
  readonly devices: readonly DeviceView[]
  /** The number of matching devices of the worker. */
  readonly total: number
  /** Whether the worker has more matching devices after these. */
  readonly hasMore: boolean
  /** Whether the whole answer could be read. */
  readonly isComplete: boolean
}

/** Devices are divided at random, so a share is seldom larger. */
const SHARE_FACTOR = 2
const SHARE_MORE = 8

interface Asked {
  readonly total: number
  readonly devices: DeviceView[]
  hasMore: boolean
}

export class Page {
  readonly wanted: ListRequest
  /** The first request to each worker. */
  readonly request: ListRequest
  readonly #workers = new Map<string, Asked>()
  /** Workers with an answer that could not be read completely. */
  readonly #incomplete = new Set<string>()

  /** @param workers their number, this one included. */
  constructor(wanted: ListRequest, workers: number) {
    this.wanted = wanted
    const share = Math.ceil((SHARE_FACTOR * wanted.limit) / workers) + SHARE_MORE
    this.request = { ...wanted, limit: Math.min(wanted.limit, share) }
  }

  /** The answer of a worker: the first one, or what follows it. */
  add(worker: string, { devices, total, hasMore, isComplete }: WorkerPage): void {
    if (!isComplete) this.#incomplete.add(worker)
    const before = this.#workers.get(worker)
    if (before === undefined) {
      this.#workers.set(worker, { total, devices: [...devices], hasMore })
      return
    }
    before.devices.push(...devices)
    // It was asked for a whole page, of which more is not needed.
    before.hasMore = false
  }

  /** The workers that may have more devices within the page, and their last known one. */
  unfinished(): { worker: string; after: string }[] {
    const merged = this.#merged()
    const isFull = merged.length === this.wanted.limit
    const end = merged.at(-1)?.device_id ?? ""
    return [...this.#workers].flatMap(([worker, { devices, hasMore }]) => {
      const last = devices.at(-1)?.device_id
      if (!hasMore || last === undefined || (isFull && last >= end)) return []
      return [{ worker, after: last }]
    })
  }

  list(): Omit<DeviceList, "workers"> {
    let total = 0
    for (const each of this.#workers.values()) total += each.total
    const answered = this.#workers.size - this.#incomplete.size
    return { devices: this.#merged(), total, answered }
  }

  #merged(): DeviceView[] {
    const all = [...this.#workers.values()].flatMap(({ devices }) => devices)
    return all.sort(byDevice).slice(0, this.wanted.limit)
  }
}

function byDevice(a: DeviceView, b: DeviceView): number {
  if (a.device_id !== b.device_id) return a.device_id < b.device_id ? -1 : 1
  return a.connection_id < b.connection_id ? -1 : 1
}
