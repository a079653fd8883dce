/**
 * The supervisor: starts one worker for each slot, replaces workers that die, and drains them. It
 * collects the workers' counters, including those of dead workers, so that any worker can report
 * for the instance.
 *
 *   starting ──first worker listens──► running ──SIGTERM, SIGINT──► draining ──all ended──► exit 0
 *      │                                  └──restart intensity──► draining ──all ended──► exit 1
 *      └──first worker cannot serve──► exit 1
 *
 * The first worker starts alone. It chooses the ports when they are 0, and an invalid certificate
 * or a port in use is reported once, not once for each core. The supervisor opens no port and no
 * broker connection. Bounds: `workers` processes; `drainTimeoutMs` and a grace period for a drain,
 * after which the remaining workers are killed; `stallTimeoutMs` for a worker that does not answer,
 * which is killed and replaced.
 */

import type { Subprocess } from "bun"
import type { Config } from "../config/config.ts"
import type { Counters } from "../counters.ts"
import { Denylist } from "../device/denylist.ts"
import { workerId } from "../device/ids.ts"
import type { ListenerTls } from "../device/tls-port.ts"
import { errorText } from "../errors.ts"
import type { EventBus } from "../events.ts"
import type { RulesContent } from "../fleet/admission-rules.ts"
import { followedDenylist } from "../ops/denylist-file.ts"
import { forwardLines } from "../ops/forward-lines.ts"
import { InstanceCounters } from "../ops/instance-counters.ts"
import { type MetricsSnapshot, supervisorMetrics } from "../ops/metrics.ts"
import { Output } from "../ops/output.ts"
import { followedTokenKeys } from "../ops/token-keys-file.ts"
import { addressesOf } from "./addresses.ts"
import {
  GATHER_TIMEOUT_MS,
  type Snapshot,
  type ToSupervisor,
  type ToWorker,
  type WorkerReport,
} from "./control.ts"
import { DenylistFeed } from "./denylist-feed.ts"
import type { InstanceLog } from "./instance-log.ts"
import type { InstanceSummary } from "./instance-status.ts"
import { reloadOnHangup } from "./reload.ts"
import { RestartIntensity } from "./restart.ts"
import { SAMPLE_EVERY_MS, SampleHistory } from "./samples.ts"
import { onStopSignals } from "./signals.ts"
import { SupervisorLog } from "./supervisor-log.ts"

/** The time that a worker has after its drain to close its broker connections. */
export const DRAIN_GRACE_MS = 5_000

/** By then memory or processes may be available again. */
const SPAWN_RETRY_MS = 1_000

/** The interval of snapshots. A killed worker loses its counts since the last one. */
const ASK_EVERY_MS = 1_000
/** The limit of unanswered questions to a worker, for example to a stopped one. */
const MAX_UNANSWERED = 16
/** The id of a question that only keeps the counters up to date. */
const NO_GATHERING = 0

/** How long the supervisor waits at its end for the standard error of ended workers. */
const LAST_WORDS_MS = 1_000

const STANDARD_ERROR = 2

type Worker = Subprocess<"ignore", "inherit", "pipe">

interface Slot {
  readonly slot: number
  /** Unique among all workers that this supervisor has started. */
  readonly key: number
  readonly process: Worker
  /** Requested snapshots that the worker has not sent yet. */
  unanswered: number
  /** Calls of `#askAll`, one every `ASK_EVERY_MS`, since its last answer. */
  silentTurns: number
  /** Of its last snapshot; null before the first one. */
  report: WorkerReport | null
  /** Of its last snapshot; null before the first one. */
  metrics: MetricsSnapshot | null
}

