/**
 * Commands that wait for a reply, and commands that supersede each other: two instances of the real
 * program with two workers each, real RabbitMQ, real TLS, by AMQP and by HTTP.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import type { BackEndCommand } from "../support/back-end.ts"
import { TestFleet } from "../support/fleet.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
/** Longer than a reply takes on a busy machine. */
const LONG_MS = 30_000
const TRACE = { traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" }
let fleet: TestFleet

beforeAll(async () => {
  fleet = await TestFleet.start(2, { SEQ_GAP_TIMEOUT_MS: "20000" })
}, LIMIT_MS)

afterEach(() => fleet.releaseDevices())

afterAll(() => fleet?.stop(), LIMIT_MS)

/** A named device of the second instance. */
async function admitted() {
  const name = fleet.newName()
  const { device, view } = await fleet.admit(1, name)
  const send = (command: Omit<BackEndCommand, "device">) =>
    fleet.backEnd.send({ ...command, device: name })
  const post = (at: number, body: object, headers: Record<string, string> = {}) =>
    fleet.instance(at).fetch(`/devices/${name}/send`, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body: JSON.stringify(body),
    })
  const lineOf = async (body: string) => {
    const find = () =>
      fleet.backEnd.lines.find((line) => line.device === name && line.body === body)
    await until(() => find() !== undefined, { what: `the line ${body}` })
    return find() as NonNullable<ReturnType<typeof find>>
  }
  return { name, device, view, send, post, lineOf }
}

describe("a command with a reply", () => {
  test(
    "by AMQP: the receipt has the line, and the line names the command",
    async () => {
      const { device, send, lineOf } = await admitted()
      const headers = { reply_token: "r1", reply_timeout_ms: LONG_MS, ...TRACE }
      const command = await send({ body: "status r1", messageId: "m-1", headers })
      expect(await device.nextLine()).toBe("status r1")
      await device.send("r2 off")
      await device.send("r1 on")
      const receipt = await fleet.receiptOf(command)
      expect(receipt).toMatchObject({
        outcome: "answered",
        reply: { line: "r1 on", encoding: "utf-8", from_device_seq: 1 },
        headers: TRACE,
      })
      const line = await lineOf("r1 on")
      expect(line).toMatchObject({ seq: 1, headers: { in_reply_to: "m-1", ...TRACE } })
      expect((await lineOf("r2 off")).headers).not.toHaveProperty("in_reply_to")
    },
    LIMIT_MS,
  )

  test(
    "by HTTP, from a worker of another instance",
    async () => {
      const { device, view, post, lineOf } = await admitted()
      for (const at of [0, 1]) {
        const body = {
          line: `status ${at}`,
          reply_prefix: `OK ${at}`,
          reply_timeout_ms: LONG_MS,
          message_id: `h-${at}`,
        }
        const answering = post(at, body, TRACE)
        expect(await device.nextLine()).toBe(`status ${at}`)
        await device.send(`OK ${at} é`)
        const response = await answering
        expect(response.status).toBe(200)
        expect(await response.json()).toEqual({
          outcome: "answered",
          connection_id: view.connection_id,
          epoch: view.epoch,
          reply: { line: `OK ${at} é`, encoding: "utf-8", from_device_seq: at },
        })
        const headers = { in_reply_to: `h-${at}`, ...TRACE }
        expect(await lineOf(`OK ${at} é`)).toMatchObject({ headers })
      }
    },
    LIMIT_MS,
  )

  test(
    "that is not answered ends as no_reply, and is not kept",
    async () => {
      const { device, send, post } = await admitted()
      const headers = { reply_token: "r1", reply_timeout_ms: 100 }
      const command = await send({ body: "unanswered", headers })
      expect(await fleet.receiptOf(command)).toMatchObject({
        outcome: "no_reply",
        detail: "no matching line within 100 ms",
      })
      const response = await post(0, { line: "by HTTP", reply_next: true, reply_timeout_ms: 100 })
      expect(response.status).toBe(504)
      expect(await response.json()).toMatchObject({ error: { code: "no_reply" } })
      expect(await device.waitLines(2)).toEqual(["unanswered", "by HTTP"])
      const bodies = fleet.backEnd.undelivered.map(({ body }) => body)
      expect(bodies).not.toContain("unanswered")
      expect(bodies).not.toContain("by HTTP")
    },
    LIMIT_MS,
  )

  test(
    "whose device disconnects ends as no_reply",
    async () => {
      const { device, send } = await admitted()
      const headers = { reply_token: "r1", reply_timeout_ms: LONG_MS }
      const command = await send({ body: "status", headers })
      expect(await device.nextLine()).toBe("status")
      device.end()
      expect(await fleet.receiptOf(command)).toMatchObject({
        outcome: "no_reply",
        detail: "the connection ended: peer_closed",
      })
    },
    LIMIT_MS,
  )

  test(
    "has one outcome when all connections to the broker are lost meanwhile",
    async () => {
      const { device, send } = await admitted()
      const headers = { reply_token: "r1", reply_timeout_ms: LONG_MS }
      const command = await send({ body: "once", headers })
      expect(await device.nextLine()).toBe("once")
      await fleet.cutConnections()
      await fleet.acquainted()
      await device.send("r1 done")
      expect(await fleet.receiptOf(command)).toMatchObject({ outcome: "answered" })
      const next = await send({ body: "next" })
      await fleet.receiptOf(next)
      expect(await device.waitLines(2)).toEqual(["once", "next"])
      const receipts = fleet.backEnd.receipts.filter((each) => each.command === command)
      expect(receipts).toHaveLength(1)
    },
    LIMIT_MS,
  )
})

