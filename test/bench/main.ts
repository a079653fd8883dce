/**
 * `bun run bench [name …] [--smoke] [--json] [--page] [--beside <port>,<pid>] [--cluster]`: runs the
 * benches, all or those named, one after the other, and prints their figures with what they were
 * measured on; with `--page` they become their tables in docs/PERFORMANCE.md. With `--beside` those
 * that can compare put any other TLS line server, which runs already, under the same load in turn
 * with the gateway. With `--cluster` those that can use a cluster of three brokers, which needs
 * root.
 */

import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { type AdmissionAuth, admission } from "./admission.ts"
import { bursts } from "./bursts.ts"
import { type ChurnAuth, churn } from "./churn.ts"
import { type CommandsWay, commands } from "./commands.ts"
import { connectionMemory } from "./connection-memory.ts"
import { connections } from "./connections.ts"
import { draining } from "./draining.ts"
import { fullTables } from "./full-tables.ts"
import { goalsTable } from "./goals.ts"
import { type BenchResult, commit, machine } from "./harness.ts"
import { heldAtImpatientBroker, heldCommands } from "./held.ts"
import { hostile } from "./hostile.ts"
import { lines } from "./lines.ts"
import { page } from "./page.ts"
import { partitions } from "./partitions.ts"
import { queued } from "./queued.ts"
import { registry } from "./registry.ts"
import { returning } from "./returning.ts"
import { roundTrip } from "./round-trip.ts"
import { scaling } from "./scaling.ts"
import { sparse } from "./sparse.ts"
import { stampede } from "./stampede.ts"
import type { Beside } from "./subject.ts"
import { sustained } from "./sustained.ts"
import { waves } from "./waves.ts"

interface Bench {
  /** One sentence for the page. */
  readonly what: string
  /** Smoke parameters run with the tests, so that no bench rots. */
  readonly run: (smoke: boolean, beside: Beside | null, onCluster: boolean) => Promise<BenchResult>
  /** Puts another server under the same load when there is one. */
  readonly compares?: true
  /** Runs on a cluster of brokers too. */
  readonly clusters?: true
}

/** From here on it is the driver that is measured. */
const BUSY_DRIVER = 0.95
const PAGE = join(import.meta.dir, "../../docs/PERFORMANCE.md")
const BEGIN = "<!-- figures: made by bun run bench --page -->"
const END = "<!-- end of figures -->"
const GOALS_BEGIN = "<!-- goals: made by a whole run of bun run bench --page -->"
const GOALS_END = "<!-- end of goals -->"

const admissionBy = (auth: AdmissionAuth, what: string): Bench => ({
  what: `From the first byte to a device that is admitted, told of and, with a name, known to the fleet: ${what}. One worker and its supervisor, beside a bare \`Bun.listen\` TLS server that only counts, in turn.`,
  run: (smoke, beside) =>
    admission(auth, { connections: smoke ? 60 : 5_000, rounds: smoke ? 1 : 5 }, beside),
  ...(auth === "none" ? { compares: true } : {}),
})

const churnBy = (auth: ChurnAuth, what: string): Bench => ({
  what: `Short visits: devices that connect, complete a TLS 1.3 handshake and close at once, ${what}, 32 at a time. One worker and its supervisor, beside a bare \`Bun.listen\` TLS server that only counts, in turn.`,
  run: (smoke) => churn(auth, { visits: smoke ? 60 : 5_000, atOnce: 32, rounds: smoke ? 1 : 5 }),
})

const commandsBy = (way: CommandsWay, what: string): Bench => ({
  what: `Numbered commands from a queue to their devices, ${what}. Beside it a bare TLS server that writes as many lines to as many connections, in turn.`,
  run: (smoke) =>
    commands(way, {
      connections: smoke ? 5 : 100,
      // Shuffled, a connection waits for nearly all of them: no more than its reorder buffer holds.
      commandsEach: smoke ? 50 : way === "shuffled" ? 200 : 400,
      rounds: smoke ? 1 : 5,
    }),
})

