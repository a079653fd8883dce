/**
 * All checks of `bun run doctor`, in their order. Composition only.
 *
 *   settings ─► machine ─► certificate, handshake ─► clock ─► broker ─► what needs its connection
 *
 * A check that needs what is missing is skipped with the reason: without the broker the rest is
 * still checked.
 */

import type { Inspection, Platform } from "../../config/config.ts"
import { CONFIRMS_MS, checkConfirms } from "./broker-confirms.ts"
import { checkBrokerLimits } from "./broker-limits.ts"
import { checkPermissions } from "./broker-permissions.ts"
import { checkPolicies } from "./broker-policies.ts"
import { checkQueues } from "./broker-queues.ts"
import { type BrokerSession, OPEN_MS } from "./broker-session.ts"
import { openBroker } from "./broker-urls.ts"
import { checkCertificate, checkClientAuthorities, checkTokenKeys } from "./certificate.ts"
import { checkKernelClock } from "./clock.ts"
import { checkConfiguration } from "./configuration.ts"
import { checkDrainBudget } from "./drain-budget.ts"
import { type Check, type CheckName, type Finding, skipped } from "./finding.ts"
import { checkFleet, LISTEN_MS } from "./fleet.ts"
import { checkHandshake, HANDSHAKE_MS } from "./handshake.ts"
import { checkConntrack, checkOpenFiles, checkSomaxconn } from "./limits.ts"
import type { Machine } from "./machine.ts"
import type { SystemdUnit } from "./systemd-unit.ts"

/** For checks of this machine, and a margin for the others. */
const SHORT_MS = 5_000
const QUESTIONS_MS = 15_000

export interface ChecksOptions {
  readonly inspection: Inspection
  readonly platform: Platform
  readonly machine: Machine
  /** The gateway's systemd unit; null when this machine has none. */
  readonly unit: SystemdUnit | null
  /** The soft limit of this process; null when it is unknown. */
  readonly openFiles: number | null
  /** The HTTP API of the broker's management plugin; null when it was not given. */
  readonly management: URL | null
}

export interface Checks {
  readonly all: readonly Check[]
  /** Closes what the checks have opened. */
  readonly close: () => void
}

export function makeChecks(options: ChecksOptions): Checks {
  const { inspection, platform, machine, unit, openFiles, management } = options
  const { config, invalid } = inspection
  const limits = { config, machine, unit, openFiles }
  const here = (name: CheckName, run: Check["run"], timeoutMs = SHORT_MS): Check => {
    return { name, timeoutMs, run }
  }
  const broker = brokerChecks(options)
  return {
    all: [
      here("configuration", () => checkConfiguration(inspection)),
      here("open_files", () => checkOpenFiles(limits)),
      here("somaxconn", () => checkSomaxconn(limits)),
      here("conntrack", () => checkConntrack(limits)),
      here("certificate", () => checkCertificate(config, Date.now())),
      here("client_ca", () => checkClientAuthorities(config, Date.now())),
      here("token_keys", () => checkTokenKeys(config)),
      here("handshake", () => checkHandshake(config), HANDSHAKE_MS + SHORT_MS),
      here("clock", () => checkKernelClock(machine)),
      ...(invalid.includes("AMQP_URL") ? [unusable] : broker.all),
      ...(config.amqp === null
        ? []
        : [here("policies", () => checkPolicies(config, management), QUESTIONS_MS)]),
      here("drain", () => checkDrainBudget({ config, platform, machine, unit })),
    ],
    close: broker.close,
  }
}

const unusable: Check = {
  name: "broker",
  timeoutMs: SHORT_MS,
  run: () => [skipped("broker", "AMQP_URL is not valid")],
}

/** The checks that use the connection to the broker, which the first of them opens. */
function brokerChecks({ inspection }: ChecksOptions): Checks {
  const { config } = inspection
  const urls = config.amqp?.urls.length ?? 0
  if (urls === 0) {
    const run = () => [skipped("broker", "AMQP_URL is not set; the embedded broker needs no check")]
    return { all: [{ name: "broker", timeoutMs: SHORT_MS, run }], close: () => undefined }
  }
  let session: BrokerSession | null = null
  let missing: readonly string[] = []
  const connected = (
    name: CheckName,
    timeoutMs: number,
    check: (session: BrokerSession) => Promise<Finding[]>,
  ): Check => {
    const run = async () =>
      session === null ? [skipped(name, "there is no connection to the broker")] : check(session)
    return { name, timeoutMs, run }
  }
  const open = async () => {
    const opened = await openBroker(config)
    session = opened.session
    return opened.findings
  }
  return {
    all: [
      { name: "broker", timeoutMs: urls * OPEN_MS + SHORT_MS, run: open },
      connected("queues", QUESTIONS_MS, async (on) => {
        const checked = await checkQueues(on, config)
        missing = checked.missing
        return [...checked.findings]
      }),
      connected("permissions", QUESTIONS_MS, (on) => checkPermissions(on, config, missing)),
      {
        name: "unacknowledged",
        timeoutMs: SHORT_MS,
        run: () => checkBrokerLimits(config),
      },
      connected("confirms", CONFIRMS_MS + SHORT_MS, (on) => checkConfirms(on, config)),
      connected("fleet", LISTEN_MS + SHORT_MS, (on) => checkFleet(on, config)),
    ],
    close: () => session?.close(),
  }
}
