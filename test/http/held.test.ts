/** The routes of held commands. */

import { describe, expect, test } from "bun:test"
import type { HeldQueryFailure } from "../../src/fleet/held-query.ts"
import { sidecar } from "./app-harness.ts"

const ROW = { message_id: "m", supersede_key: null, held_at: 1, expires_at: 2, bytes: 3 }

function subject(failure: HeldQueryFailure | null = null) {
  const asked: unknown[] = []
  const { routes, counted } = sidecar({
    heldQuery: {
      list: async (id, withLines) => {
        asked.push(["list", id, withLines])
        return failure ?? [ROW]
      },
      cancel: async (id, messageId) => {
        asked.push(["cancel", id, messageId])
        return failure ?? 2
      },
    },
  })
  const ask = async (path: string, method = "GET") => {
    const response = await routes.request(path, { method })
    return [response.status, await response.json()] as const
  }
  return { asked, ask, counted }
}

test("lists held commands, with their lines on request", async () => {
  const { ask, asked } = subject()
  expect(await ask("/devices/lock:1/held")).toEqual([200, { held: [ROW] }])
  await ask("/devices/lock:1/held?body=1")
  expect(asked).toEqual([
    ["list", "lock:1", false],
    ["list", "lock:1", true],
  ])
})

test("cancels all of them, or one by its message id", async () => {
  const { ask, asked } = subject()
  expect(await ask("/devices/lock:1/held", "DELETE")).toEqual([200, { cancelled: 2 }])
  await ask("/devices/lock:1/held/a%20b%2Fc", "DELETE")
  expect(asked).toEqual([
    ["cancel", "lock:1", null],
    ["cancel", "lock:1", "a b/c"],
  ])
})

test("refuses ids and values that are not valid", async () => {
  const { ask, asked } = subject()
  expect((await ask("/devices/%20/held"))[0]).toBe(400)
  expect((await ask("/devices/%20/held", "DELETE"))[0]).toBe(400)
  expect((await ask("/devices/lock:1/held?body=2"))[0]).toBe(400)
  expect(asked).toEqual([])
})

describe("a failure", () => {
  test.each<[HeldQueryFailure, number, string]>([
    ["unreachable", 503, "broker_away"],
    ["reading", 503, "busy"],
    ["busy", 503, "busy"],
    ["timeout", 504, "timeout"],
  ])("%s is %d %s", async (failure, status, code) => {
    for (const method of ["GET", "DELETE"]) {
      const [actual, body] = await subject(failure).ask("/devices/lock:1/held", method)
      expect([actual, body]).toMatchObject([status, { error: { code } }])
    }
  })
})
