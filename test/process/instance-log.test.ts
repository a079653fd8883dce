/**
 * The log of an instance as data: the supervisor's end and those of two workers, whose messages are
 * passed on by the test.
 */

import { expect, test } from "bun:test"
import type { LogEntry, LogTap } from "../../src/log-entry.ts"
import { MAX_WAITING } from "../../src/process/acknowledged-feed.ts"
import { InstanceLog, MAX_NOTICES } from "../../src/process/instance-log.ts"
import { SupervisorLog } from "../../src/process/supervisor-log.ts"
import { WorkerLog } from "../../src/process/worker-log.ts"

function entry(message: string, level: LogEntry["level"] = "info"): LogEntry {
  return { at: 5, level, kind: "log", source: "gw.0", message, fields: {} }
}

function recorder() {
  const told: (string | number)[] = []
  const tap: LogTap = {
    entry: ({ message }) => void told.push(message),
    missed: (count) => void told.push(count),
  }
  return { told, tap }
}

class Instance {
  readonly log = new InstanceLog()
  readonly #supervisor = new SupervisorLog(this.log)
  readonly workers: readonly WorkerLog[]
  /** The supervisor does not read. */
  stopped = false

  constructor() {
    this.workers = [0, 1].map((key) => {
      const worker = new WorkerLog((message) => {
        if (this.stopped) return
        switch (message.kind) {
          case "log":
          case "follow":
          case "events_taken":
          case "recent_wanted":
            this.#supervisor.heard(key, message)
        }
      })
      this.#supervisor.attach(key, (message) => {
        switch (message.kind) {
          case "log_taken":
          case "events":
          case "recent":
            // As over a channel: not within the call.
            queueMicrotask(() => worker.heard(message))
        }
      })
      return worker
    })
  }

  worker(at: number): WorkerLog {
    return this.workers[at] as WorkerLog
  }

  end(at: number): void {
    this.#supervisor.detach(at)
  }
}

/** Lets all messages arrive. */
const settled = () => new Promise<void>((resolve) => setImmediate(resolve))

test("a worker that follows gets the lines of all processes, in order", async () => {
  const instance = new Instance()
  const { told, tap } = recorder()
  const stop = instance.worker(0).follow(tap)
  instance.worker(1).add(entry("of the other"))
  instance.log.add(entry("of the supervisor"))
  instance.worker(0).add(entry("its own"))
  await settled()
  expect(told).toEqual(["of the other", "of the supervisor", "its own"])
  stop()
  stop()
  instance.log.add(entry("later"))
  await settled()
  expect(told.length).toBe(3)
})

test("each tap of a worker gets them, and the last one ends it", async () => {
  const instance = new Instance()
  const first = recorder()
  const second = recorder()
  const stop = instance.worker(0).follow(first.tap)
  instance.worker(0).follow(second.tap)
  instance.log.add(entry("to both"))
  await settled()
  stop()
  instance.log.add(entry("to one"))
  await settled()
  expect(first.told).toEqual(["to both"])
  expect(second.told).toEqual(["to both", "to one"])
})

test("the newest warnings and errors, and audit entries, are kept", async () => {
  const instance = new Instance()
  instance.log.add(entry("info"))
  for (let n = 0; n < MAX_NOTICES + 2; n += 1) instance.worker(1).add(entry(`warning ${n}`, "warn"))
  await settled()
  for (let n = 0; n < 2; n += 1) instance.log.add({ ...entry(`kick ${n}`), kind: "audit" })
  const recent = await instance.worker(0).recent()
  expect(recent?.notices.length).toBe(MAX_NOTICES)
  expect(recent?.notices.at(-1)?.message).toBe(`warning ${MAX_NOTICES + 1}`)
  expect(recent?.audit.map(({ message }) => message)).toEqual(["kick 1", "kick 0"])
})

test("what does not fit is counted, up and down", async () => {
  const instance = new Instance()
  const { told, tap } = recorder()
  instance.worker(0).follow(tap)
  const count = 2 * MAX_WAITING
  for (let n = 0; n < count; n += 1) instance.log.add(entry("down"))
  await settled()
  const missed = told.filter((each) => typeof each === "number")
  expect(missed.length).toBe(1)
  expect(told.length - 1 + Number(missed[0])).toBe(count)

  told.length = 0
  for (let n = 0; n < count; n += 1) instance.worker(1).add(entry("up"))
  await settled()
  const sum = told.reduce<number>((sum, each) => sum + (typeof each === "number" ? each : 1), 0)
  expect(sum).toBe(count)
})

test("a worker that has ended is sent nothing more", async () => {
  const instance = new Instance()
  const { told, tap } = recorder()
  instance.worker(0).follow(tap)
  instance.end(0)
  instance.log.add(entry("later"))
  await settled()
  expect(told).toEqual([])
})

test("without an answer of the supervisor nothing is known", async () => {
  const instance = new Instance()
  instance.stopped = true
  expect(await instance.worker(0).recent()).toBeNull()
})
