/** Each bench with its smoke parameters: that its counts are right, never how fast it is. */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { type PrivateBroker, startRabbitMq } from "../support/rabbitmq.ts"
import { shareBroker } from "./harness.ts"
import { BENCHES } from "./main.ts"

let broker: PrivateBroker

beforeAll(async () => {
  broker = await startRabbitMq()
  shareBroker(broker)
}, 60_000)

afterAll(() => broker?.dispose(), 60_000)

test.each(Object.keys(BENCHES))(
  "bench %s runs",
  async (name) => {
    const result = await BENCHES[name]?.run(true)
    expect(result?.bench).toBe(name)
    for (const value of Object.values(result?.figures ?? {})) {
      expect(Number.isFinite(value)).toBe(true)
    }
  },
  60_000,
)
