/**
 * The AMQP broker where it meets what no other broker has: a private RabbitMQ node that closes
 * connections, raises alarms, stops, freezes and refuses, servers that are none, and messages as odd
 * as a back-end can make them.
 *
 * Faults go in where they come from in the field: `rabbitmqctl`, signals, sockets, other clients.
 */

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { AMQPView } from "@cloudamqp/amqp-client/amqp-view"
import { AmqpBroker } from "../../src/amqp/broker.ts"
import type {
  BrokerState,
  Delivery,
  HeaderValue,
  MessageProperties,
  PublishChannel,
  PublishResult,
  QueueDeclaration,
} from "../../src/broker/broker.ts"
import { OutboundMessages } from "../../src/broker/outbound-messages.ts"
import { Consumer } from "../../src/commands/consumer.ts"
import { CommandIds } from "../../src/commands/forwarding.ts"
import { Outcomes } from "../../src/commands/outcomes.ts"
import { CommandRouter } from "../../src/commands/router.ts"
import { UnacknowledgedCommands } from "../../src/commands/unacknowledged-commands.ts"
import { Counters } from "../../src/counters.ts"
import { FLEET_KEYS, RANDOM_PART } from "../support/fleet-keys.ts"
import { type CallbackPublish, callbackListener } from "../support/publish-channels.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { until, within } from "../support/wait.ts"

const START_LIMIT_MS = 60_000
const LIMIT_MS = 90_000
const LOCALHOST = "127.0.0.1"

let rabbit: PrivateBroker
let backEnd: BackEnd
let mute: MuteServer
let name: (noun: string) => string
/** What a test has opened and is to be closed after it. */
const closers: (() => unknown)[] = []
const closing: unknown[] = []

beforeAll(async () => {
  mute = new MuteServer()
  rabbit = await startRabbitMq()
  backEnd = await BackEnd.connect()
}, START_LIMIT_MS)

// New queues for each test, so that none sees what another left.
beforeEach(() => {
  name = uniqueNames("amqp")
})

// Begun after each test and waited for at the end, since RabbitMQ is given time for the last
// acknowledgements.
afterEach(() => {
  for (const close of closers.splice(0)) closing.push(close())
})

afterAll(async () => {
  await Promise.all(closing)
  await mute.stop()
  await rabbit?.dispose()
}, START_LIMIT_MS)

/** A server that accepts and never answers, and its user: started first, as the time-out is long. */
class MuteServer {
  readonly broker: AmqpBroker
  readonly states: BrokerState[] = []
  accepted = 0
  readonly #server: Bun.TCPSocketListener

  constructor() {
    const open = () => {
      this.accepted += 1
    }
    this.#server = Bun.listen({ hostname: LOCALHOST, port: 0, socket: { open, data() {} } })
    this.broker = new AmqpBroker(`amqp://${LOCALHOST}:${this.#server.port}`, "mute test")
    this.broker.start(
      { exchanges: [], queues: [], subscriptions: [] },
      { stateChanged: (state) => this.states.push(state), warning: () => undefined },
    )
  }

  async stop(): Promise<void> {
    await this.broker.close()
    this.#server.stop(true)
  }
}

/** A gateway's view of its broker, with everything it was told. */
class User {
  readonly broker: AmqpBroker
  readonly publishChannel: PublishChannel<CallbackPublish>
  readonly states: BrokerState[] = []
  readonly warnings: string[] = []
  readonly deliveries: Delivery[] = []
  readonly results: PublishResult[] = []
  openings = 0
  onDelivery: (delivery: Delivery) => void = (delivery) => delivery.acknowledge()
  #published = 0
  #wasReady = false

  constructor(url: string, clientName = "amqp test") {
    this.broker = new AmqpBroker(url, clientName)
    this.publishChannel = this.broker.publishChannel(
      callbackListener(() => {
        this.openings += 1
      }),
    )
    closers.push(() => this.broker.close())
  }

  /** @param consumed each as exclusively as it is declared. */
  start(queues: QueueDeclaration[] = [], consumed: QueueDeclaration[] = [], prefetch = 1_000) {
    const deliver = (delivery: Delivery) => {
      this.deliveries.push(delivery)
      this.onDelivery(delivery)
    }
    const subscriptions = consumed.map(({ name: queue, exclusive = false }) => {
      return { queue, prefetch, deliver, exclusive }
    })
    this.broker.start(
      { exchanges: [], queues, subscriptions },
      {
        stateChanged: (state) => this.states.push(state),
        warning: (message) => this.warnings.push(message),
      },
    )
  }

  async ready(): Promise<this> {
    await until(() => this.broker.state.kind === "ready", {
      what: "the broker to be ready",
      timeoutMs: LIMIT_MS,
    })
    // RabbitMQ fails now and then when a new quorum queue is declared and consumed at a time; what
    // was told before the first success is no part of a test.
    if (!this.#wasReady) this.states.splice(0, this.states.length - 1)
    this.#wasReady = true
    return this
  }

  /** Publishes `body` under an id of its own; the result is also appended to `results`. */
  publish(queue: string, body = "", properties: MessageProperties = {}): Promise<PublishResult> {
    const id = `p${this.#published}`
    this.#published += 1
    const message = { id, exchange: "", routingKey: queue, body: Buffer.from(body) }
    const { promise, resolve } = Promise.withResolvers<PublishResult>()
    this.publishChannel.publish(
      { ...message, properties: { messageId: id, ...properties } },
      {
        id,
        settled: (result) => {
          this.results.push(result)
          resolve(result)
        },
      },
    )
    return within(promise, { what: `${id} to be settled` })
  }

  bodies(): string[] {
    return this.deliveries.map(({ body }) => Buffer.from(body).toString())
  }

  async delivered(count: number): Promise<Delivery[]> {
    await until(() => this.deliveries.length >= count, { what: `${count} deliveries` })
    return this.deliveries
  }
}

/** Somebody else's client on the same broker: declares, publishes and looks, confirmed. */
class BackEnd {
  readonly #client: AMQPClient

