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
