/**
 * The ledger's files: what is written is read back, and what is no ledger is refused.
 */

import { afterEach, beforeEach, describe, expect, test } from "bun:test"
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { LedgerFile, type TakenLine, TakenLines } from "../../src/simulator/ledger.ts"
import { LedgerError, readLedger } from "../../src/simulator/ledger-reader.ts"

let directory: string

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "owsla-ledger-"))
})

afterEach(() => rmSync(directory, { recursive: true, force: true }))

function line(connectionId: string, n: number, more: Partial<TakenLine> = {}): TakenLine {
  return {
    connectionId,
    run: "run1",
    device: "sim-0",
    attempt: 1,
    n,
    seq: n,
    redelivered: false,
    ...more,
  }
}

/** A ledger in which one device sent `sent` lines and nothing was taken. */
function writeEmptyBackEnd(): LedgerFile {
  new LedgerFile(directory, "run1", "back-end").close()
  return new LedgerFile(directory, "run1", "devices")
}

describe("what devices sent", () => {
  test("is read back", async () => {
    const devices = writeEmptyBackEnd()
    devices.append("sent", "sim-0", 1, 4)
    devices.append("acked", "sim-0", 1, 0, 2)
    devices.append("sent", "sim-0", 1, 9)
    devices.append("acked", "sim-0", 1, 5, 5)
    devices.append("end", "sim-0", 1, 9, 11, "broken")
    devices.append("end", "sim-1", 3, 0, 0, "drained")
    devices.append("done")
    devices.close()

    const { sent, unfinished } = await readLedger(directory)
    expect([...unfinished]).toEqual([])
    expect([...sent.keys()]).toEqual(["run1 sim-0 1", "run1 sim-1 3"])
    const first = sent.get("run1 sim-0 1")
    expect(first).toMatchObject({ sent: 9, offered: 11, end: "broken" })
    expect(first?.acked.list).toEqual([
      { from: 0, to: 2 },
      { from: 5, to: 5 },
    ])
    expect(sent.get("run1 sim-1 3")).toMatchObject({ sent: 0, offered: 0, end: "drained" })
  })

  test("is open-ended when the simulator was killed, and a record cut short is left out", async () => {
    const devices = writeEmptyBackEnd()
    devices.append("sent", "sim-0", 1, 4)
    devices.close()
    appendFileSync(join(directory, "run1.devices"), "sent sim-0 1 1")

    const { sent, unfinished } = await readLedger(directory)
    expect([...unfinished]).toEqual(["run1"])
    const connection = sent.get("run1 sim-0 1")
    expect(connection).toMatchObject({ sent: 4, offered: Number.POSITIVE_INFINITY, end: "unended" })
  })
})

describe("what the back-end took", () => {
  test("is read back in order, lines that follow each other as one segment", async () => {
    writeEmptyBackEnd().close()
    const file = new LedgerFile(directory, "run2", "back-end")
    const lines = new TakenLines(file)
    for (const n of [0, 1, 2]) {
      lines.take(line("c1", n))
      lines.take(line("c2", n, { device: "sim-1" }))
    }
    lines.flush()
    lines.take(line("c1", 3))
    lines.take(line("c1", 2))
    lines.take(line("c1", 3, { seq: 4 }))
    lines.flush()
    file.append("stray", "c9", 0)
    file.append("mislabelled", "c1", 3)
    file.append("left", 7)
    file.close()

    const records = readFileSync(join(directory, "run2.back-end"), "utf8").split("\n")
    expect(records[0]).toBe("took c1 run1 sim-0 1 0 0 3")
    const ledger = await readLedger(directory)
    const connection = "run1 sim-0 1"
    expect(ledger.taken.get("c1")).toEqual([
      { connection, n: 0, seq: 0, redelivered: false, count: 4 },
      { connection, n: 2, seq: 2, redelivered: false, count: 1 },
      { connection, n: 3, seq: 4, redelivered: false, count: 1 },
    ])
    expect(ledger.taken.get("c2")).toEqual([
      { connection: "run1 sim-1 1", n: 0, seq: 0, redelivered: false, count: 3 },
    ])
    expect(ledger).toMatchObject({ stray: 1, mislabelled: 1, left: 7 })
  })

  test("is apart from what the broker had delivered before", async () => {
    const file = new LedgerFile(directory, "run3", "back-end")
    new LedgerFile(directory, "run3", "devices").close()
    const lines = new TakenLines(file)
    for (const n of [0, 1, 2]) lines.take(line("c1", n, { redelivered: n > 0 }))
    lines.flush()
    file.close()
    const records = readFileSync(join(directory, "run3.back-end"), "utf8")
    expect(records).toBe("took c1 run1 sim-0 1 0 0 1\ntook c1 run1 sim-0 1 1 1 2 again\n")
    const connection = "run1 sim-0 1"
    expect((await readLedger(directory)).taken.get("c1")).toEqual([
      { connection, n: 0, seq: 0, redelivered: false, count: 1 },
      { connection, n: 1, seq: 1, redelivered: true, count: 2 },
    ])
  })

  test("is on file when flush returns", () => {
    const file = new LedgerFile(directory, "run1", "back-end")
    const lines = new TakenLines(file)
    lines.take(line("c1", 0))
    lines.flush()
    expect(readFileSync(join(directory, "run1.back-end"), "utf8")).toBe(
      "took c1 run1 sim-0 1 0 0 1\n",
    )
    file.close()
  })
})

