/** A publisher on a scripted publish channel. */

import { jest } from "bun:test"
import { BROKER_BACKOFF } from "../../src/backoff.ts"
import type {
  Broker,
  OutgoingMessage,
  PublishChannel,
  PublishChannelListener,
  PublishChannelState,
  PublishResult,
} from "../../src/broker/broker.ts"
import type { FinalResult } from "../../src/broker/publish-window.ts"
import { Publisher } from "../../src/broker/publisher.ts"

/** No wait between tries is shorter: half of `firstMs`. */

export const MIN_WAIT_MS = 50
export const EMPTY = new Uint8Array(0)

export interface Item {
  readonly id: string
  readonly group: string
}

/** One publish: what was sent, and how to end it. */
export interface Send {
  readonly id: string
  settle(result: PublishResult): void
}

/**
 * A publish channel whose every answer the test gives. Fails when it is used while it is not open.
 */
export class ScriptedPublishChannel {
  state: PublishChannelState = "open"
  readonly sends: Send[] = []
  readonly inFlight: Send[] = []

  /** A broker whose publish channel this is. */
  readonly broker: Pick<Broker, "publishChannel"> = {
    publishChannel: <T>(listener: PublishChannelListener<T>): PublishChannel<T> => {
      const script = this
      return {
        get state() {
          return script.state
        },
        publish: (message, item) => {
          this.#publish(message, (result) => listener.settled(item, result))
        },
      }
    },
  }

  #publish({ id }: OutgoingMessage, settled: (result: PublishResult) => void): void {
    if (this.state !== "open")
      throw new Error(`${id} was published on a publishChannel that is ${this.state}`)
    const send = {
      id,
      settle: (result: PublishResult) => {
        this.inFlight.splice(this.inFlight.indexOf(send), 1)
        settled(result)
      },
    }
    this.sends.push(send)
    this.inFlight.push(send)
  }

  /** The ids that have been sent since the last call. */
  sent(): string[] {
    return this.sends.splice(0).map(({ id }) => id)
  }

  /** Ends what is in flight under this id. */
  settle(id: string, result: PublishResult): void {
    const send = this.inFlight.find((candidate) => candidate.id === id)
    if (send === undefined) throw new Error(`${id} is not in flight`)
    send.settle(result)
  }

  settleAll(result: PublishResult): void {
    for (const send of [...this.inFlight]) send.settle(result)
  }

  /** The connection is lost: everything in flight is cut. */
  lose(): void {
    this.state = "closed"
    this.settleAll("cut")
  }
}

export interface Options {
  maxCount?: number
  maxBytes?: number
  maxInFlight?: number
  whenReturned?: "again" | "final"
}

/** A publisher with all it tells. Items are named by group and number: "a0", "a1", "b0". */
export class Subject {
  readonly publishChannel = new ScriptedPublishChannel()
  readonly done: string[] = []
  readonly failed: string[] = []
  readonly repeating: number[] = []
  relieved = 0
  steadyMs = 1_000
  onDone: (item: Item, result: FinalResult) => void = () => undefined
  onRelieved: () => void = () => undefined
  readonly publisher: Publisher<Item>

  constructor({ maxCount = 100, maxBytes = 1e6, maxInFlight = 100, whenReturned }: Options = {}) {
    this.publisher = new Publisher<Item>(this.publishChannel.broker, {
      limits: { maxCount, maxBytes, maxInFlight },
      steadyMs: () => this.steadyMs,
      groupOf: ({ group }) => group,
      describe: ({ id }) => ({ id, exchange: "", routingKey: "q", body: EMPTY, properties: {} }),
      done: (item, result) => {
        this.done.push(result === "confirmed" ? item.id : `${item.id} ${result}`)
        this.onDone(item, result)
      },
      whenReturned: () => whenReturned ?? "again",
      relieved: () => {
        this.relieved += 1
        this.onRelieved()
      },
      failed: ({ id }, result) => this.failed.push(`${id} ${result}`),
      repeating: (count) => this.repeating.push(count),
    })
  }

  publish(...ids: string[]): void {
    for (const id of ids) this.publisher.publish({ id, group: id.charAt(0) }, 10)
  }

  reopen(): void {
    this.publishChannel.state = "open"
    this.publisher.opened()
  }

  /** Lets the longest wait between tries pass. */
  waitOut(): void {
    jest.advanceTimersByTime(BROKER_BACKOFF.maxMs)
  }
}
