/**
 * A worker as a process: signals, uncaught errors and, where there is a supervisor, the channel to it.
 *
 *   waiting ──"serve"──► serving ──"drain", SIGTERM, supervisor gone──► draining ──► exit 0, or 1 when it
 *                          └──uncaught error──► exit 1                              was cut short
 *
 * Alone (the embedded broker) it serves at once and takes SIGINT and SIGHUP too; a second stop signal ends
 * it. Under a supervisor those are left to that: a terminal sends them to both.
 */

import {
  GATHER_TIMEOUT_MS,
  type Snapshot,
  type ToSupervisor,
  type ToWorker,
  type WorkerOrders,
} from "./control.ts"
import type { ListenerTls } from "./device/listener.ts"
import type { EventBus } from "./events.ts"
import { reloadOnHangup } from "./reload.ts"
import { onStopSignals } from "./signals.ts"
import { Worker, type WorkerOptions } from "./worker.ts"

type ProcessOptions = Omit<WorkerOptions, "gather"> & {
  readonly tls: ListenerTls
  /** Reads the certificate anew on SIGHUP. Null: the supervisor does. */
  readonly readTls: (() => ListenerTls) | null
}

/** The supervisor's orders, which come first. */
export async function firstOrders(): Promise<WorkerOrders> {
  const { promise, resolve } = Promise.withResolvers<WorkerOrders>()
  // A supervisor that is gone by now will not send any.
  const gone = () => process.exit(1)
  process.once("disconnect", gone)
  process.once("message", resolve)
  const orders = await promise
  process.off("disconnect", gone)
  return orders
}

export function runWorker(options: ProcessOptions): void {
  const { events, tls, readTls } = options
  const channel = readTls === null ? new SupervisorChannel() : null
  const worker = new Worker({
    ...options,
    gather: async (own) => (channel === null ? [await own()] : channel.gather(own)),
  })
  exitOnUncaught(events)

  let draining = false
  const drain = () => {
    if (draining) return
    draining = true
    worker.drain().then(
      (status) => process.exit(status),
      (error: unknown) => {
        events.emit("fault", { error: asError(error), where: "drain" })
        process.exit(1)
      },
    )
  }

  const renew = (renewed: ListenerTls) => worker.renew(renewed)
  if (readTls !== null) {
    onStopSignals(drain, () => process.exit(1))
    reloadOnHangup(readTls, renew, (message) => events.emit("notice", { message }))
  } else {
    process.on("SIGTERM", drain)
    process.on("SIGINT", () => undefined)
    process.on("SIGHUP", () => undefined)
    channel?.listen({ drain, renew, snapshot: () => worker.snapshot() })
  }

  try {
    const ports = worker.start(tls)
    channel?.send({ type: "listening", ...ports })
  } catch (error) {
    const message = `cannot serve: ${asError(error).message}`
    if (channel === null) events.emit("instance_ended", { status: 1, reason: message })
    else channel.send({ type: "unable", message })
    process.exit(1)
  }
}

/** The worker's end of the channel. When the other end is gone, so is the supervisor. */
class SupervisorChannel {
  readonly #gathering = new Map<number, (snapshots: readonly Snapshot[]) => void>()
  #nextId = 0

  send(message: ToSupervisor): void {
    if (process.connected) process.send?.(message)
  }

  listen(on: {
    drain: () => void
    renew: (tls: ListenerTls) => void
    snapshot: () => Promise<Snapshot>
  }): void {
    process.on("disconnect", on.drain)
    process.on("message", (message: ToWorker) => {
      switch (message.type) {
        case "serve":
          // It came first; see `firstOrders`.
          break
        case "certificate":
          on.renew(message.tls)
          break
        case "drain":
          on.drain()
          break
        case "snapshot_wanted":
          void on
            .snapshot()
            .then((snapshot) => this.send({ type: "snapshot", id: message.id, snapshot }))
          break
        case "gathered":
          this.#gathering.get(message.id)?.(message.snapshots)
          break
      }
    })
  }

  /** The snapshots of all; this worker's own alone when the supervisor does not answer. */
  async gather(own: () => Promise<Snapshot>): Promise<readonly Snapshot[]> {
    const id = this.#nextId
    this.#nextId += 1
    const { promise, resolve } = Promise.withResolvers<readonly Snapshot[] | null>()
    const timer = setTimeout(() => resolve(null), GATHER_TIMEOUT_MS * 2)
    this.#gathering.set(id, resolve)
    this.send({ type: "gather", id })
    const snapshots = await promise
    clearTimeout(timer)
    this.#gathering.delete(id)
    return snapshots ?? [await own()]
  }
}

function exitOnUncaught(events: EventBus): void {
  const end = (where: string) => (error: unknown) => {
    events.emit("fault", { error: asError(error), where })
    process.exit(1)
  }
  process.on("uncaughtException", end("uncaught exception"))
  process.on("unhandledRejection", end("unhandled rejection"))
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error))
}
