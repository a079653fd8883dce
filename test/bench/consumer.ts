/**
 * A back-end that consumes one queue of lines and checks their order.
 *
 *   stdout {"ready": 1} ─► stdin "status" ─► stdout {"taken": n, "disorder": n} ─► again
 */

import { parseArgs } from "node:util"
import { report } from "./child.ts"
import { BackEnd, LineLedger } from "./harness.ts"

const { values } = parseArgs({
  options: { url: { type: "string", default: "" }, queue: { type: "string", default: "" } },
})
const ledger = new LineLedger()
const backEnd = await BackEnd.connect(values.url)
await backEnd.consume(values.queue, (message) => ledger.take(message))
report({ ready: 1 })
for await (const _ of console) report({ taken: ledger.count, disorder: ledger.disorder })
process.exit(0)
