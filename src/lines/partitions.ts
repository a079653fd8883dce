/**
 * The partitions of `from_device`: divides the lines over several queues by device, so that several
 * consumers share them and the lines of each device stay in order.
 *
 *   device id ─► SHA-256 ─► its first 4 bytes, big-endian ─► modulo the number of queues ─► queue
 *
 * Back-ends compute the same (docs/PROTOCOL.md), so the hash must not change. SHA-256 exists in
 * every language and divides ids of any form evenly. Rejected: FNV-1a, whose low bits depend on the
 * low bits of each character only, so that regular ids may be divided unevenly.
 *
 * Bound: one entry for each connection, kept as long as its endpoint. Without partitions there is
 * none.
 */

import type { Recipient } from "../device/command.ts"

/** The partition of a device, from 0. */
export function partitionOf(deviceId: string, partitions: number): number {
  const digest = new Bun.CryptoHasher("sha256").update(deviceId).digest()
  return digest.readUInt32BE(0) % partitions
}

/**
 * Returns the queue for the lines of a connection.
 * @param queues at least one: the partitions by their numbers.
 */
export function queueByDevice(queues: readonly string[]): (recipient: Recipient) => string {
  const [first = ""] = queues
  if (queues.length === 1) return () => first
  // Hashed once for each connection, not for each line.
  const known = new WeakMap<Recipient, string>()
  return (recipient) => {
    let queue = known.get(recipient)
    if (queue === undefined) {
      queue = queues[partitionOf(recipient.deviceId, queues.length)] ?? first
      known.set(recipient, queue)
    }
    return queue
  }
}
