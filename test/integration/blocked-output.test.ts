/**
 * The program's output is a full pipe without a reader: the program serves, counts the lines that
 * it drops, and ends with the right status. The program is started as users do, also by `bun run
 * start`.
 */

import { afterEach, beforeAll, describe, expect, test } from "bun:test"
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { pipe, type Unread } from "../support/descriptors.ts"
import { certificateFiles, metricValue, ownQueues } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 90_000
const ROOT = join(import.meta.dir, "../..")
const MAIN = [process.execPath, join(ROOT, "src/main.ts")]
const BUN_RUN_START = [process.execPath, "run", "start"]
const CONNECTIONS = 600

const queues = ownQueues(uniqueNames("blocked"))
let broker: TestBroker
let program: Program | undefined
const pipes: Unread[] = []

beforeAll(async () => {
  broker = await sharedRabbitMq()
}, LIMIT_MS)

afterEach(async () => {
  await program?.kill()
  program = undefined
  for (const each of pipes.splice(0)) each.close()
}, LIMIT_MS)

function newPipe(): Unread {
  const made = pipe()
  pipes.push(made)
  return made
}

function freePort(): number {
  const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data: () => undefined } })
  listener.stop(true)
  return listener.port
}

/** The program with outputs that the test controls, in a process group of its own. */
class Program {
  readonly devicePort = freePort()
  readonly httpPort = freePort()
  readonly child: Bun.Subprocess

  constructor(
    command: readonly string[],
    stdio: { stdout?: Unread; stderr?: Unread },
    environment: Record<string, string>,
  ) {
    this.child = Bun.spawn([...command], {
      cwd: ROOT,
      env: {
        PATH: process.env["PATH"] ?? "",
        HOME: process.env["HOME"] ?? "",
        DEVICE_HOST: "127.0.0.1",
        DEVICE_PORT: String(this.devicePort),
        HTTP_PORT: String(this.httpPort),
        INSTANCE_ID: `t${crypto.randomUUID().slice(0, 8)}`,
        LOG_LEVEL: "debug",
        ...certificateFiles(),
        ...environment,
      },
      stdio: ["ignore", stdio.stdout?.descriptor ?? "ignore", stdio.stderr?.descriptor ?? "ignore"],
    })
  }

  get exited(): Promise<number> {
    return within(this.child.exited, { what: "the program to end", timeoutMs: 20_000 })
  }

  async fetch(path: string): Promise<Response> {
    // Limited: a blocked process still has the port open.
    const signal = AbortSignal.timeout(2_000)
    return fetch(`http://127.0.0.1:${this.httpPort}${path}`, { keepalive: false, signal })
  }

  async metric(name: string): Promise<number> {
    return metricValue(await (await this.fetch("/metrics")).text(), name)
  }

  ready(): Promise<boolean> {
    return until(async () => (await this.fetch("/ready")).ok, {
      what: "the program to be ready",
      timeoutMs: 20_000,
    })
  }

  /**
   * Devices that connect, send a line and end: enough log lines to fill a pipe and the buffer
   * behind it.
   */
  async connectMany(count: number): Promise<void> {
    const each = async () => {
      const device = await connectDevice({ port: this.devicePort })
      await device.send("a line")
      device.end()
      await device.closed
    }
    for (let n = 0; n < count; n += 20) {
      await Promise.all(Array.from({ length: 20 }, each))
    }
  }

  async kill(): Promise<void> {
    for (const pid of descendants(this.child.pid).reverse()) killQuietly(pid)
    await this.child.exited
  }
}

function descendants(pid: number): number[] {
  const parents = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        const fields = readFileSync(`/proc/${name}/stat`, "utf8").split(") ")[1]?.split(" ")
        return [{ pid: Number(name), parent: Number(fields?.[1]) }]
      } catch {
        return []
      }
    })
  const found = [pid]
  for (const parent of found) {
    found.push(...parents.filter((each) => each.parent === parent).map((each) => each.pid))
  }
  return found
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, "SIGKILL")
  } catch {
    // Gone already.
  }
}

const underSupervisor = () => ({ AMQP_URL: broker.url, WORKERS: "2", ...queues })

