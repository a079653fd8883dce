/**
 * Divides the messages that one AMQP connection may hold unacknowledged over its subscriptions.
 * Pure.
 *
 * Quorum queues do not support a limit for a whole connection ("global" QoS), so each subscription
 * has a share.
 */

/**
 * Whole shares in proportion to the weights, each at least 1, together at most `total`; one each
 * when `total` is smaller than the number of weights.
 */
export function divided(total: number, weights: readonly number[]): number[] {
  const sum = weights.reduce((all, weight) => all + weight, 0)
  const free = Math.max(0, total - weights.length)
  return weights.map((weight) => 1 + Math.floor((free * weight) / sum))
}

/**
 * The limit to keep after a broker closed a connection that held at most `total`: the limit that it
 * names when that is lower than `total`, otherwise half of `total`.
 */
export function lowerLimit(total: number, named: number | null): number {
  return named !== null && named < total ? named : Math.max(1, Math.floor(total / 2))
}
