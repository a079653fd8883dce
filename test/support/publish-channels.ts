/**
 * Publish channels for tests: one that the test settles, and a listener that calls back for each
 * message.
 */

import type {
  OutgoingMessage,
  PublishChannel,
  PublishChannelListener,
  PublishChannelState,
  PublishResult,
} from "../../src/broker/broker.ts"
import { EmbeddedBroker } from "../../src/broker/embedded.ts"

/** Identifies a message of `callbackListener`. */
export interface CallbackPublish {
  readonly id: string
  readonly settled: (result: PublishResult) => void
}

export function callbackListener(opened: () => void): PublishChannelListener<CallbackPublish> {
  return { opened, settled: ({ settled }, result) => settled(result), idOf: ({ id }) => id }
}

/**
 * A publish channel, for any number of listeners, that keeps published messages until the test
 * settles them.
 */
export class ScriptedPublishChannel {
  state: PublishChannelState
  readonly published: OutgoingMessage[] = []
  readonly #unsettled: ((result: PublishResult) => void)[] = []
  readonly #listeners: { opened(): void }[] = []

  constructor(state: PublishChannelState = "open") {
    this.state = state
  }

  /** The channel for this listener. */
  for<T>(listener: PublishChannelListener<T>): PublishChannel<T> {
    this.#listeners.push(listener)
    const script = this
    return {
      get state() {
        return script.state
      },
      publish: (message, item) => {
        this.published.push(message)
        this.#unsettled.push((result) => listener.settled(item, result))
      },
    }
  }

  /** Settles this many unsettled messages, the oldest first. */
  settle(result: PublishResult, count = 1): void {
    for (const settle of this.#unsettled.splice(0, count)) settle(result)
  }

  open(): void {
    this.state = "open"
    for (const listener of this.#listeners) listener.opened()
  }
}

/** The embedded broker with scripted publish channels. */
export class ScriptedBroker extends EmbeddedBroker {
  readonly scripted: ScriptedPublishChannel

  constructor(scripted = new ScriptedPublishChannel()) {
    super()
    this.scripted = scripted
  }

  override publishChannel<T>(listener: PublishChannelListener<T>): PublishChannel<T> {
    return this.scripted.for(listener)
  }
}
