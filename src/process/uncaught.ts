/**
 * Uncaught errors: they are logged, and the process ends with status 1. Bun's own handler writes to
 * standard error and would block when the pipe is full.
 */

import { asError } from "../errors.ts"
import type { EventBus } from "../events.ts"

export function exitOnUncaught(events: EventBus): void {
  const end = (where: string) => (error: unknown) => {
    events.emit("fault", { error: asError(error), where })
    process.exit(1)
  }
  process.on("uncaughtException", end("uncaught exception"))
  process.on("unhandledRejection", end("unhandled rejection"))
}
