/** What the doctor finds about the machine: limits, clock, unit and drain budget. */

import { describe, expect, test } from "bun:test"
import { loadConfig } from "../../../src/config/config.ts"
import { capacityOf } from "../../../src/ops/doctor/capacity.ts"
import { checkKernelClock, clockFinding } from "../../../src/ops/doctor/clock.ts"
import { checkDrainBudget } from "../../../src/ops/doctor/drain-budget.ts"
import type { Level } from "../../../src/ops/doctor/finding.ts"
import {
  checkConntrack,
  checkOpenFiles,
  checkSomaxconn,
  devicesOf,
} from "../../../src/ops/doctor/limits.ts"
import { availableMemory, thisMachine } from "../../../src/ops/doctor/machine.ts"
import { durationMs, readSystemdUnit } from "../../../src/ops/doctor/systemd-unit.ts"
import { fakeMachine } from "./fake-machine.ts"

const SOMAXCONN = "/proc/sys/net/core/somaxconn"
const CONNTRACK = "/proc/sys/net/netfilter/nf_conntrack_max"
const UNIT = {
  name: "owsla.service",
  openFiles: 200_000,
  stopTimeoutMs: 120_000,
  signalsMainOnly: true,
}

const config = (environment: Record<string, string> = {}) =>
  loadConfig({ AMQP_URL: "amqp://u:a-password@b", WORKERS: "2", ...environment })

const limits = (
  files: Record<string, string> = {},
  environment: Record<string, string> = {},
  openFiles: number | null = 20_000,
) => ({
  ...{ config: config(environment), machine: fakeMachine({ files }), unit: null, openFiles },
})

describe("open files", () => {
  test("enough of them: the number of devices", () => {
    const [finding] = checkOpenFiles(limits())
    expect(finding).toMatchObject({
      level: "ok",
      message: "the open-files limit of this process is 20,000: each worker accepts 19,488 devices",
    })
  })

  test("a small limit is a warning", () => {
    const [finding] = checkOpenFiles(limits({}, {}, 1_024))
    expect(finding).toMatchObject({ level: "warning" })
    expect(finding?.message).toEndWith("each worker accepts 512 devices")
  })

  test("fewer than MAX_CONNECTIONS needs is a failure, which says how many are needed", () => {
    const [finding] = checkOpenFiles(limits({}, { MAX_CONNECTIONS: "20000" }))
    expect(finding).toMatchObject({ level: "failure" })
    expect(finding?.advice).toStartWith("set LimitNOFILE=20512 in the unit")
    const enough = limits({}, { MAX_CONNECTIONS: "20000" }, 20_512)
    expect(checkOpenFiles(enough)).toMatchObject([{ level: "ok" }])
  })

  test("the limit of the unit counts, not that of the shell", () => {
    const [finding] = checkOpenFiles({ ...limits({}, {}, 1_024), unit: UNIT })
    expect(finding).toMatchObject({ level: "ok" })
    expect(finding?.message).toContain("in owsla.service is 200,000")
  })

  test("an unknown limit is not checked", () => {
    expect(checkOpenFiles(limits({}, {}, null))).toMatchObject([{ level: "skipped" }])
  })
})

test.each<[string, string | null, Level]>([
  ["larger than LISTEN_BACKLOG", "8192\n", "ok"],
  ["smaller", "128\n", "warning"],
  ["unknown", null, "skipped"],
  ["unreadable", "?", "skipped"],
])("somaxconn %s", (_, value, level) => {
  const files = value === null ? undefined : { [SOMAXCONN]: value }
  expect(checkSomaxconn(limits(files))).toMatchObject([{ level }])
})

test.each<[string, string | null, Level]>([
  ["absent", null, "ok"],
  ["enough for all workers", "38976\n", "ok"],
  ["one too few", "38975\n", "warning"],
])("connection tracking: %s", (_, value, level) => {
  const files = value === null ? undefined : { [CONNTRACK]: value }
  expect(checkConntrack(limits(files))).toMatchObject([{ level }])
})

describe("the clock", () => {
  test.each<[string, boolean, Level]>([
    ["synchronised", true, "ok"],
    ["not synchronised", false, "warning"],
  ])("%s", (_, isSynchronised, level) => {
    const clock = { isSynchronised, maxErrorMs: 3 }
    expect(checkKernelClock(fakeMachine({ clock }))).toMatchObject([{ level }])
  })

  test("of a system that does not tell", () => {
    expect(checkKernelClock(fakeMachine({}))).toMatchObject([{ level: "skipped" }])
  })

  test("of this machine can be read", () => {
    expect(thisMachine.kernelClock()).toMatchObject({ isSynchronised: expect.any(Boolean) })
  })

  test.each<[number, Level]>([
    [0, "ok"],
    [-2_500, "ok"],
    [2_501, "warning"],
    [-60_000, "warning"],
  ])("that differs by %d ms, measured to 500 ms", (differenceMs, level) => {
    expect(clockFinding("the broker's", differenceMs, 500)).toMatchObject({ level })
  })

  test("behind this one is said so", () => {
    const { message } = clockFinding("the broker's", -60_000, 0)
    expect(message).toBe("the broker's clock is 60.0 s behind this one")
  })
})