export class Supervisor {
  readonly #config: Config
  readonly #events: EventBus
  /** The supervisor uses only the counters of log lines. */
  readonly #counters: Counters
  readonly #program: readonly string[]
  readonly #intensity: RestartIntensity
  readonly #slots = new Map<number, Slot>()
  readonly #gatherings = new Map<number, Gathering>()
  /** The gate and bans; null until a worker has sent them. */
  #rules: readonly RulesContent[] | null = null
  /** By `POST /drain`: no worker takes devices. */
  #isEmptied = false
  readonly #instanceCounters = new InstanceCounters()
  readonly #history = new SampleHistory()
  readonly #standardError: Output
  readonly #forwardings = new Set<Promise<void>>()
  #state: "starting" | "running" | "draining" = "starting"
  readonly #readTls: () => ListenerTls
  /** The last valid certificate. */
  #tls: ListenerTls | null = null
  /** The last valid text of `TOKEN_KEYS_FILE`. */
  #tokenKeys: string | null = null
  readonly #denylist = new DenylistFeed()
  readonly #log: SupervisorLog
  #ports: { devicePort: number; httpPort: number }
  /** By slot; a worker that was never replaced is absent. */
  readonly #restarts = new Map<number, number>()
  #lastGathering = NO_GATHERING
  #nextKey = 0
  #asking: ReturnType<typeof setInterval> | null = null
  #sampling: ReturnType<typeof setInterval> | null = null
  #status = 0
  #reason = "drained"
  #killTimer: ReturnType<typeof setTimeout> | null = null

