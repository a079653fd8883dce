/**
 * Registrations and deregistrations of a device's connection, and the order of two connections of
 * one device. Pure.
 */

/**
 * A device's connection and its epoch (milliseconds since 1970). `fresh` is 1 when the device has
 * just connected, and absent when the registration is repeated.
 */
export type Registration = readonly [
  deviceId: string,
  connectionId: string,
  epoch: number,
  fresh?: 1,
]
/** A device's connection that has closed. */
export type Deregistration = readonly [deviceId: string, connectionId: string]

/**
 * A registration that has waited for longer is not fresh any more: its worker was paused, and the
 * device may have connected elsewhere meanwhile. Less than `ARRIVAL_MS` of the keeper.
 */
const FRESH_MS = 1_000

/** The registration as one that is repeated. */
export function repeated([deviceId, connectionId, epoch]: Registration): Registration {
  return [deviceId, connectionId, epoch]
}

/** The registration after it has waited for this time. */
export function aged(registration: Registration, waitedMs: number): Registration {
  return waitedMs > FRESH_MS ? repeated(registration) : registration
}

/**
 * Whether the first of two connections of one device is the newer one. All workers decide alike.
 */
export function isNewer(
  epoch: number,
  connectionId: string,
  thanEpoch: number,
  thanConnectionId: string,
): boolean {
  return epoch === thanEpoch ? connectionId > thanConnectionId : epoch > thanEpoch
}
