/**
 * Tapes: two instances of the real program with two workers each on one RabbitMQ, devices that move
 * between them, and a replay of what was recorded.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { connect } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { TapeEntry } from "../../src/fleet/tape/entry.ts"
import type { ListedTape } from "../../src/fleet/tape/tapes.ts"
import { type FleetList, SECRET, TestFleet } from "../support/fleet.ts"
import { startGateway } from "../support/gateway.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 90_000
const SIMULATOR = join(import.meta.dir, "../../src/simulator/main.ts")
let fleet: TestFleet
let directory: string

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "owsla-tapes-"))
  fleet = await TestFleet.start(2, { DEVICE_ACK: "seq" })
}, LIMIT_MS)

afterEach(async () => {
  fleet.releaseDevices()
  for (const { device_id } of await listed(0)) await ask(0, device_id, { method: "DELETE" })
})

afterAll(async () => {
  rmSync(directory, { recursive: true, force: true })
  await fleet?.stop()
}, LIMIT_MS)

function ask(at: number, name: string, init: RequestInit = {}, suffix = ""): Promise<Response> {
  return fleet.instance(at).fetch(`/devices/${name}/tape${suffix}`, init)
}

function start(at: number, name: string, body: object = {}): Promise<Response> {
  const request = JSON.stringify({ minutes: 5, payload: "text", ...body })
  return ask(at, name, { method: "PUT", body: request })
}

async function listed(at: number): Promise<readonly ListedTape[]> {
  const response = await fleet.instance(at).fetch("/tapes")
  return ((await response.json()) as { tapes: ListedTape[] }).tapes
}

async function entriesOf(at: number, name: string): Promise<TapeEntry[]> {
  const response = await ask(at, name, {}, ".jsonl")
  const text = await response.text()
  if (!response.ok) throw new Error(text)
  return text
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line))
}

/** Waits until the tape of the device has what is expected of it. */
async function recorded(
  at: number,
  name: string,
  isThere: (entries: readonly TapeEntry[]) => boolean,
): Promise<TapeEntry[]> {
  let entries: TapeEntry[] = []
  const look = async () => {
    entries = await entriesOf(at, name)
    return isThere(entries)
  }
  await until(look, { what: "the tape" }).catch((error) => {
    const shown = entries.slice(-20).map((entry) => JSON.stringify(entry).slice(0, 200))
    throw new Error(`${error}: ${entries.length} entries, the last ones\n${shown.join("\n")}`)
  })
  return entries
}

const linesOf = (entries: readonly TapeEntry[]) =>
  entries.flatMap((entry) => (entry.kind === "in" ? [entry.line] : []))

/** The process of a worker, such as gw1.0. */
function pidOf(worker: string): number {
  const [instance = "", slot] = worker.split(".")
  const pid = fleet
    .instance(Number(instance.slice(2)))
    .workers()
    .get(Number(slot))
  if (pid === undefined) throw new Error(`no worker ${worker}`)
  return pid
}

