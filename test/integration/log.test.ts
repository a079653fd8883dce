/**
 * The log as an operator's tools see it: one line an event, levels, formats, no secret, and a
 * gateway that goes on when its log cannot be written.
 *
 * What `logEvents` says is looked at in this process; what reaches standard output is looked at
 * outside, in scripts and in the program itself, since `log.ts` writes to the process's own.
 */

import { afterAll, describe, expect, test } from "bun:test"
import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs"
import { connect } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import pino from "pino"
import type { Connection } from "../../src/device/connection.ts"
import { EventBus, type Events } from "../../src/events.ts"
import { type LogOptions, logEvents } from "../../src/ops/log.ts"
import { until, within } from "../support/wait.ts"

const SOURCE = join(import.meta.dir, "../../src")
const PASSWORD = "s3cret-p%40ss"
const TOKENS = ["s3cret-token-0123456789", "s3cret.other~9876543210"]
const SECRETS = [PASSWORD, decodeURIComponent(PASSWORD), ...TOKENS]
const LIMIT_MS = 20_000

const directory = mkdtempSync(join(tmpdir(), "owsla-log-"))
afterAll(() => rmSync(directory, { recursive: true }))

const connection = {
  id: "gw1.0.mb2k3f9zq7.1a",
  remoteAddress: "192.0.2.7",
  peer: { tlsVersion: "TLSv1.3" },
  endpoint: { linesIn: 3, linesOut: 4 },
} as unknown as Connection

const TAPE = { device_id: "lock:1", until: 5, payload: "hidden", max_bytes: 65_536 } as const

/**
 * One payload and the level for each event, so that a new event does not compile without its line.
 */
const EVENTS: { [K in keyof Events]: { payload: Events[K]; level: LogOptions["level"] } } = {
  listening: { payload: { devicePort: 1, httpPort: 2, maxConnections: 3 }, level: "info" },
  connection_admitted: { payload: { connection }, level: "debug" },
  connection_closed: { payload: { connection, reason: "idle" }, level: "debug" },
  connection_refused: {
    payload: {
      refusal: {
        ...{ at: 1, address: "192.0.2.7", reason: "overloaded" },
        ...{ detail: "MAX_WAITING is reached", deviceId: null },
      },
    },
    level: "debug",
  },
  refusals: {
    payload: { message: "2 more", fields: { refused: { overloaded: 2 } } },
    level: "info",
  },
  audit: {
    payload: {
      entry: {
        ...{ action: "kick", target: "lock:1", detail: "gw1.0.x.1" },
        ...{ by: "alice", address: "192.0.2.8" },
      },
    },
    level: "info",
  },
  certificate_renewed: { payload: {}, level: "info" },
  reading_suspended: { payload: { heldBytes: 9 }, level: "warn" },
  reading_resumed: { payload: { heldBytes: 8 }, level: "info" },
  broker_state: { payload: { state: { kind: "away", reason: "ECONNREFUSED" } }, level: "warn" },
  broker_warning: { payload: { message: "queue x exists, 100 %s %d %j" }, level: "warn" },
  broker_mute: { payload: { unconfirmedMs: 15_001 }, level: "warn" },
  tape_started: { payload: { tape: TAPE }, level: "info" },
  tape_ended: { payload: { tape: TAPE, reason: "over" }, level: "info" },
  drain: { payload: { phase: "closing", unconfirmedLines: 0, connections: 5 }, level: "info" },
  fault: { payload: { error: new TypeError("a defect"), where: "http" }, level: "error" },
  notice: { payload: { message: "embedded broker" }, level: "warn" },
  worker_started: { payload: { slot: 1, pid: 77 }, level: "info" },
  worker_ended: {
    payload: { slot: 1, pid: 77, status: "signal SIGKILL", action: "restart" },
    level: "warn",
  },
  instance_started: {
    payload: { page: "http://127.0.0.1:8080/", command: "curl http://127.0.0.1:8080/" },
    level: "info",
  },
  instance_draining: { payload: {}, level: "info" },
  reload_started: { payload: {}, level: "info" },
  reload_ended: { payload: {}, level: "info" },
  instance_ended: { payload: { status: 1, reason: "restart intensity" }, level: "error" },
}
const NAMES = Object.keys(EVENTS) as (keyof Events)[]

/** Everything that is logged for what `emit` does, as objects. */
function logged(emit: (events: EventBus) => void): Record<string, unknown>[] {
  const lines: string[] = []
  const log = pino(
    { level: "debug", base: { name: "gw1.0" }, formatters: { level: (level) => ({ level }) } },
    { write: (line: string) => lines.push(line) },
  )
  const events = new EventBus()
  logEvents(events, log, "json")
  emit(events)
  return lines.map((line) => JSON.parse(line))
}

