/** The refused HTTP requests of a gateway by error code, without the codes that nothing had. */

import type { Counters } from "../../src/counters.ts"

export function countedErrors({ httpErrors }: Counters): Record<string, number> {
  return Object.fromEntries([...httpErrors].filter(([, count]) => count > 0))
}
