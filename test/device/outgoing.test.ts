/**
 * The outgoing queue with a socket that accepts any number of bytes. At each split, and in any
 * order of operations, the bytes on the wire are the commands in their framing, and a command counts
 * as written after its last byte.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import type { Command } from "../../src/device/command.ts"
import { OVERHEAD_BYTES } from "../../src/device/framing.ts"
import { BATCH_BYTES, Outgoing } from "../../src/device/outgoing.ts"
import { type TestCommand, testCommand } from "../support/commands.ts"
import { CHEAP_RUNS, check, RUNS } from "../support/property.ts"
import { CODECS, type Codec, LINE, textOf } from "./framer-harness.ts"

const NEVER_MS = Number.POSITIVE_INFINITY

function command(text: string, expiresAtMs = NEVER_MS): TestCommand {
  return testCommand({ body: Buffer.from(text), expiresAtMs })
}

/** The delivery that brought it is lost. */
function lose(command: TestCommand): void {
  command.lost = true
}

function wireOf(commands: readonly Command[], codec = LINE): string {
  return textOf(codec.wireOf(commands.map(({ body }) => textOf(body))))
}

/**
 * Offers the next bytes to a socket that accepts `most` of them, and overwrites the shared buffer.
 */
function flush(outgoing: Outgoing, most: number, scratch = new Uint8Array(BATCH_BYTES)) {
  const expired: Command[] = []
  const written: Command[] = []
  const bytes = outgoing.nextBytes(0, scratch, expired)
  const taken = Math.min(most, bytes.length)
  const wire = textOf(bytes.subarray(0, taken))
  outgoing.accepted(taken, written)
  scratch.fill(0x21)
  return { wire, written, expired, offered: bytes.length }
}

test("acknowledgements are written in their order, before the commands that wait", () => {
  const outgoing = new Outgoing(1_000, "line")
  const acknowledgement = (text: string) => ({ ...command(text), cameBy: "gateway" as const })
  const all = [command("a"), acknowledgement("ACK 0"), command("b"), acknowledgement("ACK 1")]
  for (const each of all) outgoing.push(each)
  const { wire, written } = flush(outgoing, 9)
  expect([wire, wireOf(written)]).toEqual(["ACK 0\nACK", "ACK 0\n"])
  expect(wireOf(outgoing.clear())).toBe("ACK 1\na\nb\n")
  expect(outgoing.empty).toBe(true)
  for (const each of all) outgoing.push(each)
  expect(wireOf(flush(outgoing, 4).written)).toBe("")
  expect(wireOf(outgoing.clear())).toBe("ACK 0\nACK 1\na\nb\n")
})

describe.each([...CODECS])("every split: $framing", (codec) => {
  const commands = () => ["one", "", "three", "4"].map((text) => command(text))

  test("byte by byte, each command is written with its last byte, and once", () => {
    const outgoing = new Outgoing(1_000, codec.framing)
    const all = commands()
    for (const each of all) outgoing.push(each)
    let wire = ""
    const told: Command[] = []
    while (!outgoing.empty) {
      const flushed = flush(outgoing, 1)
      wire += flushed.wire
      told.push(...flushed.written)
      expect(told).toEqual(all.slice(0, told.length))
      expect(wireOf(told, codec).length).toBeLessThanOrEqual(wire.length)
      const more = all.slice(0, told.length + 1)
      if (more.length > told.length) expect(wire.length).toBeLessThan(wireOf(more, codec).length)
      expect(outgoing.bytes).toBe(wireOf(all, codec).length - wire.length)
    }
    expect([wire, told]).toEqual([wireOf(all, codec), all])
  })

  test("in each two parts and each three parts", () => {
    const length = wireOf(commands(), codec).length
    for (let first = 0; first <= length; first += 1) {
      for (let second = 0; first + second <= length; second += 1) {
        const outgoing = new Outgoing(1_000, codec.framing)
        const all = commands()
        for (const each of all) outgoing.push(each)
        const parts = [flush(outgoing, first), flush(outgoing, second), flush(outgoing, length)]
        expect(parts.map(({ wire }) => wire).join("")).toBe(wireOf(all, codec))
        expect(parts.flatMap(({ written }) => written)).toEqual(all)
        expect([outgoing.empty, outgoing.bytes, outgoing.clear()]).toEqual([true, 0, []])
      }
    }
  })
})

