/**
 * One run: devices, back-end and hostile devices, from the first connection to the report.
 *
 *   away ──held commands sent──► ramping      only with --hold
 *   ramping ──all tried──► sending ──lines sent or time over──► settling ──all arrived──► closing ──► over
 *        └──────────────stopped──────────────────┴─────────────────►│ └─── --settle over ──►│
 *
 * One sweep serves everything. Time limits: `MAX_RAMP_MS` beyond `--away` and beyond the ramp, the
 * duration, the settling, and `CLOSE_TIMEOUT_MS`.
 */

import { BackEnd } from "./back-end.ts"
import { Issuer } from "./credentials.ts"
import { HeldCommands } from "./held-commands.ts"
import { Herd } from "./herd.ts"
import { Histogram } from "./histogram.ts"
import { Hostiles } from "./hostile.ts"
import { LedgerFile } from "./ledger.ts"
import { LineWriter, newRun } from "./line.ts"
import type { RunOptions } from "./options.ts"
import type { Progress } from "./progress.ts"
import type { RunReport } from "./report.ts"

const SWEEP_MS = 20
const RECORD_EVERY_MS = 250
const MAX_RAMP_MS = 120_000
const CLOSE_TIMEOUT_MS = 10_000

export class Simulation {
  readonly #options: RunOptions
  readonly #progress: Progress
  readonly #run: string
  readonly #files: { readonly devices: LedgerFile | null; readonly backEnd: LedgerFile | null }
  readonly #herd: Herd
  readonly #backEnd: BackEnd | null
  readonly #held: HeldCommands | null
  readonly #hostiles: Hostiles
  readonly #faults: string[] = []
  #stage: "away" | "ramping" | "sending" | "settling" | "closing" | "over" = "ramping"
  #nextRecordMs = 0
  #stopped = false
  #hurried = false