describe("standard output that nobody reads", () => {
  const programs: [string, string[], () => Record<string, string>][] = [
    ["of a process alone", MAIN, () => ({})],
    ["of a supervisor and its workers", MAIN, underSupervisor],
    ["of bun run start", BUN_RUN_START, underSupervisor],
  ]
  test.each(programs)(
    "%s: lines flow, dropped log lines are counted, SIGTERM drains with status 0",
    async (_, command, environment) => {
      const stdout = newPipe()
      stdout.fill()
      // Each process has a buffer of its own, and each must overflow.
      program = new Program(command, { stdout }, environment())
      await program.ready()
      let sent = 0
      while ((await program.metric("owsla_log_lines_dropped_total")) === 0) {
        await program.connectMany(CONNECTIONS)
        sent += CONNECTIONS
      }
      const count = () => program?.metric("owsla_lines_confirmed_total")
      await until(async () => (await count()) === sent, { what: "every line to be confirmed" })
      program.child.kill("SIGTERM")
      expect(await program.exited).toBe(0)
    },
    LIMIT_MS,
  )

  test(
    "for a while: what is read then are whole lines, among them how many were dropped",
    async () => {
      const stdout = newPipe()
      program = new Program(MAIN, { stdout }, {})
      await program.ready()
      let dropped = 0
      while (dropped === 0) {
        await program.connectMany(CONNECTIONS)
        dropped = await program.metric("owsla_log_lines_dropped_total")
      }
      let text = ""
      const remark = () => {
        text += stdout.read()
        return text.includes("log lines dropped")
      }
      await until(remark, { what: "the remark" })
      program.child.kill("SIGTERM")
      const ended = () => {
        text += stdout.read()
        return text.includes('"done"')
      }
      await until(ended, { what: "the end of the drain in the log" })
      expect(await program.exited).toBe(0)
      text += stdout.read()
      expect(text).toEndWith("\n")
      const lines = text.split("\n").slice(0, -1)
      const parsed = lines.map((line) => JSON.parse(line))
      const told = parsed.filter(({ msg }) => /log lines dropped/.test(msg))
      expect(told.map((line) => line.lines)).toEqual([dropped])
    },
    LIMIT_MS,
  )
})

describe("standard error that nobody reads", () => {
  test(
    "of bun run start: it starts, and SIGTERM drains with status 0",
    async () => {
      const stderr = newPipe()
      stderr.fill()
      program = new Program(BUN_RUN_START, { stderr }, underSupervisor())
      await program.ready()
      program.child.kill("SIGTERM")
      expect(await program.exited).toBe(0)
    },
    LIMIT_MS,
  )

  test(
    "a configuration with faults ends with status 2, also by bun run start",
    async () => {
      for (const command of [MAIN, BUN_RUN_START]) {
        const stderr = newPipe()
        stderr.fill()
        program = new Program(command, { stderr }, { LOG_LEVEL: "loud" })
        expect(await program.exited).toBe(2)
      }
    },
    LIMIT_MS,
  )

  test(
    "a worker that crashes is replaced",
    async () => {
      const stderr = newPipe()
      stderr.fill()
      program = new Program(MAIN, { stderr }, underSupervisor())
      await program.ready()
      const workers = () => descendants(program?.child.pid ?? 0).slice(1)
      await until(() => workers().length === 2, { what: "two workers" })
      const victim = workers()[0] ?? 0
      // Bun writes a report of it to standard error.
      process.kill(victim, "SIGSEGV")
      await until(() => workers().length === 2 && !workers().includes(victim), {
        what: "its successor",
      })
      await program.ready()
      program.child.kill("SIGTERM")
      expect(await program.exited).toBe(0)
    },
    LIMIT_MS,
  )
})

describe("what a worker writes to standard error", () => {
  test(
    "comes out at the supervisor's",
    async () => {
      const stderr = newPipe()
      program = new Program(MAIN, { stderr }, underSupervisor())
      await program.ready()
      const workers = () => descendants(program?.child.pid ?? 0).slice(1)
      await until(() => workers().length === 2, { what: "two workers" })
      const victim = workers()[0] ?? 0
      process.kill(victim, "SIGSEGV")
      await until(() => workers().length === 2 && !workers().includes(victim), {
        what: "its successor",
      })
      let text = ""
      const report = () => {
        text += stderr.read()
        return text.includes("Segmentation fault")
      }
      await until(report, { what: "the report of the crash" })
      program.child.kill("SIGTERM")
      expect(await program.exited).toBe(0)
    },
    LIMIT_MS,
  )
})

describe("a program that cannot start", () => {
  test("says why on standard error", async () => {
    const stderr = newPipe()
    program = new Program(MAIN, { stderr }, { LOG_LEVEL: "loud" })
    expect(await program.exited).toBe(2)
    expect(stderr.read()).toContain("LOG_LEVEL")
  })
})
