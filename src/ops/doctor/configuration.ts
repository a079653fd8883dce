/**
 * Checks the settings: those that are not valid, and valid ones that are dangerous together. The
 * faults are those that prevent a start (`config.ts`). Pure.
 */

import { type Inspection, risks } from "../../config/config.ts"
import { type Finding, failure, ok, warning } from "./finding.ts"

const CHECK = "configuration"
const SETTINGS_DOCUMENT = "docs/CONFIGURATION.md lists all settings with their ranges"

export function checkConfiguration({ config, faults, set }: Inspection): Finding[] {
  const findings = [
    ...faults.map((fault) => failure(CHECK, fault, SETTINGS_DOCUMENT)),
    ...risks(config).map(({ risk, advice }) => warning(CHECK, risk, advice)),
    ...dangers(config),
  ]
  if (faults.length === 0) {
    findings.unshift(ok(CHECK, `all settings are valid, ${set.length} of them are set`))
  }
  return findings
}

/** Combinations that start, and then do not what was meant. */
function dangers({ amqp, fleetSecret, broker, device }: Inspection["config"]): Finding[] {
  const found: Finding[] = []
  if (amqp !== null && fleetSecret === "guest") {
    found.push(
      warning(
        CHECK,
        "messages between workers are authenticated with a key from the broker's default password",
        "set FLEET_SECRET, the same on all instances, made with openssl rand -hex 32",
      ),
    )
  }
  if (amqp !== null && broker.queueType === "classic") {
    found.push(
      warning(
        CHECK,
        "QUEUE_TYPE=classic: messages are on one broker node, and are lost with its disk",
        "use QUEUE_TYPE=quorum where the broker has quorum queues",
      ),
    )
  }
  if (device.auth === "none" && device.flapping !== null) {
    found.push(
      warning(
        CHECK,
        "FLAP_LIMIT has no effect with DEVICE_AUTH=none: it applies to named devices",
        "set DEVICE_AUTH, or limit addresses with MAX_HANDSHAKES_PER_ADDRESS_PER_S",
      ),
    )
  }
  if (device.auth === "none" && device.denylistFile !== null) {
    found.push(
      warning(
        CHECK,
        "DENYLIST_FILE has no effect with DEVICE_AUTH=none: devices have no names",
        "set DEVICE_AUTH",
      ),
    )
  }
  return found
}
