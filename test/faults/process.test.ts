/**
 * Faults of processes: workers and supervisors that are killed, stopped, stalled or told to end
 * while devices send, a certificate that is renewed under them, and a clock that jumps.
 */

import { expect } from "bun:test"
import { X509Certificate } from "node:crypto"
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import tls from "node:tls"
import {
  createCertificateAuthority,
  createServerCertificate,
  type PemPair,
} from "../../src/ops/certificates.ts"
import { until } from "../support/wait.ts"
import { bedsOnOneBroker, expectKept, type FaultBed } from "./bed.ts"
import { fault, last, sized } from "./fault.ts"

const LIMIT_MS = 300_000
const DEVICES = sized(100, 40)
const RATE = 50
/** Lines of one worker that may be on their way; so many may be lost with it. */
const WINDOW_LINES = 2_000
const FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
const start = bedsOnOneBroker(LIMIT_MS)

/** The ids of the connections that the workers of these slots have. */
async function connectionsOf(bed: FaultBed, has: (slot: number) => boolean): Promise<string[]> {
  const whole = async () => {
    const response = await bed.gateway.fetch("/devices?limit=1000")
    const list = (await response.json()) as DeviceList
    // A worker that has just started may not have heard of the others.
    const knowsAll = list.workers === bed.gateway.workers().size
    return knowsAll && list.answered === list.workers ? list.devices : null
  }
  const devices = await until(whole, { what: "every worker to list its devices" })
  return devices
    .filter(({ worker }) => has(Number(worker.split(".").at(-1))))
    .map(({ connection_id }) => connection_id)
}

interface DeviceList {
  readonly answered: number
  readonly workers: number
  readonly devices: readonly { readonly connection_id: string; readonly worker: string }[]
}

/**
 * Kills one worker after the other, and checks that the others' devices stay; returns how many were
 * killed.
 */
async function killWorkers(bed: FaultBed): Promise<number> {
  const times = sized(12, 3)
  // All devices may be with one worker: they reconnect while its successor starts.
  let stayed = 0
  for (let at = 0; at < times; at += 1) {
    const slot = at % 2
    const victim = bed.gateway.workers().get(slot)
    if (victim === undefined) throw new Error(`no worker ${slot}`)
    const before = await connectionsOf(bed, (other) => other !== slot)
    stayed += before.length
    process.kill(victim, "SIGKILL")
    const replaced = () => {
      const successor = bed.gateway.workers().get(slot)
      return successor !== undefined && successor !== victim
    }
    await until(replaced, { what: "a successor" })
    await bed.ready()
    const after = new Set(await connectionsOf(bed, (other) => other !== slot))
    expect(before.filter((id) => !after.has(id))).toEqual([])
    await last(sized(5, 1))
  }
  expect(stayed).toBeGreaterThan(0)
  const restarts = async () => (await bed.gateway.metric("owsla_worker_restarts_total")) === times
  await until(restarts, { what: "every restart to be counted" })
  return times
}

fault(
  {
    fault: "worker killed, again and again",
    made: `SIGKILL to one worker after the other, every ${sized(5, 1)} s`,
    promise: "lost at most the window, in order; the others' devices stay",
  },
  async () => {
    const bed = await start({ MAX_RESTARTS: "100" })
    const herd = await bed.herd({ devices: DEVICES, rate: RATE })
    const killed = await killWorkers(bed)
    const { report, verdict } = await herd.end()
    // What broke connections had sent and nobody confirmed is undecided: it may never have been
    // read.
    expect(verdict).toMatchObject({ kept: true, lost: 0, unexpected: 0, neverInOrder: 0 })
    expect(verdict.undecided).toBeLessThanOrEqual(killed * WINDOW_LINES)
    expect(report.devices.notConnected).toBe(0)
    const { sent, undecided, recovered } = verdict
    return { killed, "lines sent": sent, "lost with workers": undecided, repeated: recovered }
  },
  LIMIT_MS,
)

fault(
  {
    fault: "worker killed, with DEVICE_ACK=seq",
    made: `SIGKILL to one worker after the other, every ${sized(5, 1)} s`,
    promise: "no acknowledged line is lost",
  },
  async () => {
    const bed = await start({ MAX_RESTARTS: "100", DEVICE_ACK: "seq" })
    const herd = await bed.herd({ devices: DEVICES, rate: RATE, flags: ["--device-ack"] })
    const killed = await killWorkers(bed)
    const { report, verdict } = await herd.end()
    expect(verdict).toMatchObject({ kept: true, lost: 0, unexpected: 0, neverInOrder: 0 })
    expect(verdict.acknowledged).toBeGreaterThan(0)
    expect(report.devices.notConnected).toBe(0)
    return {
      killed,
      "lines sent": verdict.sent,
      acknowledged: verdict.acknowledged,
      "acknowledged and lost": verdict.lost,
      "confirm p99, ms": report.latencyMs.confirm.p99 ?? "",
    }
  },
  LIMIT_MS,
)