  private constructor(client: AMQPClient) {
    this.#client = client
  }

  static async connect(url = rabbit.url): Promise<BackEnd> {
    const client = new AMQPClient(url)
    client.onerror = () => undefined
    await client.connect()
    return new BackEnd(client)
  }

  /** A channel for one conversation, since an error of the broker closes it. */
  async #on<T>(talk: (channel: Awaited<ReturnType<AMQPClient["channel"]>>) => Promise<T>) {
    const channel = await this.#client.channel()
    channel.onerror = () => undefined
    const result = await talk(channel)
    await channel.close()
    return result
  }

  declare({ name, durable, arguments: args }: QueueDeclaration): Promise<unknown> {
    return this.#on((channel) => channel.queueDeclare(name, { durable, autoDelete: false }, args))
  }

  delete(queue: QueueDeclaration): Promise<unknown> {
    return this.#on((channel) => channel.queueDelete(queue.name))
  }

  publish(queue: string, body: string, properties: MessageProperties = {}): Promise<unknown> {
    return this.#on(async (channel) => {
      await channel.confirmSelect()
      return channel.basicPublish("", queue, body, properties as never)
    })
  }

  /** Publishes an empty message whose headers table is these very bytes. */
  publishEncoded(queue: string, table: Uint8Array): Promise<unknown> {
    return this.#on(async (channel) => {
      await this.#client.send(publishFrame(channel.id, queue))
      await this.#client.send(headerFrame(channel.id, table))
      // Answered after what came before it on the channel.
      return channel.queueDeclare(queue, { passive: true })
    })
  }

  /** Takes one message out of a queue, or null. */
  get(queue: string) {
    return this.#on((channel) => channel.basicGet(queue, { noAck: true }))
  }

  async close(): Promise<void> {
    await this.#client.close()
  }
}

const FRAME = { method: 1, header: 2, end: 206 } as const
const BASIC = { class: 60, publish: 40 } as const

function frame(type: number, channel: number, write: (view: AMQPView) => number): Uint8Array {
  const payload = new AMQPView(new ArrayBuffer(200_000))
  const length = write(payload)
  const whole = new DataView(new ArrayBuffer(length + 8))
  whole.setUint8(0, type)
  whole.setUint16(1, channel)
  whole.setUint32(3, length)
  new Uint8Array(whole.buffer).set(new Uint8Array(payload.buffer, 0, length), 7)
  whole.setUint8(length + 7, FRAME.end)
  return new Uint8Array(whole.buffer)
}

function publishFrame(channel: number, queue: string): Uint8Array {
  return frame(FRAME.method, channel, (view) => {
    view.setUint16(0, BASIC.class)
    view.setUint16(2, BASIC.publish)
    view.setUint16(4, 0)
    let at = 6
    at += view.setShortString(at, "")
    at += view.setShortString(at, queue)
    view.setUint8(at, 0)
    return at + 1
  })
}

function headerFrame(channel: number, table: Uint8Array): Uint8Array {
  const headersFlag = 0x2000
  return frame(FRAME.header, channel, (view) => {
    view.setUint16(0, BASIC.class)
    view.setUint16(2, 0)
    view.setUint64(4, 0)
    view.setUint16(12, headersFlag)
    view.setUint32(14, table.length)
    new Uint8Array(view.buffer).set(table, 18)
    return 18 + table.length
  })
}

function queue(noun: string, args: Record<string, string | number> = {}): QueueDeclaration {
  return { name: name(noun), durable: true, arguments: { "x-queue-type": "quorum", ...args } }
}

const is = (state: BrokerState) => state.kind

async function depthOf(queue: string, depth: number): Promise<void> {
  await until(async () => (await rabbit.queueDepth(queue)) === depth, {
    what: `${depth} messages in ${queue}`,
  })
}

describe("a connection that the broker closes", () => {
  test(
    "makes the acknowledgement of an earlier delivery do nothing, whatever its tag is now",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.onDelivery = () => undefined
      user.start([inbox], [inbox])
      await user.ready()
      for (const body of ["a", "b", "c"]) await user.publish(inbox.name, body)
      const old = [...(await user.delivered(3))]

      await rabbit.closeAllConnections("a test")
      const again = (await user.delivered(6)).slice(3)
      expect(again.map(({ redelivered }) => redelivered)).toEqual([true, true, true])
      for (const delivery of old) delivery.acknowledge()
      await user.ready()
      expect(await user.publish(inbox.name, "d")).toBe("confirmed")
      await user.delivered(7)
      await user.broker.close()
      backEnd = await BackEnd.connect()
      await until(async () => (await rabbit.queueDepth(inbox.name)) === 4, {
        what: "all four to be in the queue still",
      })
    },
    LIMIT_MS,
  )

  test(
    "does not end a pause: nothing is delivered until it is resumed",
    async () => {
      const inbox = queue("inbox")
      const proxy = startProxy()
      const user = new User(proxy.url)
      user.onDelivery = () => undefined
      user.start([inbox], [inbox])
      await user.ready()
      user.broker.pauseConsuming()
      proxy.cut()
      await until(() => user.states.some(({ kind }) => kind === "away"), { what: "the loss" })
      await until(() => proxy.connections() >= 4, { what: "two new connections" })
      await user.ready()
      for (const body of ["a", "b"]) await backEnd.publish(inbox.name, body)
      // Two round trips are longer than a delivery takes.
      await rabbit.queueDepth(inbox.name)
      await rabbit.queueDepth(inbox.name)
      expect(user.bodies()).toEqual([])
      user.broker.resumeConsuming()
      await user.delivered(2)
      expect(user.bodies()).toEqual(["a", "b"])
    },
    LIMIT_MS,
  )
})

