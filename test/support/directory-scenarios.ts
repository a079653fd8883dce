/**
 * What a fleet of four instances promises about its devices while keepers die, stand still, or
 * lose their broker: for one node, and for each node of a cluster.
 */

import { expect, test } from "bun:test"
import type { FleetView } from "../../src/fleet/fleet-view.ts"
import type { TestFleet } from "./fleet.ts"
import type { TestDevice } from "./tls-device.ts"
import { until } from "./wait.ts"

const LIMIT_MS = 180_000
const DEVICES = 24
const REACHABLE_WITHIN_MS = 2_000
const TAKEN_OVER_WITHIN_MS = 1_000
const PAUSED_MS = 3_000
/** For the processes and connections of a test machine, which does all this on two cores. */
const SLACK_MS = 1_000

interface Scenario {
  readonly fleet: () => TestFleet
  /** Restarts the broker, or a node of it. */
  readonly disturbBroker: () => Promise<void>
}

/** Devices by name, each with its newest connection and the instance of it. */
class Herd {
  readonly #fleet: TestFleet
  readonly #devices = new Map<string, { device: TestDevice; at: number }>()

  constructor(fleet: TestFleet) {
    this.#fleet = fleet
  }

  static async admitted(fleet: TestFleet, instances: readonly number[]): Promise<Herd> {
    const herd = new Herd(fleet)
    for (let n = 0; n < DEVICES; n += 1) {
      await herd.connect(fleet.newName(), instances[n % instances.length] as number)
    }
    return herd
  }

  get names(): string[] {
    return [...this.#devices.keys()]
  }

  at(name: string): number {
    return this.#devices.get(name)?.at ?? -1
  }

  /** Connects a device, or moves it; its older connection stays open, as if it were half-open. */
  async connect(name: string, at: number): Promise<TestDevice | undefined> {
    const older = this.#devices.get(name)?.device
    const { device } = await this.#fleet.admit(at, name)
    this.#devices.set(name, { device, at })
    return older
  }

  /** Sends a command to each device from each instance, and expects it to be written. */
  async expectReachable(instances: readonly number[]): Promise<void> {
    for (const name of this.names) {
      for (const from of instances) {
        const line = `${name} from ${from}`
        const sinceMs = performance.now()
        await until(async () => (await this.#fleet.send(from, name, line)).status === 200, {
          what: `${name} at ${this.at(name)} to be reachable from ${from}`,
        })
        expect(performance.now() - sinceMs).toBeLessThan(REACHABLE_WITHIN_MS + SLACK_MS)
        await until(() => this.#devices.get(name)?.device.lines.includes(line) === true, {
          what: `${name} to read its line`,
        })
      }
    }
  }
}

async function expectTakenOver(older: TestDevice | undefined): Promise<void> {
  const sinceMs = performance.now()
  expect((await older?.closed)?.by).toBe("peer")
  expect(performance.now() - sinceMs).toBeLessThan(TAKEN_OVER_WITHIN_MS + SLACK_MS)
}

interface KeepingWorker {
  readonly instance: number
  readonly pid: number
}

/** The workers that keep shards: at most one of each instance. */
async function keepersOf(fleet: TestFleet): Promise<KeepingWorker[]> {
  const { members } = (await (await fleet.instance(0).fetch("/fleet")).json()) as FleetView
  const keepers = new Map<number, KeepingWorker>()
  for (const { worker, instance, shards } of members) {
    const at = Number(instance.slice("gw".length))
    const pid = fleet
      .instance(at)
      .workers()
      .get(Number(worker.split(".").at(-1)))
    if (shards.length > 0 && pid !== undefined) keepers.set(at, { instance: at, pid })
  }
  return [...keepers.values()]
}

export function directoryScenarios({ fleet, disturbBroker }: Scenario): void {
  const all = [0, 1, 2, 3]

  test(
    "each shard has one keeper, and each device is found from everywhere",
    async () => {
      await until(async () => (await fleet().counted("owsla_directory_shards")) === 16, {
        what: "each shard to have one keeper",
      })
      const herd = await Herd.admitted(fleet(), all)
      await herd.expectReachable(all)
    },
    LIMIT_MS,
  )

  test(
    "a device that moves while keepers stand still has one connection within a second",
    async () => {
      const paused = (await keepersOf(fleet())).slice(0, 2)
      expect(paused).toHaveLength(2)
      const others = all.filter((at) => paused.every(({ instance }) => instance !== at))
      const [one = -1, other = -1] = others
      const herd = await Herd.admitted(fleet(), others)
      const pids = paused.map(({ pid }) => pid)
      for (const pid of pids) process.kill(pid, "SIGSTOP")
      const resumed = Bun.sleep(PAUSED_MS).then(() => {
        for (const pid of pids) process.kill(pid, "SIGCONT")
      })
      try {
        for (const name of herd.names.slice(0, 8)) {
          await expectTakenOver(await herd.connect(name, herd.at(name) === one ? other : one))
        }
      } finally {
        await resumed
      }
      await herd.expectReachable(others)
    },
    LIMIT_MS,
  )

  test(
    "an instance that is killed with its keepers leaves all other devices reachable",
    async () => {
      const herd = await Herd.admitted(fleet(), [0, 1, 2])
      await fleet().kill(3)
      await herd.expectReachable([0, 1])
      for (const name of herd.names.slice(0, 4)) {
        await expectTakenOver(await herd.connect(name, (herd.at(name) + 1) % 3))
      }
      await fleet().startInstance(3)
      await fleet().acquainted()
      await herd.expectReachable([3])
    },
    LIMIT_MS,
  )

  test(
    "all devices are reachable when the broker is back, and those that moved meanwhile have one connection",
    async () => {
      const herd = await Herd.admitted(fleet(), all)
      await disturbBroker()
      const moved = herd.names.slice(0, 6)
      const older: (TestDevice | undefined)[] = []
      for (const name of moved) older.push(await herd.connect(name, (herd.at(name) + 1) % 4))
      await Promise.all(all.map((at) => fleet().ready(at)))
      for (const each of older) expect((await each?.closed)?.by).toBe("peer")
      await herd.expectReachable([0, 3])
    },
    LIMIT_MS,
  )
}
