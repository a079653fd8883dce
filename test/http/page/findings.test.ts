/** What the operator page finds: each rule, and that a healthy instance has no fault. */

import { describe, expect, test } from "bun:test"
import { type Before, findingsOf, PARTS } from "../../../src/http/page/findings.ts"
import type { InstanceState } from "../../../src/http/page/instance-state.ts"
import { Sampler } from "../../../src/process/samples.ts"

const AT = 1_800_000_000_000
const MINUTE = 60_000
const DAY = 86_400_000

const WORKER: InstanceState["workers"][number] = {
  ...{ worker: "gw1.0", pid: 1, state: "serving", broker: { kind: "ready" }, connections: 50 },
  ...{ waiting: 0, handshakes_per_s: 0, estimated_wait_ms: 0, refusing: null },
  ...{ consuming_paused: false, resident_bytes: 1, started_at: null, restarts: 0 },
  ...{ lines_per_s: 0, cpu: 0, lag_p99_ms: null },
}
const SAMPLE: InstanceState["sample"] = {
  ...new Sampler().take(AT, []).sample,
  ...{ devices: 100, waiting: 0, lines_per_s: 12.34, window_lines: 3, restarts: 0, faults: 0 },
}

type Changes = Omit<Partial<InstanceState>, "sample"> & {
  readonly sample?: Partial<InstanceState["sample"]>
}

function state({ sample, ...changes }: Changes = {}): InstanceState {
  return {
    ...{ at: AT, uptime_s: 100, commands: {}, closed: {} },
    workers: [WORKER, { ...WORKER, worker: "gw1.1" }],
    ...{ workers_expected: 2, window_limit: 4_000, estimated_wait_ms: 0, draining: null },
    gate: { open: true, prefix: "", retry_after_ms: null },
    ...{ bans: 0, certificate_not_after: null },
    ...changes,
    sample: { ...SAMPLE, ...sample },
  }
}

/** The worst finding of each part, in a word or two. */
function levels(found: ReturnType<typeof findingsOf>) {
  return Object.fromEntries(
    PARTS.map((part) => [part, found.find((finding) => finding.part === part)?.level]),
  )
}

const moment = (minutesAgo: number, changes: Partial<Before> = {}): Before => ({
  ...{ at: AT - minutesAgo * MINUTE, devices: 100, lines_per_s: 12, restarts: 0, faults: 0 },
  ...changes,
})

test("a healthy instance", () => {
  const found = findingsOf(state(), [moment(5)])
  expect(found.map(({ part, level, text }) => [part, level, text])).toEqual([
    ["broker", "ok", "Ready for 2 workers"],
    ["gateway", "ok", "2 workers of 2 serving"],
    ["devices", "ok", "100 devices connected, 12 lines a second"],
  ])
})

const [FIRST, SECOND] = [WORKER, { ...WORKER, worker: "gw1.1" }]