  /**
   * @param log gets the lines of this process already.
   * @param program the command that runs this program, without arguments.
   * @param readTls reads and checks the certificate files; throws an error with their faults.
   */
  constructor(
    config: Config,
    events: EventBus,
    counters: Counters,
    log: InstanceLog,
    program: readonly string[],
    readTls: () => ListenerTls,
  ) {
    this.#config = config
    this.#events = events
    this.#counters = counters
    this.#log = new SupervisorLog(log)
    this.#standardError = Output.toDescriptor(STANDARD_ERROR, (lines) => {
      counters.logLinesDropped += lines
    })
    this.#program = program
    this.#readTls = readTls
    this.#intensity = new RestartIntensity(config.restarts)
    this.#ports = { devicePort: config.device.port, httpPort: config.http.port }
  }

  /**
   * @param tls the certificate of the workers until SIGHUP.
   * @param tokenKeys the text of `TOKEN_KEYS_FILE`, until it changes.
   */
  start(tls: ListenerTls, tokenKeys: string | null): void {
    this.#tls = tls
    this.#tokenKeys = tokenKeys
    onStopSignals(
      () => this.#drain(0, "drained"),
      () => this.#killAll("a second signal"),
    )
    reloadOnHangup(this.#events, this.#readTls, (renewed) => this.#renew(renewed))
    const { denylistFile, token } = this.#config.device
    if (denylistFile !== null) void this.#followDenylist(denylistFile)
    if (token !== null && tokenKeys !== null) this.#followTokenKeys(token.keysFile, tokenKeys)
    this.#asking = setInterval(() => this.#askAll(), ASK_EVERY_MS)
    this.#sampling = setInterval(() => void this.#sample(), SAMPLE_EVERY_MS)
    this.#spawn(0)
  }

  /** A process that cannot be started counts as one that died. */
  #spawn(slot: number): void {
    try {
      this.#start(slot)
    } catch (error) {
      const action = this.#intensity.died(Date.now())
      const status = `not started: ${errorText(error)}`
      this.#events.emit("worker_ended", { slot, pid: 0, status, action })
      if (this.#state === "starting" || action === "give_up") this.#drain(1, status)
      else setTimeout(() => this.#spawn(slot), SPAWN_RETRY_MS)
    }
  }

  #start(slot: number): void {
    if (this.#state === "draining") return
    const { devicePort, httpPort } = this.#ports
    const key = this.#nextKey
    this.#nextKey += 1
    const child: Worker = Bun.spawn(
      [
        ...this.#program,
        ...["--worker", String(slot)],
        ...["--device-port", String(devicePort), "--http-port", String(httpPort)],
      ],
      {
        // A pipe, since a crashing worker writes to standard error and must not block on it.
        stdio: ["ignore", "inherit", "pipe"],
        serialization: "json",
        ipc: (message: ToSupervisor) => this.#received(slot, key, message),
        onExit: (child, status, signal) => this.#ended(slot, child, status, signal),
      },
    )
    this.#instanceCounters.started(slot, key)
    this.#slots.set(slot, {
      slot,
      key,
      process: child,
      unanswered: 0,
      silentTurns: 0,
      report: null,
      metrics: null,
    })
    this.#log.attach(key, (message) => send(child, message))
    const forwarding = forwardLines(child.stderr, this.#standardError)
    this.#forwardings.add(forwarding)
    void forwarding.then(() => this.#forwardings.delete(forwarding))
    this.#events.emit("worker_started", { slot, pid: child.pid })
    if (this.#tls === null) return
    const tokenKeys = this.#tokenKeys
    const rules = this.#rules
    send(child, { kind: "serve", config: this.#config, tls: this.#tls, tokenKeys, rules })
    if (this.#isEmptied) send(child, { kind: "empty", on: true })
    this.#denylist.attach(key, (part) => send(child, { kind: "denylist", part }))
  }

  /** When the list cannot be read, workers that wait for their first list get an empty one. */
  async #followDenylist(path: string): Promise<void> {
    const file = followedDenylist(
      path,
      (list) => this.#denylist.replace(list),
      (message) => this.#events.emit("notice", { message }),
    )
    await file.follow()
    if (this.#denylist.isEmpty) await this.#denylist.replace(Denylist.none)
  }

  #followTokenKeys(path: string, inForce: string): void {
    const file = followedTokenKeys(
      path,
      inForce,
      (text) => {
        this.#tokenKeys = text
        for (const { process: child } of this.#slots.values()) {
          send(child, { kind: "token_keys", text })
        }
      },
      (message) => this.#events.emit("notice", { message }),
    )
    void file.follow()
  }

  #renew(tls: ListenerTls): void {
    this.#tls = tls
    for (const { process: child } of this.#slots.values()) {
      send(child, { kind: "certificate", tls })
    }
  }

  #empty(on: boolean): void {
    this.#isEmptied = on
    for (const { process: child } of this.#slots.values()) send(child, { kind: "empty", on })
  }

  #received(slot: number, key: number, message: ToSupervisor): void {
    switch (message.kind) {
      case "listening":
        if (this.#state !== "starting") break
        this.#state = "running"
        this.#ports = { devicePort: message.devicePort, httpPort: message.httpPort }
        this.#events.emit("instance_started", addressesOf(this.#config, this.#ports))
        for (let other = 1; other < this.#config.workers; other += 1) this.#spawn(other)
        break
      case "unable":
        // After the start this is a death like any other, and the other workers keep serving.
        if (this.#state === "starting") this.#drain(1, message.message)
        break
      case "rules":
        this.#rules = message.rules
        break
      case "empty":
        this.#empty(message.on)
        break
      case "gather":
        this.#gather(slot, message.id, message.history)
        break
      case "snapshot":
        this.#answered(slot, key, message.id, message.snapshot)
        break
      case "denylist_taken":
        this.#denylist.acknowledged(key)
        break
      case "log":
      case "follow":
      case "events_taken":
      case "recent_wanted":
        this.#log.heard(key, message)
        break
    }
  }

  /**
   * Records the snapshot before it passes it on, so that no counter that was shown decreases later.
   */
  #answered(slot: number, key: number, id: number, snapshot: Snapshot): void {
    this.#instanceCounters.seen(slot, key, snapshot.metrics)
    const worker = this.#slots.get(slot)
    if (worker?.key === key) {
      worker.unanswered -= 1
      worker.silentTurns = 0
      worker.report = snapshot.report
      worker.metrics = snapshot.metrics
    }
    this.#gatherings.get(id)?.add(key, snapshot)
  }

  #ended(slot: number, child: Worker, code: number | null, signal: number | string | null): void {
    const key = this.#slots.get(slot)?.key ?? -1
    this.#slots.delete(slot)
    this.#denylist.detach(key)
    this.#log.detach(key)
    for (const gathering of [...this.#gatherings.values()]) gathering.ended(key)
    const status = signal === null ? `status ${code}` : `signal ${signal}`
    const ended = (action: string) =>
      this.#events.emit("worker_ended", { slot, pid: child.pid, status, action })
    if (this.#state === "draining") {
      ended("none")
      // A drain that was cut short may have left lines unconfirmed, so the exit status is 1.
      if (code !== 0 && this.#status === 0) this.#end(1, `worker ${slot} ended with ${status}`)
      this.#exitWhenEmpty()
    } else if (this.#state === "starting" || this.#intensity.died(Date.now()) === "give_up") {
      ended("give up")
      const { max, windowMs } = this.#config.restarts
      const reason =
        this.#state === "starting"
          ? `the first worker ended with ${status} before it could serve`
          : `restart intensity: more than ${max} workers ended within ${windowMs} ms`
      this.#drain(1, reason)
    } else {
      ended("restart")
      this.#restarts.set(slot, (this.#restarts.get(slot) ?? 0) + 1)
      this.#spawn(slot)
    }
  }

  #drain(status: number, reason: string): void {
    if (this.#state === "draining") return
    this.#state = "draining"
    this.#end(status, reason)
    this.#events.emit("instance_draining", {})
    for (const { process: child } of this.#slots.values()) send(child, { kind: "drain" })
    const killAfterMs = this.#config.drainTimeoutMs + DRAIN_GRACE_MS
    this.#killTimer = setTimeout(() => this.#killAll("the drain took too long"), killAfterMs)
    this.#exitWhenEmpty()
  }

  #killAll(reason: string): void {
    this.#end(1, reason)
    for (const { process: child } of this.#slots.values()) child.kill("SIGKILL")
  }

  #end(status: number, reason: string): void {
    this.#status = status
    this.#reason = reason
  }

  #exitWhenEmpty(): void {
    if (this.#slots.size > 0) return
    if (this.#killTimer !== null) clearTimeout(this.#killTimer)
    if (this.#asking !== null) clearInterval(this.#asking)
    if (this.#sampling !== null) clearInterval(this.#sampling)
    void this.#exit()
  }

  async #exit(): Promise<void> {
    await Promise.race([Promise.all(this.#forwardings), Bun.sleep(LAST_WORDS_MS)])
    this.#events.emit("instance_ended", { status: this.#status, reason: this.#reason })
    process.exit(this.#status)
  }

  /** What the workers have sent last. */
  get summary(): InstanceSummary {
    const metrics = this.#instanceCounters.beside(new Set()).flat()
    const lines = metrics.filter(({ name }) => name === "owsla_lines_confirmed_total")
    const values = lines.flatMap(({ values }) => values.map(({ value }) => value))
    return {
      reports: [...this.#slots.values()].flatMap(({ report }) => report ?? []),
      linesConfirmed: values.reduce((sum, value) => sum + value, 0),
      workers: this.#config.workers,
    }
  }

  /** Asks regularly, so that a dying worker loses few counts, and a stalled one is noticed. */
  #askAll(): void {
    for (const worker of this.#slots.values()) {
      if (worker.unanswered === 0) this.#ask(worker, NO_GATHERING)
      else this.#unanswered(worker)
    }
  }

  /**
   * Kills a worker whose event loop has stalled: its devices get no service, and reconnect to
   * another worker when it ends. Counts turns and not time: when the machine was suspended, the
   * worker has had no time to answer. A drain has its own time-out.
   */
  #unanswered(worker: Slot): void {
    worker.silentTurns += 1
    const { stallTimeoutMs } = this.#config
    const isStalled = worker.silentTurns * ASK_EVERY_MS >= stallTimeoutMs
    if (stallTimeoutMs === 0 || !isStalled || this.#state === "draining") return
    const silent = `has not answered for ${stallTimeoutMs} ms (WORKER_STALL_TIMEOUT_MS)`
    const message = `worker ${worker.slot} ${silent} and is killed`
    this.#events.emit("notice", { message })
    worker.process.kill("SIGKILL")
  }

  /**
   * @returns false when too many questions are unanswered: a stopped worker reads none, and they
   * would accumulate.
   */
  #ask(worker: Slot, id: number): boolean {
    if (worker.unanswered >= MAX_UNANSWERED) return false
    worker.unanswered += 1
    send(worker.process, { kind: "snapshot_wanted", id })
    return true
  }

  /**
   * Asks every worker for its snapshot and sends all snapshots to the worker that requested them.
   */
  #gather(slot: number, askedId: number, history: boolean): void {
    this.#lastGathering += 1
    const id = this.#lastGathering
    const asked = [...this.#slots.values()].filter((worker) => this.#ask(worker, id))
    const gathering = new Gathering(
      asked.map(({ key }) => key),
      (snapshots) => {
        this.#gatherings.delete(id)
        void this.#answer(slot, askedId, snapshots, history)
      },
    )
    this.#gatherings.set(id, gathering)
  }

  async #answer(
    slot: number,
    id: number,
    answers: ReadonlyMap<number, Snapshot>,
    history: boolean,
  ): Promise<void> {
    const others = await this.#metricsBeside(new Set(answers.keys()))
    const unreported = others.map((metrics): Snapshot => ({ report: null, metrics }))
    const child = this.#slots.get(slot)?.process
    const gathered = {
      snapshots: [...answers.values(), ...unreported],
      restarts: this.#restartsByWorker(),
      history: history ? this.#history.columns : null,
    }
    if (child) send(child, { kind: "gathered", id, gathered })
  }

  /** The metrics of the supervisor, and the counters of all workers except these. */
  async #metricsBeside(keys: ReadonlySet<number>): Promise<MetricsSnapshot[]> {
    const restarts = [...this.#restarts.values()].reduce((sum, count) => sum + count, 0)
    const own = await supervisorMetrics(restarts, this.#counters.logLinesDropped)
    return [...this.#instanceCounters.beside(keys), own]
  }

  #restartsByWorker(): Record<string, number> {
    const { instanceId } = this.#config
    return Object.fromEntries(
      [...this.#restarts].map(([slot, count]) => [workerId(instanceId, slot), count]),
    )
  }

  /** Uses the snapshots that the workers have sent last: it asks for none. */
  async #sample(): Promise<void> {
    const known = [...this.#slots.values()].filter(({ metrics }) => metrics !== null)
    const others = await this.#metricsBeside(new Set(known.map(({ key }) => key)))
    const metrics = known.flatMap((worker) => (worker.metrics === null ? [] : [worker.metrics]))
    this.#history.take(Date.now(), [...metrics, ...others])
  }
}

/**
 * Collects snapshots. Done when all have arrived, when no other worker is left, or after
 * `GATHER_TIMEOUT_MS`.
 */
class Gathering {
  readonly #snapshots = new Map<number, Snapshot>()
  readonly #expected: Set<number>
  readonly #timer: ReturnType<typeof setTimeout>
  readonly #done: (snapshots: ReadonlyMap<number, Snapshot>) => void

  constructor(
    expected: readonly number[],
    done: (snapshots: ReadonlyMap<number, Snapshot>) => void,
  ) {
    this.#expected = new Set(expected)
    this.#done = done
    this.#timer = setTimeout(() => done(this.#snapshots), GATHER_TIMEOUT_MS)
  }

  add(key: number, snapshot: Snapshot): void {
    this.#snapshots.set(key, snapshot)
    this.ended(key)
  }

  ended(key: number): void {
    if (!this.#expected.delete(key) || this.#expected.size > 0) return
    clearTimeout(this.#timer)
    this.#done(this.#snapshots)
  }
}

function send(child: Worker, message: ToWorker): void {
  try {
    child.send(message)
  } catch {
    // It has just ended, and `onExit` follows.
  }
}