test("after a partial accept the rest is offered unchanged, even when commands are pushed or expire", () => {
  const outgoing = new Outgoing(1_000, "line")
  const scratch = new Uint8Array(BATCH_BYTES)
  const offered = command("offered", 100)
  const waiting = command("waiting", 100)
  outgoing.push(offered)
  expect(textOf(outgoing.nextBytes(0, scratch, []))).toBe("offered\n")
  outgoing.accepted(3, [])
  scratch.fill(0)
  outgoing.push(waiting)
  const expired: Command[] = []
  expect(textOf(outgoing.nextBytes(500, scratch, expired))).toBe("ered\n")
  expect(expired).toEqual([])
  const written: Command[] = []
  outgoing.accepted(5, written)
  expect(written).toEqual([offered])
  expect(outgoing.nextBytes(500, scratch, expired)).toHaveLength(0)
  expect(expired).toEqual([waiting])
  expect([outgoing.empty, outgoing.clear()]).toEqual([true, []])
})

test("bytes that the socket did not accept are offered again, because TLS may have encrypted them", () => {
  const outgoing = new Outgoing(1_000, "line")
  outgoing.push(command("first", 100))
  expect(flush(outgoing, 0).offered).toBe(6)
  outgoing.push(command("second"))
  const scratch = new Uint8Array(BATCH_BYTES)
  expect(textOf(outgoing.nextBytes(500, scratch, []))).toBe("first\n")
})

describe("expiry", () => {
  test("at its time and not before", () => {
    for (const [nowMs, isExpired] of [[99, false] as const, [100, true] as const]) {
      const outgoing = new Outgoing(1_000, "line")
      const each = command("x", 100)
      outgoing.push(each)
      const expired: Command[] = []
      const bytes = outgoing.nextBytes(nowMs, new Uint8Array(BATCH_BYTES), expired)
      expect([textOf(bytes), expired]).toEqual(isExpired ? ["", [each]] : ["x\n", []])
    }
  })

  test("leaves out those in the middle and keeps the order of the others", () => {
    const outgoing = new Outgoing(1_000, "line")
    const all = ["a", "b", "c", "d", "e"].map((text, i) => command(text, i % 2 ? 5 : NEVER_MS))
    for (const each of all) outgoing.push(each)
    const expired: Command[] = []
    const bytes = outgoing.nextBytes(5, new Uint8Array(BATCH_BYTES), expired)
    expect(textOf(bytes)).toBe("a\nc\ne\n")
    expect(expired.map(({ body }) => textOf(body))).toEqual(["b", "d"])
    expect(outgoing.bytes).toBe(6)
  })
})