describe("a connection that only the gateway knows to be lost", () => {
  test(
    "leaves what is exclusive to it locked, and holds up no other subscription",
    async () => {
      const [shared, own] = [queue("shared"), queue("own")]
      const exclusive = { name: name("replies"), durable: false, exclusive: true, arguments: {} }
      const proxy = startProxy()
      const user = new User(proxy.url)
      user.start([shared, own, exclusive], [shared, { ...own, exclusive: true }, exclusive])
      await user.ready()
      // The broker notices by its heartbeats alone, which takes it half a minute.
      proxy.cut({ halfOpen: true })
      await until(() => user.states.some(({ kind }) => kind === "away"), { what: "the loss" })
      await until(() => user.warnings.length > 0, { what: "the queue to be found locked" })
      // One of them goes to the connection that the broker still believes in.
      await backEnd.publish(shared.name, "after")
      await backEnd.publish(shared.name, "after")
      await until(() => user.bodies().includes("after"), {
        what: "a delivery of a queue that is not exclusive",
        // Less than the broker needs to detect the loss, with room for a busy machine.
        timeoutMs: 15_000,
      })
    },
    LIMIT_MS,
  )
})

describe("a queue that somebody else consumes exclusively", () => {
  test(
    "is tried again until it is free, and no try leaves a channel behind",
    async () => {
      const own = { ...queue("own"), exclusive: true }
      await backEnd.declare(own)
      const [first, second] = [
        new User(rabbit.url, name("first")),
        new User(rabbit.url, name("second")),
      ]
      first.start([], [own])
      await first.ready()
      second.start([], [own])
      await until(() => second.warnings.length > 0, { what: "the second to be told" })
      expect(second.broker.state.kind).toBe("away")
      expect(second.warnings).toEqual([expect.stringContaining(own.name)])
      await first.broker.close()
      await second.ready()
      await backEnd.publish(own.name, "free")
      await second.delivered(1)
      // One for the publish channel, one for the subscription.
      await until(async () => (await channelsOf(name("second"))) === 2, {
        what: "two channels and no more",
        timeoutMs: LIMIT_MS,
      })
    },
    LIMIT_MS,
  )
})

/** How many channels RabbitMQ counts on the connections of one client. */
async function channelsOf(clientName: string): Promise<number> {
  const listed = await rabbit.ctl("list_connections", "channels", "client_properties")
  const ours = listed.split("\n").filter((line) => line.includes(clientName))
  return ours.reduce((sum, line) => sum + Number.parseInt(line, 10), 0)
}

describe("reset", () => {
  test(
    "cuts what is in flight, opens the publish channel again, and disturbs no subscription",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.onDelivery = () => undefined
      user.start([inbox], [inbox])
      await user.ready()
      await user.publish(inbox.name, "before")
      await user.delivered(1)
      const results = Array.from({ length: 100 }, () => user.publish(inbox.name, "x"))
      user.broker.reset("the broker is mute")
      expect(user.publishChannel.state).toBe("closed")
      expect(user.broker.state).toEqual({ kind: "away", reason: "the broker is mute" })
      expect(new Set(await Promise.all(results))).toEqual(new Set<PublishResult>(["cut"]))
      await user.ready()
      expect(user.openings).toBe(2)
      expect(await user.publish(inbox.name, "after")).toBe("confirmed")
      await until(() => user.bodies().includes("after"), { what: "a delivery" })
      expect(user.deliveries.some(({ redelivered }) => redelivered)).toBe(false)
    },
    LIMIT_MS,
  )
})

describe("a queue that exists with other arguments", () => {
  test(
    "is used as it is, with one warning, and the others work too",
    async () => {
      const [other, plain, third] = [queue("other"), queue("plain"), queue("third")]
      await backEnd.declare({ ...other, arguments: { "x-queue-type": "classic" } })
      await backEnd.declare({ ...third, arguments: { "x-message-ttl": 600_000 } })
      const user = new User(rabbit.url)
      user.start([other, plain, third], [other, plain, third])
      await user.ready()
      for (const { name } of [other, plain, third]) {
        expect(await user.publish(name, name)).toBe("confirmed")
      }
      await user.delivered(3)
      expect(user.bodies().sort()).toEqual([other.name, plain.name, third.name].sort())
      const told = (queue: QueueDeclaration) =>
        user.warnings.filter((warning) => warning.includes(queue.name)).length
      expect([told(other), told(plain), told(third)]).toEqual([1, 0, 1])
    },
    LIMIT_MS,
  )

  test(
    "is warned of once, however often the queues are declared",
    async () => {
      const [other, late] = [queue("other"), queue("late")]
      await backEnd.declare({ ...other, arguments: { "x-queue-type": "classic" } })
      const user = new User(rabbit.url)
      user.start([other, late])
      await user.ready()
      expect(user.warnings.length).toBe(1)
      await backEnd.delete(late)
      user.broker.redeclare()
      // Declared last, so the declaration is complete when it is there.
      await until(async () => (await rabbit.queueDepth(late.name)) === 0, { what: "the queue" })
      user.broker.reset("a test")
      await user.ready()
      expect(user.warnings).toEqual(user.warnings.slice(0, 1))
    },
    LIMIT_MS,
  )
})