describe("a tape", () => {
  test(
    "has both directions, and follows its device to another instance",
    async () => {
      const name = fleet.newName()
      const started = await start(0, name)
      expect(started.status).toBe(201)
      const view = await started.json()
      expect(view).toMatchObject({ device_id: name, payload: "text", max_bytes: 2_097_152 })
      expect((view as { until: number }).until).toBeGreaterThan(Date.now() + 200_000)

      const first = await fleet.admit(1, name)
      await first.device.send("one")
      await first.device.send("tw\u00f6")
      expect((await fleet.send(0, name, "open")).status).toBe(200)
      await recorded(0, name, (entries) => entries.length === 4)
      const second = await fleet.admit(0, name)
      expect((await first.device.closed).by).toBe("peer")
      await second.device.send("three")
      const entries = await recorded(
        1,
        name,
        (all) => linesOf(all).length === 3 && all.length === 7,
      )

      const [of1, of2] = [first, second].map(({ view: { connection_id } }) =>
        entries.filter(
          (entry) => "connection_id" in entry && entry.connection_id === connection_id,
        ),
      )
      const about = { at: expect.any(Number), connection_id: first.view.connection_id }
      const confirmed_at = expect.any(Number)
      expect(of1).toEqual([
        { ...about, at: first.view.epoch, kind: "connected" },
        { ...about, kind: "in", seq: 0, bytes: 3, line: "one", confirmed_at },
        { ...about, kind: "in", seq: 1, bytes: 4, line: "tw\u00f6", confirmed_at },
        { ...about, kind: "out", seq: null, bytes: 4, line: "open", outcome: "written" },
        { ...about, kind: "disconnected", reason: "taken_over" },
      ])
      expect(of2?.map(({ kind }) => kind)).toEqual(["connected", "in"])
      for (const entry of entries) {
        if (entry.kind === "in") expect(entry.confirmed_at).toBeGreaterThanOrEqual(entry.at)
      }
      for (const at of [0, 1]) {
        expect(await listed(at)).toMatchObject([{ device_id: name, recording: true }])
      }
      const log = fleet.gateways.flatMap((gateway) => gateway.log)
      const told = log.filter(({ msg, device_id }) => msg === "tape started" && device_id === name)
      expect(told).toHaveLength(1)
    },
    LIMIT_MS,
  )

  test(
    "is followed live from any instance until it is discarded",
    async () => {
      const name = fleet.newName()
      const { device } = await fleet.admit(1, name)
      await start(0, name, { payload: "hidden" })
      const streams = await Promise.all([0, 1].map((at) => ask(at, name)))
      const texts = streams.map(() => "")
      const followed = streams.map(async ({ body }, at) => {
        const decoder = new TextDecoder()
        for await (const chunk of body ?? []) texts[at] += decoder.decode(chunk, { stream: true })
      })
      await device.send("secret")
      await until(() => texts.every((text) => text.includes('"confirmed_at"')), {
        what: "the line",
      })
      expect(await (await ask(1, name, { method: "DELETE" })).json()).toMatchObject({
        device_id: name,
      })
      await Promise.all(followed)
      for (const text of texts) {
        expect(text).not.toContain("secret")
        expect(text).toContain('"kind":"in"')
        expect(text.trimEnd()).toEndWith('event: ended\ndata: {"reason":"discarded"}')
      }
      for (const at of [0, 1]) {
        const isGone = async () => (await ask(at, name, {}, ".jsonl")).status === 404
        await until(isGone, { what: "the tape to be gone" })
      }
      expect((await ask(0, name, { method: "DELETE" })).status).toBe(404)
    },
    LIMIT_MS,
  )

  test(
    "of a client that does not read holds up neither the device nor other readers",
    async () => {
      const name = fleet.newName()
      const { device, view } = await fleet.admit(1, name)
      await start(0, name, { payload: "hex", max_bytes: 65_536 })
      const { httpPort, host } = fleet.instance(0)
      const silent = connect(httpPort, host)
      silent.write(`GET /devices/${name}/tape HTTP/1.1\r\nHost: localhost:${httpPort}\r\n\r\n`)
      silent.pause()
      const count = 4_000
      const line = "x".repeat(500)
      await device.sendBytes(Buffer.from(`${line}\n`.repeat(count)))
      const counted = (entries: readonly TapeEntry[]) =>
        entries.reduce((sum, entry) => sum + (entry.kind === "dropped" ? entry.count : 1), 0)
      // And the beginning of the connection.
      await recorded(1, name, (all) => counted(all) === count + 1)
      await device.send("last")
      const arrived = () =>
        fleet.backEnd.lines.some(({ body, device }) => device === name && body === "last")
      await until(arrived, { what: "the last line" })
      const hex = Buffer.from("last").toString("hex")
      const isLast = (entry: TapeEntry) => entry.kind === "in" && entry.hex === hex
      const entries = await recorded(1, name, (all) => all.some(isLast))
      expect(counted(entries)).toBe(count + 2)
      expect(entries.some(({ kind }) => kind === "dropped")).toBe(true)
      expect(view.connection_id).toBe(
        (entries.findLast(isLast) as { connection_id: string }).connection_id,
      )
      silent.destroy()
    },
    LIMIT_MS,
  )
})

test(
  "a tape of a gateway with the embedded broker, by the id of the connection",
  async () => {
    const gateway = await startGateway()
    try {
      const device = await connectDevice({ port: gateway.devicePort })
      const id = await until(
        async () => {
          const { devices } = (await (await gateway.fetch("/devices")).json()) as FleetList
          return devices[0]?.device_id
        },
        { what: "the device" },
      )
      const body = JSON.stringify({ minutes: 1, payload: "hex" })
      const path = `/devices/${id}/tape`
      expect((await gateway.fetch(path, { method: "PUT", body })).status).toBe(201)
      await device.send("a")
      const text = await until(
        async () => {
          const tape = await (await gateway.fetch(`${path}.jsonl`)).text()
          return tape.includes('"confirmed_at"') ? tape : null
        },
        { what: "the line" },
      )
      expect(
        text
          .trimEnd()
          .split("\n")
          .map((line) => JSON.parse(line)),
      ).toMatchObject([
        { kind: "connected", connection_id: id },
        { kind: "in", connection_id: id, seq: 0, bytes: 1, hex: "61" },
      ])
      device.terminate()
    } finally {
      await gateway.stop()
    }
  },
  LIMIT_MS,
)

describe("PUT", () => {
  test.each([
    { minutes: 0 },
    { minutes: 61 },
    { minutes: 1.5 },
    { minutes: "x" },
    { payload: "base64" },
    { max_bytes: 1 },
    { max_bytes: 2_097_153 },
  ])("with %j is invalid", async (body) => {
    const response = await start(0, "lock:0", body)
    expect(response.status).toBe(400)
    expect(await response.json()).toMatchObject({ error: { code: "invalid" } })
  })

  test(
    "the 21st device of the fleet is refused, at any worker",
    async () => {
      const names = Array.from({ length: 20 }, () => fleet.newName())
      const statuses = await Promise.all(
        names.map(async (name, at) => (await start(at % 2, name)).status),
      )
      expect(statuses).toEqual(names.map(() => 201))
      for (const at of [0, 1, 0, 1]) {
        const refused = await start(at, fleet.newName())
        expect([refused.status, await refused.json()]).toMatchObject([
          409,
          { error: { code: "busy" } },
        ])
      }
      expect(await listed(1)).toHaveLength(20)
      await ask(1, names[7] ?? "", { method: "DELETE" })
      expect((await start(0, fleet.newName())).status).toBe(201)
    },
    LIMIT_MS,
  )
})