fault(
  {
    fault: "supervisor killed",
    made: "SIGKILL to the supervisor alone, under load",
    promise: "its workers drain and end, no orphan keeps the port, lost 0",
  },
  async () => {
    const bed = await start()
    const herd = await bed.herd({ devices: DEVICES, rate: RATE })
    const workers = [...bed.gateway.workers().values()]
    const { devicePort } = bed.gateway
    const killedAtMs = performance.now()
    bed.gateway.signal("SIGKILL")
    const gone = () => workers.every((pid) => !existsSync(`/proc/${pid}`))
    await until(gone, { what: "the workers to end", timeoutMs: 60_000 })
    const goneMs = Math.round(performance.now() - killedAtMs)
    const socket = { data: () => undefined }
    Bun.listen({ hostname: "127.0.0.1", port: devicePort, exclusive: true, socket }).stop(true)
    const { verdict } = await herd.end()
    expect(verdict).toMatchObject({ kept: true, lost: 0, unexpected: 0, neverInOrder: 0 })
    return { "lines sent": verdict.sent, lost: 0, "workers gone after, ms": goneMs }
  },
  LIMIT_MS,
)

fault(
  {
    fault: "SIGTERM at full load",
    made: `SIGTERM while ${DEVICES} devices send as fast as they can`,
    promise: "every line that was read is with the broker, in order, status 0",
  },
  async () => {
    const bed = await start()
    const herd = await bed.herd({ devices: DEVICES, rate: 0 })
    bed.gateway.signal("SIGTERM")
    const termedAtMs = performance.now()
    expect(await bed.gateway.exited).toBe(0)
    const tookMs = Math.round(performance.now() - termedAtMs)
    const drained = bed.gateway.log.filter((line) => line["phase"] === "done")
    expect(drained.map((line) => line["unconfirmedLines"])).toEqual([0, 0])
    const { verdict } = await herd.end()
    expect(verdict).toMatchObject({ kept: true, lost: 0, unexpected: 0, neverInOrder: 0 })
    return { "lines taken": verdict.taken, lost: 0, "drained after, ms": tookMs }
  },
  LIMIT_MS,
)

fault(
  {
    fault: "second SIGTERM",
    made: "SIGTERM while the broker is stopped (SIGSTOP), so that no drain can end, and another after it",
    promise: "the second ends the instance at once, with status 1",
  },
  async () => {
    const bed = await start()
    const herd = await bed.herd({ devices: DEVICES, rate: RATE })
    bed.broker.pause()
    try {
      bed.gateway.signal("SIGTERM")
      const drains = () => bed.gateway.log.filter(({ msg }) => msg === "drain")
      const draining = () => new Set(drains().map((line) => line["pid"])).size
      await until(() => draining() === 2, { what: "both workers to begin their drain" })
      // An earlier one would count as the first, sent to the whole process group.
      await last(1.2)
      const secondAtMs = performance.now()
      bed.gateway.signal("SIGTERM")
      expect(await bed.gateway.exited).toBe(1)
      return { "ended after, ms": Math.round(performance.now() - secondAtMs) }
    } finally {
      bed.broker.resume()
      await herd.kill()
    }
  },
  LIMIT_MS,
)

/**
 * Enough to reach both workers whatever the kernel draws: one of them is missed once in 2^19 runs.
 */
const LOOKS = 20

/** The fingerprint of the certificate that a new connection sees. */
async function fingerprintShown(port: number): Promise<string> {
  const socket = tls.connect({ host: "127.0.0.1", port, rejectUnauthorized: false })
  await new Promise((resolve, reject) =>
    socket.once("secureConnect", resolve).once("error", reject),
  )
  const { fingerprint256 } = socket.getPeerCertificate()
  socket.destroy()
  return fingerprint256
}

