/** Counts connections that the gateway closes, by reason. */

import { expect } from "bun:test"
import type { TestGateway } from "./gateway.ts"
import { until } from "./wait.ts"

/** Runs `act` and waits until exactly `count` more connections have ended for `reason`. */
export async function expectClosed(
  gateway: TestGateway,
  reason: string,
  count: number,
  act: () => Promise<unknown>,
): Promise<void> {
  const metric = () => gateway.metric("owsla_connections_closed_total", reason)
  const before = await metric()
  await act()
  await until(async () => (await metric()) >= before + count, {
    what: `${count} connections to end as ${reason}`,
  })
  expect(await metric()).toBe(before + count)
}
