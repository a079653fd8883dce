/**
 * `/events` and `/audit` of an instance with two workers: any of them shows what all processes log,
 * and a slow client or a stopped worker costs a bounded amount.
 */

import { afterEach, expect, test } from "bun:test"
import type { LogEntry } from "../../src/log-entry.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 60_000
const ALICE = "alice-token-0123456789"
const READER = "reader-token-0123456789"

const gateways: TestGateway[] = []
const followers: Follower[] = []

afterEach(async () => {
  for (const follower of followers.splice(0)) follower.leave()
  await Promise.all(gateways.splice(0).map((gateway) => gateway.stop()))
}, LIMIT_MS)

async function start(settings: Record<string, string> = {}): Promise<TestGateway> {
  const name = uniqueNames("events")
  const { url } = await sharedRabbitMq()
  const gateway = await startGateway({
    ...{ AMQP_URL: url, FROM_DEVICE_QUEUE: name("from"), TO_DEVICE_QUEUE: name("to") },
    ...settings,
  })
  gateways.push(gateway)
  return gateway
}

type Event = { readonly event: string } & Partial<LogEntry>

/** A client of `/events`, whose events are kept. */
class Follower {
  readonly events: Event[] = []
  readonly ended: Promise<void>
  readonly #abort = new AbortController()

  constructor(gateway: TestGateway, query = "", headers: Record<string, string> = {}) {
    this.ended = this.#read(gateway, query, headers).catch(() => undefined)
    followers.push(this)
  }

  leave(): void {
    this.#abort.abort()
  }

  messages(): string[] {
    return this.events.map(({ message = "" }) => message)
  }

  /** The first event that fits. */
  found(fits: (event: Event) => boolean, what: string): Promise<Event> {
    return until(() => this.events.find(fits), { what })
  }

  async #read({ fetch }: TestGateway, query: string, headers: Record<string, string>) {
    const response = await fetch(`/events${query}`, { headers, signal: this.#abort.signal })
    let rest = ""
    const decoder = new TextDecoder()
    for await (const chunk of response.body ?? []) {
      const blocks = (rest + decoder.decode(chunk, { stream: true })).split("\n\n")
      rest = blocks.pop() ?? ""
      for (const block of blocks) {
        const event = /^event: (.*)$/m.exec(block)?.[1]
        const data = /^data: (.*)$/m.exec(block)?.[1]
        if (event !== undefined && data !== undefined)
          this.events.push({ event, ...JSON.parse(data) })
      }
    }
  }
}

test(
  "a client of any worker sees the lines of all processes, the past warnings first",
  async () => {
    const gateway = await start({ WORKERS: "2" })
    // The kernel selects the worker, so some of them reach each of the two.
    const all = Array.from({ length: 8 }, () => new Follower(gateway, "?last=50"))
    const [, victim] = gateway.workers().values()
    if (victim === undefined) throw new Error("no second worker")
    process.kill(victim, "SIGKILL")
    await until(() => gateway.log.some(({ msg }) => msg === "worker ended"), { what: "the death" })
    await until(() => gateway.workers().size === 2, { what: "a new worker" })
    await until(() => gateway.log.filter(({ msg }) => msg === "listening").length === 3, {
      what: "the new worker to listen",
    })
    // A client of the worker that died has lost its connection, like any HTTP client.
    const ended = (follower: Follower) => follower.messages().includes("worker ended")
    await until(() => all.some(ended), { what: "a client of the other worker to be told" })
    const follower = all.find(ended) as Follower
    await follower.found(({ message }) => message === "listening", "the line of the new worker")
    const told = follower.events.find(({ message }) => message === "worker ended")
    expect(told).toMatchObject({
      event: "log",
      level: "warn",
      kind: "log",
      fields: { status: "signal SIGKILL", action: "restart" },
    })

    const late = new Follower(gateway, "?last=50")
    await late.found(({ message }) => message === "worker ended", "the past warning")
    // Warnings and errors only, and each line once.
    expect(late.events.every(({ level }) => level !== "info")).toBe(true)
    expect(late.messages().filter((message) => message === "worker ended").length).toBe(1)
  },
  LIMIT_MS,
)

test(
  "what operators do is in the log, in /events and in /audit, and no token is",
  async () => {
    const gateway = await start({
      ...{ WORKERS: "2" },
      ...{ HTTP_TOKENS: `alice:${ALICE}`, HTTP_READ_TOKENS: READER },
    })
    const as = (token: string) => ({ authorization: `Bearer ${token}` })
    const follower = new Follower(gateway, "?last=1", as(READER))
    const gate = { method: "PUT", headers: as(ALICE), body: '{"open":false,"prefix":"lock:"}' }
    // Until the supervisor knows of the follower.
    const closed = async () => {
      await gateway.fetch("/gate", gate)
      return follower.events.find(({ event }) => event === "audit")
    }
    const told = await until(closed, { what: "the audit event" })
    const fields = {
      ...{ action: "gate", target: "lock:", detail: "closed" },
      ...{ by: "alice", address: "127.0.0.1" },
    }
    expect(told).toMatchObject({ kind: "audit", level: "info", fields })
    // From both workers, each of which asks the supervisor.
    for (let n = 0; n < 6; n += 1) {
      const response = await gateway.fetch("/audit", { headers: as(READER) })
      const { audit } = (await response.json()) as { audit: Record<string, unknown>[] }
      expect(audit.length).toBeGreaterThan(0)
      for (const entry of audit) {
        expect(entry).toMatchObject({ ...fields, worker: expect.stringMatching(/\.[01]$/) })
      }
    }
    const line = gateway.log.find((each) => each["kind"] === "audit")
    expect(line).toMatchObject({ ...fields, level: 30 })
    const everything = JSON.stringify([gateway.log, follower.events])
    for (const token of [ALICE, READER]) expect(everything).not.toContain(token)
  },
  LIMIT_MS,
)

test(
  "a stream ends when the gateway stops",
  async () => {
    const gateway = await start({ WORKERS: "1" })
    const follower = new Follower(gateway)
    const begun = async () => {
      await gateway.fetch("/drain", { method: "POST" })
      return follower.events.length > 0
    }
    await until(begun, { what: "the stream to begin" })
    gateway.signal("SIGTERM")
    await within(follower.ended, { what: "the stream to end" })
    expect(await gateway.exited).toBe(0)
  },
  LIMIT_MS,
)
