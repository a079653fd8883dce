/**
 * A worker as a process: signals and, where there is a supervisor, the channel to it.
 *
 *   waiting ──"serve"──► serving ──"drain", SIGTERM, supervisor gone──► draining ──► exit 0, or 1 when it
 *                          └──uncaught error──► exit 1                              was cut short
 *
 * Alone (the embedded broker) it serves at once and takes SIGINT and SIGHUP too; a second stop signal ends
 * it. Under a supervisor those are left to that: a terminal sends them to both.
 */

import type { ToWorker } from "./control.ts"
import type { ListenerTls } from "./device/listener.ts"
import { reloadOnHangup } from "./reload.ts"
import { onStopSignals } from "./signals.ts"
import type { SupervisorChannel } from "./supervisor-channel.ts"
import { asError } from "./uncaught.ts"
import { Worker, type WorkerOptions } from "./worker.ts"

type ProcessOptions = Omit<WorkerOptions, "gather"> & {
  readonly tls: ListenerTls
  /** Where it is told what to do: by a supervisor, or alone by signals. */
  readonly orders:
    | { readonly from: "supervisor"; readonly channel: SupervisorChannel }
    /** `readTls` reads the certificate again on SIGHUP. */
    | { readonly from: "signals"; readonly readTls: () => ListenerTls }
}

export function runWorker(options: ProcessOptions): void {
  const { events, tls, orders } = options
  const channel = orders.from === "supervisor" ? orders.channel : null
  const worker = new Worker({
    ...options,
    gather: async (own) => (channel === null ? [await own()] : channel.gather()),
  })

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
  if (orders.from === "signals") {
    onStopSignals(drain, () => process.exit(1))
    reloadOnHangup(orders.readTls, renew, (message) => events.emit("notice", { message }))
  } else {
    process.on("SIGTERM", drain)
    process.on("SIGINT", () => undefined)
    process.on("SIGHUP", () => undefined)
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
  channel?.listen({ drain, message: (message) => obey(message, worker, drain, channel) })
}

function obey(
  message: ToWorker,
  worker: Worker,
  drain: () => void,
  channel: SupervisorChannel,
): void {
  switch (message.type) {
    case "certificate":
      worker.renew(message.tls)
      break
    case "drain":
      drain()
      break
    case "snapshot_wanted":
      void worker
        .snapshot()
        .then((snapshot) => channel.send({ type: "snapshot", id: message.id, snapshot }))
      break
  }
}
