/**
 * The settings that must or should be equal on all instances, and that contain no secret. Workers
 * send them to each other in `alive` messages, and the doctor compares them. `FLEET_SHARDS` is not
 * among them, because `alive` has it already. Pure.
 */

import type { FleetSettings } from "../fleet/messages.ts"
import type { Config } from "./config.ts"

/** They limit commands only. A difference of the others loses or misplaces messages. */
export const SHOULD_BE_EQUAL: readonly string[] = ["MAX_REPLY_MS", "MAX_HOLD_MS"]

export function fleetSettings({ device, hold, broker }: Config): FleetSettings {
  return {
    DEVICE_AUTH: device.auth,
    DEVICE_FRAMING: device.framing,
    FROM_DEVICE_QUEUE: broker.fromDeviceQueue,
    FROM_DEVICE_PARTITIONS: broker.fromDevicePartitions,
    TO_DEVICE_QUEUE: broker.toDeviceQueue,
    UNDELIVERED_QUEUE: broker.undeliveredQueue,
    QUEUE_TYPE: broker.queueType,
    MAX_REPLY_MS: device.maxReplyMs,
    MAX_HOLD_MS: hold.maxHoldMs,
  }
}
