/**
 * The goals: which figure of which bench each is about, and its bound. Pure.
 */

import type { BenchResult } from "./harness.ts"

interface Goal {
  readonly work: string
  readonly bench: string
  readonly figure: string
  readonly unit: string
  readonly bound: { readonly most: number } | { readonly least: number }
}

export const GOALS: readonly Goal[] = [
  {
    work: "full TLS 1.3 handshake, anonymous device, admitted and counted",
    ...{ bench: "admission-none", figure: "CPU ratio to bare", unit: "× bare" },
    bound: { most: 1.15 },
  },
  {
    work: "idle connection, resident memory of all processes",
    ...{ bench: "admission-none", figure: "resident ratio to bare", unit: "× bare" },
    bound: { most: 1.5 },
  },
  {
    work: "short visit of an anonymous device: connect, handshake, close",
    ...{ bench: "churn-none", figure: "CPU ratio to bare", unit: "× bare" },
    bound: { most: 1.2 },
  },
  {
    work: "short visit of a named device, with its hello",
    ...{ bench: "churn-hello", figure: "CPU ratio to bare", unit: "× bare" },
    bound: { most: 1.35 },
  },
  {
    work: "line of 100 bytes, device to confirmed in a quorum queue",
    ...{ bench: "lines", figure: "CPU a line, us", unit: "us of CPU" },
    bound: { most: 2.8 },
  },
  {
    work: "single lines, 500/s from 1,500 devices",
    ...{ bench: "sparse", figure: "CPU ratio to bare at 500/s", unit: "× bare echo" },
    bound: { most: 2 },
  },
  {
    work: "the same with the broker, to RabbitMQ's own MQTT plugin",
    bench: "sparse",
    ...{ figure: "gateway and broker to MQTT plugin at 500/s, ratio", unit: "× MQTT plugin" },
    bound: { most: 0.5 },
  },
  {
    work: "from line to acknowledgement at 500/s: median",
    ...{ bench: "sparse", figure: "confirm p50 at 500/s, ms", unit: "ms" },
    bound: { most: 3 },
  },
  {
    work: "the same at the 99th percentile",
    ...{ bench: "sparse", figure: "confirm p99 at 500/s, ms", unit: "ms" },
    bound: { most: 12 },
  },
  {
    work: "single lines, 3,000/s from 1,500 devices",
    ...{ bench: "sparse", figure: "CPU ratio to bare at 3,000/s", unit: "× bare echo" },
    bound: { most: 1.7 },
  },
  {
    work: "the same with the broker, to RabbitMQ's own MQTT plugin",
    bench: "sparse",
    ...{ figure: "gateway and broker to MQTT plugin at 3,000/s, ratio", unit: "× MQTT plugin" },
    bound: { most: 0.5 },
  },
  {
    work: "from line to acknowledgement at 3,000/s: median",
    ...{ bench: "sparse", figure: "confirm p50 at 3,000/s, ms", unit: "ms" },
    bound: { most: 3 },
  },
  {
    work: "the same at the 99th percentile",
    ...{ bench: "sparse", figure: "confirm p99 at 3,000/s, ms", unit: "ms" },
    bound: { most: 12 },
  },
  {
    work: "first 10,000 single lines of a new gateway, to warm",
    ...{ bench: "sparse", figure: "CPU a line, first to warm, ratio", unit: "× warm" },
    bound: { most: 1.3 },
  },
  {
    work: "sustained lines a second",
    ...{ bench: "sustained", figure: "ratio to the lone publisher", unit: "× a lone publisher" },
    bound: { least: 0.75 },
  },
  {
    work: "lines a second of two workers",
    ...{ bench: "scaling", figure: "lines, two workers to one, ratio", unit: "× one worker" },
    bound: { least: 1.9 },
  },
  {
    work: "handshakes a second of two workers",
    ...{ bench: "scaling", figure: "handshakes, two workers to one, ratio", unit: "× one worker" },
    bound: { least: 1.9 },
  },
  {
    work: "worker after ten bursts of 100,000 lines",
    ...{ bench: "bursts", figure: "worker after the last burst, MB", unit: "MB" },
    bound: { most: 150 },
  },
  {
    work: "command, device on the worker that takes it",
    ...{ bench: "commands-here", figure: "CPU a command, us", unit: "us of CPU" },
    bound: { most: 8 },
  },
  {
    work: "command, device on another worker",
    ...{ bench: "commands-elsewhere", figure: "CPU a command, us", unit: "us of CPU" },
    bound: { most: 20 },
  },
  {
    work: "round trip, 2,000 devices, 2,000 lines/s: added at the median",
    ...{ bench: "round-trip", figure: "added at p50, ms", unit: "ms" },
    bound: { most: 2 },
  },
  {
    work: "the same at the 99th percentile",
    ...{ bench: "round-trip", figure: "added at p99, ms", unit: "ms" },
    bound: { most: 10 },
  },
  {
    work: "50,000 connections at 1,500/s: failures",
    ...{ bench: "connections", figure: "connections that failed", unit: "" },
    bound: { most: 0 },
  },
  {
    work: "resident memory with them, all processes",
    ...{ bench: "connections", figure: "resident, all processes, MB", unit: "MB" },
    bound: { most: 500 },
  },
  {
    work: "10,000 lines/s through them: 99th percentile",
    ...{ bench: "connections", figure: "confirm p99 with all connected, ms", unit: "ms" },
    bound: { most: 250 },
  },
  {
    work: "100,000 connections at 1,000/s: failures",
    ...{ bench: "connections-100k", figure: "connections that failed", unit: "" },
    bound: { most: 0 },
  },
  {
    work: "resident memory with these, all processes",
    ...{ bench: "connections-100k", figure: "resident, all processes, MB", unit: "MB" },
    bound: { most: 1_000 },
  },
  {
    work: "5,000 lines/s through these: 99th percentile",
    ...{ bench: "connections-100k", figure: "confirm p99 with all connected, ms", unit: "ms" },
    bound: { most: 250 },
  },
  {
    work: "20,000 devices at one instant: all in",
    bench: "stampede",
    ...{ figure: "all in over devices by capacity, ratio", unit: "× devices by capacity" },
    bound: { most: 1.2 },
  },
  {
    work: "the slowest of them",
    ...{ bench: "stampede", figure: "slowest over median, ratio", unit: "× the median" },
    bound: { most: 3 },
  },
  {
    work: "devices connected before, meanwhile: 99th percentile",
    ...{ bench: "stampede", figure: "confirm p99 of connected devices, ms", unit: "ms" },
    bound: { most: 50 },
  },
  {
    work: "20,000 devices return within 10 s, others send 2,000 lines/s: 99th percentile",
    ...{ bench: "returning", figure: "confirm p99 during the return, ms", unit: "ms" },
    bound: { most: 50 },
  },
  {
    work: "the same when all lost their connections at one instant",
    bench: "returning",
    ...{ figure: "confirm p99 when all were lost at one instant, ms", unit: "ms" },
    bound: { most: 50 },
  },
  {
    work: "200 devices beside 2,000 hostile connections: 99th percentile",
    ...{ bench: "hostile", figure: "hostile to quiet p99, ratio", unit: "× without them" },
    bound: { most: 2 },
  },
  {
    work: "their connections that were lost",
    ...{ bench: "hostile", figure: "good connections lost", unit: "" },
    bound: { most: 0 },
  },
  {
    work: "cost of a connection, last of 50,000 to first",
    ...{ bench: "connections", figure: "CPU a connection, last to first, ratio", unit: "×" },
    bound: { most: 1.1 },
  },
  {
    work: "cost of a line, 50,000 connected to 1,000",
    ...{ bench: "connections", figure: "CPU a line, all to few, ratio", unit: "×" },
    bound: { most: 1.1 },
  },
  {
    work: "cost of a command, 100,000 queued to 1,000",
    ...{ bench: "commands-queued", figure: "ratio of many to few", unit: "×" },
    bound: { most: 1.1 },
  },
  {
    work: "memory a minute after 50,000 have gone",
    ...{ bench: "waves", figure: "after the first to before, ratio", unit: "× before" },
    bound: { most: 1.2 },
  },
  {
    work: "memory after ten such waves",
    bench: "waves",
    ...{ figure: "after the last to after the first, ratio", unit: "× after one" },
    bound: { most: 1.1 },
  },
]

/** A table of all goals; null unless every one was measured in this run. */
export function goalsTable(results: readonly BenchResult[]): string | null {
  const rows: string[] = []
  for (const { work, bench, figure, unit, bound } of GOALS) {
    const value = results.find((result) => result.bench === bench)?.figures[figure]
    if (value === undefined) return null
    const [goal, met] =
      "most" in bound
        ? [`at most ${bound.most}`, value <= bound.most]
        : [`at least ${bound.least}`, value >= bound.least]
    rows.push(`| ${work} | ${goal} ${unit} | ${value} | ${met ? "yes" : "no"} | \`${bench}\` |`)
  }
  return ["| work | goal | measured | met | bench |", "|---|---|---|---|---|", ...rows].join("\n")
}