fault(
  {
    fault: "certificate renewed under load",
    made: `SIGHUP under ${sized(2_000, 200)} connections: a new certificate, then one that is none`,
    promise:
      "no connection is closed, new ones see the new certificate; the bad one is refused and named; lost 0",
  },
  async () => {
    const directory = mkdtempSync(join(tmpdir(), "owsla-renewed-"))
    const files = {
      TLS_CERT_FILE: join(directory, "s.crt"),
      TLS_KEY_FILE: join(directory, "s.key"),
    }
    const authority = await createCertificateAuthority()
    const write = ({ certPem, keyPem }: PemPair) => {
      writeFileSync(files.TLS_CERT_FILE, certPem)
      writeFileSync(files.TLS_KEY_FILE, keyPem)
    }
    write(await createServerCertificate(authority, []))
    const bed = await start(files)
    const devices = sized(2_000, 200)
    const herd = await bed.herd({ devices, rate: 1 })
    const told = (text: string) => bed.gateway.log.filter(({ msg }) => msg.includes(text)).length
    const renewed = await createServerCertificate(authority, [])
    write(renewed)
    bed.gateway.signal("SIGHUP")
    await until(() => told("certificate renewed") === 2, { what: "both workers to take it" })
    const shown = await Promise.all(
      Array.from({ length: LOOKS }, () => fingerprintShown(bed.gateway.devicePort)),
    )
    expect([...new Set(shown)]).toEqual([new X509Certificate(renewed.certPem).fingerprint256])
    writeFileSync(files.TLS_CERT_FILE, "nothing")
    bed.gateway.signal("SIGHUP")
    await until(() => told("is refused and the old one stays") === 1, { what: "the refusal" })
    await bed.flowsAgain()
    const kept = expectKept(await herd.end(), devices)
    rmSync(directory, { recursive: true })
    return { ...kept, connections: devices, closed: 0 }
  },
  LIMIT_MS,
)

fault(
  {
    fault: "crash loop",
    made: "SIGKILL to each successor of a worker, at once",
    promise:
      "more than MAX_RESTARTS within MAX_RESTARTS_WINDOW_MS end the instance with status 1, and it says why",
  },
  async () => {
    const bed = await start({ MAX_RESTARTS: "3", MAX_RESTARTS_WINDOW_MS: "60000" })
    const dead = () => bed.gateway.log.filter(({ msg }) => msg === "worker ended").length
    for (let death = 1; death <= 4; death += 1) {
      await until(() => bed.gateway.workers().has(0), { what: "a worker to kill" })
      process.kill(Number(bed.gateway.workers().get(0)), "SIGKILL")
      await until(() => dead() >= death, { what: "its end" })
    }
    expect(await bed.gateway.exited).toBe(1)
    const ended = bed.gateway.log.find(({ msg }) => msg === "instance ended")
    expect(String(ended?.["reason"])).toContain("restart intensity")
    return { deaths: dead(), reason: String(ended?.["reason"]) }
  },
  LIMIT_MS,
)

fault(
  {
    fault: "event loop stalled",
    made: `SIGSTOP to every worker for 2 s, ${sized(3, 1)} times`,
    promise: "devices stay, lost 0, in order, no repeats",
  },
  async () => {
    const bed = await start()
    const herd = await bed.herd({ devices: DEVICES, rate: RATE })
    for (let times = 0; times < sized(3, 1); times += 1) {
      const workers = [...bed.gateway.workers().values()]
      for (const pid of workers) process.kill(pid, "SIGSTOP")
      await last(2)
      for (const pid of workers) process.kill(pid, "SIGCONT")
      await bed.flowsAgain()
    }
    const kept = expectKept(await herd.end(), DEVICES)
    expect(kept["repeated"]).toBe(0)
    return kept
  },
  LIMIT_MS,
)

fault(
  {
    fault: "clock jumps",
    made: "libfaketime: an hour ahead, back again, an hour behind, back again",
    promise: "devices stay, lost 0, in order, no repeats; no worker ends",
  },
  async () => {
    if (!existsSync(FAKETIME)) throw new Error("apt-get install faketime: its library is missing")
    const directory = mkdtempSync(join(tmpdir(), "owsla-clock-"))
    const clock = join(directory, "offset")
    const jump = (offset: string) => writeFileSync(clock, offset)
    jump("+0")
    const bed = await start({
      LD_PRELOAD: FAKETIME,
      FAKETIME_TIMESTAMP_FILE: clock,
      FAKETIME_NO_CACHE: "1",
      FAKETIME_DONT_FAKE_MONOTONIC: "1",
    })
    const herd = await bed.herd({ devices: DEVICES, rate: RATE })
    for (const offset of ["+3600", "+0", "-3600", "+0"]) {
      jump(offset)
      await last(1.5)
      await bed.flowsAgain()
    }
    const kept = expectKept(await herd.end(), DEVICES)
    expect(kept["repeated"]).toBe(0)
    expect(bed.gateway.log.filter(({ msg }) => msg === "worker ended")).toEqual([])
    rmSync(directory, { recursive: true })
    return { ...kept, jumps: 4 }
  },
  LIMIT_MS,
)