test("held commands are read back: what was sent, what came, and the receipts", async () => {
  const devices = writeEmptyBackEnd()
  devices.append("got", "sim-0", 2, "run2", 0)
  devices.append("got", "sim-0", 3, "run2", 1, "late")
  devices.append("misdirected", "sim-1", 1)
  devices.close()
  const backEnd = new LedgerFile(directory, "run2", "back-end")
  for (const n of [0, 1, 2]) backEnd.append("held", "sim-0", n)
  backEnd.append("unconfirmed", "sim-0", 2)
  backEnd.append("receipt", "sim-0", 0, "written")
  backEnd.append("receipt", "sim-0", 0, "written", "again")
  backEnd.close()

  const { held, misdirected } = await readLedger(directory)
  expect(misdirected).toBe(1)
  expect([...held.keys()]).toEqual(["run2 sim-0"])
  const device = held.get("run2 sim-0")
  expect(device?.sent.list).toEqual([{ from: 0, to: 2 }])
  expect(device?.unconfirmed.list).toEqual([{ from: 2, to: 2 }])
  expect(device?.arrivals).toEqual([
    { n: 0, late: false },
    { n: 1, late: true },
  ])
  expect(device?.receipts).toEqual([
    { n: 0, outcome: "written", again: false },
    { n: 0, outcome: "written", again: true },
  ])
})

describe("no ledger", () => {
  test("is a directory that is not there", async () => {
    await expect(readLedger(join(directory, "none"))).rejects.toBeInstanceOf(LedgerError)
  })

  test("is one without a back-end's file, or without devices'", async () => {
    await expect(readLedger(directory)).rejects.toThrow("has no file <run>.devices")
    new LedgerFile(directory, "run1", "devices").close()
    await expect(readLedger(directory)).rejects.toThrow("has no file <run>.back-end")
  })

  test.each([
    ["devices", "sent sim-0 1 -4"],
    ["devices", "sent sim-0 1 4 5"],
    ["devices", "acked sim-0 1 5 4"],
    ["devices", "end sim-0 1 5 4 broken"],
    ["devices", "end sim-0 1 4 5 well"],
    ["devices", "done it"],
    ["devices", ""],
    ["devices", "took c1 run1 sim-0 1 0 0 1"],
    ["back-end", "took c1 run1 sim-0 1 0 0 0"],
    ["back-end", "took c1 run1 sim-0 1 0 0"],
    ["back-end", "left many"],
    ["back-end", "sent sim-0 1 4"],
    ["devices", "got sim-0 1 run1 x"],
    ["devices", "got sim-0 1 run1 0 early"],
    ["devices", "misdirected sim-0 1 0"],
    ["back-end", "held sim-0"],
    ["back-end", "unconfirmed sim-0 0 0"],
    ["back-end", "receipt sim-0 0"],
    ["back-end", "receipt sim-0 0 written twice"],
  ] as const)("is one whose %s hold %p", async (kind, record) => {
    writeEmptyBackEnd().close()
    writeFileSync(join(directory, `run1.${kind}`), `${record}\n`)
    await expect(readLedger(directory)).rejects.toThrow(`run1.${kind}:1 is no record`)
  })

  test("a file is never written over", () => {
    new LedgerFile(directory, "run1", "devices").close()
    expect(() => new LedgerFile(directory, "run1", "devices")).toThrow("EEXIST")
  })
})
