/**
 * Output that never blocks: lines when the descriptor accepts all, none or some of them, or fails.
 * A sink that the test controls shows the order of events. Each kind of descriptor is tested in its
 * own process, because a fault would block it.
 */

import { afterEach, describe, expect, test } from "bun:test"
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { forwardLines } from "../../src/ops/forward-lines.ts"
import { Output } from "../../src/ops/output.ts"
import { PIPE_BUF } from "../../src/ops/sink.ts"
import { KINDS, pipe, type Unread } from "../support/descriptors.ts"
import { until, within } from "../support/wait.ts"

const MAX_WAITING_BYTES = 1_048_576
const LIMIT_MS = 30_000

/** A sink that accepts `room` bytes, or fails. */
class TestSink {
  room = Number.POSITIVE_INFINITY
  fails = false
  readonly writes: string[] = []
  dropped = 0
  readonly output = new Output(
    (bytes) => {
      if (this.fails) throw new Error("ENOSPC")
      const taken = Math.min(bytes.length, this.room)
      this.room -= taken
      if (taken > 0) this.writes.push(Buffer.from(bytes.subarray(0, taken)).toString())
      return taken
    },
    (lines) => {
      this.dropped += lines
    },
  )

  get text(): string {
    return this.writes.join("")
  }
}

const numbered = (from: number, to: number) =>
  Array.from({ length: to - from }, (_, n) => `${String(from + n).padStart(99, "0")}\n`)

describe("lines", () => {
  test("are written at once while the descriptor accepts them", () => {
    const sink = new TestSink()
    for (const line of ["a\n", "b\n"]) sink.output.write(line)
    expect(sink.writes).toEqual(["a\n", "b\n"])
  })

  test("that are not accepted are written later, completely and in order, without another call", async () => {
    const sink = new TestSink()
    sink.room = 3
    for (const line of ["ab\n", "cd\n", "ef\n"]) sink.output.write(line)
    expect(sink.text).toBe("ab\n")
    sink.room = 1
    await until(() => sink.text === "ab\nc", { what: "a part of a line" })
    sink.room = Number.POSITIVE_INFINITY
    await until(() => sink.text === "ab\ncd\nef\n", { what: "the rest" })
    expect(sink.dropped).toBe(0)
  })

  test("that waited are written in groups, each write with complete lines of at most PIPE_BUF bytes", async () => {
    const sink = new TestSink()
    sink.room = 0
    const lines = [...numbered(0, 500), `${"x".repeat(PIPE_BUF)}\n`, ...numbered(500, 600)]
    for (const line of lines) sink.output.write(line)
    sink.room = Number.POSITIVE_INFINITY
    await until(() => sink.text.length === lines.join("").length, { what: "all lines" })
    expect(sink.text).toBe(lines.join(""))
    expect(sink.writes.length).toBeLessThan(20)
    for (const write of sink.writes) {
      expect(write).toEndWith("\n")
      expect(write.length <= PIPE_BUF || write.split("\n").length === 2).toBe(true)
    }
  })

  test("beyond the bound are dropped, counted and reported at their position", async () => {
    const sink = new TestSink()
    sink.output.resumed = (lines) => sink.output.write(`${lines} dropped\n`)
    sink.room = 0
    const lines = numbered(0, 20_000)
    for (const line of lines) sink.output.write(line)
    const kept = Math.floor(MAX_WAITING_BYTES / 100) + 1
    expect(sink.dropped).toBe(lines.length - kept)
    sink.room = Number.POSITIVE_INFINITY
    await until(() => sink.text.includes("dropped"), { what: "the remark" })
    sink.output.write("next\n")
    const expected = `${lines.slice(0, kept).join("")}${lines.length - kept} dropped\nnext\n`
    expect(sink.text).toBe(expected)
  })

  test("are dropped and counted while writing fails, and their number follows the first accepted line", () => {
    const sink = new TestSink()
    sink.output.resumed = (lines) => sink.output.write(`${lines} dropped\n`)
    sink.fails = true
    for (const line of numbered(0, 4)) sink.output.write(line)
    expect(sink.dropped).toBe(4)
    sink.fails = false
    sink.output.write("first\n")
    sink.output.write("second\n")
    expect(sink.text).toBe("first\n4 dropped\nsecond\n")
  })

  test("that wait are dropped and counted when writing fails", async () => {
    const sink = new TestSink()
    sink.room = 0
    for (const line of numbered(0, 10)) sink.output.write(line)
    sink.fails = true
    await until(() => sink.dropped === 10, { what: "the drop" })
    sink.fails = false
    sink.room = Number.POSITIVE_INFINITY
    sink.output.write("next\n")
    expect(sink.text).toBe("next\n")
  })

  test("are flushed within the time limit, as far as the descriptor accepts them", () => {
    const sink = new TestSink()
    sink.room = 0
    for (const line of ["a\n", "b\n"]) sink.output.write(line)
    sink.output.flush(1)
    expect(sink.text).toBe("")
    sink.room = Number.POSITIVE_INFINITY
    sink.output.flush(1)
    expect(sink.text).toBe("a\nb\n")
  })
})