describe("bounds", () => {
  test("maxBytes counts an LF for each command, to the byte", () => {
    const outgoing = new Outgoing(10, "line")
    expect(outgoing.push(command("1234"))).toBe(true)
    expect(outgoing.push(command("12345"))).toBe(false)
    expect(outgoing.push(command("1234"))).toBe(true)
    expect(outgoing.bytes).toBe(10)
    expect(outgoing.push(command(""))).toBe(false)
    expect(outgoing.bytes).toBe(10)
    expect(flush(outgoing, 1).wire).toBe("1")
    expect(outgoing.push(command(""))).toBe(true)
  })

  test("one command always fits an empty queue", () => {
    const outgoing = new Outgoing(3, "line")
    expect(outgoing.push(command("12345"))).toBe(true)
    expect(outgoing.push(command(""))).toBe(false)
    expect(flush(outgoing, 100).wire).toBe("12345\n")
    expect(outgoing.push(command("12345"))).toBe(true)
  })

  test.each([
    [[BATCH_BYTES - 1], [BATCH_BYTES]],
    [[BATCH_BYTES], [BATCH_BYTES + 1]],
    [
      [BATCH_BYTES - 1, 0],
      [BATCH_BYTES, 1],
    ],
    [
      [BATCH_BYTES - 3, 1, 0],
      [BATCH_BYTES, 1],
    ],
    [
      [1, 40_000, 1],
      [2, 40_001, 2],
    ],
    [
      [65_536, 65_536],
      [65_537, 65_537],
    ],
  ])("commands of %j bytes go out in batches of %j", (sizes, batches) => {
    const outgoing = new Outgoing(1_000_000, "line")
    const all = sizes.map((size, i) => command(String(i).repeat(size)))
    for (const each of all) outgoing.push(each)
    const flushes = batches.map(() => flush(outgoing, 1_000_000))
    expect(flushes.map(({ offered }) => offered)).toEqual(batches)
    expect(flushes.map(({ wire }) => wire).join("")).toBe(wireOf(all))
    expect(flushes.flatMap(({ written }) => written)).toEqual(all)
    expect(outgoing.empty).toBe(true)
  })

  test("a command larger than a batch, accepted in parts, does not depend on the shared buffer", () => {
    const outgoing = new Outgoing(1_000_000, "line")
    const large = command("x".repeat(50_000))
    outgoing.push(large)
    outgoing.push(command("y"))
    const parts = [7_000, 20_000, 22_999, 1].map((most) => flush(outgoing, most))
    expect(parts.map(({ written }) => written.length)).toEqual([0, 0, 0, 0])
    expect(flush(outgoing, 1).written).toEqual([large])
    expect(flush(outgoing, 2).wire).toBe("y\n")
  })

  test("commands that were written are not kept while others wait", async () => {
    // A queue that never gets quite empty would else keep a thousand bodies of 64 KiB, far more
    // than `maxBytes`.
    const outgoing = new Outgoing(1_048_576, "line")
    const references: WeakRef<Command>[] = []
    const pushOne = () => {
      const each = command("x".repeat(20_000))
      references.push(new WeakRef(each))
      outgoing.push(each)
    }
    const run = () => {
      pushOne()
      for (let i = 0; i < 1_000; i += 1) {
        pushOne()
        flush(outgoing, 1_000_000)
      }
    }
    run()
    expect(outgoing.bytes).toBe(20_001)
    // A WeakRef keeps its object alive until the end of the tick in which it was made.
    await new Promise((resolve) => setImmediate(resolve))
    Bun.gc(true)
    const alive = references.filter((reference) => reference.deref() !== undefined)
    // `maxBytes` is 52 of them; the collector may take some for alive that are not.
    expect(alive.length).toBeLessThan(100)
  })
})

describe("withdraw and clear", () => {
  test("withdraws the lost commands of which no byte was offered, and keeps the others in order", () => {
    const outgoing = new Outgoing(1_000, "line")
    const [offered, lost, other] = [command("offered"), command("lost"), command("other")]
    outgoing.push(offered)
    flush(outgoing, 2)
    for (const each of [lost, other]) outgoing.push(each)
    lose(offered)
    lose(lost)
    expect(outgoing.withdrawLost()).toEqual([lost])
    expect(outgoing.withdrawLost()).toEqual([])
    const first = flush(outgoing, 100)
    const second = flush(outgoing, 100)
    expect(first.wire + second.wire).toBe("fered\nother\n")
    expect([...first.written, ...second.written]).toEqual([offered, other])
    expect([outgoing.bytes, outgoing.empty]).toEqual([0, true])
  })

  test("clear returns the unwritten commands in order, including one that was accepted in part", () => {
    const outgoing = new Outgoing(1_000, "line")
    const all = ["a", "bb", "cc"].map((text) => command(text))
    for (const each of all.slice(0, 2)) outgoing.push(each)
    flush(outgoing, 3)
    for (const each of all.slice(2)) outgoing.push(each)
    expect(outgoing.clear()).toEqual(all.slice(1))
    expect([outgoing.bytes, outgoing.empty, outgoing.clear()]).toEqual([0, true, []])
    outgoing.push(command("new"))
    expect(flush(outgoing, 100).wire).toBe("new\n")
  })
})

type Step =
  | { readonly kind: "push"; readonly size: number; readonly ttlMs: number }
  | { readonly kind: "flush"; readonly take: number }
  | { readonly kind: "wait"; readonly ms: number }
  | { readonly kind: "lose" }

function steps(maxSize: number): fc.Arbitrary<Step[]> {
  const step = fc.oneof(
    {
      weight: 4,
      arbitrary: fc.record({
        kind: fc.constant("push" as const),
        size: fc.nat(maxSize),
        ttlMs: fc.oneof(fc.constant(NEVER_MS), fc.nat(20)),
      }),
    },
    {
      weight: 4,
      arbitrary: fc.record({ kind: fc.constant("flush" as const), take: fc.nat(maxSize * 3) }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("wait" as const), ms: fc.nat(10) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("lose" as const) }) },
  )
  return fc.array(step, { maxLength: 50, size: "max" })
}

