/** Each bench with its smoke parameters: that its counts are right, never how fast it is. */

import { expect, test } from "bun:test"
import { BENCHES } from "./main.ts"

test.each(Object.keys(BENCHES))(
  "bench %s runs",
  async (name) => {
    const result = await BENCHES[name]?.(true)
    expect(result?.bench).toBe(name)
    for (const value of Object.values(result?.figures ?? {})) {
      expect(Number.isFinite(value)).toBe(true)
    }
  },
  60_000,
)
