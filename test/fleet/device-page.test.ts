/** A page of the device list, beside the sorted list of all devices of all workers. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { Page, type WorkerPage } from "../../src/fleet/device-page.ts"
import type { DeviceView } from "../../src/fleet/device-view.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

/** What a worker with these devices answers. */
function answerOf(ids: readonly string[], { after, prefix, limit }: Page["wanted"]): WorkerPage {
  const fitting = [...ids].sort().filter((id) => id > after && id.startsWith(prefix))
  const devices = fitting
    .slice(0, limit)
    .map((id) => ({ device_id: id, connection_id: id }) as DeviceView)
  return {
    devices,
    total: fitting.length,
    hasMore: devices.length < fitting.length,
    isComplete: true,
  }
}

const id = fc.string({ unit: fc.constantFrom("a", "b", "c", "d", "e"), minLength: 1, maxLength: 5 })

test("is the page of the sorted list of all, however the devices are divided", () => {
  const workers = fc.uniqueArray(fc.tuple(id, fc.nat({ max: 6 })), {
    selector: ([each]) => each,
    maxLength: 200,
  })
  check(
    fc.property(
      workers,
      fc.integer({ min: 1, max: 40 }),
      fc.constantFrom("", "a", "bb"),
      fc.constantFrom("", "b", "ccc"),
      (divided, limit, prefix, after) => {
        const held = Array.from({ length: 7 }, (_, at) =>
          divided.filter(([, worker]) => worker === at).map(([each]) => each),
        )
        const page = new Page({ prefix, after, limit }, held.length)
        for (const [at, ids] of held.entries()) page.add(`gw.${at}`, answerOf(ids, page.request))
        for (const { worker, after: from } of page.unfinished()) {
          const ids = held[Number(worker.slice(3))] ?? []
          page.add(worker, answerOf(ids, { ...page.wanted, after: from }))
        }
        expect(page.unfinished()).toEqual([])
        const all = divided.map(([each]) => each)
        const expected = answerOf(all, { prefix, after, limit })
        expect(page.list().devices.map((device) => device.device_id)).toEqual(
          expected.devices.map((device) => device.device_id),
        )
        expect(page.list()).toMatchObject({ total: expected.total, answered: held.length })
      },
    ),
    CHEAP_RUNS,
  )
})

test("asks each worker of a large fleet for few devices", () => {
  expect(new Page({ prefix: "", after: "", limit: 100 }, 600).request.limit).toBeLessThan(12)
  expect(new Page({ prefix: "", after: "", limit: 100 }, 1).request.limit).toBe(100)
})
