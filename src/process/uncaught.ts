/**
 * Uncaught errors: logged, then the process ends with status 1. Not left to Bun, whose write to standard error blocks when it
 * has no reader.
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