describe("a queue that is deleted", () => {
  test(
    "while it is consumed comes back with its consumer",
    async () => {
      const [inbox, untouched] = [queue("inbox"), queue("untouched")]
      const user = new User(rabbit.url)
      user.start([inbox, untouched], [inbox, untouched])
      await user.ready()
      await backEnd.delete(inbox)
      await until(async () => (await user.publish(inbox.name, "again")) === "confirmed", {
        what: "the queue to be back",
      })
      expect(await user.publish(untouched.name, "untouched")).toBe("confirmed")
      await until(() => user.bodies().includes("again") && user.bodies().includes("untouched"), {
        what: "both consumers",
      })
    },
    LIMIT_MS,
  )

  test(
    "while others are still being subscribed to comes back with its consumer too",
    async () => {
      const queues = Array.from({ length: 30 }, (_, n) => queue(`inbox.${n}`))
      for (const each of queues) await backEnd.declare(each)
      const [first, ...others] = queues as [QueueDeclaration, ...QueueDeclaration[]]
      await backEnd.publish(first.name, "the first")
      const user = new User(rabbit.url)
      const deleted = Promise.withResolvers<unknown>()
      user.onDelivery = (delivery) => {
        delivery.acknowledge()
        if (user.deliveries.length === 1) deleted.resolve(backEnd.delete(first))
      }
      user.start(queues, [first, ...others])
      await deleted.promise
      await user.ready()
      await until(
        async () => {
          const result = await user.publish(first.name, "again")
          if (result === "returned") user.broker.redeclare()
          return result === "confirmed"
        },
        { what: "the queue to be back" },
      )
      await until(() => user.bodies().includes("again"), { what: "its consumer" })
    },
    LIMIT_MS,
  )
})

describe("a memory alarm", () => {
  test(
    "blocks the publish channel and not the deliveries, and lets both go on when it is over",
    async () => {
      const [outbox, inbox] = [queue("outbox"), queue("inbox")]
      const user = new User(rabbit.url)
      user.onDelivery = () => undefined
      user.start([outbox, inbox], [inbox], 1)
      await user.ready()
      for (const body of ["a", "b", "c"]) await user.publish(inbox.name, body)
      const [first] = await user.delivered(1)
      const results: Promise<PublishResult>[] = []
      await rabbit.ctl("set_vm_memory_high_watermark", "0")
      try {
        // The broker blocks a connection when it publishes, and not before.
        await until(
          () => {
            if (user.publishChannel.state === "open") results.push(user.publish(outbox.name))
            return user.publishChannel.state === "blocked"
          },
          { what: "the publish channel to be blocked" },
        )
        expect(user.broker.state.kind).toBe("blocked")
        expect(user.states.map(is)).toEqual(["ready", "blocked"])
        first?.acknowledge()
        ;(await user.delivered(2))[1]?.acknowledge()
        await user.delivered(3)
        expect(user.bodies()).toEqual(["a", "b", "c"])
        expect(user.openings).toBe(1)
      } finally {
        await rabbit.ctl("set_vm_memory_high_watermark", "0.4")
      }
      await user.ready()
      expect(user.states.map(is)).toEqual(["ready", "blocked", "ready"])
      expect([user.publishChannel.state, user.openings]).toEqual(["open", 2])
      expect(new Set(await Promise.all(results))).toEqual(new Set<PublishResult>(["confirmed"]))
      expect(await user.publish(outbox.name)).toBe("confirmed")
      await depthOf(outbox.name, results.length + 1)
    },
    LIMIT_MS,
  )

  test(
    "that is told while the publish channels are being opened leaves them blocked",
    async () => {
      const blocked = frame(FRAME.method, 0, (view) => {
        const [connectionClass, blockedMethod] = [10, 60]
        view.setUint16(0, connectionClass)
        view.setUint16(2, blockedMethod)
        return 4 + view.setShortString(4, "low on memory")
      })
      const user = new User(startProxy(blocked).url)
      user.start([queue("any")])
      await until(() => user.openings > 0 || user.broker.state.kind === "blocked", {
        what: "the connection",
      })
      await until(() => user.broker.state.kind === "blocked", { what: "the state" })
      expect(user.publishChannel.state).toBe("blocked")
    },
    LIMIT_MS,
  )
})

/**
 * A server that passes everything on between its clients and RabbitMQ.
 *
 * @param addition a frame to add to what RabbitMQ says, right after connection.open-ok.
 */
function startProxy(addition: Uint8Array = new Uint8Array(0)) {
  const openOk = Buffer.from([FRAME.method, 0, 0, 0, 0, 0, 5, 0, 10, 0, 41, 0, FRAME.end])
  const servers = new Map<Bun.Socket, Promise<Bun.Socket>>()
  const keptOpen = new Set<Bun.Socket>()
  let connections = 0
  const passOn = (client: Bun.Socket, chunk: Buffer) => {
    const at = chunk.indexOf(openOk)
    if (at === -1) return void client.write(chunk)
    const rest = at + openOk.length
    client.write(Buffer.concat([chunk.subarray(0, rest), addition, chunk.subarray(rest)]))
  }
  const listener = Bun.listen({
    hostname: LOCALHOST,
    port: 0,
    socket: {
      open(client) {
        connections += 1
        const socket = {
          data: (_server: Bun.Socket, chunk: Buffer) => passOn(client, chunk),
          close: () => void client.end(),
        }
        servers.set(client, Bun.connect({ hostname: LOCALHOST, port: rabbit.port, socket }))
      },
      data: async (client, chunk) => void (await servers.get(client))?.write(chunk),
      close: async (client) => {
        const server = await servers.get(client)
        servers.delete(client)
        if (!keptOpen.has(client)) server?.end()
      },
    },
  })
  closers.push(() => listener.stop(true))
  return {
    url: `amqp://guest:guest@${LOCALHOST}:${listener.port}`,
    /** How many have been accepted so far. */
    connections: () => connections,
    /** Resets the present connections; half open, RabbitMQ's side of them stays. */
    cut: ({ halfOpen = false } = {}) => {
      for (const client of servers.keys()) {
        if (halfOpen) keptOpen.add(client)
        client.terminate()
      }
    },
  }
}

