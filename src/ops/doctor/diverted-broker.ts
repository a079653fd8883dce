/**
 * A broker that publishes everything to one temporary exclusive queue and consumes nothing, so that
 * a measurement changes no queue of the gateway.
 *
 *   worker ──any exchange and key──► diverted ──default exchange──► owsla.fleet.doctor.<id>
 *
 * Bound: the queue keeps the last `KEPT_MESSAGES` messages.
 */

import type { Broker, PublishChannel, PublishChannelListener } from "../../broker/broker.ts"

const KEPT_MESSAGES = 1_000

export function divertedBroker(broker: Broker): Broker {
  const queue = `owsla.fleet.doctor.${crypto.randomUUID()}`
  const declaration = {
    ...{ name: queue, durable: false, exclusive: true },
    arguments: { "x-queue-type": "classic", "x-max-length": KEPT_MESSAGES },
  }
  return {
    get state() {
      return broker.state
    },
    start: (_setup, listener) =>
      broker.start({ exchanges: [], queues: [declaration], subscriptions: [] }, listener),
    publishChannel: <T>(listener: PublishChannelListener<T>): PublishChannel<T> => {
      const channel = broker.publishChannel(listener)
      return {
        get state() {
          return channel.state
        },
        publish: (message, item) =>
          channel.publish({ ...message, exchange: "", routingKey: queue }, item),
      }
    },
    subscribe: () => undefined,
    unsubscribe: () => undefined,
    exists: async () => false,
    declare: async () => undefined,
    redeclare: () => undefined,
    reset: (reason) => broker.reset(reason),
    pauseConsuming: () => undefined,
    resumeConsuming: () => undefined,
    stopConsuming: async () => undefined,
    close: () => broker.close(),
  }
}
