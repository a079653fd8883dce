/**
 * Checks each URL of `AMQP_URL` in turn: whether a broker answers there, its product and version.
 * The first session that opens is kept for the other checks of the broker.
 *
 * Findings name a URL by host and port, and never contain user or password.
 */

import { NotReached, readBrokerError } from "../../amqp/errors.ts"
import { type BrokerServer, lacksQuorumQueues } from "../../amqp/server-properties.ts"
import type { Config } from "../../config/config.ts"
import { asError } from "../../errors.ts"
import { BrokerSession } from "./broker-session.ts"
import { type Finding, failure, ok, warning } from "./finding.ts"

const CHECK = "broker"

export interface OpenedBroker {
  readonly findings: readonly Finding[]
  /** Null when no URL works. */
  readonly session: BrokerSession | null
}

export async function openBroker({ amqp, broker }: Config): Promise<OpenedBroker> {
  const { urls, ca } = amqp ?? { urls: [], ca: null }
  let session: BrokerSession | null = null
  const tries: { readonly url: string; readonly result: BrokerServer | Error }[] = []
  for (const url of urls) {
    try {
      const opened = await BrokerSession.open(url, ca)
      tries.push({ url, result: opened.server })
      if (session === null) session = opened
      else opened.close()
    } catch (error) {
      tries.push({ url, result: asError(error) })
    }
  }
  // An instance needs one of them.
  const level = session === null ? failure : warning
  const findings = tries.map(({ url, result }) => {
    const place = placeOf(url)
    return result instanceof Error
      ? level(CHECK, `${place}: ${result.message}`, adviceFor(result))
      : ok(CHECK, `${place}: ${result.product} ${result.version}`)
  })
  if (session !== null && broker.queueType === "quorum" && lacksQuorumQueues(session.server)) {
    const message = `${session.server.product} has no quorum queues and makes classic ones: messages are on one node only`
    const advice = "accept this, and set QUEUE_TYPE=classic, or use RabbitMQ"
    findings.push(warning(CHECK, message, advice))
  }
  return { findings, session }
}

/** Host, port and virtual host. */
export function placeOf(url: string): string {
  const { protocol, hostname, port, pathname } = new URL(url)
  const byDefault = protocol === "amqps:" ? "5671" : "5672"
  return `${hostname}:${port || byDefault}${pathname === "/" ? "" : pathname}`
}

function adviceFor(error: Error): string {
  if (error instanceof NotReached) return "check the host name, the network and the firewall"
  switch (readBrokerError(error.message).kind) {
    case "connection_refused":
      return "start the broker, or correct the port in AMQP_URL"
    case "access_refused":
      return "correct the user and the password in AMQP_URL"
    case "not_allowed":
      return "correct the virtual host in AMQP_URL, or give the user permissions for it"
  }
  // Codes of OpenSSL's verification.
  const code = "code" in error ? String(error.code) : ""
  if (/CERT|SIGNATURE|TLS|SSL/.test(code)) {
    return "set AMQP_CA_FILE to the CA of the broker's certificate, and use a name it is valid for"
  }
  return "correct AMQP_URL, or check that a broker listens there"
}
