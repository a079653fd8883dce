/**
 * Loaded before every test file (bunfig.toml): ends what the files share once the last of them has
 * run. Holds nothing that a test could depend on, and starts nothing.
 */
import { afterAll } from "bun:test"
import { disposeSharedRabbitMq } from "./rabbitmq.ts"

// Bun runs this once for the whole run, and not at all after `--bail` or a kill: the node's own
// guard ends it then.
afterAll(disposeSharedRabbitMq, 30_000)
