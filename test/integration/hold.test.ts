/**
 * Held commands (`hold_ms`): two instances of the real program with two workers each on one
 * RabbitMQ, devices that are away, and a back-end. Each command has one receipt, when it ends.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import type { BackEndCommand } from "../support/back-end.ts"
import { TestFleet } from "../support/fleet.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 90_000
const INSTANCES = [0, 1]
const HOLD_MS = 600_000
let fleet: TestFleet

interface HeldRow {
  readonly message_id: string
  readonly supersede_key: string | null
  readonly held_at: number
  readonly expires_at: number
  readonly bytes: number
  readonly line?: string
}

beforeAll(async () => {
  fleet = await TestFleet.start(INSTANCES.length, { MAX_HELD_PER_DEVICE: "5" })
}, LIMIT_MS)

afterEach(() => fleet.releaseDevices())

afterAll(() => fleet?.stop(), LIMIT_MS)

interface Held extends Partial<BackEndCommand> {
  readonly holdMs?: number
  readonly key?: string
}

function hold(device: string, body: string, about: Held = {}): Promise<number> {
  const { holdMs = HOLD_MS, key, ...others } = about
  const headers = { hold_ms: holdMs, ...(key === undefined ? {} : { supersede_key: key }) }
  return fleet.backEnd.send({ body, device, headers, ...others })
}

async function listed(at: number, device: string, query = ""): Promise<readonly HeldRow[]> {
  const response = await fleet.instance(at).fetch(`/devices/${device}/held${query}`)
  if (!response.ok) return []
  return ((await response.json()) as { held: HeldRow[] }).held
}

/** Waits until this many commands are held for the device. */
async function held(device: string, count: number): Promise<readonly HeldRow[]> {
  let rows: readonly HeldRow[] = []
  await until(
    async () => {
      rows = await listed(0, device, "?body=1")
      return rows.length === count
    },
    { what: `${count} held commands for ${device}`, timeoutMs: 20_000 },
  )
  return rows
}

function postHeld(at: number, device: string, line: string, about: object = {}): Promise<Response> {
  const body = JSON.stringify({ line, hold_ms: HOLD_MS, ...about })
  const headers = { "content-type": "application/json" }
  return fleet.instance(at).fetch(`/devices/${device}/send`, { method: "POST", headers, body })
}

async function outcomes(commands: readonly number[]): Promise<string[]> {
  const receipts = await Promise.all(commands.map((command) => fleet.receiptOf(command, 40_000)))
  return receipts.map(({ outcome }) => outcome)
}

/** All receipts of a command so far. */
function receiptCount(command: number): number {
  return fleet.backEnd.receipts.filter((receipt) => receipt.command === command).length
}

describe("a command for a device that is away", () => {
  test(
    "is held, in order, and written when the device connects, before newer ones",
    async () => {
      const name = fleet.newName()
      const sent: number[] = []
      for (const at of [1, 2, 3]) sent.push(await hold(name, `held ${at}`))
      const rows = await held(name, 3)
      expect(rows.map(({ line }) => line).toSorted()).toEqual(["held 1", "held 2", "held 3"])
      expect(sent.map(receiptCount)).toEqual([0, 0, 0])
      const device = await fleet.connect(1, name)
      const newer = fleet.send(0, name, "newer")
      const lines = await device.waitLines(3)
      expect(lines.slice(0, 3)).toEqual(rows.map(({ line }) => line ?? ""))
      expect(await outcomes(sent)).toEqual(["written", "written", "written"])
      // The look-up of the newer one may have been before the device was there.
      if ((await newer).status === 200)
        expect(await device.waitLines(4)).toEqual([...lines.slice(0, 3), "newer"])
      expect(await listed(1, name)).toEqual([])
      expect(sent.map(receiptCount)).toEqual([1, 1, 1])
    },
    LIMIT_MS,
  )

  test(
    "by HTTP is answered at once, and listed by any instance",
    async () => {
      const name = fleet.newName()
      for (const at of INSTANCES) {
        const response = await postHeld(at, name, `line ${at}`, { message_id: `m${at}` })
        expect(response.status).toBe(202)
        const answer = (await response.json()) as { outcome: string; expires_at: number }
        expect(answer.outcome).toBe("held")
        expect(answer.expires_at).toBeGreaterThan(Date.now() + HOLD_MS - 60_000)
      }
      for (const at of INSTANCES) {
        expect((await listed(at, name)).map(({ message_id }) => message_id)).toEqual(["m0", "m1"])
      }
      const device = await fleet.connect(0, name)
      expect(await device.waitLines(2)).toEqual(["line 0", "line 1"])
      const direct = await postHeld(1, name, "direct")
      expect(direct.status).toBe(200)
      expect(await direct.json()).toMatchObject({ outcome: "written" })
    },
    LIMIT_MS,
  )

  test(
    "ends as expired, cancelled, superseded, hold_full, duplicate or invalid, once each",
    async () => {
      const name = fleet.newName()
      const expired = await hold(name, "expires", { holdMs: 1_500 })
      const byTtl = await hold(name, "expires too", { expiration: 1_500 })
      const older = await hold(name, "older", { key: "set" })
      await held(name, 3)
      const newer = await hold(name, "newer", { key: "set", messageId: "set 2" })
      expect(await outcomes([older, expired, byTtl])).toEqual(["superseded", "expired", "expired"])
      const again = await hold(name, "again", { messageId: "set 2" })
      expect(await outcomes([again])).toEqual(["duplicate"])
      const more: number[] = []
      for (const at of [1, 2, 3, 4, 5]) more.push(await hold(name, `more ${at}`))
      const full = await until(
        () => more.find((command) => fleet.backEnd.receiptOf(command) !== undefined) ?? null,
        { what: "hold_full" },
      )
      expect(await outcomes([full])).toEqual(["hold_full"])
      expect((await postHeld(0, name, "more")).status).toBe(429)
      const rows = await held(name, 5)
      const cancel = async (path: string) => {
        const response = await fleet
          .instance(1)
          .fetch(`/devices/${name}/held${path}`, { method: "DELETE" })
        return [response.status, await response.json()]
      }
      expect(await cancel("/set%202")).toEqual([200, { cancelled: 1 }])
      expect(await cancel("/set%202")).toEqual([200, { cancelled: 0 }])
      const other = rows.find(({ message_id }) => message_id !== "set 2")
      expect(await cancel(`/${other?.message_id}`)).toEqual([200, { cancelled: 1 }])
      expect(await cancel("")).toEqual([200, { cancelled: 3 }])
      expect(await outcomes([newer])).toEqual(["cancelled"])
      const cancelled = more.filter((command) => command !== full)
      expect(await outcomes(cancelled)).toEqual([
        "cancelled",
        "cancelled",
        "cancelled",
        "cancelled",
      ])
      const invalid = [
        await fleet.backEnd.send({ body: "x", connection: "c", headers: { hold_ms: HOLD_MS } }),
        await hold(name, "x", { holdMs: 700_000_000 }),
        await hold(name, "x", { seq: 0 }),
      ]
      expect(await outcomes(invalid)).toEqual(["invalid", "invalid", "invalid"])
      const kept = fleet.backEnd.undelivered.map(({ body, outcome }) => `${body} ${outcome}`)
      expect(kept).toContain("expires expired")
      expect(kept).not.toContain("older superseded")
      const all = [expired, byTtl, older, newer, again, ...more, ...invalid]
      expect(all.map(receiptCount)).toEqual(all.map(() => 1))
    },
    LIMIT_MS,
  )
})