function expectWire(codec: Codec, sequence: readonly Step[], maxBytes: number): void {
  const outgoing = new Outgoing(maxBytes, codec.framing)
  const overhead = OVERHEAD_BYTES[codec.framing]
  const scratch = new Uint8Array(BATCH_BYTES)
  /** Every command that has not ended, in order, those offered first. */
  let left: Command[] = []
  let offered = 0
  let wire = ""
  let whole = ""
  let nowMs = 0
  let made = 0
  const takenOfFirst = () => wire.length - whole.length

  const flushOnce = (most: number): void => {
    const expired: Command[] = []
    const written: Command[] = []
    const wasOffered = offered
    const bytes = outgoing.nextBytes(nowMs, scratch, expired)
    const rest = left.slice(0, wasOffered)
    if (wasOffered === 0) {
      const reached = left.findIndex((each) => each.expiresAtMs > nowMs && !expired.includes(each))
      for (const each of expired) expect(each.expiresAtMs).toBeLessThanOrEqual(nowMs)
      if (reached === -1) expect(expired).toEqual(left)
      left = left.filter((each) => !expired.includes(each))
      for (const each of left) {
        const length = wireOf([...rest, each], codec).length
        if (length > bytes.length) break
        rest.push(each)
      }
      offered = rest.length
      for (const each of rest) expect(each.expiresAtMs).toBeGreaterThan(nowMs)
      expect(bytes.length).toBeLessThanOrEqual(rest.length === 1 ? Infinity : BATCH_BYTES)
      expect(bytes.length > 0).toBe(left.length > 0)
    } else expect(expired).toEqual([])
    expect(textOf(bytes)).toBe(wireOf(rest, codec).slice(takenOfFirst()))

    const taken = Math.min(most, bytes.length)
    wire += textOf(bytes.subarray(0, taken))
    outgoing.accepted(taken, written)
    scratch.fill(0x21)
    for (const each of written) {
      expect(left.shift()).toBe(each)
      offered -= 1
      whole += wireOf([each], codec)
      expect(wire.length).toBeGreaterThanOrEqual(whole.length)
    }
    const first = left[0]
    if (offered > 0 && first) expect(takenOfFirst()).toBeLessThan(first.body.length + overhead)
    else expect(takenOfFirst()).toBe(0)
  }

  for (const step of sequence) {
    switch (step.kind) {
      case "push": {
        const each = command(String(made % 10).repeat(step.size), nowMs + step.ttlMs)
        made += 1
        const fits = outgoing.bytes === 0 || outgoing.bytes + step.size + overhead <= maxBytes
        expect(outgoing.push(each)).toBe(fits)
        if (fits) left.push(each)
        break
      }
      case "flush":
        flushOnce(step.take)
        break
      case "wait":
        nowMs += step.ms
        break
      case "lose":
        for (const each of left) lose(each)
        expect(outgoing.withdrawLost()).toEqual(left.splice(offered))
        break
    }
    expect(outgoing.bytes).toBe(wireOf(left, codec).length - takenOfFirst())
    expect(outgoing.empty).toBe(left.length === 0)
  }
  expect(wireOf(left, codec).startsWith(wire.slice(whole.length))).toBe(true)
  const cleared = outgoing.clear()
  expect(cleared).toHaveLength(left.length)
  for (const [i, each] of cleared.entries()) expect(each).toBe(left[i] as Command)
}

describe.each([...CODECS])("$framing", (codec) => {
  test("any order of small commands, partial takes, expiry and loss", () => {
    check(
      fc.property(steps(8), fc.integer({ min: 1, max: 60 }), (sequence, maxBytes) =>
        expectWire(codec, sequence, maxBytes),
      ),
      CHEAP_RUNS,
    )
  })

  test("the same with commands around the size of a batch", () => {
    check(
      fc.property(steps(BATCH_BYTES * 2), (sequence) =>
        expectWire(codec, sequence, BATCH_BYTES * 5),
      ),
      RUNS,
    )
  })
})

test("more commands than are cut off at a time keep their order", () => {
  const outgoing = new Outgoing(1_000_000, "line")
  const all = Array.from({ length: 5_000 }, (_, i) => command(String(i)))
  for (const each of all) outgoing.push(each)
  const written: Command[] = []
  let wire = ""
  while (!outgoing.empty) {
    const flushed = flush(outgoing, 1_000)
    wire += flushed.wire
    written.push(...flushed.written)
  }
  expect(wire).toBe(wireOf(all))
  expect(written).toEqual(all)
})