describe("a broker that is not there", () => {
  test(
    "because it is frozen while it is connected to is ready once it answers",
    async () => {
      const user = new User(rabbit.url)
      rabbit.pause()
      try {
        user.start([queue("any")])
        await connectionsTo(rabbit.port)
        expect(user.broker.state.kind).toBe("away")
      } finally {
        rabbit.resume()
      }
      await user.ready()
    },
    LIMIT_MS,
  )

  test(
    "because it froze lets itself be closed, and settles what was in flight",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.start([inbox])
      await user.ready()
      rabbit.pause()
      try {
        const results = Array.from({ length: 20 }, () => user.publish(inbox.name))
        await within(user.broker.close(), { what: "close" })
        expect(user.publishChannel.state).toBe("closed")
        const settled = Promise.all(results)
        const limited = within(settled, { what: "the publishes to be settled" })
        expect(new Set(await limited)).toEqual(new Set<PublishResult>(["cut"]))
      } finally {
        rabbit.resume()
      }
    },
    LIMIT_MS,
  )

  test(
    "because the password is wrong stays away, and no reason repeats the password",
    async () => {
      const password = "s3cret-p4ssword"
      const user = new User(`amqp://guest:${password}@${LOCALHOST}:${rabbit.port}`)
      user.start([queue("any")])
      await until(() => user.states.length >= 4, { what: "four failed tries" })
      expect(new Set(user.states.map(is))).toEqual(new Set<BrokerState["kind"]>(["away"]))
      expect(JSON.stringify(user.states)).toContain("ACCESS_REFUSED")
      expect(Bun.inspect([user.states, user.warnings], { depth: 20 })).not.toContain(password)
      expect(user.openings).toBe(0)
    },
    LIMIT_MS,
  )

  test(
    "because nobody listens stays away, and no reason repeats the password",
    async () => {
      const unused = Bun.listen({ hostname: LOCALHOST, port: 0, socket: { data() {} } })
      unused.stop(true)
      const user = new User(`amqp://guest:s3cret@${LOCALHOST}:${unused.port}`)
      user.start([queue("any")])
      await until(() => user.states.length >= 4, { what: "four failed tries" })
      expect(new Set(user.states.map(is))).toEqual(new Set<BrokerState["kind"]>(["away"]))
      expect(Bun.inspect(user.states)).not.toContain("s3cret")
      await within(user.broker.close(), { what: "close" })
      expect(user.states.at(-1)?.kind).toBe("closed")
    },
    LIMIT_MS,
  )

  test(
    "because its URL cannot be decoded stays away and harms nothing",
    async () => {
      const apart = startApart(`amqp://guest:100%@${LOCALHOST}:${rabbit.port}`)
      await apart.told(1)
      expect(apart.states.map(is)[0]).toBe("away")
      expect(apart.output()).not.toContain("100%")
    },
    LIMIT_MS,
  )
})

/**
 * A broker in a process of its own, told by its standard output: for what may end a process or stop
 * its event loop.
 */
function startApart(url: string) {
  const program = `
    import { AmqpBroker } from ${JSON.stringify(import.meta.resolve("../../src/amqp/broker.ts"))}
    setInterval(() => undefined, 60_000)
    const tell = (state) => console.log(JSON.stringify(state))
    const broker = new AmqpBroker(process.env.URL, "test")
    broker.publishChannel({ opened: () => tell({ kind: "open" }) })
    const setup = { exchanges: [], queues: [], subscriptions: [] }
    broker.start(setup, { stateChanged: tell, warning: () => undefined })
  `
  const child = Bun.spawn([process.execPath, "-e", program], {
    env: { URL: url },
    stdio: ["ignore", "pipe", "pipe"],
  })
  closers.push(() => child.kill("SIGKILL"))
  let output = ""
  const states: BrokerState[] = []
  const decoder = new TextDecoder()
  const collect = async (stream: ReadableStream<Uint8Array>) => {
    for await (const chunk of stream) output += decoder.decode(chunk)
  }
  const collected = Promise.all([collect(child.stdout), collect(child.stderr)])
  const refresh = () => {
    const lines = output.split("\n").slice(0, -1)
    const told = lines.filter((line) => line.startsWith("{"))
    states.splice(0, states.length, ...told.map((line) => JSON.parse(line)))
    return states.length
  }
  const ended = async () => {
    const status = await child.exited
    await collected
    throw new Error(`the process ended with ${child.signalCode ?? status}\n${output}`)
  }
  return {
    states,
    output: () => output,
    /** Resolves when `count` states have been told; rejects when the process ends before that. */
    told: (count: number) => {
      const what = `${count} states, in a process of its own`
      return Promise.race([until(() => refresh() >= count, { what }), ended()])
    },
  }
}

/** Resolves when a client has connected to a port of this machine. */
async function connectionsTo(port: number): Promise<void> {
  const established = "01"
  const remote = `:${port.toString(16).toUpperCase().padStart(4, "0")} ${established} `
  await until(async () => (await Bun.file("/proc/net/tcp").text()).includes(remote), {
    what: `a connection to ${port}`,
  })
}

/** What a server that is no AMQP broker may say, or one that has gone mad. */
const connectionStart = frame(FRAME.method, 0, (view) => {
  view.setUint16(0, 10)
  view.setUint16(2, 10)
  return 4
})
const connectionClose = frame(FRAME.method, 0, (view) => {
  view.setUint16(0, 10)
  view.setUint16(2, 50)
  view.setUint16(4, 320)
  const at = 6 + view.setShortString(6, "go away")
  view.setUint32(at, 0)
  return at + 4
})
const basicCancel = frame(FRAME.method, 0, (view) => {
  view.setUint16(0, 60)
  view.setUint16(2, 30)
  const at = 4 + view.setShortString(4, "nobody")
  view.setUint8(at, 0)
  return at + 1
})
const NEGATIVE_FRAME = new Uint8Array([FRAME.method, 0, 0, 255, 255, 255, 248, FRAME.end])
const MAD_SERVERS: [string, Uint8Array | "reset" | "close"][] = [
  ["closes at once", "close"],
  ["resets at once", "reset"],
  ["speaks HTTP", Buffer.from("HTTP/1.1 400 Bad Request\r\n\r\n")],
  ["speaks another AMQP", Buffer.from("AMQP\0\0\x09\x01")],
  ["speaks TLS", Buffer.from([21, 3, 3, 0, 2, 2, 40])],
  ["sends ones", new Uint8Array(4_096).fill(255)],
  ["sends zeroes", new Uint8Array(4_096)],
  ["announces a frame of less than nothing", NEGATIVE_FRAME],
  ["goes mad after its first frame", Buffer.concat([connectionStart, NEGATIVE_FRAME])],
  ["sends more than any frame holds", new Uint8Array(300_000).fill(65)],
  ["closes the connection before it was open", connectionClose],
  ["goes on after it closed", Buffer.concat([connectionClose, connectionStart, basicCancel])],
  ["starts twice and closes", Buffer.concat([connectionStart, connectionStart, connectionClose])],
]