describe("an event", () => {
  test.each(NAMES)("%s is one line with a message, at its level", (name) => {
    const { payload, level } = EVENTS[name]
    const lines = logged((events) => events.emit(name, payload as never))
    expect(lines).toHaveLength(1)
    expect(lines[0]).toMatchObject({ level, name: "gw1.0", msg: expect.stringMatching(/\w/) })
  })

  test("tells what it carries", () => {
    const [admitted, closed, drained] = logged((events) => {
      events.emit("connection_admitted", { connection })
      events.emit("connection_closed", { connection, reason: "slow_device" })
      events.emit("drain", { phase: "cut_short", unconfirmedLines: 2, connections: 1 })
    })
    expect(admitted).toMatchObject({
      connection: connection.id,
      remoteAddress: "192.0.2.7",
      tlsVersion: "TLSv1.3",
    })
    expect(closed).toMatchObject({ reason: "slow_device", linesIn: 3, linesOut: 4 })
    expect(drained).toMatchObject({ level: "error", phase: "cut_short", unconfirmedLines: 2 })
    expect(drained?.["msg"]).toContain("2 lines are not confirmed by the broker and may be lost")
  })

  test("of a worker's end is a warning, unless it ends because the instance stops", () => {
    const about = { slot: 1, pid: 7 }
    const ends = logged((events) => {
      events.emit("worker_ended", { ...about, status: "status 0", action: "none" })
      events.emit("worker_ended", { ...about, status: "status 1", action: "none" })
      events.emit("worker_ended", { ...about, status: "status 0", action: "restart" })
    })
    expect(ends.map(({ level }) => level)).toEqual(["info", "warn", "warn"])
  })

  test("of a connection that was never admitted is logged too", () => {
    const early = { ...connection, endpoint: null } as unknown as Connection
    const [line] = logged((events) =>
      events.emit("connection_closed", { connection: early, reason: "handshake_failed" }),
    )
    expect(line).toMatchObject({ reason: "handshake_failed", linesIn: 0, linesOut: 0 })
  })

  test("of the broker is a warning until it is ready, or closed by us", () => {
    const lines = logged((events) => {
      events.emit("broker_state", { state: { kind: "away", reason: "lost" } })
      events.emit("broker_state", { state: { kind: "blocked", reason: "memory" } })
      events.emit("broker_state", { state: { kind: "ready" } })
      events.emit("broker_state", { state: { kind: "closed" } })
    })
    expect(lines[0]?.["msg"]).toBe("broker away; devices stay connected and their lines wait: lost")
    expect(lines.map(({ level, broker, reason }) => [level, broker, reason])).toEqual([
      ["warn", "away", "lost"],
      ["warn", "blocked", "memory"],
      ["info", "ready", undefined],
      ["info", "closed", undefined],
    ])
  })

  test("says a message as it is, with no regard to signs of a format", () => {
    const [line] = logged((events) => events.emit("broker_warning", { message: "100 %s %d\n%j" }))
    expect(line?.["msg"]).toBe("100 %s %d\n%j")
  })

  test("of a fault has its message, its stack and where it was", () => {
    const [line] = logged((events) => events.emit("fault", EVENTS.fault.payload))
    expect(line).toMatchObject({ where: "http" })
    for (const part of ["TypeError", "a defect", import.meta.file]) {
      expect(JSON.stringify(line)).toContain(part)
    }
  })

  // Such an error carries what it could not parse: for a broker's URL that is the password.
  test("of a fault that holds a URL with a password does not tell it", () => {
    const [line] = logged((events) => {
      try {
        new URL(`amqp://user:${PASSWORD}@[bad`)
      } catch (error) {
        events.emit("fault", { error: error as Error, where: "broker" })
      }
    })
    expect(line).toMatchObject({ where: "broker" })
    expect(JSON.stringify(line)).not.toContain(PASSWORD)
  })
})

/** Runs lines of code that have `log` and `counters`, and tells what they wrote. */
async function script(options: LogOptions, code: string, stdout: "pipe" | number = "pipe") {
  const child = Bun.spawn(
    [
      process.execPath,
      "-e",
      `import { createLog } from ${JSON.stringify(join(SOURCE, "ops/log.ts"))}
       const counters = { logLinesDropped: 0 }
       const about = { name: "gw1.0", pid: 7 }
       const entries = []
       const log = createLog(${JSON.stringify(options)}, about, counters, (e) => entries.length < 9 && entries.push(e))
       ${code}`,
    ],
    { cwd: directory, stdio: ["ignore", stdout, "pipe"], timeout: LIMIT_MS },
  )
  const [output, errors, status] = await Promise.all([
    child.stdout instanceof ReadableStream ? child.stdout.text() : "",
    child.stderr.text(),
    child.exited,
  ])
  if (stdout !== "pipe") closeSync(stdout)
  return { output, lines: output.split("\n").slice(0, -1), errors, status }
}

