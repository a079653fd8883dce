/** How error texts of brokers are classified. */

import { expect, test } from "bun:test"
import { type BrokerError, readBrokerError } from "../../src/amqp/errors.ts"

const tooMany = (limit: number | null): BrokerError => ({ kind: "too_many_unacknowledged", limit })
const refused = (permission: string | null, resource: string | null): BrokerError => ({
  kind: "access_refused",
  permission,
  resource,
})
const other: BrokerError = { kind: "other" }

test.each<[string, BrokerError]>([
  // CloudAMQP's text; the following are texts that other brokers might use.
  [
    "connection closed: CONNECTION_FORCED - Too many unacked messages (max 1000) (320)",
    tooMany(1_000),
  ],
  ["connection closed: unacknowledged message limit of 500 exceeded (506)", tooMany(500)],
  ["connection closed: more than 2000 unacked messages (506)", tooMany(2_000)],
  ["channel 3 closed: too many unacknowledged messages (506)", tooMany(null)],
  [
    "channel 2 closed: PRECONDITION_FAILED - delivery acknowledgement on channel 2 timed out. Timeout value used: 1800000 ms (406)",
    { kind: "precondition_failed", argument: null },
  ],
  [
    "channel 1 closed: NOT_FOUND - no queue 'too_many_unacked_limit' in vhost '/' (404)",
    { kind: "not_found" },
  ],
  [
    "channel 3 closed: NOT_FOUND - failed to perform operation on queue 'a' in vhost '/' due to timeout (404)",
    { kind: "unavailable" },
  ],
  [
    "channel 3 closed: NOT_FOUND - home node 'rabbit@one' of durable queue 'a' in vhost '/' is down or inaccessible (404)",
    { kind: "unavailable" },
  ],
  [
    "channel 1 closed: ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'u' (403)",
    refused(null, "q"),
  ],
  [
    "channel 1 closed: ACCESS_REFUSED - configure access to queue 'q' in vhost '/' refused for user 'u' (403)",
    refused("configure", "q"),
  ],
  [
    "channel 1 closed: ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'u' (403)",
    refused("write", "amq.default"),
  ],
  ["channel 1 closed: ACCESS_REFUSED (403)", refused(null, null)],
  [
    "channel 1 closed: ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use (403)",
    { kind: "locked" },
  ],
  [
    "channel 1 closed: RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' (405)",
    { kind: "locked" },
  ],
  ["connect ECONNREFUSED 127.0.0.1:5672", { kind: "connection_refused" }],
  [
    "channel 1 closed: PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q' in vhost '/': received the value '-1' of type 'signedint' but current is none (406)",
    { kind: "precondition_failed", argument: "x-delivery-limit" },
  ],
  ["connection closed: CONNECTION_FORCED - a test (320)", other],
  ["Socket closed", other],
])("%s", (text, expected) => {
  expect(readBrokerError(text)).toEqual(expected)
})