describe("forwarded lines", () => {
  const forwarded = async (chunks: (string | Error)[]) => {
    const lines: string[] = []
    const stream = new ReadableStream<Uint8Array>({
      pull(controller) {
        const chunk = chunks.shift()
        if (chunk === undefined) controller.close()
        else if (chunk instanceof Error) controller.error(chunk)
        else controller.enqueue(Buffer.from(chunk))
      },
    })
    await forwardLines(stream, { write: (line) => lines.push(line) })
    return lines
  }

  test("are complete, including the last one", async () => {
    expect(await forwarded(["a", "b\nc", "\n\nd"])).toEqual(["ab\n", "c\n", "\n", "d\n"])
  })

  test("are split when they are too long", async () => {
    const lines = await forwarded(["x".repeat(65_536), "y\n"])
    expect(lines.map(({ length }) => length)).toEqual([65_537, 2])
  })

  test("end with a stream that fails", async () => {
    expect(await forwarded(["a\nb", new Error("gone")])).toEqual(["a\n", "b\n"])
  })
})

let descriptor: Unread | undefined
afterEach(() => {
  descriptor?.close()
  descriptor = undefined
})

const SOURCE = join(import.meta.dir, "../../src/ops")
const SINKS = { openSink: "openSink(1)", spliced: "splicedPipe(1)" }

/** Runs code that has `output` on its standard output, and `dropped()`. */
function script(code: string, stdout: number, sink = SINKS.openSink) {
  return Bun.spawn(
    [
      process.execPath,
      "-e",
      `import { Output } from ${JSON.stringify(join(SOURCE, "output.ts"))}
       import { openSink, splicedPipe } from ${JSON.stringify(join(SOURCE, "sink.ts"))}
       let count = 0
       const dropped = () => count
       const output = new Output(${sink}, (lines) => { count += lines })
       output.resumed = (lines) => output.write(lines + " dropped\\n")
       const line = (n) => String(n).padStart(99, "0") + "\\n"
       ${code}`,
    ],
    { stdio: ["ignore", stdout, "pipe"], timeout: LIMIT_MS, killSignal: "SIGKILL" },
  )
}

const LINES = 30_000
const WRITE_ALL = `for (let n = 0; n < ${LINES}; n += 1) output.write(line(n))`
const descriptors: [string, () => Unread, string][] = [
  ...Object.entries(KINDS).map(([kind, make]): [string, () => Unread, string] => [
    kind,
    make,
    SINKS.openSink,
  ]),
  ["pipe of another user", pipe, SINKS.spliced],
]

