/**
 * Loaded before each test file (bunfig.toml). Ends the resources that test files share after the
 * last file has run. Starts nothing and has no state.
 */
import { afterAll } from "bun:test"
import { disposeSharedRabbitMq } from "./rabbitmq.ts"

// Bun calls this once after the whole run, but not after `--bail` or a kill. Then the guard of the
// node ends it.
afterAll(disposeSharedRabbitMq, 30_000)
