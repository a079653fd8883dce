/**
 * What the operator page costs the gateway while somebody looks at it and many devices hold their
 * connections: the requests of the overview, and those of the list of devices, as the page makes
 * them. Between them nobody looks, in turn, so the cost is the difference.
 */

import type { TestGateway } from "../support/gateway.ts"
import { connectAll, startCrowds } from "./connections.ts"
import { type BenchResult, Meter, makeBed, median, round } from "./harness.ts"
import { gatewaySubject } from "./subject.ts"

export interface PageParameters {
  readonly devices: number
  readonly workers: number
  /** Arriving a second. */
  readonly rate: number
  /** For which each view is looked at, in each round. */
  readonly seconds: number
  readonly rounds: number
}

/** As in `src/http/page/browser`. */
const OVERVIEW = ["/page/live", "/events?last=50"]
const LIST = `/page/follow?${new URLSearchParams({ of: "/devices?limit=100" })}`

/** Looks until the signal is aborted. */
type Looking = (gateway: TestGateway, signal: AbortSignal) => Promise<unknown>

const VIEWS: Readonly<Record<string, Looking>> = {
  nobody: async () => undefined,
  overview: (gateway, signal) => Promise.all(OVERVIEW.map((path) => read(gateway, path, signal))),
  "list of devices": (gateway, signal) => read(gateway, LIST, signal),
}

export async function page(parameters: PageParameters): Promise<BenchResult> {
  const { devices, workers, seconds, rounds } = parameters
  const bed = await makeBed({ WORKERS: String(workers), DEVICE_HOST: "0.0.0.0" })
  const { gateway } = bed
  const subject = gatewaySubject(gateway)
  const ports = Array.from({ length: workers }, () => subject.port)
  const crowds = startCrowds(ports, parameters)
  const shares = new Map<string, number[]>(Object.keys(VIEWS).map((view) => [view, []]))
  try {
    await gateway.ready()
    for (const crowd of crowds) await crowd.told("ready")
    await connectAll(crowds, Math.ceil(devices / workers))
    for (let at = -1; at < rounds; at += 1) {
      for (const [view, look] of Object.entries(VIEWS)) {
        const looking = new AbortController()
        const looked = look(gateway, looking.signal)
        const meter = new Meter(subject.pids())
        await Bun.sleep(seconds * 1_000)
        const share = meter.cpu / meter.seconds
        meter.stop()
        looking.abort()
        await looked
        // The first only warms the engine up.
        if (at >= 0) shares.get(view)?.push(share)
      }
    }
  } finally {
    for (const crowd of crowds) await crowd.stop()
    await bed.stop()
  }
  const of = (view: string) => median(shares.get(view) ?? [])
  const figures: Record<string, number> = { "nobody looks, % of a core": round(of("nobody") * 100) }
  for (const view of Object.keys(VIEWS).filter((view) => view !== "nobody")) {
    figures[`${view}, more than that, % of a core`] = round((of(view) - of("nobody")) * 100)
  }
  return { bench: "page", parameters: { ...parameters }, figures }
}

/** Reads all of the answer; ends when it does or the signal is aborted. */
async function read(gateway: TestGateway, path: string, signal: AbortSignal): Promise<void> {
  try {
    const response = await gateway.fetch(path, { signal })
    if (!response.ok) throw new Error(`${path}: ${response.status}`)
    await response.arrayBuffer()
  } catch (error) {
    if (!signal.aborted) throw error
  }
}
