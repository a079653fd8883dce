/** What is recorded of a connection, when it is sent, and what is dropped. */

import { describe, expect, test } from "bun:test"
import type { Connection } from "../../../src/device/connection.ts"
import type { Payload, TapeItem } from "../../../src/fleet/tape/entry.ts"
import { Recorder } from "../../../src/fleet/tape/recorder.ts"
import { testCommand } from "../../support/commands.ts"

const ENDS_AT_MS = 1_000_000
const HELD_FOR_MS = 500
const CONNECTION = { id: "gw1.0.mb2k3f9zq7x2.1" } as Connection

class Subject {
  nowMs = 7_000
  steadyMs = 0
  readonly passed: string[] = []
  readonly recorder: Recorder
  #seq = 0

  constructor(payload: Payload = "hidden") {
    this.recorder = new Recorder({
      payload,
      lines: { take: (_connection, seq) => void this.passed.push(`line ${seq}`) },
      nowMs: () => this.nowMs,
      steadyMs: () => this.steadyMs,
      endsAtMs: ENDS_AT_MS,
    })
  }

  line(body: string | Uint8Array = "abc"): number {
    const seq = this.#seq
    this.#seq += 1
    this.recorder.take(CONNECTION, seq, Buffer.from(body), null)
    return seq
  }

  /** All rows that can be sent now, in as many batches as it takes. */
  rows(): TapeItem[] {
    const rows: TapeItem[] = []
    for (;;) {
      const batch = this.recorder.batch(this.steadyMs)
      if (batch === null) return rows
      rows.push(...batch.rows)
    }
  }

  later(): this {
    this.steadyMs += HELD_FOR_MS
    return this
  }
}

describe("a line", () => {
  test("goes on to the next stage, and is sent when it is confirmed", () => {
    const subject = new Subject()
    subject.line()
    expect(subject.passed).toEqual(["line 0"])
    expect(subject.rows()).toEqual([])
    subject.nowMs = 7_004
    subject.recorder.confirmed(CONNECTION, 0)
    const about = { connection_id: CONNECTION.id, seq: 0, bytes: 3 }
    expect(subject.rows()).toEqual([{ at: 7_000, kind: "in", ...about, confirmed_at: 7_004 }])
  })

  test("that is not confirmed in time is sent without it, and completed later", () => {
    const subject = new Subject()
    subject.line()
    subject.later()
    const batch = subject.recorder.batch(subject.steadyMs)
    expect(batch).toMatchObject({ first: 0, open: [0] })
    expect(batch?.rows[0]).not.toHaveProperty("confirmed_at")
    subject.recorder.confirmed(CONNECTION, 0)
    expect(subject.rows()).toEqual([{ kind: "completed", entry: 0, confirmed_at: 7_000 }])
    subject.recorder.confirmed(CONNECTION, 0)
    expect(subject.rows()).toEqual([])
  })

  test("keeps later entries waiting, so that they stay in order", () => {
    const subject = new Subject()
    subject.line()
    subject.line()
    subject.recorder.confirmed(CONNECTION, 1)
    expect(subject.rows()).toEqual([])
    subject.recorder.confirmed(CONNECTION, 0)
    expect(subject.rows()).toMatchObject([{ seq: 0 }, { seq: 1 }])
  })

  test.each<[Payload, string | Uint8Array, object]>([
    ["hidden", "abc", {}],
    ["text", "ä\t", { line: "ä\t" }],
    ["text", new Uint8Array([0xff, 0x0a]), { hex: "ff0a" }],
    ["hex", "abc", { hex: "616263" }],
    ["hex", "", { hex: "" }],
    ["hex", "x".repeat(65_536), { hex: "78".repeat(65_536) }],
    ["hex", "x".repeat(65_537), {}],
    ["text", "x".repeat(131_072), { line: "x".repeat(131_072) }],
    ["text", "x".repeat(131_073), {}],
    ["text", "\u0001".repeat(30_000), { hex: "01".repeat(30_000) }],
  ])("with payload %s is shown so", (payload, body, shown) => {
    const subject = new Subject(payload)
    subject.line(body)
    subject.recorder.confirmed(CONNECTION, 0)
    const { line, hex } = subject.rows()[0] as { line?: string; hex?: string }
    expect({
      ...(line === undefined ? {} : { line }),
      ...(hex === undefined ? {} : { hex }),
    }).toEqual(shown)
  })

  test("is not recorded after the end of the tape, and goes on all the same", () => {
    const subject = new Subject()
    subject.steadyMs = ENDS_AT_MS
    subject.line()
    const stopped = new Subject()
    stopped.recorder.stop()
    stopped.line()
    for (const { passed } of [subject, stopped]) expect(passed).toEqual(["line 0"])
    expect([...subject.later().rows(), ...stopped.later().rows()]).toEqual([])
  })
})

