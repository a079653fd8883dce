/** `GET /refusals` and `GET /devices/:id/connections`: what they ask for, and their errors. */

import { expect, test } from "bun:test"
import type { AppDependencies } from "../../src/http/app.ts"
import { expectRefusal, sidecar } from "./app-harness.ts"

const REFUSALS = { refusals: [], answered: 1, workers: 2 }
const CONNECTIONS = { connections: [], answered: 2, workers: 2 }

function subject(changes: Partial<AppDependencies["records"]> = {}) {
  const asked: unknown[] = []
  const records: AppDependencies["records"] = {
    refusals: async (limit) => {
      asked.push(limit)
      return REFUSALS
    },
    connections: async (id) => {
      asked.push(id)
      return CONNECTIONS
    },
    ...changes,
  }
  return { ...sidecar({ records }), asked }
}

test("the lists are passed on with their counts of workers", async () => {
  const { get, asked } = subject()
  expect(await (await get("/refusals")).json()).toEqual(REFUSALS)
  expect(await (await get("/refusals?limit=1000")).json()).toEqual(REFUSALS)
  expect(await (await get("/devices/lock:1/connections")).json()).toEqual(CONNECTIONS)
  expect(asked).toEqual([100, 1_000, "lock:1"])
})

test.each([
  "/refusals?limit=0",
  "/refusals?limit=1001",
  "/refusals?limit=x",
  "/devices/a%20b/connections",
])("%s is invalid", async (path) => {
  const gateway = subject()
  await expectRefusal(gateway, await gateway.get(path), 400, "invalid")
  expect(gateway.asked).toEqual([])
})

test.each([
  ["unreachable", 503, "broker_away"],
  ["timeout", 504, "timeout"],
  ["busy", 503, "busy"],
] as const)("%s is %d %s", async (failure, status, code) => {
  const failing = async () => failure
  for (const path of ["/refusals", "/devices/lock:1/connections"]) {
    const gateway = subject({ refusals: failing, connections: failing })
    await expectRefusal(gateway, await gateway.get(path), status, code)
  }
})