describe("a worker that is killed", () => {
  test(
    "while it holds the device: the tape shows the end and goes on at another instance",
    async () => {
      const name = fleet.newName()
      await start(0, name)
      const { device, view } = await fleet.admit(1, name)
      await device.send("before")
      await recorded(0, name, (entries) => linesOf(entries).includes("before"))
      process.kill(pidOf(view.worker), "SIGKILL")
      await device.closed
      const again = await fleet.admit(0, name)
      await again.device.send("after")
      const isOver = (entry: TapeEntry) =>
        entry.kind === "disconnected" && entry.connection_id === view.connection_id
      const entries = await recorded(
        0,
        name,
        (all) => linesOf(all).includes("after") && all.some(isOver),
      )
      expect(linesOf(entries)).toEqual(["before", "after"])
      expect(entries.find(isOver)).not.toHaveProperty("reason")
      await fleet.ready(1)
      await fleet.acquainted()
    },
    LIMIT_MS,
  )

  test(
    "while it has the tape: the tape is lost, and can be started again",
    async () => {
      const name = fleet.newName()
      const { device } = await fleet.admit(1, name)
      await start(0, name)
      const [tape] = await listed(1)
      const stream = await ask(1, name)
      const told = stream.text()
      process.kill(pidOf(tape?.worker ?? ""), "SIGKILL")
      expect(await told).toEndWith('event: ended\ndata: {"reason":"lost"}\n\n')
      await until(async () => (await ask(1, name)).status === 404, { what: "the tape to be gone" })
      await fleet.ready(0)
      await fleet.acquainted()
      expect((await start(0, name)).status).toBe(201)
      await device.send("again")
      await recorded(1, name, (entries) => linesOf(entries).includes("again"))
    },
    LIMIT_MS,
  )
})

describe("bun run simulate replay", () => {
  const replay = async (file: string, device: string, ...args: string[]) => {
    const { devicePort } = fleet.instance(1)
    const child = Bun.spawn(
      [
        ...[process.execPath, SIMULATOR, "replay", file, "--port", String(devicePort), "--json"],
        ...["--auth", "hello", "--secret", SECRET, "--device", device, ...args],
      ],
      { stdio: ["ignore", "pipe", "pipe"], timeout: LIMIT_MS, killSignal: "SIGKILL" },
    )
    const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()])
    return { status: await child.exited, out, err }
  }

  const record = async (payload: string) => {
    const name = fleet.newName()
    await start(0, name, { payload })
    const { device } = await fleet.admit(0, name)
    const lines = ["a", "b c", "\u00e4\u20ac", "\u0001", "x".repeat(3_000)]
    for (const line of lines) await device.send(line)
    await recorded(
      0,
      name,
      (all) => all.filter(({ kind }) => kind === "in").length === lines.length,
    )
    const file = join(directory, `${name}.${payload}.jsonl`)
    writeFileSync(file, await (await ask(1, name, {}, ".jsonl")).text())
    return { file, lines }
  }

  test.each([
    ["text", "max"],
    ["hex", "10"],
  ])(
    "of a tape with %s sends the same lines in order, at speed %s",
    async (payload, speed) => {
      const { file, lines } = await record(payload)
      const name = fleet.newName()
      const { status, out, err } = await replay(file, name, "--speed", speed)
      expect([status, err]).toEqual([0, ""])
      expect(JSON.parse(out)).toMatchObject({ lines: lines.length, dropped: 0 })
      const arrived = () => fleet.backEnd.lines.filter(({ device }) => device === name)
      await until(() => arrived().length >= lines.length, { what: "the lines at the back-end" })
      expect(arrived().map(({ body, seq }) => [body, seq])).toEqual(
        lines.map((line, seq) => [line, seq]),
      )
    },
    LIMIT_MS,
  )

  test(
    "of a tape with hidden lines says so, and names the line of the file",
    async () => {
      const { file } = await record("hidden")
      const { status, err } = await replay(file, fleet.newName())
      expect([status, err]).toEqual([
        2,
        `${file}:2: the line is hidden: record the tape with payload "text" or "hex"\n`,
      ])
    },
    LIMIT_MS,
  )

  test(
    "to a gateway that refuses the device fails",
    async () => {
      const { file } = await record("text")
      const another = ["--secret", "another-secret-of-the-tests-0123456789"]
      const { status, err } = await replay(file, fleet.newName(), ...another)
      expect([status, err]).toEqual([
        1,
        "the gateway closed the connection; see its log for the reason\n",
      ])
    },
    LIMIT_MS,
  )
})