describe("a command", () => {
  test("is recorded with its outcome", () => {
    const subject = new Subject("text")
    const [written, late] = [testCommand({ body: Buffer.from("on") }), testCommand({ seq: 4 })]
    subject.recorder.written(CONNECTION, [written])
    subject.recorder.settled(CONNECTION, late, "late")
    const about = { at: 7_000, kind: "out", connection_id: CONNECTION.id } as const
    expect(subject.rows()).toEqual([
      { ...about, seq: null, bytes: 2, line: "on", outcome: "written" },
      {
        ...about,
        seq: 4,
        bytes: late.body.length,
        line: Buffer.from(late.body).toString(),
        outcome: "late",
      },
    ])
  })

  test("that waits for its reply gets its outcome when that is known", () => {
    const reply = { condition: { kind: "next" }, timeoutMs: 9 } as const
    const [soon, late] = [testCommand({ reply }), testCommand({ reply })]
    const subject = new Subject()
    subject.recorder.written(CONNECTION, [soon, late])
    subject.recorder.settled(CONNECTION, soon, "answered")
    expect(subject.rows()).toMatchObject([{ outcome: "answered" }])
    expect(subject.later().rows()).toMatchObject([{ outcome: "written" }])
    subject.recorder.settled(CONNECTION, late, "no_reply")
    expect(subject.rows()).toEqual([{ kind: "completed", entry: 1, outcome: "no_reply" }])
  })

  test("of the gateway itself, an acknowledgement, is not recorded", () => {
    const subject = new Subject()
    subject.recorder.written(CONNECTION, [testCommand({ cameBy: "gateway" })])
    expect(subject.later().rows()).toEqual([])
  })
})

test("the beginning and the end of a connection are recorded", () => {
  const subject = new Subject()
  subject.recorder.connected(CONNECTION, 6_000)
  subject.recorder.disconnected(CONNECTION, "kicked")
  const { id: connection_id } = CONNECTION
  expect(subject.rows()).toEqual([
    { at: 6_000, kind: "connected", connection_id },
    { at: 7_000, kind: "disconnected", connection_id, reason: "kicked" },
  ])
})

describe("a device that sends faster than is sent on", () => {
  test("has entries dropped, which are counted in their place; no line is", () => {
    const subject = new Subject()
    for (let at = 0; at < 5_000; at += 1) subject.line()
    expect(subject.passed).toHaveLength(5_000)
    subject.later()
    const first = subject.recorder.batch(subject.steadyMs)
    expect(first?.rows.length).toBeLessThanOrEqual(500)
    const kept = 1_000
    for (let at = 0; at < kept; at += 1) subject.line()
    const rows = [...(first?.rows ?? []), ...subject.later().rows()]
    const counts = rows.map((row) => (row.kind === "dropped" ? row.count : 1))
    expect(counts.reduce((sum, count) => sum + count, 0)).toBe(6_000)
    const seqs = rows.flatMap((row) => (row.kind === "in" ? [row.seq] : []))
    expect(seqs).toEqual(seqs.toSorted((a, b) => a - b))
    let at = 0
    for (const row of rows) {
      if (row.kind === "in") expect(row.seq).toBe(at)
      at += row.kind === "dropped" ? row.count : 1
    }
  })

  test("has batches of at most 64 KiB, or of one longer entry", () => {
    const subject = new Subject("text")
    for (const length of [30_000, 30_000, 30_000, 100_000, 10]) {
      const seq = subject.line("x".repeat(length))
      subject.recorder.confirmed(CONNECTION, seq)
    }
    const sizes: number[] = []
    for (;;) {
      const batch = subject.recorder.batch(0)
      if (batch === null) break
      sizes.push(batch.rows.length)
    }
    expect(sizes).toEqual([2, 1, 1, 1])
  })
})

test("after a batch that may be lost an empty one shows its number", () => {
  const subject = new Subject()
  subject.recorder.connected(CONNECTION, 6_000)
  expect(subject.recorder.batch(0)).toMatchObject({ first: 0 })
  subject.recorder.missed()
  expect(subject.recorder.batch(0)).toEqual({ first: 1, rows: [], open: [] })
  expect(subject.recorder.batch(0)).toBeNull()
})