export const BENCHES: Readonly<Record<string, Bench>> = {
  "admission-none": admissionBy("none", "`DEVICE_AUTH=none`"),
  "admission-hello": admissionBy("hello", "`DEVICE_AUTH=hello`"),
  "admission-mtls": admissionBy(
    "mtls",
    "`DEVICE_AUTH=mtls`, the bare server asks for certificates too",
  ),
  "churn-none": churnBy("none", "`DEVICE_AUTH=none`"),
  "churn-hello": churnBy("hello", "`DEVICE_AUTH=hello`, each after its hello"),
  "connection-memory": {
    what: "What the gateway's own objects hold for one connection, part by part, in the order in which they come to be.",
    run: async (smoke) => connectionMemory({ connections: smoke ? 100 : 50_000 }),
  },
  lines: {
    what: "Lines from devices to a confirmed place in a quorum queue, two workers, beside a bare TLS server that only counts the bytes of the same lines, in turn.",
    run: (smoke, beside) =>
      lines(
        {
          ...{ connections: smoke ? 10 : 100, linesEach: smoke ? 100 : 1_000, lineBytes: 100 },
          rounds: smoke ? 1 : 5,
        },
        beside,
      ),
    compares: true,
  },
  sparse: {
    what: "Single lines from many devices, few a second, to a confirmed place in a quorum queue, one worker (`DEVICE_ACK=seq`). Beside it a bare TLS server that writes back what it gets, and RabbitMQ's own MQTT plugin (QoS 1), in turn. The CPU of RabbitMQ is that of all its processes, its busy waiting included.",
    run: (smoke) =>
      sparse({
        ...{ devices: smoke ? 30 : 1_500, slowRate: 500, fastRate: 3_000 },
        ...{ seconds: smoke ? 0.5 : 8, rounds: smoke ? 1 : 3 },
        ...{ firstLines: smoke ? 300 : 10_000, warmUpConnections: smoke ? 10 : 100 },
        warmUpLinesEach: smoke ? 100 : 1_500,
      }),
  },
  sustained: {
    what: "Lines a second that two workers publish to a quorum queue until the broker has confirmed them. Compared in turn with one publisher that uses the stock AMQP client. Nobody consumes.",
    run: (smoke) =>
      sustained({
        ...{ connections: smoke ? 10 : 100, linesEach: smoke ? 100 : 2_000, lineBytes: 100 },
        ...{ window: smoke ? 50 : 2_000, rounds: smoke ? 1 : 3 },
      }),
  },
  scaling: {
    what: "Lines a second to a confirmed place in a quorum queue, and handshakes a second, of two workers beside one worker, in turn. The drivers and the broker share the same two cores with the workers, so two workers cannot have twice the CPU of one; the shares show which process used it.",
    run: (smoke) =>
      scaling({
        ...{ connections: smoke ? 10 : 200, linesEach: smoke ? 100 : 1_000, lineBytes: 100 },
        ...{ handshakes: smoke ? 60 : 8_000, atOnce: 32, rounds: smoke ? 1 : 3 },
      }),
  },
  partitions: {
    what: "Lines a second from devices to back-ends with `FROM_DEVICE_PARTITIONS=4`, beside one queue, in turn. Each queue has one consumer in a process of its own. Two workers. Drivers, broker and consumers are on the same two cores. `--cluster` uses three nodes of RabbitMQ.",
    run: (smoke, _beside, onCluster) =>
      partitions({
        ...{ partitions: 4, connections: smoke ? 20 : 200, linesEach: smoke ? 100 : 1_000 },
        ...{ lineBytes: 100, rounds: smoke ? 1 : 3, nodes: onCluster ? 3 : 1 },
      }),
    clusters: true,
  },
  bursts: {
    what: "Bursts of lines into one worker, faster than the broker takes them: it is stopped every other quarter of a second.",
    run: (smoke) =>
      bursts({
        ...{ bursts: smoke ? 2 : 10, connections: smoke ? 10 : 100 },
        ...{ linesEach: smoke ? 100 : 1_000, lineBytes: 100 },
      }),
  },
  "commands-here": commandsBy("here", "taken by the worker that holds the device; one worker"),
  "commands-elsewhere": commandsBy(
    "elsewhere",
    "taken by a worker that does not hold the device, so that each goes through the broker a second time; two workers",
  ),
  "commands-shuffled": commandsBy(
    "shuffled",
    "published in random order and written in order; two workers, of which about half are taken by the wrong one",
  ),
  "commands-queued": {
    what: "Commands that the gateway finds in the queue when it goes on after it was stopped; one worker.",
    run: (smoke) =>
      queued({
        ...{ connections: smoke ? 5 : 100, few: smoke ? 50 : 1_000 },
        ...{ many: smoke ? 200 : 100_000, rounds: smoke ? 1 : 2 },
      }),
  },
  "round-trip": {
    what: "Device, queue, back-end, queue, device, two workers; beside it the same back-end answering one AMQP client that calls for as many devices without the gateway, in turn.",
    run: (smoke) =>
      roundTrip({
        ...{ devices: smoke ? 20 : 2_000, rate: smoke ? 200 : 2_000 },
        ...{ seconds: smoke ? 0.5 : 10, rounds: smoke ? 1 : 3 },
      }),
  },
  connections: {
    what: "Connections that arrive at a rate, are held and then send lines of 100 bytes that are acknowledged (`DEVICE_ACK=seq`); beside it the same on a bare TLS server for each worker. Drivers, broker and back-end are on the same two cores.",
    run: (smoke) =>
      connections(
        "connections",
        {
          ...{ devices: smoke ? 90 : 50_000, workers: 3, rate: smoke ? 600 : 1_500 },
          few: smoke ? 30 : 1_000,
          ...{ linesPerSecond: smoke ? 300 : 10_000, seconds: smoke ? 0.5 : 10 },
        },
        true,
      ),
  },
  "connections-100k": {
    what: "The same with 100,000 connections and six workers, without bare servers. Drivers, broker and back-end are on the same two cores.",
    run: (smoke) =>
      connections(
        "connections-100k",
        {
          ...{ devices: smoke ? 90 : 100_000, workers: smoke ? 3 : 6, rate: smoke ? 600 : 1_000 },
          few: smoke ? 30 : 1_000,
          ...{ linesPerSecond: smoke ? 300 : 5_000, seconds: smoke ? 0.5 : 10 },
        },
        false,
      ),
  },
  page: {
    what: "The operator page beside 50,000 connections that send nothing, three workers: the requests of the overview and of the list of devices, and nobody looking, in turn.",
    run: (smoke) =>
      page({
        ...{ devices: smoke ? 30 : 50_000, workers: 3, rate: smoke ? 600 : 1_500 },
        ...{ seconds: smoke ? 0.3 : 20, rounds: smoke ? 1 : 3 },
      }),
  },
  stampede: {
    what: "All devices connect at the same instant while others are connected and send; beside it the same devices 32 at a time, which is the capacity. Two workers.",
    run: (smoke) =>
      stampede({ devices: smoke ? 50 : 20_000, crowds: 2, connected: smoke ? 5 : 50 }),
  },
  returning: {
    what: "Named devices (`DEVICE_AUTH=hello`) connect again at an even rate, first each as it closes its old connection, then after all lost theirs at the same instant, while others stay connected and send lines of 100 bytes that are acknowledged (`DEVICE_ACK=seq`). Two workers. Drivers, broker and back-end are on the same two cores.",
    run: (smoke) =>
      returning({
        ...{ devices: smoke ? 100 : 20_000, crowds: 2, workers: 2 },
        ...{ connected: smoke ? 10 : 100, linesPerSecond: smoke ? 200 : 2_000 },
        seconds: smoke ? 0.5 : 10,
      }),
  },
  draining: {
    what: "One of two instances is stopped while the devices of the other one send lines of 100 bytes that are acknowledged (`DEVICE_ACK=seq`). The stopped one's devices obey `GOODBYE_LINE` and move to the other one. Two workers each. Drivers, broker and back-end are on the same two cores.",
    run: (smoke) =>
      draining({
        ...{ devices: smoke ? 100 : 20_000, herds: 2, workers: 2 },
        ...{ connected: smoke ? 10 : 100, linesPerSecond: smoke ? 200 : 500 },
        drainTimeoutMs: smoke ? 3_000 : 60_000,
      }),
  },
  hostile: {
    what: "Devices that send lines of 100 bytes that are acknowledged (`DEVICE_ACK=seq`), without and beside connections that send nothing, half a ClientHello, garbage, single bytes or an endless line, that read nothing, or that close after the handshake and come back, in turn. One worker. Drivers, broker and back-end are on the same two cores, the hostile drivers at the lowest priority.",
    run: (smoke) =>
      hostile({
        ...{ good: smoke ? 10 : 200, linesPerSecond: smoke ? 200 : 500 },
        ...{ hostile: smoke ? 30 : 2_000, seconds: smoke ? 0.5 : 10, rounds: smoke ? 1 : 3 },
      }),
  },
  registry: {
    what: "What it costs the whole fleet that each worker can find each device, for each that comes or goes, at 1,000 a second, in fleets of several sizes in turn; and how long a look-up of a device elsewhere takes, at 200 a second in the whole fleet. The fleet part of the gateway with its presence events, without sockets. The wake-ups for the next device of this bench are measured alone and not counted, since in a gateway the socket of the device wakes the worker.",
    run: (smoke) =>
      registry({
        ...{ workers: smoke ? 2 : 16, devices: smoke ? 40 : 8_000 },
        ...{
          perSecond: smoke ? 200 : 1_000,
          finds: smoke ? 32 : 1_600,
          findsPerSecond: 200,
          rounds: smoke ? 1 : 2,
        },
        idleMs: smoke ? 100 : 3_000,
      }),
  },
  held: {
    what: "Commands for devices that are away (`hold_ms`), which all come back within some seconds: what it costs to hold and to write one, and what the workers hold. Two workers; checks that each is written once and in order.",
    run: (smoke) =>
      heldCommands({
        ...{ devices: smoke ? 20 : 20_000, commandsEach: smoke ? 3 : 5 },
        ...{ backSeconds: smoke ? 1 : 20, restSeconds: 0, steady: smoke ? 5 : 200 },
      }),
  },
  "held-rest": {
    what: "The same after the commands have waited ten minutes at a broker whose `consumer_timeout` is a minute.",
    run: (smoke) =>
      heldAtImpatientBroker({
        ...{ devices: smoke ? 20 : 20_000, commandsEach: smoke ? 3 : 5 },
        ...{ backSeconds: smoke ? 1 : 20, restSeconds: smoke ? 1 : 600, steady: smoke ? 5 : 200 },
      }),
  },
  "full-tables": {
    what: "What two workers keep after a collection, once all tables that remember the past are full: commands that were written and forwarded, receipts of held commands, ended connections. In each round the same work for other devices; what grows from the second round on is a leak.",
    run: (smoke) =>
      fullTables({
        ...{ devices: smoke ? 20 : 20_000, heldEach: smoke ? 2 : 7, backSeconds: smoke ? 1 : 30 },
        ...{ steady: smoke ? 2 : 200, commandsEach: smoke ? 10 : 1_000, rounds: smoke ? 1 : 5 },
        settleMs: smoke ? 1_500 : 15_000,
      }),
  },
  waves: {
    what: "All devices come and go again and again; what the processes hold when all are gone.",
    run: (smoke) =>
      waves({
        ...{ devices: smoke ? 60 : 50_000, workers: 3 },
        ...{ waves: smoke ? 2 : 10, rest: smoke ? 0.1 : 60 },
      }),
  },
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      smoke: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
      page: { type: "boolean", default: false },
      beside: { type: "string" },
      cluster: { type: "boolean", default: false },
    },
  })
  const beside = values.beside === undefined ? null : readBeside(values.beside)
  if (beside === "unreadable") {
    console.error("--beside is <port>,<pid>: where the other server listens, and its process")
    return 2
  }
  const { cluster } = values
  const able = Object.keys(BENCHES)
    .filter((name) => !beside || BENCHES[name]?.compares)
    .filter((name) => !cluster || BENCHES[name]?.clusters)
  const names = positionals.length > 0 ? positionals : able
  const unknown = names.filter((name) => !(name in BENCHES))
  if (unknown.length > 0) {
    console.error(`no bench ${unknown.join(", ")}; there are ${Object.keys(BENCHES).join(", ")}`)
    return 2
  }
  const unable = names.filter((name) => !able.includes(name))
  if (unable.length > 0) {
    const what = cluster ? "run on a cluster" : "compare with another server"
    console.error(`only ${able.join(" and ")} ${what}, not ${unable.join(", ")}`)
    return 2
  }
  if (values.page && (values.smoke || beside !== null || cluster)) {
    console.error("--page is for benches in their full size, without another server or a cluster")
    return 2
  }
  const measuredOn = { machine: machine(), commit: commit(), date: new Date().toISOString() }
  if (!values.json) console.log(`${measuredOn.machine}\ncommit ${measuredOn.commit}\n`)
  const results: BenchResult[] = []
  const failed: string[] = []
  const measure = async (name: string) => {
    try {
      const result = await BENCHES[name]?.run(values.smoke, beside, cluster)
      if (result === undefined) return
      results.push(result)
      if (values.json) console.log(JSON.stringify({ ...measuredOn, ...result }))
      else print(result)
    } catch (error) {
      failed.push(name)
      console.error(`${name} failed:`, error)
    }
  }
  for (const name of names) await measure(name)
  // A second time, so that one failure in an hour does not spoil the run. Both are reported.
  for (const name of failed.splice(0)) await measure(name)
  if (values.page) writePage(results, measuredOn)
  return failed.length === 0 ? 0 : 1
}