test(
  "commands with reply_next are written one after the other, in their order",
  async () => {
    const { device, view, send } = await admitted()
    const { connection_id: connection } = view
    const headers = { reply_next: true, reply_timeout_ms: LONG_MS }
    const commands = []
    for (const [seq, body] of ["a", "b"].entries()) {
      commands.push(await send({ body, connection, seq, headers }))
    }
    const last = await send({ body: "c", connection, seq: 2 })
    expect(await device.nextLine()).toBe("a")
    expect(fleet.backEnd.receiptOf(last)).toBeUndefined()
    await device.send("1")
    expect(await device.waitLines(3)).toEqual(["a", "b", "c"])
    await device.send("2")
    const [a, b] = await Promise.all(commands.map((command) => fleet.receiptOf(command)))
    expect([a?.reply?.line, b?.reply?.line]).toEqual(["1", "2"])
    expect((await fleet.receiptOf(last)).outcome).toBe("written")
  },
  LIMIT_MS,
)

describe("of commands with one supersede key", () => {
  test(
    "that wait for a missing number only the newest is written",
    async () => {
      const { device, view, send } = await admitted()
      const { connection_id: connection } = view
      const headers = { supersede_key: "temperature" }
      const commands = []
      for (const seq of [1, 2, 3]) {
        commands.push(await send({ body: `t ${seq}`, connection, seq, headers }))
      }
      for (const command of commands.slice(0, 2)) {
        const detail = "a newer command with its supersede_key"
        expect(await fleet.receiptOf(command)).toMatchObject({ outcome: "superseded", detail })
      }
      await send({ body: "first", connection, seq: 0 })
      await send({ body: "last", connection, seq: 4 })
      expect(await device.waitLines(3)).toEqual(["first", "t 3", "last"])
      const kept = fleet.backEnd.undelivered.filter(({ outcome }) => outcome === "superseded")
      expect(kept).toEqual([])
    },
    LIMIT_MS,
  )

  test(
    "by HTTP: the older request is answered 409",
    async () => {
      const { name, device, post } = await admitted()
      const next = { reply_next: true, reply_timeout_ms: LONG_MS }
      const asking = post(1, { line: "ask", ...next })
      expect(await device.nextLine()).toBe("ask")
      const older = post(0, { line: "old", ...next, supersede_key: "k" })
      await until(
        async () => {
          const view = await fleet.instance(1).fetch(`/devices/${name}`)
          return ((await view.json()) as { outgoing_bytes: number }).outgoing_bytes > 0
        },
        { what: "the older command to wait" },
      )
      const newer = post(0, { line: "new", supersede_key: "k" })
      const response = await older
      expect(response.status).toBe(409)
      expect(await response.json()).toMatchObject({ error: { code: "superseded" } })
      expect((await newer).status).toBe(200)
      await device.send("answer")
      expect((await asking).status).toBe(200)
      expect(await device.waitLines(2)).toEqual(["ask", "new"])
    },
    LIMIT_MS,
  )
})
