/**
 * A worker as a process: its signals and, under a supervisor, the channel to it.
 *
 *   waiting ──denylist complete──► serving ──"drain", SIGTERM, supervisor ended──► draining ──► exit 0, or 1 when it
 *      └──the same events──► exit 0                                                             was cut short
 *
 * Without `DENYLIST_FILE` it does not wait. A worker without a supervisor (embedded broker) also
 * handles SIGINT and SIGHUP, and a second stop signal ends it at once. Under a supervisor the
 * worker ignores SIGINT and SIGHUP, because a terminal sends them to both processes.
 */

import { type Config, risks } from "../config/config.ts"
import { SWEEP_EVERY_MS } from "../device/connections.ts"
import type { Denylist } from "../device/denylist.ts"
import { tryPeeking } from "../device/peek.ts"
import type { ListenerTls } from "../device/tls-port.ts"
import { parseTokenKeys } from "../device/token-keys.ts"
import type { TokenVerifier } from "../device/token-verifier.ts"
import { asError, errorText } from "../errors.ts"
import { followedDenylist } from "../ops/denylist-file.ts"
import { followedTokenKeys } from "../ops/token-keys-file.ts"
import { addressesOf } from "./addresses.ts"
import type { ToWorker } from "./control.ts"
import { FedDenylist } from "./denylist-feed.ts"
import { type MadeWorker, makeWorker, type WorkerOptions } from "./make-worker.ts"
import { reloadOnHangup } from "./reload.ts"
import { SAMPLE_EVERY_MS, SampleHistory } from "./samples.ts"
import { onStopSignals } from "./signals.ts"
import type { SupervisorChannel } from "./supervisor-channel.ts"
import type { Worker } from "./worker.ts"
import type { WorkerLog } from "./worker-log.ts"

type ProcessOptions = Omit<WorkerOptions, "gather" | "empty" | "rulesChanged" | "tokenVerifier"> & {
  readonly tls: ListenerTls
  /** The text of `TOKEN_KEYS_FILE`; null unless devices identify themselves by tokens. */
  readonly tokenKeys: string | null
  /** The source of the worker's orders: a supervisor, or signals only. */
  readonly orders:
    | {
        readonly from: "supervisor"
        readonly channel: SupervisorChannel
        readonly workerLog: WorkerLog
      }
    /** `readTls` reads the certificate again on SIGHUP. */
    | { readonly from: "signals"; readonly readTls: () => ListenerTls }
}

/** Resolves when the worker serves. With `DENYLIST_FILE` it first waits for the complete list. */
export async function runWorker(options: ProcessOptions): Promise<void> {
  const { config, events, orders, tokenKeys } = options
  const { denylistFile, token } = config.device
  const channel = orders.from === "supervisor" ? orders.channel : null
  const tokenVerifier = await makeTokenVerifier(config, tokenKeys)
  const history = new SampleHistory()
  const { worker, maxConnections }: MadeWorker = makeWorker({
    ...options,
    tokenVerifier,
    gather: async (own, wantsHistory) =>
      channel === null
        ? { snapshots: [await own()], restarts: {}, history: wantsHistory ? history.columns : null }
        : channel.gather(wantsHistory),
    rulesChanged: (rules) => channel?.send({ kind: "rules", rules }),
    empty: (on) => (channel === null ? worker.empty(on) : channel.send({ kind: "empty", on })),
  })
  let { tls } = options
  let state: "waiting" | "serving" | "draining" = "waiting"

  const drain = () => {
    if (state === "draining") return
    // It has accepted nothing yet.
    if (state === "waiting") process.exit(0)
    state = "draining"
    if (channel === null) events.emit("instance_draining", {})
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
  const renewTokenKeys = (text: string) => {
    if (tokenVerifier !== null) tokenVerifier.keys = parseTokenKeys(text)
  }

  if (orders.from === "signals") {
    onStopSignals(drain, () => process.exit(1))
    const notice = (message: string) => events.emit("notice", { message })
    reloadOnHangup(events, orders.readTls, renew)
    if (token !== null && tokenKeys !== null) {
      void followedTokenKeys(token.keysFile, tokenKeys, renewTokenKeys, notice).follow()
    }
    if (denylistFile !== null) {
      await followedDenylist(denylistFile, (list) => worker.deny(list), notice).follow()
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
    const { channel, workerLog } = orders
    const message = obeying({ worker, channel, workerLog, drain, renew, renewTokenKeys, deny })
    channel.listen({ drain, message })
    if (denylistFile !== null) await firstList.promise
  }

  try {
    const fault = config.device.proxyFrom === null ? null : await tryPeeking()
    if (fault !== null) throw new Error(`PROXY_PROTOCOL=required does not work here: ${fault}`)
    const ports = await worker.start(tls)
    setInterval(() => worker.sweep(), SWEEP_EVERY_MS)
    // Under a supervisor it takes the samples.
    if (channel === null) setInterval(() => void sample(worker, history), SAMPLE_EVERY_MS)
    state = "serving"
    // Before "listening", so that the warnings precede the event that other programs wait for.
    for (const { risk, advice } of risks(config)) {
      events.emit("notice", { message: `${risk}; ${advice}` })
    }
    events.emit("listening", { ...ports, maxConnections })
    if (channel === null) events.emit("instance_started", addressesOf(config, ports))
    else channel.send({ kind: "listening", ...ports })
  } catch (error) {
    const message = `cannot serve: ${errorText(error)}`
    if (channel === null) events.emit("instance_ended", { status: 1, reason: message })
    else channel.send({ kind: "unable", message })
    process.exit(1)
  }
}

async function sample(worker: Worker, history: SampleHistory): Promise<void> {
  const { metrics } = await worker.snapshot()
  history.take(Date.now(), [metrics])
}

/** Loads the library for tokens only when devices identify themselves by tokens. */
async function makeTokenVerifier(
  { device }: Config,
  keys: string | null,
): Promise<TokenVerifier | null> {
  if (device.token === null || keys === null) return null
  const { TokenVerifier } = await import("../device/token-verifier.ts")
  return new TokenVerifier(device.token, parseTokenKeys(keys))
}

interface Obeying {
  readonly worker: Worker
  readonly channel: SupervisorChannel
  readonly workerLog: WorkerLog
  readonly drain: () => void
  readonly renew: (tls: ListenerTls) => void
  readonly renewTokenKeys: (text: string) => void
  readonly deny: (denylist: Denylist) => void
}

function obeying({
  worker,
  channel,
  workerLog,
  drain,
  renew,
  renewTokenKeys,
  deny,
}: Obeying): (message: ToWorker) => void {
  const denylist = new FedDenylist()
  return (message) => {
    switch (message.kind) {
      case "certificate":
        renew(message.tls)
        break
      case "token_keys":
        renewTokenKeys(message.text)
        break
      case "drain":
        drain()
        break
      case "empty":
        worker.empty(message.on)
        break
      case "log_taken":
      case "events":
      case "recent":
        workerLog.heard(message)
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
