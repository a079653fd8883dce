/**
 * The report of a run or a verdict, as text and as JSON. Pure.
 */

import type { BackEndCounts } from "./back-end.ts"
import type { LineCounts } from "./connection.ts"
import type { HeldCounts } from "./held-commands.ts"
import type { HeldVerdict } from "./held-verdict.ts"
import type { Failures } from "./herd.ts"
import type { Percentiles } from "./histogram.ts"
import type { HostileReport } from "./hostile.ts"
import type { Verdict } from "./verdict.ts"

export interface RunReport {
  readonly run: string
  /** Failures, one sentence each. With any the exit status is 1. */
  readonly faults: readonly string[]
  readonly durationMs: number
  readonly sendingMs: number
  readonly devices: {
    readonly wanted: number
    readonly neverConnected: number
    /** When sending ended. */
    readonly notConnected: number
    readonly connections: number
    readonly failures: Failures
  }
  readonly lines: LineCounts
  /** Lines a second that sockets accepted, over the time of sending. */
  readonly linesPerS: number
  readonly backEnd: (BackEndCounts & { readonly takenPerS: number }) | null
  readonly held: (HeldCounts & { readonly withoutReceipt: number }) | null
  readonly latencyMs: {
    /** TCP and TLS. */
    readonly connect: Percentiles
    /** From the write of a line to its `ACK`. */
    readonly confirm: Percentiles
    /** From the consumption of a line to that of the line that answers its command. */
    readonly command: Percentiles
  }
  readonly hostile: readonly HostileReport[]
  readonly residentBytes: number
}

export function runText(report: RunReport): string {
  const { devices, lines, backEnd, latencyMs } = report
  const { connect, handshake, timeout, broken } = devices.failures
  const rows: [string, string][] = [
    ["run", `${report.run}, ${seconds(report.durationMs)} s`],
    [
      "devices",
      `${number(devices.wanted)} wanted, ${number(devices.neverConnected)} never connected, ` +
        `${number(devices.notConnected)} not connected at the end`,
    ],
    [
      "connections",
      `${number(devices.connections)} opened, ${number(broken)} broke; tries that failed: ` +
        `${number(connect)} TCP, ${number(handshake)} TLS, ${number(timeout)} timed out`,
    ],
    [
      "lines",
      `${number(lines.sent)} sent (${number(report.linesPerS)}/s), ${number(lines.cutOff)} cut off, ` +
        `${number(lines.acked)} acknowledged`,
    ],
    ["connect ms", percentiles(latencyMs.connect)],
  ]
  if (latencyMs.confirm.count > 0) rows.push(["confirm ms", percentiles(latencyMs.confirm)])
  if (backEnd !== null) {
    rows.push([
      "back-end",
      `${number(backEnd.taken)} taken (${number(backEnd.takenPerS)}/s), ${number(backEnd.redelivered)} redelivered, ` +
        `${number(backEnd.hostile)} of hostile devices, ${number(backEnd.stray)} stray, ` +
        `${number(backEnd.mislabelled)} mislabelled, ${number(backEnd.losses)} losses of the broker`,
    ])
    if (backEnd.commandsSent + backEnd.commandsNotSent > 0) {
      rows.push([
        "commands",
        `${number(backEnd.commandsSent)} sent, ${number(backEnd.commandsAnswered)} answered, ` +
          `${number(backEnd.commandsUnanswered)} unanswered, ` +
          `${number(backEnd.commandsNotSent)} not sent`,
      ])
      rows.push(["command ms", percentiles(latencyMs.command)])
    }
  }
  if (report.held !== null) {
    const { sent, unconfirmed, receipts, withoutReceipt } = report.held
    rows.push([
      "held commands",
      `${number(sent)} sent, ${number(unconfirmed)} not confirmed; receipts: ${outcomes(receipts)}, ` +
        `${number(withoutReceipt)} without`,
    ])
  }
  for (const { kind, count, opened, closedByGateway, failed, sentBytes, open } of report.hostile) {
    rows.push([
      kind,
      `${number(count)} hostile: ${number(opened)} opened, ${number(closedByGateway)} closed by the ` +
        `gateway, ${number(failed)} failed, ${number(sentBytes)} bytes sent, ${number(open)} open`,
    ])
  }
  rows.push(["memory", `${number(Math.round(report.residentBytes / 1e6))} MB resident`])
  for (const fault of report.faults) rows.push(["FAULT", fault])
  return table(rows)
}

export function verdictText(verdict: Verdict): string {
  const rows: [string, string][] = [
    ["lost", number(verdict.lost)],
    ["recovered", number(verdict.recovered)],
    ["unexpected", number(verdict.unexpected)],
    ["duplicated", number(verdict.duplicated)],
    ["out of order", `${number(verdict.outOfOrder)} (${number(verdict.neverInOrder)} for good)`],
    ["late after the broker took them back", number(verdict.lateAgain)],
    ["mislabelled", number(verdict.mislabelled)],
    ["undecided", number(verdict.undecided)],
    [
      "of",
      `${number(verdict.sent)} lines sent over ${number(verdict.connections)} connections, ` +
        `${number(verdict.acknowledged)} acknowledged, ${number(verdict.taken)} taken`,
    ],
  ]
  if (verdict.held !== null) rows.push(...heldRows(verdict.held))
  if (verdict.left > 0) {
    rows.push(["note", `${number(verdict.left)} messages were left in the back-end's queue`])
  }
  if (verdict.sent === 0) rows.push(["note", "nothing was sent: this proves nothing"])
  if (verdict.unfinished > 0) {
    rows.push(["note", `${number(verdict.unfinished)} herds did not end by themselves`])
  }
  const examples = [...verdict.examples, ...(verdict.held?.examples ?? [])]
  for (const example of examples) rows.push(["", example])
  rows.push(["", verdict.kept ? "The promise was kept." : "THE PROMISE IS BROKEN."])
  return table(rows)
}

function heldRows(held: HeldVerdict): [string, string][] {
  return [
    [
      "held commands",
      `${number(held.sent)} sent, ${number(held.written)} came, ${number(held.missing)} missing, ` +
        `${number(held.twice)} twice, ${number(held.outOfOrder)} out of order, ` +
        `${number(held.late)} after newer ones, ${number(held.unexpected)} unexpected, ` +
        `${number(held.undecided)} undecided`,
    ],
    [
      "receipts",
      `${outcomes(held.receipts)}, ${number(held.withoutReceipt)} without, ` +
        `${number(held.receiptsTwice)} twice, ${number(held.contradicted)} contradicted`,
    ],
  ]
}

function outcomes(receipts: Readonly<Record<string, number>>): string {
  const counts = Object.entries(receipts).map(([name, count]) => `${number(count)} ${name}`)
  return counts.length === 0 ? "none" : counts.join(", ")
}

function table(rows: readonly [string, string][]): string {
  return rows.map(([name, text]) => `${name.padEnd(15)} ${text}`).join("\n")
}

function percentiles({ count, p50, p90, p99, max }: Percentiles): string {
  if (count === 0) return "nothing timed"
  const ms = (value: number | null) => (value === null ? "-" : value.toFixed(1))
  return `p50 ${ms(p50)}, p90 ${ms(p90)}, p99 ${ms(p99)}, max ${ms(max)} of ${number(count)}`
}

function seconds(ms: number): string {
  return (ms / 1000).toFixed(1)
}

function number(value: number): string {
  return value.toLocaleString("en-US")
}