/** Takes nothing: every write ends with ENOSPC. */
const fullDisk = () => openSync("/dev/full", "w")

const EACH_LEVEL =
  'for (const level of ["debug", "info", "warn", "error"]) log[level]({ x: 1 }, level)'

describe("standard output", () => {
  test("json: one object a line, with level, time and message", async () => {
    const before = Date.now()
    const { lines, errors, status } = await script({ level: "debug", format: "json" }, EACH_LEVEL)
    expect({ errors, status }).toEqual({ errors: "", status: 0 })
    const parsed = lines.map((line) => JSON.parse(line))
    expect(parsed.map(({ msg }) => msg)).toEqual(["debug", "info", "warn", "error"])
    const levels = parsed.map(({ level }) => level)
    expect(new Set(levels).size).toBe(4)
    for (const { time, name, pid, x } of parsed) {
      expect(time).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
      expect(Date.parse(time)).toBeGreaterThanOrEqual(before)
      expect({ name, pid, x }).toEqual({ name: "gw1.0", pid: 7, x: 1 })
    }
  })

  test("lines at info and above are passed on as data, whatever LOG_LEVEL is", async () => {
    for (const level of ["debug", "warn"] as const) {
      const { lines } = await script(
        { level, format: "json" },
        `${EACH_LEVEL}
         log.info({ kind: "audit", action: "kick" }, "kick")
         log.warn({ long: "x".repeat(10_000) }, "long")
         for (const entry of entries) process.stdout.write(JSON.stringify({ entry }) + "\\n")`,
      )
      const passed = lines.flatMap((line) => JSON.parse(line).entry ?? [])
      const about = { at: expect.any(Number), source: "gw1.0" }
      expect(passed).toEqual([
        ...["info", "warn", "error"].map((level) => {
          return { ...about, level, kind: "log", message: level, fields: { x: 1 } }
        }),
        { ...about, level: "info", kind: "audit", message: "kick", fields: { action: "kick" } },
        { ...about, level: "warn", kind: "log", message: "long", fields: {} },
      ])
      const written = lines.map((line) => JSON.parse(line).msg).filter((msg) => msg !== undefined)
      const least = ["warn", "error", "long"]
      expect(written).toEqual(
        level === "warn" ? least : ["debug", "info", "warn", "error", "kick", "long"],
      )
    }
  })

  test("json: what a stranger sends stays on its line", async () => {
    const odd = 'a\\nb\\r\\u2028\\u0000\\u001b[31m{\\"level\\":60}'
    const { lines } = await script(
      { level: "info", format: "json" },
      `log.info({ odd: "${odd}" }, "${odd}")`,
    )
    expect(lines).toHaveLength(1)
    const { odd: field, msg } = JSON.parse(lines[0] ?? "")
    expect([field, msg]).toEqual([JSON.parse(`"${odd}"`), JSON.parse(`"${odd}"`)])
  })

  test("text: for reading, without colours where there is no terminal", async () => {
    const { output, lines } = await script({ level: "debug", format: "text" }, EACH_LEVEL)
    for (const level of ["debug", "info", "warn", "error"]) {
      expect(output).toMatch(
        new RegExp(`^\\[.+\\] ${level.toUpperCase()} \\(gw1\\.0\\): ${level}$`, "m"),
      )
    }
    expect(output).not.toContain("\u001b")
    expect(() => JSON.parse(lines[0] ?? "")).toThrow()
  })

  test.each(["json", "text"] as const)("%s: written before the process ends", async (format) => {
    const code = 'log.error("the last word"); process.exit(3)'
    const { output, status } = await script({ level: "info", format }, code)
    expect(status).toBe(3)
    expect(output).toContain("the last word")
  })

  test.each([
    ["debug", ["debug", "info", "warn", "error"]],
    ["info", ["info", "warn", "error"]],
    ["warn", ["warn", "error"]],
    ["error", ["error"]],
  ] as const)("level %s writes %j", async (level, expected) => {
    const { lines } = await script({ level, format: "json" }, EACH_LEVEL)
    expect(lines.map((line) => JSON.parse(line).msg)).toEqual([...expected])
  })

  test.each(["json", "text"] as const)(
    "%s: a line for a full disk is dropped and counted, and nothing else happens",
    async (format) => {
      const code = `${EACH_LEVEL}
        process.on("beforeExit", () => console.error("dropped " + counters.logLinesDropped))`
      const { errors, status } = await script({ level: "debug", format }, code, fullDisk())
      expect({ errors: errors.trim(), status }).toEqual({ errors: "dropped 4", status: 0 })
    },
  )

  test("a full disk does not fill the memory instead", async () => {
    const code = `const before = process.memoryUsage.rss()
      for (let i = 0; i < 100_000; i += 1) {
        log.info("x".repeat(1_000))
        if (i % 100 === 0) await new Promise((resolve) => setImmediate(resolve))
      }
      Bun.gc(true)
      console.error(process.memoryUsage.rss() - before)`
    const { errors, status } = await script({ level: "info", format: "json" }, code, fullDisk())
    expect(status).toBe(0)
    // Half of what was logged.
    expect(Number(errors)).toBeLessThan(50_000_000)
  })
})

