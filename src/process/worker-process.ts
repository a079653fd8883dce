/**
 * A worker as a process: signals and, where there is a supervisor, the channel to it.
 *
 *   waiting ──the whole denylist──► serving ──"drain", SIGTERM, supervisor gone──► draining ──► exit 0, or 1 when it
 *      └──the same events──► exit 0                                                             was cut short
 *
 * Without `DENYLIST_FILE` it does not wait. Alone (the embedded broker) it takes SIGINT and SIGHUP too; a second stop signal ends
 * it. Under a supervisor those are left to that: a terminal sends them to both.
 */

import { risks } from "../config/config.ts"
import { SWEEP_EVERY_MS } from "../device/connections.ts"
import type { Denylist } from "../device/denylist.ts"
import type { ListenerTls } from "../device/listener.ts"
import { asError, errorText } from "../errors.ts"
import { DenylistFile } from "../ops/denylist-file.ts"
import type { ToWorker } from "./control.ts"
import { FedDenylist } from "./denylist-feed.ts"
import { makeWorker, type WorkerOptions } from "./make-worker.ts"
import { reloadOnHangup } from "./reload.ts"
import { onStopSignals } from "./signals.ts"
import type { SupervisorChannel } from "./supervisor-channel.ts"
import type { Worker } from "./worker.ts"

type ProcessOptions = Omit<WorkerOptions, "gather"> & {
  readonly tls: ListenerTls
  /** Where the worker gets its orders: from a supervisor, or from signals alone. */
  readonly orders:
    | { readonly from: "supervisor"; readonly channel: SupervisorChannel }
    /** `readTls` reads the certificate again on SIGHUP. */
    | { readonly from: "signals"; readonly readTls: () => ListenerTls }
}

/** Resolves when the worker serves, which with `DENYLIST_FILE` it does once it has the whole list. */
export async function runWorker(options: ProcessOptions): Promise<void> {
  const { config, events, orders } = options
  const { denylistFile } = config.device
  const channel = orders.from === "supervisor" ? orders.channel : null
  const { worker, maxConnections } = makeWorker({
    ...options,
    gather: async (own) => (channel === null ? [await own()] : channel.gather()),
  })
  let { tls } = options
  let state: "waiting" | "serving" | "draining" = "waiting"

  const drain = () => {
    if (state === "draining") return
    // Nothing can be lost yet.
    if (state === "waiting") process.exit(0)
    state = "draining"
    worker.drain().then(
      (result) => process.exit(result === "done" ? 0 : 1),
      (error: unknown) => {
        events.emit("fault", { error: asError(error), where: "drain" })
        process.exit(1)
      },
    )
  }
  const renew = (renewed: ListenerTls) => {
    tls = renewed
    if (state !== "waiting") worker.renew(renewed)
  }

  if (orders.from === "signals") {
    onStopSignals(drain, () => process.exit(1))
    const notice = (message: string) => events.emit("notice", { message })
    reloadOnHangup(orders.readTls, renew, notice)
    if (denylistFile !== null) {
      await new DenylistFile(denylistFile, (list) => worker.deny(list), notice).follow()
    }
  } else {
    process.on("SIGTERM", drain)
    process.on("SIGINT", () => undefined)
    process.on("SIGHUP", () => undefined)
    const firstList = Promise.withResolvers<void>()
    const deny = (list: Denylist) => {
      worker.deny(list)
      firstList.resolve()
    }
    const { channel } = orders
    channel.listen({ drain, message: obeying({ worker, channel, drain, renew, deny }) })
    if (denylistFile !== null) await firstList.promise
  }

  try {
    const ports = await worker.start(tls)
    setInterval(() => worker.sweep(), SWEEP_EVERY_MS)
    state = "serving"
    // Before "listening", so that a program that waits for that event has the warnings.
    for (const message of risks(config)) events.emit("notice", { message })
    events.emit("listening", { ...ports, maxConnections })
    channel?.send({ kind: "listening", ...ports })
  } catch (error) {
    const message = `cannot serve: ${errorText(error)}`
    if (channel === null) events.emit("instance_ended", { status: 1, reason: message })
    else channel.send({ kind: "unable", message })
    process.exit(1)
  }
}

interface Obeying {
  readonly worker: Worker
  readonly channel: SupervisorChannel
  readonly drain: () => void
  readonly renew: (tls: ListenerTls) => void
  readonly deny: (denylist: Denylist) => void
}

function obeying({ worker, channel, drain, renew, deny }: Obeying): (message: ToWorker) => void {
  const denylist = new FedDenylist()
  return (message) => {
    switch (message.kind) {
      case "certificate":
        renew(message.tls)
        break
      case "drain":
        drain()
        break
      case "snapshot_wanted":
        void worker
          .snapshot()
          .then((snapshot) => channel.send({ kind: "snapshot", id: message.id, snapshot }))
        break
      case "denylist": {
        const complete = denylist.take(message.part)
        if (complete !== null) deny(complete)
        channel.send({ kind: "denylist_taken" })
        break
      }
    }
  }
}