describe("the systemd unit", () => {
  const shown = (lines: string[]) =>
    readSystemdUnit(fakeMachine({ outputs: { systemctl: lines.join("\n") } }), "owsla.service")

  test("is read from systemctl", () => {
    expect(
      shown([
        "KillMode=mixed",
        "TimeoutStopUSec=2min",
        "LimitNOFILESoft=200000",
        "LoadState=loaded",
        "",
      ]),
    ).toEqual(UNIT)
  })

  test("is none when it is not loaded, or without systemd", () => {
    expect(shown(["LoadState=not-found", "KillMode=mixed"])).toBeNull()
    expect(readSystemdUnit(fakeMachine({}), "owsla.service")).toBeNull()
  })

  test.each<[string | undefined, number | null]>([
    ["1min 30s", 90_000],
    ["500ms", 500],
    ["1h 2min", 3_720_000],
    ["infinity", Number.POSITIVE_INFINITY],
    ["soon", null],
    ["", null],
    [undefined, null],
  ])("has the duration %p", (text, expected) => {
    expect(durationMs(text)).toBe(expected)
  })
})

describe("the drain budget", () => {
  const nowhere = { isFly: false, isKubernetes: false }
  const check = (over: Partial<Parameters<typeof checkDrainBudget>[0]>) =>
    checkDrainBudget({
      ...{ config: config(), platform: nowhere, machine: fakeMachine({}), unit: null },
      ...over,
    })
  const flyToml = (text: string) => ({
    ...{
      platform: { ...nowhere, isFly: true },
      machine: fakeMachine({ files: { "fly.toml": text } }),
    },
  })

  test.each<[string, Parameters<typeof check>[0], Level[]]>([
    ["a unit that waits long enough", { unit: UNIT }, ["ok"]],
    ["a unit that waits too short", { unit: { ...UNIT, stopTimeoutMs: 69_999 } }, ["failure"]],
    ["a unit that signals all", { unit: { ...UNIT, signalsMainOnly: false } }, ["ok", "warning"]],
    ["a unit without a time", { unit: { ...UNIT, stopTimeoutMs: null } }, ["skipped"]],
    ["fly.toml with enough", flyToml('kill_timeout = "120s"'), ["ok"]],
    ["fly.toml with a number", flyToml("kill_timeout = 70"), ["ok"]],
    ["fly.toml with too little", flyToml('kill_timeout = "30s"'), ["failure"]],
    ["fly.toml without it", flyToml('app = "owsla"'), ["failure"]],
    ["Fly.io without its file", { platform: { ...nowhere, isFly: true } }, ["warning"]],
    ["Kubernetes", { platform: { ...nowhere, isKubernetes: true } }, ["warning"]],
    ["Docker", { machine: fakeMachine({ files: { "/.dockerenv": "" } }) }, ["warning"]],
    ["Podman", { machine: fakeMachine({ files: { "/run/.containerenv": "" } }) }, ["warning"]],
    ["no known platform", {}, ["skipped"]],
  ])("of %s", (_, over, levels) => {
    expect(check(over).map(({ level }) => level)).toEqual(levels)
  })

  test("of Kubernetes is enough for a short drain", () => {
    const short = config({ DRAIN_TIMEOUT_MS: "20000" })
    const over = { config: short, platform: { ...nowhere, isKubernetes: true } }
    expect(check(over)).toMatchObject([{ level: "ok" }])
  })

  test("Fly.io allows at most 300 s", () => {
    const long = {
      config: config({ DRAIN_TIMEOUT_MS: "280000" }),
      ...flyToml('kill_timeout = "400s"'),
    }
    expect(check(long)).toMatchObject([{ level: "ok" }])
  })
})

describe("the capacity", () => {
  const machine = {
    ...{ workers: 2, cores: 2, memoryBytes: 8e9, devicesOfWorker: 20_000 },
    ...{ hasCertificates: false, connectionUs: 200 },
  }

  test("is limited by the workers, by memory or by open files", () => {
    expect(capacityOf(machine)).toMatchObject({ devices: 33_334, limit: "workers" })
    expect(capacityOf({ ...machine, memoryBytes: 200e6 })).toMatchObject({
      devices: 9_077,
      limit: "memory",
    })
    expect(capacityOf({ ...machine, memoryBytes: 200e6, hasCertificates: true })).toMatchObject({
      devices: 5_371,
    })
    const files = capacityOf({ ...machine, devicesOfWorker: 512 })
    expect(files).toMatchObject({ devices: 1_024, limit: "open files or MAX_CONNECTIONS" })
  })

  test("is nothing without memory for the workers", () => {
    expect(capacityOf({ ...machine, memoryBytes: 1e6 }).devices).toBe(0)
  })

  test("tells how long all devices need to connect again, with a fifth of each core free", () => {
    expect(capacityOf(machine).reconnectS).toBeCloseTo(33_334 / 8_000)
    expect(capacityOf({ ...machine, cores: 1 }).reconnectS).toBeCloseTo(33_334 / 4_000)
  })

  test("uses the devices of MAX_CONNECTIONS, and the available memory", () => {
    expect(devicesOf(limits({}, { MAX_CONNECTIONS: "77" }))).toBe(77)
    const files = { "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    1000 kB\n" }
    expect(availableMemory(fakeMachine({ files }))).toBe(1_024_000)
    expect(availableMemory(fakeMachine({}))).toBeNull()
  })
})
