/**
 * `bun run doctor`: checks the settings, the machine, the certificate, the broker and the fleet,
 * and gives advice. A command-line tool; the gateway does not run it.
 *
 * It may run beside a gateway at any time. It changes nothing on the machine, and nothing on the
 * broker except temporary exclusive queues. It prints no secret. Exit status: 0 nothing to do, 1 a
 * warning, 2 a failure or a usage error.
 */

import { parseArgs } from "node:util"
import { allowsColour, inspectConfig, readPlatform } from "../../config/config.ts"
import { errorText } from "../../errors.ts"
import { VERSION } from "../../version.ts"
import { openFilesLimit } from "../open-files.ts"
import { makeChecks } from "./checks.ts"
import { type Finding, runCheck, statusOf } from "./finding.ts"
import { devicesOf } from "./limits.ts"
import { availableMemory, thisMachine } from "./machine.ts"
import { secretsOf, withoutSecrets } from "./redaction.ts"
import { findingText, summaryText } from "./report.ts"
import { DEFAULT_UNIT, readSystemdUnit } from "./systemd-unit.ts"

const DEFAULT_COLUMNS = 120

const USAGE = `usage: bun run doctor [--json] [--cost] [--management <url>] [--unit <name>]
  --json               print the findings as one JSON object
  --cost               measure handshakes and lines per second of one core, for some seconds of full
                       load, and say how many devices this machine holds
  --management <url>   HTTP API of the broker's management plugin, for policies and alarms, such as
                       http://broker:15672; with the user of AMQP_URL, unless the URL has its own
  --unit <name>        the gateway's systemd unit (${DEFAULT_UNIT})
The settings are those of the environment, as for bun run start.
exit status: 0 nothing to do, 1 a warning, 2 a failure`

interface Request {
  readonly help: boolean
  readonly json: boolean
  readonly cost: boolean
  readonly management: URL | null
  readonly unit: string
}

/** Runs the command with `args`, writes to stdout and stderr, and returns the exit status. */
export async function runDoctor(args: readonly string[]): Promise<0 | 1 | 2> {
  let request: Request
  try {
    request = parseRequest(args)
  } catch (error) {
    console.error(`${errorText(error)}\n${USAGE}`)
    return 2
  }
  if (request.help) {
    console.log(USAGE)
    return 0
  }
  return examine(request)
}

function parseRequest(args: readonly string[]): Request {
  const on = { type: "boolean", default: false } as const
  const { values } = parseArgs({
    args: [...args],
    options: {
      help: { ...on, short: "h" },
      json: on,
      cost: on,
      management: { type: "string" },
      unit: { type: "string", default: DEFAULT_UNIT },
    },
  })
  const management = values.management === undefined ? null : URL.parse(values.management)
  if (values.management !== undefined && !/^https?:$/.test(management?.protocol ?? "")) {
    // Without the value, which may contain a password.
    throw new Error("--management needs an http: or https: URL")
  }
  return { ...values, management }
}

async function examine({ json, cost, management, unit: unitName }: Request): Promise<0 | 1 | 2> {
  const inspection = inspectConfig()
  const { config } = inspection
  const openFiles = openFilesLimit()
  const machine = thisMachine
  const unit = readSystemdUnit(machine, unitName)
  const checks = makeChecks({
    ...{ inspection, machine, unit, openFiles, management },
    platform: readPlatform(),
  })
  const password = management === null ? [] : [management.password]
  const secrets = secretsOf(config, [...password, ...password.map(decodeURIComponent)])
  const findings: Finding[] = []
  const width = process.stdout.columns ?? DEFAULT_COLUMNS
  const colour = process.stdout.isTTY === true && allowsColour()
  const add = (found: readonly Finding[]) => {
    for (const each of found) {
      const finding = withoutSecrets(each, secrets)
      findings.push(finding)
      if (!json) process.stdout.write(findingText(finding, { width, colour }))
    }
  }
  if (!json) {
    const workers = `${config.workers} worker${config.workers === 1 ? "" : "s"}`
    console.log(`owsla ${VERSION}, instance ${config.instanceId}, ${workers}\n`)
  }
  for (const check of checks.all) add(await runCheck(check))
  checks.close()
  if (cost) {
    const { costCheck, COST_LOAD } = await import("./cost.ts")
    const devicesOfWorker = devicesOf({ config, machine, unit, openFiles })
    const memoryBytes = availableMemory(machine)
    add(await runCheck(costCheck({ config, devicesOfWorker, memoryBytes, ...COST_LOAD })))
  }
  const status = statusOf(findings)
  if (json) console.log(JSON.stringify({ version: VERSION, status, findings }))
  else process.stdout.write(summaryText(findings))
  return status
}
