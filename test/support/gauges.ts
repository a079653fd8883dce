/** The gauges of a worker for which nothing happens. */

import type { Gauges } from "../../src/ops/metrics.ts"

export const NO_GAUGES: Gauges = {
  connections: 0,
  connectionsLimit: 100,
  certificateNotAfterS: null,
  waiting: 0,
  windowLines: 0,
  windowBytes: 0,
  heldBytes: 0,
  partialLineBytes: 0,
  waitingForRoom: 0,
  unacknowledgedCommands: 0,
  heldCommands: 0,
  keptCommands: 0,
  outboundMessages: 0,
  brokerReady: true,
  locationCache: 0,
  directory: 0,
  keptShards: 0,
  lookUps: 0,
  members: 0,
  presence: 0,
}