function readBeside(text: string): Beside | "unreadable" {
  const [, port, pid] = /^(\d+),(\d+)$/.exec(text) ?? []
  return port === undefined ? "unreadable" : { port: Number(port), pid: Number(pid) }
}

function print({ bench, parameters, figures }: BenchResult): void {
  console.log(`${bench} ${JSON.stringify(parameters)}`)
  for (const [figure, value] of Object.entries(figures)) {
    console.log(`  ${figure.padEnd(56)} ${value}`)
  }
  if (isDriverBusy(figures)) console.log(`  ${DRIVER_NOTE}`)
}

const DRIVER_NOTE = "The driver was the bottleneck: rates and latencies are its own."

function isDriverBusy(figures: BenchResult["figures"]): boolean {
  return Object.entries(figures).some(
    ([figure, value]) => figure.startsWith("busiest driver") && value >= BUSY_DRIVER,
  )
}

/** Replaces the sections of these benches, in the order of the list. */
function writePage(
  results: readonly BenchResult[],
  { machine, commit, date }: { machine: string; commit: string; date: string },
): void {
  const page = readFileSync(PAGE, "utf8")
  const before = page.slice(0, page.indexOf(BEGIN) + BEGIN.length)
  const after = page.slice(page.indexOf(END))
  const sections = new Map<string, string>()
  for (const section of page.slice(before.length, page.indexOf(END)).split(/^(?=### )/m)) {
    const [, bench] = /^### `([^`]+)`/.exec(section) ?? []
    if (bench !== undefined) sections.set(bench, section.trim())
  }
  for (const { bench, parameters, figures } of results) {
    const with_ = Object.entries(parameters).map(([name, value]) => `${name} ${number(value)}`)
    const rows = Object.entries(figures).map(([name, value]) => `| ${name} | ${number(value)} |`)
    const title = `### \`${bench}\`: ${with_.join(", ")}`
    const measured = `On ${date.slice(0, 10)} at commit ${commit}, ${machine}, RabbitMQ with quorum queues.`
    const driver = isDriverBusy(figures) ? ` ${DRIVER_NOTE}` : ""
    const text = `${BENCHES[bench]?.what ?? ""} ${measured}${driver}`
    sections.set(bench, [title, "", text, "", "| | |", "|---|---|", ...rows].join("\n"))
  }
  const ordered = Object.keys(BENCHES).flatMap((bench) => sections.get(bench) ?? [])
  const written = [before, ...ordered, after].join("\n\n")
  const goals = goalsTable(results)
  writeFileSync(
    PAGE,
    goals === null
      ? written
      : withGoals(written, goals, `${date.slice(0, 10)} at commit ${commit}`),
  )
}

function withGoals(page: string, table: string, when: string): string {
  const from = page.indexOf(GOALS_BEGIN) + GOALS_BEGIN.length
  const to = page.indexOf(GOALS_END)
  return `${page.slice(0, from)}\n\nOne run, on ${when}.\n\n${table}\n\n${page.slice(to)}`
}

function number(value: number): string {
  return value.toLocaleString("en-US")
}

if (import.meta.main) process.exit(await main())
