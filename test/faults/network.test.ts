/**
 * Faults of the network between gateway and broker: cut in both directions and in one, lossy, late
 * and narrow. The gateway runs in a network namespace of its own; its devices reach it by another
 * wire, on which nothing happens.
 */

import { afterAll, afterEach, expect } from "bun:test"
import { type Direction, Namespace } from "../support/namespace.ts"
import { expectKept, FaultBed, type RunningHerd, residentMegabytes } from "./bed.ts"
import { type Fault, type Figures, fault, last, sized } from "./fault.ts"

const LIMIT_MS = 240_000
const DEVICES = sized(100, 30)
const RATE = 20
const CONFIRM_TIMEOUT_MS = sized(15_000, 2_000)
const CUT_S = sized(30, 4)
const WINDOW_LINES = 2_000
const MAX_RESIDENT_MB = 300

interface Site {
  readonly namespace: Namespace
  readonly bed: FaultBed
}

let namespace: Namespace | null = null
let site: Promise<Site> | null = null
let herd: RunningHerd | null = null

/**
 * Created by the first test and not by a hook, so that a failure is reported under the name of a
 * test.
 */
function theSite(): Promise<Site> {
  site ??= (async () => {
    namespace = await Namespace.make()
    const environment = { CONFIRM_TIMEOUT_MS: String(CONFIRM_TIMEOUT_MS) }
    return { namespace, bed: await FaultBed.start(environment, namespace) }
  })()
  return site
}

afterEach(async () => {
  namespace?.heal()
  await herd?.kill()
  herd = null
}, LIMIT_MS)

afterAll(async () => {
  const made = await site?.catch(() => null)
  await made?.bed.stop()
  await namespace?.remove()
}, LIMIT_MS)

function networkFault(
  described: Omit<Fault, "promise"> & { readonly promise?: string },
  act: (site: Site) => Promise<Figures>,
): void {
  const { promise = "devices stay, lost 0, in order" } = described
  fault(
    { ...described, promise },
    async () => {
      const made = await theSite()
      const { namespace, bed } = made
      herd = await bed.herd({ devices: DEVICES, rate: RATE })
      const lossesBefore = await bed.gateway.metric("owsla_broker_losses_total")
      const figures = await act(made)
      namespace.heal()
      // A worker's own queue counts as consumed by its lost connection until the broker misses a
      // heartbeat.
      await bed.ready(90_000)
      const kept = expectKept(await herd.end(), DEVICES)
      const losses = (await bed.gateway.metric("owsla_broker_losses_total")) - lossesBefore
      expect(kept["repeated"]).toBeLessThanOrEqual(losses * WINDOW_LINES)
      return { ...kept, ...figures }
    },
    LIMIT_MS,
  )
}

for (const [where, directions] of [
  ["both directions", ["to the broker", "from the broker"]],
  ["one direction, to the broker", ["to the broker"]],
  ["one direction, from the broker", ["from the broker"]],
] as const satisfies readonly [string, readonly Direction[]][]) {
  networkFault(
    {
      fault: `network cut in ${where}`,
      made: `every packet dropped by nftables for ${CUT_S} s and until it is noticed`,
      promise: "devices stay, lost 0, in order, /ready 503 meanwhile, /health 200",
    },
    async ({ namespace, bed }) => {
      const cutAtMs = performance.now()
      namespace.drop(...directions)
      await bed.notReady(CONFIRM_TIMEOUT_MS + 15_000)
      const noticedMs = Math.round(performance.now() - cutAtMs)
      await last(CUT_S - noticedMs / 1_000)
      const resident = residentMegabytes(bed.gateway)
      expect(resident).toBeLessThan(MAX_RESIDENT_MB)
      namespace.heal()
      const backMs = await bed.flowsAgain(60_000)
      return {
        "noticed after, ms": noticedMs,
        "confirming again after, ms": backMs,
        "largest worker, MB": resident,
      }
    },
  )
}

networkFault(
  { fault: "packets lost", made: `1 % dropped by nftables, each way, for ${sized(60, 2)} s` },
  async ({ namespace, bed }) => {
    namespace.lose(1)
    const before = await bed.confirmed()
    await last(sized(60, 2))
    return { "lines confirmed meanwhile": (await bed.confirmed()) - before }
  },
)

networkFault(
  {
    fault: "network late",
    made: `200 ms ± 100 each way, by a proxy that holds bytes back, for ${sized(60, 2)} s`,
  },
  async ({ bed }) => {
    if (bed.proxy !== null) bed.proxy.delayMs = () => 100 + Math.random() * 200
    const before = await bed.confirmed()
    await last(sized(60, 2))
    const confirmed = (await bed.confirmed()) - before
    if (bed.proxy !== null) bed.proxy.delayMs = null
    return { "lines confirmed meanwhile": confirmed }
  },
)

networkFault(
  { fault: "network narrow", made: `1 Mbit/s each way, by tc, for ${sized(60, 2)} s` },
  async ({ namespace, bed }) => {
    namespace.limit("1mbit")
    const before = await bed.confirmed()
    await last(sized(60, 2))
    return { "lines confirmed meanwhile": (await bed.confirmed()) - before }
  },
)
