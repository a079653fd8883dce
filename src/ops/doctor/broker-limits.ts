/**
 * Checks the settings against the limits of known hosted brokers. Pure.
 *
 * CloudAMQP's shared plans close a connection with more than 1,000 unacknowledged messages and
 * allow about 20 connections. The host name does not tell whether a plan is shared.
 */

import type { Config } from "../../config/config.ts"
import { type Finding, failure, ok, warning } from "./finding.ts"

const CHECK = "unacknowledged"
const CLOUDAMQP = { domain: ".cloudamqp.com", maxUnacknowledged: 1_000, maxConnections: 20 }
const CONNECTIONS_OF_WORKER = 2

export function checkBrokerLimits({ amqp, broker, workers }: Config): Finding[] {
  const hosts = (amqp?.urls ?? []).map((url) => new URL(url).hostname)
  const { domain, maxUnacknowledged, maxConnections } = CLOUDAMQP
  if (!hosts.some((host) => host.endsWith(domain))) {
    return [ok(CHECK, `PREFETCH=${broker.prefetch}; no limit is known for this host`)]
  }
  const findings: Finding[] = []
  if (broker.prefetch < maxUnacknowledged) {
    const message = `PREFETCH=${broker.prefetch} is below the limit of ${maxUnacknowledged} of CloudAMQP's shared plans`
    findings.push(ok(CHECK, message))
  } else {
    findings.push(
      failure(
        CHECK,
        `PREFETCH=${broker.prefetch}: CloudAMQP's shared plans close a connection with more than ${maxUnacknowledged} unacknowledged messages`,
        "set PREFETCH=900, unless the plan is a dedicated one",
      ),
    )
  }
  const connections = workers * CONNECTIONS_OF_WORKER
  if (connections > maxConnections) {
    findings.push(
      warning(
        CHECK,
        `${workers} workers have ${connections} connections: CloudAMQP's shared plans allow about ${maxConnections}`,
        `set WORKERS=${maxConnections / CONNECTIONS_OF_WORKER / 2} or less, or use a dedicated plan`,
      ),
    )
  }
  return findings
}