describe("a server that is no broker", () => {
  test.each(MAD_SERVERS)(
    "and %s is tried again and harms nothing",
    async (_, behaviour) => {
      let accepted = 0
      const server = Bun.listen({
        hostname: LOCALHOST,
        port: 0,
        socket: {
          open(socket) {
            accepted += 1
            if (behaviour === "reset") socket.terminate()
            else if (behaviour === "close") socket.end()
            else socket.end(behaviour)
          },
          data() {},
        },
      })
      closers.push(() => server.stop(true))
      const apart = startApart(`amqp://guest:s3cret@${LOCALHOST}:${server.port}`)
      // Two connections are tried side by side.
      await until(() => accepted >= 4, { what: "both to be tried again" })
      await apart.told(3)
      expect(new Set(apart.states.map(is))).toEqual(new Set<BrokerState["kind"]>(["away"]))
      expect(apart.output()).not.toContain("s3cret")
    },
    LIMIT_MS,
  )

  test(
    "and says nothing is given up after the connect time-out",
    async () => {
      const limit = { timeoutMs: 15_000 }
      await until(() => mute.states.length >= 2, { what: "both tries to fail", ...limit })
      await until(() => mute.accepted >= 4, { what: "both to be tried again" })
      expect(mute.broker.state.kind).toBe("away")
      expect(new Set(mute.states.map(is))).toEqual(new Set<BrokerState["kind"]>(["away"]))
    },
    LIMIT_MS,
  )
})

