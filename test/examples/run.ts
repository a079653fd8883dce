/**
 * Builds examples and runs them: all devices at the same time, then all back-ends. They have one RabbitMQ node of
 * their own, because connections to it are closed.
 */

import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { startRabbitMq } from "../support/rabbitmq.ts"
import { runBackEnds } from "./back-end-scenario.ts"
import { runDevices } from "./device-scenario.ts"
import type { Built, Finding } from "./finding.ts"
import { build, type Example } from "./programs.ts"

const PROTOCOL = join(import.meta.dir, "../../docs/PROTOCOL.md")

/** @throws when an example cannot be built, or when the scenario itself fails. */
export async function runExamples(examples: readonly Example[]): Promise<Finding[]> {
  const directory = mkdtempSync(join(tmpdir(), "owsla-examples-"))
  const starting = startRabbitMq()
  try {
    const built: Built[] = []
    for (const example of examples) {
      const own = join(directory, String(built.length))
      mkdirSync(own)
      await build(example, own)
      built.push({ example, directory: own })
    }
    const broker = await starting
    const ofKind = (kind: Example["kind"]) => built.filter(({ example }) => example.kind === kind)
    const [devices, backEnds] = [ofKind("device"), ofKind("back-end")]
    return [
      ...(devices.length === 0 ? [] : await runDevices(devices, broker)),
      ...(backEnds.length === 0 ? [] : await runBackEnds(backEnds, broker, permissionsOfBackEnd())),
    ]
  } finally {
    await starting.then((broker) => broker.dispose())
    rmSync(directory, { recursive: true })
  }
}

/** Configure, write and read, as docs/PROTOCOL.md gives them to a back-end. */
function permissionsOfBackEnd(): readonly string[] {
  const row = /^\| a back-end \| (.*) \|$/m.exec(readFileSync(PROTOCOL, "utf8"))?.[1] ?? ""
  return [...row.matchAll(/`([^`]+)`/g)].map(([, pattern = ""]) => pattern.replaceAll("\\|", "|"))
}
