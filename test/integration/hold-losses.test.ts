/**
 * Held commands when a part of the fleet is lost: an instance, a worker, the connections to the
 * broker, or the broker itself. Each command is written once, in order, and has one receipt.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { TestFleet } from "../support/fleet.ts"
import type { TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 240_000
const HOLD_MS = 600_000
/** Enough for each worker to keep the shards of some. */
const DEVICES = 12
const COMMANDS = 4
let fleet: TestFleet

beforeAll(async () => {
  fleet = await TestFleet.start(2)
}, LIMIT_MS)

afterEach(() => fleet.releaseDevices())

afterAll(() => fleet?.stop(), LIMIT_MS)

interface Away {
  readonly name: string
  /** Receipt number by line. */
  readonly sent: Map<string, number>
}

/** Devices that are not connected, with commands that are held for them. */
async function away(): Promise<Away[]> {
  const devices = Array.from({ length: DEVICES }, () => ({
    name: fleet.newName(),
    sent: new Map<string, number>(),
  }))
  for (let at = 0; at < COMMANDS; at += 1) {
    for (const { name, sent } of devices) {
      const body = `${name} ${at}`
      sent.set(
        body,
        await fleet.backEnd.send({ body, device: name, headers: { hold_ms: HOLD_MS } }),
      )
    }
    await allHeld(devices, at + 1)
  }
  return devices
}

async function allHeld(devices: readonly Away[], count: number, at = 1): Promise<void> {
  const gateway = fleet.instance(at)
  for (const { name } of devices) {
    await until(
      async () => {
        const response = await gateway.fetch(`/devices/${name}/held`)
        if (!response.ok) return false
        return ((await response.json()) as { held: unknown[] }).held.length === count
      },
      { what: `${count} held commands for ${name}`, timeoutMs: 60_000 },
    )
  }
}

/**
 * Each device has got its commands once, in order, and each command has one receipt.
 *
 * @param mayRepeat a worker was killed while it ended commands. When it dies between a receipt and
 * the end of the command in the log, the receipt comes twice.
 */
async function expectWritten(
  devices: readonly Away[],
  connected: readonly TestDevice[],
  mayRepeat = false,
) {
  for (const [at, { name, sent }] of devices.entries()) {
    for (const command of sent.values()) {
      expect([name, (await fleet.receiptOf(command, 90_000)).outcome]).toEqual([name, "written"])
    }
    const lines = await connected[at]?.waitLines(COMMANDS)
    expect(lines).toEqual([...sent.keys()])
  }
  await allHeld(devices, 0)
  const commands = devices.flatMap(({ sent }) => [...sent.values()])
  for (const command of commands) {
    const receipts = fleet.backEnd.receipts.filter((receipt) => receipt.command === command)
    const outcomes = receipts.map(({ outcome }) => outcome)
    if (mayRepeat) expect(new Set(outcomes)).toEqual(new Set(["written"]))
    else expect(outcomes).toEqual(["written"])
  }
}

function connectAll(devices: readonly Away[], at: number): Promise<TestDevice[]> {
  return Promise.all(devices.map(({ name }) => fleet.connect(at, name)))
}

describe("held commands survive", () => {
  test(
    "an instance that is killed",
    async () => {
      const devices = await away()
      await fleet.kill(0)
      await expectWritten(devices, await connectAll(devices, 1))
      await fleet.startInstance(0)
      await fleet.acquainted()
    },
    LIMIT_MS,
  )

  test(
    "an instance that is killed, and come before newer commands",
    async () => {
      const devices = await away()
      await fleet.kill(0)
      const connected = await connectAll(devices, 1)
      for (const { name } of devices) {
        await fleet.backEnd.send({ body: `${name} newer`, device: name, headers: {} })
      }
      for (const [at, { name, sent }] of devices.entries()) {
        const lines = await connected[at]?.waitLines(COMMANDS + 1, 60_000)
        expect(lines).toEqual([...sent.keys(), `${name} newer`])
      }
      await fleet.startInstance(0)
      await fleet.acquainted()
    },
    LIMIT_MS,
  )

  test(
    "an instance that is stopped",
    async () => {
      const devices = await away()
      await fleet.stopInstance(0)
      await expectWritten(devices, await connectAll(devices, 1))
      await fleet.startInstance(0)
      await fleet.acquainted()
    },
    LIMIT_MS,
  )

  test(
    "a broker that restarts",
    async () => {
      const devices = await away()
      await fleet.broker.stop()
      await fleet.broker.start()
      await fleet.acquainted()
      await fleet.connectBackEnd()
      await allHeld(devices, COMMANDS)
      const connected = await connectAll(devices, 0)
      for (const [at, { sent }] of devices.entries()) {
        expect(await connected[at]?.waitLines(COMMANDS)).toEqual([...sent.keys()])
      }
      await allHeld(devices, 0)
      for (const [at, { sent }] of devices.entries()) {
        expect(connected[at]?.lines).toEqual([...sent.keys()])
      }
    },
    LIMIT_MS,
  )

  test(
    "lost connections to the broker, while they are written",
    async () => {
      const devices = await away()
      const cut = fleet.cutConnections()
      const connected = await connectAll(devices, 1)
      await cut
      await expectWritten(devices, connected)
    },
    LIMIT_MS,
  )

  test(
    "an instance that is killed while they are written to devices of another one",
    async () => {
      const devices = await away()
      const connecting = connectAll(devices, 1)
      await until(async () => (await fleet.instance(1).metric("owsla_connections")) > 0, {
        what: "the first device to be admitted",
      })
      await fleet.kill(0)
      await expectWritten(devices, await connecting, true)
      await fleet.startInstance(0)
      await fleet.acquainted()
    },
    LIMIT_MS,
  )

  test(
    "an instance that is paused until another one has taken its place",
    async () => {
      const devices = await away()
      fleet.signal(0, "SIGSTOP")
      try {
        await expectWritten(devices, await connectAll(devices, 1))
      } finally {
        fleet.signal(0, "SIGCONT")
      }
      await fleet.acquainted()
      for (const at of [0, 1]) await allHeld(devices, 0, at)
    },
    LIMIT_MS,
  )
})