describe.each(descriptors)("a %s", (_kind, make, sink) => {
  test(
    "that nobody reads does not block",
    async () => {
      descriptor = make()
      const child = script(`${WRITE_ALL}; console.error(dropped())`, descriptor.descriptor, sink)
      expect(await within(child.exited, { what: "its end" })).toBe(0)
      const dropped = Number(await child.stderr.text())
      expect(dropped).toBeGreaterThan(LINES / 3)
      expect(dropped).toBeLessThan(LINES)
    },
    LIMIT_MS,
  )

  test(
    "that is read again has complete lines in order, and the number of dropped ones",
    async () => {
      descriptor = make()
      const { read } = descriptor
      // The test continues after it has read the count from the standard error of the process.
      const code = `${WRITE_ALL}
        console.error(dropped())
        setInterval(() => { if (!missing) return; output.write("last\\n"); process.exit(0) }, 10)
        let missing = false
        const { resumed } = output
        output.resumed = (lines) => { resumed(lines); missing = true }
        process.on("exit", () => output.flush(5_000))`
      const child = script(code, descriptor.descriptor, sink)
      const told = (await child.stderr.getReader().read()).value
      const dropped = Number(new TextDecoder().decode(told))
      let text = ""
      const ended = () => {
        // As a terminal shows it.
        text += read().replaceAll("\r\n", "\n")
        return text.endsWith("last\n")
      }
      await until(ended, { what: "the last line" })
      expect(await child.exited).toBe(0)
      const lines = text.split("\n").slice(0, -1)
      const kept = LINES - dropped
      expect(lines.slice(0, kept).map(Number)).toEqual(Array.from({ length: kept }, (_, n) => n))
      expect(lines.slice(kept)).toEqual([`${dropped} dropped`, "last"])
    },
    LIMIT_MS,
  )

  test(
    "whose reader has closed accepts nothing and causes no error",
    async () => {
      descriptor = make()
      descriptor.hangUp()
      const child = script(`${WRITE_ALL}; console.error(dropped())`, descriptor.descriptor, sink)
      expect(await within(child.exited, { what: "its end" })).toBe(0)
      expect(Number(await child.stderr.text())).toBe(LINES)
    },
    LIMIT_MS,
  )
})

describe("a descriptor that others share", () => {
  test("is not made non-blocking", async () => {
    descriptor = pipe()
    const flags = () =>
      /^flags:\s+0(\d+)$/m.exec(
        readFileSync(`/proc/self/fdinfo/${descriptor?.descriptor}`, "utf8"),
      )?.[1]
    const before = flags()
    expect(before).toBeString()
    const child = script(`output.write(line(0))`, descriptor.descriptor)
    expect(await child.exited).toBe(0)
    expect(flags()).toBe(before)
  })

  test("as a pipe does not mix lines of several processes", async () => {
    descriptor = pipe()
    const { descriptor: writer, read } = descriptor
    const code = `const text = process.pid + " " + "x".repeat(999) + "\\n"
      for (let n = 0; n < 500; n += 1) output.write(text)
      output.flush(20_000)`
    const children = [1, 2, 3].map(() => script(code, writer))
    let text = ""
    const all = () => {
      text += read()
      return text.split("\n").length === 1_501
    }
    await until(all, { what: "all lines" })
    for (const line of text.split("\n").slice(0, -1)) expect(line).toMatch(/^\d+ x{999}$/)
    for (const child of children) expect(await child.exited).toBe(0)
  })
})

describe("a file", () => {
  test("has all lines after its earlier contents and those of other writers", async () => {
    const directory = mkdtempSync(join(tmpdir(), "owsla-output-"))
    const path = join(directory, "log")
    const file = openSync(path, "w")
    try {
      for (const n of [1, 2]) {
        expect(await script(`output.write(line(${n}))`, file).exited).toBe(0)
      }
      expect(readFileSync(path, "utf8").split("\n").slice(0, -1).map(Number)).toEqual([1, 2])
    } finally {
      closeSync(file)
      rmSync(directory, { recursive: true })
    }
  })
})