describe.each<[string, string, string, Changes, Before[], RegExp]>([
  [
    ...(["broker", "problem", "no connection to the broker"] as const),
    { workers: [FIRST, { ...SECOND, broker: { kind: "away", reason: "refused" } }] },
    [],
    /^No connection to the broker on 1 of 2 workers: refused$/,
  ],
  [
    ...(["broker", "problem", "an alarm at the broker"] as const),
    { workers: [{ ...FIRST, broker: { kind: "blocked", reason: "low on memory" } }, SECOND] },
    [],
    /accepts no messages from 1 of 2 workers: low on memory/,
  ],
  [
    ...(["broker", "warning", "a full window"] as const),
    { sample: { window_lines: 3_900, waiting_for_room: 7 } },
    [],
    /3900 of 4000 lines are not confirmed; the lines of 7 devices wait/,
  ],
  [
    ...(["broker", "warning", "slow confirms"] as const),
    { sample: { confirm_p99_ms: 2_345 } },
    [],
    /Confirms are slow: 2\.3 s/,
  ],
  [
    ...(["gateway", "problem", "a worker that does not answer"] as const),
    { workers: [FIRST] },
    [],
    /^1 of 2 workers did not answer$/,
  ],
  [
    ...(["gateway", "problem", "a worker that died"] as const),
    { sample: { restarts: 3 } },
    [moment(14, { restarts: null }), moment(10, { restarts: 1 })],
    /^2 workers died and were replaced/,
  ],
  [
    ...(["gateway", "warning", "an internal error"] as const),
    { sample: { faults: 1 } },
    [moment(10)],
    /^1 internal error within/,
  ],
  [
    ...(["gateway", "problem", "a full worker"] as const),
    { workers: [{ ...FIRST, refusing: "overloaded" }, SECOND] },
    [],
    /^1 worker of 2 refuse new devices: overloaded$/,
  ],
  [
    ...(["gateway", "warning", "a drain"] as const),
    { draining: { closed: 3, left: 7 } },
    [],
    /draining: 3 devices closed, 7 left/,
  ],
  [
    ...(["gateway", "warning", "a closed gate"] as const),
    { gate: { open: false, prefix: "lock:", retry_after_ms: null } },
    [],
    /closed for new devices lock:…/,
  ],
  [
    ...(["gateway", "warning", "commands that are not consumed"] as const),
    { workers: [{ ...FIRST, consuming_paused: true }, SECOND] },
    [],
    /MAX_COMMAND_BYTES/,
  ],
  [
    ...(["gateway", "warning", "a late event loop"] as const),
    { sample: { lag_p99_ms: 300 } },
    [],
    /late by 300 ms/,
  ],
  [
    ...(["gateway", "warning", "a certificate that expires soon"] as const),
    { certificate_not_after: AT + 10.5 * DAY },
    [],
    /expires in 10 days/,
  ],
  [
    ...(["gateway", "problem", "a certificate that has expired"] as const),
    { certificate_not_after: AT - 1 },
    [],
    /has expired/,
  ],
  [
    ...(["devices", "problem", "a fall of devices"] as const),
    { sample: { devices: 70 } },
    [moment(9), moment(4, { devices: 90 })],
    /^30 % fewer devices than 9 minutes ago: 70 of 100$/,
  ],
  [
    ...(["devices", "warning", "no device"] as const),
    { sample: { devices: 0 } },
    [],
    /^No device is connected$/,
  ],
  [
    ...(["devices", "problem", "silence"] as const),
    { sample: { lines_per_s: 0 } },
    [moment(5), moment(4, { lines_per_s: 0 })],
    /^No line has arrived for 5 minutes, although 100 devices are connected$/,
  ],
  [
    ...(["devices", "warning", "a worker that is almost full"] as const),
    { sample: { limit: 110 } },
    [],
    /^100 of at most 110 devices/,
  ],
])("%s, %s: %s", (part, level, _, changes, before, text) => {
  test("is found", () => {
    const found = findingsOf(state(changes), before)
    expect(found.filter((finding) => finding.part === part)[0]).toEqual({
      ...{ part, level, text: expect.stringMatching(text), advice: expect.stringMatching(/./) },
    } as never)
  })

  test("says nothing of the other parts", () => {
    const others = Object.entries(levels(findingsOf(state(changes), before)))
    for (const [other, found] of others)
      if (other !== part) expect([other, found]).toEqual([other, "ok"])
  })
})

describe("no fault:", () => {
  test.each<[string, Changes, Before[]]>([
    ["certificates with weeks left", { certificate_not_after: AT + 20 * DAY }, []],
    ["a few devices fewer", { sample: { devices: 85 } }, [moment(9)]],
    ["few devices at all", { sample: { devices: 4 } }, [moment(9, { devices: 15 })]],
    ["lines that never came", { sample: { lines_per_s: 0 } }, [moment(9, { lines_per_s: 0 })]],
    ["a short silence", { sample: { lines_per_s: 0 } }, [moment(1)]],
    ["restarts of yesterday", { sample: { restarts: 5 } }, [moment(14, { restarts: 5 })]],
    ["a queue of handshakes", { sample: { waiting: 9 }, estimated_wait_ms: 4_000 }, []],
    ["bans", { bans: 2 }, []],
  ])("%s", (_, changes, before) => {
    const faults = findingsOf(state(changes), before).filter(
      ({ level }) => level === "warning" || level === "problem",
    )
    expect(faults).toEqual([])
  })

  test("a queue is a note with its end", () => {
    const found = findingsOf(state({ sample: { waiting: 9 }, estimated_wait_ms: 4_200 }), [])
    const [note] = found.filter(({ level }) => level === "note")
    expect(note?.text).toBe(
      "9 devices wait for their handshake; the last one is connected in about 4.2 s",
    )
  })
})