  /** @throws CredentialsError, or an error of the file system for the directory of the ledger. */
  constructor(options: RunOptions, progress: Progress) {
    this.#options = options
    this.#progress = progress
    this.#run = newRun(Date.now(), Math.random())
    const issuer = new Issuer(options)
    const { ledger, backEnd } = options
    this.#files = {
      devices:
        ledger === null || options.devices === 0
          ? null
          : new LedgerFile(ledger, this.#run, "devices"),
      backEnd:
        ledger === null || backEnd === null ? null : new LedgerFile(ledger, this.#run, "back-end"),
    }
    const writer = new LineWriter(this.#run, options.bytes)
    const herd = new Herd(options, issuer, writer, this.#files.devices)
    this.#herd = herd
    this.#hostiles = new Hostiles(options, issuer)
    const taken = (run: string, device: string, attempt: number, n: number) => {
      if (run === this.#run) herd.taken(device, attempt, n)
    }
    this.#backEnd = backEnd === null ? null : new BackEnd(backEnd, this.#files.backEnd, taken)
    const { devices, name } = options
    const hold = backEnd?.hold ?? null
    this.#held =
      backEnd === null || hold === null
        ? null
        : new HeldCommands({
            ...{ hold, backEnd, run: this.#run, name, devices },
            ledger: this.#files.backEnd,
          })
  }

  /** The first call starts settling, the second one closing. */
  stop(): void {
    this.#hurried = this.#stopped
    this.#stopped = true
  }

  async run(): Promise<RunReport> {
    const startedAtMs = performance.now()
    const { devices, rampPerS, durationMs, settleMs } = this.#options
    this.#backEnd?.start()
    const timer = setInterval(() => this.#sweep(), SWEEP_MS)
    if (this.#held !== null) await this.#hold(this.#held)
    this.#stage = "ramping"
    const rampingAtMs = performance.now()
    const rampMs = (rampPerS === 0 ? 0 : (devices / rampPerS) * 1000) + MAX_RAMP_MS
    await this.#until(rampMs, () => this.#herd.ramped)
    this.#stage = "sending"
    const sentAllAtMs = await this.#send(durationMs)
    const notConnected = devices - this.#herd.open
    const sendingMs = sentAllAtMs - rampingAtMs
    this.#stage = "settling"
    this.#herd.stopSending()
    this.#hostiles.stop()
    this.#backEnd?.stopCommanding()
    const hurried = () => this.#hurried
    if (!(await this.#until(settleMs, () => this.#settled(), hurried))) {
      this.#faults.push(this.#unsettled(settleMs))
    }
    this.#stage = "closing"
    await this.#until(CLOSE_TIMEOUT_MS, () => this.#herd.closeSome() === 0, hurried)
    this.#herd.terminate()
    await Promise.all([this.#backEnd?.stop(), this.#held?.stop()])
    this.#stage = "over"
    clearInterval(timer)
    this.#herd.record()
    this.#files.devices?.append("done")
    this.#files.devices?.close()
    this.#files.backEnd?.close()
    this.#progress.clear()
    this.#findFaults(notConnected)
    return this.#report(performance.now() - startedAtMs, sendingMs, notConnected)
  }

  async #hold(held: HeldCommands): Promise<void> {
    const awayMs = this.#options.backEnd?.hold?.awayMs ?? 0
    this.#stage = "away"
    held.start()
    await this.#until(awayMs + MAX_RAMP_MS, () => held.isSent(performance.now()))
    const left = held.stopSending()
    if (left > 0 && !this.#stopped) this.#faults.push(`${left} held commands were not sent`)
  }

  /** Returns the time of its end by `performance.now()`. */
  async #send(durationMs: number): Promise<number> {
    const { lines } = this.#options
    const allSent = () => lines !== null && this.#options.devices > 0 && this.#herd.linesLeft === 0
    const complete = await this.#until(durationMs, allSent)
    if (!complete && lines !== null && !this.#stopped) {
      const left = this.#herd.linesLeft
      this.#faults.push(`${left} of the lines were not sent within ${durationMs / 1000} s`)
    }
    return performance.now()
  }

  async #settled(): Promise<boolean> {
    if (!this.#herd.settled(performance.now())) return false
    if ((this.#held?.withoutReceipt ?? 0) > 0) return false
    return this.#backEnd === null || (await this.#backEnd.drained())
  }

  /** False after the time limit, or when the run was stopped. */
  async #until(
    timeoutMs: number,
    condition: () => boolean | Promise<boolean>,
    stopped = () => this.#stopped,
  ): Promise<boolean> {
    const deadlineMs = performance.now() + timeoutMs
    for (;;) {
      if (await condition()) return true
      if (stopped() || performance.now() >= deadlineMs) return false
      await Bun.sleep(SWEEP_MS)
    }
  }

  #sweep(): void {
    const nowMs = performance.now()
    if (this.#stage !== "away") this.#herd.sweep(nowMs)
    this.#held?.sweep(nowMs)
    this.#hostiles.sweep(nowMs)
    this.#backEnd?.sweep(nowMs)
    if (nowMs >= this.#nextRecordMs) {
      this.#nextRecordMs = nowMs + RECORD_EVERY_MS
      this.#herd.record()
    }
    this.#progress.show(() => this.#line(), nowMs)
  }

  #unsettled(settleMs: number): string {
    const withoutReceipt = this.#held?.withoutReceipt ?? 0
    const whose = this.#backEnd === null ? "acknowledged" : "taken by the back-end"
    const limit = this.#hurried ? "when the run was stopped" : `within ${settleMs / 1000} s`
    if (withoutReceipt > 0) return `${withoutReceipt} held commands had no receipt ${limit}`
    const away = this.#backEnd?.awayBecause ?? null
    const why = away === null ? "" : `; it has no broker: ${away}`
    return `not everything that was sent was ${whose} ${limit}${why}`
  }

  #line(): string {
    const { counts, open } = this.#herd
    const parts = [
      `${this.#stage}: ${open} of ${this.#options.devices} devices`,
      `${counts.sent} lines sent`,
    ]
    if (this.#options.deviceAck) parts.push(`${counts.acked} acknowledged`)
    if (this.#held !== null) parts.push(`${this.#held.counts.sent} held commands sent`)
    if (this.#backEnd !== null) {
      parts.push(`${this.#backEnd.counts.taken} taken`)
      if (this.#backEnd.awayBecause !== null) parts.push(`broker: ${this.#backEnd.awayBecause}`)
    }
    const { broken, connect, handshake, timeout } = this.#herd.failures
    const failed = broken + connect + handshake + timeout
    if (failed > 0) parts.push(`${failed} connections failed`)
    return parts.join(", ")
  }

  #findFaults(notConnected: number): void {
    const { neverConnected } = this.#herd
    if (this.#stopped) return
    if (neverConnected > 0) this.#faults.push(`${neverConnected} devices never connected`)
    if (notConnected > neverConnected) {
      this.#faults.push(`${notConnected} devices were not connected when sending ended`)
    }
  }

  #report(durationMs: number, sendingMs: number, notConnected: number): RunReport {
    const { counts, connections, neverConnected, failures, connects, confirms } = this.#herd
    const backEnd = this.#backEnd
    return {
      run: this.#run,
      faults: this.#faults,
      durationMs: Math.round(durationMs),
      sendingMs: Math.round(sendingMs),
      devices: {
        wanted: this.#options.devices,
        neverConnected,
        notConnected,
        connections,
        failures,
      },
      lines: counts,
      linesPerS: Math.round((counts.sent / sendingMs) * 1000),
      backEnd: backEnd && { ...backEnd.counts, takenPerS: backEnd.takenPerS },
      held: this.#held && {
        ...this.#held.counts,
        withoutReceipt: this.#held.withoutReceipt,
      },
      latencyMs: {
        connect: connects.summary(),
        confirm: confirms.summary(),
        command: (backEnd?.roundTrips ?? new Histogram()).summary(),
      },
      hostile: this.#hostiles.reports,
      residentBytes: process.memoryUsage.rss(),
    }
  }
}
