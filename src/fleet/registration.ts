/**
 * Registrations and deregistrations: that a device was seen on a connection, and that it has left one; and which of two
 * connections of one device is the newer. Pure.
 */

/** A device's connection, and since when (milliseconds since 1970). */
export type Registration = readonly [deviceId: string, connectionId: string, epoch: number]
/** A device's connection that has closed. */
export type Deregistration = readonly [deviceId: string, connectionId: string]

/** Of two connections of one device, whether the first is the newer: every worker decides alike. */
export function isNewer(
  epoch: number,
  connectionId: string,
  thanEpoch: number,
  thanConnectionId: string,
): boolean {
  return epoch === thanEpoch ? connectionId > thanConnectionId : epoch > thanEpoch
}
