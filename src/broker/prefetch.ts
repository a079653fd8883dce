/**
 * Divides the messages that one AMQP connection may hold unacknowledged over its subscriptions. Pure.
 *
 * Quorum queues know no limit for a whole connection ("global" QoS), so each subscription has a share.
 */

/**
 * Whole shares in proportion to the weights, each at least 1, together at most `total`, or one each when that is less.
 */
export function divided(total: number, weights: readonly number[]): number[] {
  const sum = weights.reduce((all, weight) => all + weight, 0)
  const free = Math.max(0, total - weights.length)
  return weights.map((weight) => 1 + Math.floor((free * weight) / sum))
}

/**
 * The limit to keep after a broker has closed a connection that was to hold at most `total`: the one it names, or, when
 * it names none or one that was kept, half.
 */
export function lowerLimit(total: number, named: number | null): number {
  return named !== null && named < total ? named : Math.max(1, Math.floor(total / 2))
}