describe("a message as odd as a back-end can make it", () => {
  /** One field of every type that RabbitMQ passes on: its tag, its bytes, what it means. */
  const FIELDS: [string, number[], HeaderValue][] = [
    ["t", [1], true],
    ["b", [255], -1],
    ["B", [255], 255],
    ["s", [255, 254], -2],
    ["u", [255, 254], 65_534],
    ["I", [255, 255, 255, 254], -2],
    ["i", [255, 255, 255, 254], 4_294_967_294],
    ["l", [0, 0, 1, 0, 0, 0, 0, 0], 2 ** 40],
    ["L", [0, 0, 1, 0, 0, 0, 0, 0], 2 ** 40],
    ["f", [0x3f, 0xc0, 0, 0], 1.5],
    ["d", [0x3f, 0xf8, 0, 0, 0, 0, 0, 0], 1.5],
    ["D", [2, 0, 0, 0, 150], 1.5],
    ["S", [0, 0, 0, 2, 0xc3, 0xa9], "é"],
    ["x", [0, 0, 0, 2, 0, 255], new Uint8Array([0, 255])],
    ["T", [0, 0, 0, 0, 0x60, 0, 0, 0], new Date(0x60000000 * 1000)],
    ["V", [], null],
    ["A", [0, 0, 0, 4, 0x74, 1, 0x74, 0], [true, false]],
    ["F", [0, 0, 0, 4, 1, 0x61, 0x74, 1], { a: true }],
  ]

  test.each(FIELDS)(
    "with a header of type %s is delivered once, and the connection lives",
    async (tag, bytes, meaning) => {
      // Classic: it hands out a message as it came, every time. A quorum queue writes one that it
      // hands out again with other types.
      const inbox = queue("inbox", { "x-queue-type": "classic" })
      const user = new User(rabbit.url)
      user.start([inbox], [inbox])
      await user.ready()
      const key = [1, "x".charCodeAt(0)]
      const table = new Uint8Array([...key, tag.charCodeAt(0), ...bytes])
      await backEnd.publishEncoded(inbox.name, table)
      await backEnd.publish(inbox.name, "after")
      const deliveries = await user.delivered(2)
      const value = deliveries[0]?.properties.headers?.["x"]
      expect(value instanceof Uint8Array ? new Uint8Array(value) : value).toEqual(meaning)
      expect(user.bodies()).toEqual(["", "after"])
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  test(
    "with everything nested and 100 KB of headers is delivered once",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.start([inbox], [inbox])
      await user.ready()
      const headers = {
        nested: { list: [1, "two", [true, { deep: null }]], bytes: new Uint8Array([1, 2]) },
        when: new Date(1_700_000_000_000),
        half: 0.5,
        huge: "x".repeat(100_000),
      }
      const wide = await BackEnd.connect(`${rabbit.url}?frameMax=131072`)
      closers.push(() => wide.close())
      await wide.publish(inbox.name, "odd", { headers })
      await wide.publish(inbox.name, "after")
      const deliveries = await user.delivered(2)
      expect(user.bodies()).toEqual(["odd", "after"])
      expect(deliveries[0]?.properties.headers?.["huge"]).toBe(headers.huge)
      expect(deliveries[0]?.properties.headers?.["half"]).toBe(0.5)
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  test(
    "with all the headers that one frame holds is delivered, and as a dead letter too",
    async () => {
      const dead = queue("dead")
      const mortal = queue("mortal", {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead.name,
      })
      const user = new User(rabbit.url)
      user.start([dead, mortal], [dead])
      await user.ready()
      const wide = await BackEnd.connect(`${rabbit.url}?frameMax=131072`)
      closers.push(() => wide.close())
      const headers = { huge: "x".repeat(130_900) }
      await wide.publish(mortal.name, "huge", { headers, expiration: "1" })
      await wide.publish(dead.name, "after")
      await until(() => user.bodies().length >= 2, { what: "both" })
      expect(user.bodies().sort()).toEqual(["after", "huge"])
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  test(
    "with headers of bytes keeps them as they were while others come",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.onDelivery = () => undefined
      await backEnd.declare(inbox)
      const wide = await BackEnd.connect(`${rabbit.url}?frameMax=131072`)
      closers.push(() => wide.close())
      const filled = (n: number) => new Uint8Array(20_000).fill(n)
      for (let n = 0; n < 40; n += 1) {
        await wide.publish(inbox.name, `${n}`, { headers: { bytes: filled(n) } })
      }
      // Consumed only now, so that many come in one read.
      user.start([inbox], [inbox])
      const deliveries = await user.delivered(40)
      const spoilt = deliveries.filter(({ properties }, n) => {
        return Buffer.compare(properties.headers?.["bytes"] as Uint8Array, filled(n)) !== 0
      })
      expect(spoilt.length).toBe(0)
    },
    LIMIT_MS,
  )
})

describe("a publish", () => {
  test(
    "that its queue refuses ends nacked, and what was confirmed is in the queue",
    async () => {
      const most = 5
      const full = {
        ...queue("full"),
        arguments: {
          "x-queue-type": "classic",
          "x-max-length": most,
          "x-overflow": "reject-publish",
        },
      }
      const user = new User(rabbit.url)
      user.start([full])
      await user.ready()
      const results = await Promise.all(
        Array.from({ length: 50 }, () => user.publish(full.name, "x")),
      )
      expect(new Set(results)).toEqual(new Set<PublishResult>(["confirmed", "nacked"]))
      const confirmed = results.filter((result) => result === "confirmed").length
      await depthOf(full.name, confirmed)
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  const MANY = Array.from({ length: 900 }, (_, n) => n)
  /** Each more than RabbitMQ or a frame of the publishing connection takes. */
  const TOO_LARGE: [string, MessageProperties][] = [
    ["9 KB of headers", { headers: { huge: "x".repeat(9_000) } }],
    ["many headers", { headers: Object.fromEntries(MANY.map((n) => [`${n}`, "0"])) }],
    ["200 KB of headers", { headers: { huge: "x".repeat(200_000) } }],
    ["headers of bytes", { headers: { huge: new Uint8Array(10_000) } }],
    ["the name of a header", { headers: { ["x".repeat(256)]: "" } }],
    ["a long message_id", { messageId: "x".repeat(256) }],
    ["a long correlation_id", { correlationId: "x".repeat(256) }],
    ["a time beyond time", { timestamp: new Date(Number.NaN) }],
  ]

  test.each(TOO_LARGE)(
    "with %s ends unencodable, and the publish channel works on",
    async (_, properties) => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.start([inbox], [inbox])
      await user.ready()
      const results = [
        user.publish(inbox.name, "before"),
        user.publish(inbox.name, "impossible", properties),
        user.publish(inbox.name, "after"),
      ]
      expect(await Promise.all(results)).toEqual(["confirmed", "unencodable", "confirmed"])
      await user.delivered(2)
      expect(user.bodies()).toEqual(["before", "after"])
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  test(
    "with a large body goes out in pieces: the next one waits for it, and both arrive whole",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.start([inbox], [inbox])
      await user.ready()
      const large = "0123456789abcdef".repeat(1_000_000)
      const confirmed = user.publish(inbox.name, large)
      expect(user.publishChannel.state).toBe("blocked")
      const { openings } = user
      let turns = 0
      while (user.openings === openings) {
        turns += 1
        await new Promise((resolve) => setImmediate(resolve))
      }
      expect(turns).toBeGreaterThan(15)
      expect(user.publishChannel.state).toBe("open")
      expect(await user.publish(inbox.name, "after")).toBe("confirmed")
      expect(await confirmed).toBe("confirmed")
      await until(() => user.deliveries.length === 2, { what: "both" })
      const bodies = user.deliveries.map(({ body }) => Buffer.from(body).toString())
      expect(bodies.map((body) => Bun.hash(body))).toEqual([large, "after"].map((x) => Bun.hash(x)))
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  test(
    "with a large body is cut with its connection, and the channel takes others on the next one",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.start([inbox])
      await user.ready()
      const cut = user.publish(inbox.name, "x".repeat(16_000_000))
      expect(user.publishChannel.state).toBe("blocked")
      user.broker.reset("the test")
      expect(await cut).toBe("cut")
      await until(() => user.publishChannel.state === "open", { what: "the channel to open again" })
      expect(await user.publish(inbox.name, "after")).toBe("confirmed")
      expect(await rabbit.queueDepth(inbox.name)).toBe(1)
    },
    LIMIT_MS,
  )

  test(
    "with too many headers ends unencodable also after one with a large body",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.start([inbox], [inbox])
      await user.ready()
      expect(await user.publish(inbox.name, "x".repeat(100_000))).toBe("confirmed")
      const headers = { huge: "x".repeat(20_000) }
      expect(await user.publish(inbox.name, "impossible", { headers })).toBe("unencodable")
      expect(await user.publish(inbox.name, "after")).toBe("confirmed")
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )
})

describe("a command that cannot be written, whatever its properties,", () => {
  /** The gateway's own way from `to_device` to the undelivered queue, without a device. */
  async function gateway() {
    const [toDevice, undelivered] = [queue("to_device"), queue("undelivered")]
    const user = new User(rabbit.url)
    const counters = new Counters()
    const outboundMessages = new OutboundMessages(user.broker, counters, Date.now)
    const unacknowledged = new UnacknowledgedCommands(user.broker, 1_000_000, counters)
    const outcomes = new Outcomes(
      outboundMessages,
      unacknowledged,
      counters,
      undelivered.name,
      Date.now,
    )
    const router = new CommandRouter(outboundMessages, {
      workerId: "gw.0",
      nowMs: Date.now,
      counters,
      find: () => undefined,
      locate: (_id, _trusting, found) => found({ kind: "nowhere", detail: "nobody holds it" }),
      commandIds: new CommandIds({ worker: "gw.0", incarnation: "mb2k3f9zq7" }, RANDOM_PART),
      commandKey: FLEET_KEYS.commandKey,
    })
    const consumer = new Consumer(router, outcomes, unacknowledged, {
      workerId: "gw.0",
      maxLineBytes: 65_536,
      nowMs: Date.now,
      counters,
      mayServe: () => false,
      keys: FLEET_KEYS,
      isGatewayQueue: () => false,
      fault: (error) => {
        throw error
      },
    })
    user.onDelivery = (delivery) => consumer.deliver(delivery, 1_000)
    user.start([toDevice, undelivered], [toDevice])
    await user.ready()
    closers.push(() => outboundMessages.stop())
    return {
      user,
      unacknowledged,
      counters,
      toDevice: toDevice.name,
      undelivered: undelivered.name,
    }
  }

  /** Waits until the one command that was published is settled, and returns its copies. */
  async function copiesOf(subject: Awaited<ReturnType<typeof gateway>>) {
    const { user, unacknowledged, undelivered } = subject
    await user.delivered(1)
    await until(() => unacknowledged.count === 0, {
      what: "the command to be acknowledged",
    })
    const copies = []
    while (copies.length < 10) {
      const copy = await backEnd.get(undelivered)
      if (copy === null) break
      copies.push(copy)
    }
    return copies
  }

  const headers = { device_id: "nobody" }

  test(
    "is kept with all its headers, nested ones included",
    async () => {
      const made = await gateway()
      const odd = {
        list: [3_000_000_000, 2 ** 40, -5, "text"],
        table: { count: 4_000_000_000, bytes: new Uint8Array([1, 2, 3]), deep: { yes: true } },
        large: 3_000_000_000,
        when: new Date(1_700_000_000_000),
        nothing: null,
      }
      // The client used here would write these wrongly too, were they numbers.
      const encoded = {
        ...odd,
        list: [3_000_000_000n, 2n ** 40n, -5n, "text"],
        table: { ...odd.table, count: 4_000_000_000n },
        large: 3_000_000_000n,
      }
      await backEnd.publish(made.toDevice, "odd", { headers: { ...headers, ...encoded } })
      const copies = await copiesOf(made)
      expect(copies.length).toBe(1)
      const kept = copies[0]?.properties.headers ?? {}
      expect(kept["owsla-outcome"]).toBe("offline")
      expect({
        list: kept["list"],
        table: kept["table"],
        large: kept["large"],
        when: kept["when"],
        nothing: kept["nothing"],
      }).toEqual(odd)
    },
    LIMIT_MS,
  )

  test(
    "is kept when another user of the broker sent it and signed it with user_id",
    async () => {
      await rabbit.ctl("add_user", "backend", "backend-password")
      await rabbit.ctl("set_permissions", "backend", ".*", ".*", ".*")
      const made = await gateway()
      const url = `amqp://backend:backend-password@${LOCALHOST}:${rabbit.port}`
      const other = await BackEnd.connect(url)
      closers.push(() => other.close())
      await other.publish(made.toDevice, "signed", { headers, userId: "backend" })
      const copies = await copiesOf(made)
      expect(copies.map((copy) => copy.bodyString())).toEqual(["signed"])
      expect(made.user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  test(
    "is kept once, and goes nowhere else, when it came with a CC header",
    async () => {
      const made = await gateway()
      const elsewhere = queue("elsewhere")
      await backEnd.declare(elsewhere)
      const copied = { ...headers, CC: [made.toDevice, elsewhere.name] }
      await backEnd.publish(made.toDevice, "copied", { headers: copied })
      const copies = await copiesOf(made)
      expect(copies.length).toBe(1)
      expect(made.counters.commandsReceived).toBe(1)
      // The one that its sender asked for.
      await depthOf(elsewhere.name, 1)
    },
    LIMIT_MS,
  )

  test(
    "is kept when its timestamp is in nanoseconds",
    async () => {
      const made = await gateway()
      // Encoded by hand, since a Date cannot hold it: the client here reads it as an invalid one.
      const timestamp = { valueOf: () => 1.7e18 * 1000 } as Date
      await backEnd.publish(made.toDevice, "in nanoseconds", { headers, timestamp })
      const copies = await copiesOf(made)
      expect(copies.map((copy) => copy.bodyString())).toEqual(["in nanoseconds"])
    },
    LIMIT_MS,
  )

  test(
    "is kept when its connection_id is larger than a frame",
    async () => {
      const made = await gateway()
      const wide = await BackEnd.connect(`${rabbit.url}?frameMax=131072`)
      closers.push(() => wide.close())
      const huge = { connection_id: "x".repeat(10_000) }
      await wide.publish(made.toDevice, "huge id", { headers: huge })
      const copies = await copiesOf(made)
      expect(copies.map((copy) => copy.bodyString())).toEqual(["huge id"])
      expect(copies[0]?.properties.headers?.["owsla-outcome"]).toBe("invalid")
    },
    LIMIT_MS,
  )

  test(
    "is kept with its ids when all its headers are larger than a frame",
    async () => {
      const made = await gateway()
      const wide = await BackEnd.connect(`${rabbit.url}?frameMax=131072`)
      closers.push(() => wide.close())
      const huge = { ...headers, to_device_seq: 7n, huge: "x".repeat(100_000) }
      await wide.publish(made.toDevice, "huge", { headers: huge, messageId: "m" })
      const [copy, ...others] = await copiesOf(made)
      expect(others).toEqual([])
      expect(copy?.bodyString()).toBe("huge")
      expect(copy?.properties.messageId).toBe("m")
      expect(copy?.properties.headers).toMatchObject({
        device_id: "nobody",
        to_device_seq: 7,
        "owsla-outcome": "offline",
      })
    },
    LIMIT_MS,
  )
})