/** The program with a log in the test's hand. */
function startProgram(environment: Record<string, string>) {
  // Read as a whole, raw: a secret cut in two by lines would not be found.
  let output = ""
  const child = Bun.spawn([process.execPath, join(SOURCE, "main.ts")], {
    // Away from the checkout: development certificates are made here, and Bun reads no `.env`.
    cwd: directory,
    env: {
      PATH: process.env["PATH"] ?? "",
      HOME: directory,
      DEVICE_HOST: "127.0.0.1",
      DEVICE_PORT: "0",
      HTTP_PORT: "0",
      HTTP_TOKENS: TOKENS.join(","),
      LOG_LEVEL: "debug",
      ...environment,
    },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: LIMIT_MS,
    killSignal: "SIGKILL",
  })
  const collect = async (stream: ReadableStream<Uint8Array>) => {
    const decoder = new TextDecoder()
    for await (const chunk of stream) output += decoder.decode(chunk, { stream: true })
  }
  const errors = collect(child.stderr)
  const port = (name: "devicePort" | "httpPort") =>
    until(() => Number(new RegExp(`${name}"?: ?(\\d+)`).exec(output)?.[1]), { what: `the ${name}` })
  return {
    child,
    collectStdout: () => collect(child.stdout),
    output: () => output,
    port,
    ended: async () => {
      const status = await within(child.exited, { what: "the program to end" })
      await errors
      return status
    },
  }
}

function expectNoSecret(text: string): void {
  for (const secret of SECRETS) expect(text).not.toContain(secret)
}

describe("the program", () => {
  // Port 1 of the loopback address is closed wherever nobody runs tcpmux.
  const away = { AMQP_URL: `amqp://user:${PASSWORD}@127.0.0.1:1/vhost`, WORKERS: "1" }

  test.each(["json", "text"])(
    "tells no secret while its broker is away, and ends by SIGTERM with 0: %s",
    async (format) => {
      const program = startProgram({ ...away, LOG_FORMAT: format })
      try {
        const stdout = program.collectStdout()
        const isAway = /"broker":"away"|broker: "away"/
        await until(() => isAway.test(program.output()), { what: "the broker to be away" })
        const http = `http://127.0.0.1:${await program.port("httpPort")}`
        for (const path of ["/health", "/ready", "/metrics", "/nothing"]) {
          expectNoSecret(await (await fetch(`${http}${path}`)).text())
        }
        const wrong = await fetch(`${http}/metrics`, { headers: { authorization: "Bearer wrong" } })
        expect(wrong.status).toBe(401)
        const right = { authorization: `Bearer ${TOKENS[1]}` }
        expect((await fetch(`${http}/metrics`, { headers: right })).status).toBe(200)
        program.child.kill("SIGTERM")
        expect(await program.ended()).toBe(0)
        await stdout
        expect(program.output()).toContain("drain")
        expectNoSecret(program.output())
      } finally {
        program.child.kill("SIGKILL")
      }
    },
    LIMIT_MS,
  )

  test(
    "goes on when whoever reads its log has gone, and counts the lines that were lost",
    async () => {
      const program = startProgram({})
      const reader = program.child.stdout.getReader()
      try {
        let told = ""
        while (!told.includes('"listening"')) {
          told += new TextDecoder().decode((await reader.read()).value)
        }
        const port = (name: string) => Number(new RegExp(`"${name}":(\\d+)`).exec(told)?.[1])
        await reader.cancel()

        const metrics = async () => {
          const authorization = `Bearer ${TOKENS[0]}`
          const url = `http://127.0.0.1:${port("httpPort")}/metrics`
          return (await fetch(url, { headers: { authorization } })).text()
        }
        const counted = async (name: string) =>
          Number(new RegExp(`^${name} (\\d+)$`, "m").exec(await metrics())?.[1])
        // Each is a line at debug when it is gone.
        for (let i = 0; i < 5; i += 1) connect(port("devicePort"), "127.0.0.1").end("no TLS\n")
        await until(async () => (await counted("owsla_connections_accepted_total")) === 5, {
          what: "five connections",
        })
        await until(async () => (await counted("owsla_connections")) === 0, { what: "their end" })
        expect(await counted("owsla_log_lines_dropped_total")).toBeGreaterThan(0)
      } finally {
        program.child.kill("SIGTERM")
        expect(await program.ended()).toBe(0)
        expect(program.output()).toBe("")
      }
    },
    LIMIT_MS,
  )
})
