/**
 * A fault of how the broker was set up: `from_device` is a stream. On the node that the test files
 * share.
 */

import { beforeAll } from "bun:test"
import { sharedRabbitMq, type TestBroker } from "../support/rabbitmq.ts"
import { sized } from "./fault.ts"
import { streamAsFromDevice } from "./stream-as-from-device.ts"

const LIMIT_MS = sized(120_000, 60_000)
let broker: TestBroker

beforeAll(async () => {
  broker = await sharedRabbitMq()
}, LIMIT_MS)

streamAsFromDevice("stream as from_device", () => broker, LIMIT_MS)
