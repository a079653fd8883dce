/**
 * Conditions of hosted brokers: a limit on unacknowledged messages, several nodes, IPv6, a private
 * CA, users without all permissions, other versions and products. A real RabbitMQ, with proxies in
 * front of it for behaviour that RabbitMQ 3.10 does not have.
 */

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test"
import net from "node:net"
import tls from "node:tls"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { AmqpBroker } from "../../src/amqp/broker.ts"
import type {
  BrokerSetup,
  BrokerState,
  Delivery,
  QueueDeclaration,
} from "../../src/broker/broker.ts"
import { createCertificateAuthority, createServerCertificate } from "../../src/ops/certificates.ts"
import { AmqpProxy, type Meddle, methodFrame, methodOf } from "../support/amqp-proxy.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { until } from "../support/wait.ts"

const START_LIMIT_MS = 60_000
const LIMIT_MS = 30_000
const START = "10.10"
const DELIVER = "60.60"

let rabbit: PrivateBroker
let name: (noun: string) => string
/** Resources that a test has opened; closed after it. */
const closers: (() => unknown)[] = []

beforeAll(async () => {
  rabbit = await startRabbitMq()
}, START_LIMIT_MS)

beforeEach(() => {
  name = uniqueNames("hosted")
})

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close()
})

afterAll(() => rabbit?.dispose(), START_LIMIT_MS)

/** A gateway's view of its broker, with all states and warnings. It acknowledges nothing. */
class User {
  readonly broker: AmqpBroker
  readonly states: BrokerState[] = []
  readonly warnings: string[] = []
  readonly deliveries: Delivery[] = []

  constructor(url: string | readonly string[], ca: string | null = null) {
    this.broker = new AmqpBroker(url, "hosted test", ca)
    closers.push(() => this.broker.close())
  }

  start(setup: Partial<BrokerSetup> = {}, prefetch: readonly number[] = []): this {
    const { exchanges = [], queues = [] } = setup
    const deliver = (delivery: Delivery) => void this.deliveries.push(delivery)
    const subscriptions = prefetch.map((prefetch, at) => {
      return { queue: queues[at]?.name ?? "", prefetch, deliver }
    })
    this.broker.start(
      { exchanges, queues, subscriptions },
      {
        stateChanged: (state) => void this.states.push(state),
        warning: (message) => void this.warnings.push(message),
      },
    )
    return this
  }

  async ready(): Promise<this> {
    const isReady = () => this.broker.state.kind === "ready"
    await until(isReady, { what: "the broker to be ready", timeoutMs: LIMIT_MS })
    return this
  }

  /** Waits until the broker was away for a matching reason. */
  async awayFor(reason: RegExp): Promise<void> {
    const fits = (state: BrokerState) => state.kind === "away" && reason.test(state.reason)
    await until(() => this.states.some(fits), {
      what: `the broker to be away for ${reason}`,
      timeoutMs: LIMIT_MS,
    })
  }
}

function queue(noun: string, more: Partial<QueueDeclaration> = {}): QueueDeclaration {
  return { name: name(noun), durable: true, arguments: { "x-queue-type": "quorum" }, ...more }
}

/** Declares what another client or an operator has declared before. */
async function declared(act: (on: Awaited<ReturnType<AMQPClient["channel"]>>) => Promise<unknown>) {
  const client = new AMQPClient(rabbit.url)
  await client.connect()
  const channel = await client.channel()
  await act(channel)
  await client.close()
}

const asDeclared = (...queues: QueueDeclaration[]) =>
  declared(async (on) => {
    for (const { name, arguments: args } of queues) {
      await on.queueDeclare(name, { durable: true, autoDelete: false }, args)
    }
  })

async function proxy(meddle: Meddle | null = null, host?: string): Promise<AmqpProxy> {
  const started = await AmqpProxy.start(rabbit.port, host)
  if (meddle !== null) started.meddle = meddle
  closers.push(() => started.stop())
  return started
}

const urlOf = (port: number, host = "127.0.0.1") => `amqp://guest:guest@${host}:${port}`

/** A proxy that closes a connection after this many deliveries, and their numbers. */
async function limitingProxy(limit: number) {
  const deliveries = new Map<number, number>()
  const text = `CONNECTION_FORCED - Too many unacked messages (max ${limit})`
  const close = Buffer.concat([
    Buffer.from([320 >> 8, 320 & 0xff, text.length]),
    Buffer.from(text),
    Buffer.alloc(4),
  ])
  const limiting = await proxy((frame, { number }) => {
    if (methodOf(frame) !== DELIVER) return [frame]
    const count = (deliveries.get(number) ?? 0) + 1
    deliveries.set(number, count)
    return count > limit ? [methodFrame(0, 10, 50, close)] : [frame]
  })
  return { limiting, deliveries, text }
}

/** @param expected the name and the prefetch of each consumer, separated by a tab. */
async function consumersToBe(expected: readonly string[]): Promise<void> {
  const consumers = async () =>
    (await rabbit.ctl("list_consumers", "queue_name", "prefetch_count")).trim().split("\n")
  await until(async () => Bun.deepEquals((await consumers()).toSorted(), expected.toSorted()), {
    what: `the consumers ${expected.join(", ")}`,
    timeoutMs: LIMIT_MS,
  })
}

describe("a broker that closes connections with too many unacknowledged messages", () => {
  test(
    "is given fewer from the next connection on, by the limit that it names, and a warning names PREFETCH",
    async () => {
      const queues = [queue("first"), queue("second")]
      await asDeclared(...queues)
      await declared(async (on) => {
        await on.confirmSelect()
        for (const { name } of queues) {
          for (let n = 0; n < 40; n += 1) await on.basicPublish("", name, "", { deliveryMode: 2 })
        }
      })
      const { limiting, deliveries, text } = await limitingProxy(10)
      const user = new User(urlOf(limiting.port)).start({ queues }, [20, 10])
      await until(() => user.warnings.length > 0, { what: "a warning" })
      await user.ready()
      // Of the 8 that are left when each has 1, as 20 to 10.
      await consumersToBe([`${queues[0]?.name}\t6`, `${queues[1]?.name}\t3`])
      const last = Math.max(...deliveries.keys())
      await until(() => deliveries.get(last) === 9, { what: "nine deliveries" })
      expect(user.warnings).toEqual([expect.stringContaining(text)])
      expect(user.warnings[0]).toContain("set PREFETCH=10")
    },
    LIMIT_MS,
  )

  test(
    "divides the limit again when a queue is subscribed at run time",
    async () => {
      const [first, second, third] = [queue("first"), queue("second"), queue("third")]
      await asDeclared(first)
      await declared(async (on) => {
        await on.confirmSelect()
        for (let n = 0; n < 20; n += 1) {
          await on.basicPublish("", first.name, "", { deliveryMode: 2 })
        }
      })
      const { limiting } = await limitingProxy(10)
      const user = new User(urlOf(limiting.port)).start({ queues: [first, second] }, [20, 10])
      await until(() => user.warnings.length > 0, { what: "a warning" })
      await user.ready()
      const deliver = () => undefined
      user.broker.subscribe(third, { queue: third.name, prefetch: 10, deliver })
      // Of the 7 that are left when each has 1, as 20 to 10 to 10.
      await consumersToBe([`${first.name}\t4`, `${second.name}\t2`, `${third.name}\t2`])
      // The rest suffices for the same share again.
      await user.ready()
      const states = user.states.length
      user.broker.unsubscribe(third.name)
      await consumersToBe([`${first.name}\t4`, `${second.name}\t2`])
      user.broker.subscribe(third, { queue: third.name, prefetch: 10, deliver })
      await consumersToBe([`${first.name}\t4`, `${second.name}\t2`, `${third.name}\t2`])
      expect(user.states.length).toBe(states)
      expect(user.warnings.length).toBe(1)
    },
    LIMIT_MS,
  )
})

describe("several URLs", () => {
  test(
    "are tried until one is good, without a wait for those that are not",
    async () => {
      const closed = await proxy()
      closed.stop()
      const urls = [...Array<string>(5).fill(urlOf(closed.port)), rabbit.url]
      const user = await new User(urls).start().ready()
      // Each of the two connections has tried each URL once at most.
      expect(user.states.filter(({ kind }) => kind === "away").length).toBeLessThanOrEqual(10)
    },
    LIMIT_MS,
  )

  test(
    "spread the connections, and those of a node that is gone go to the others",
    async () => {
      const connections = [0, 0]
      const nodes = await Promise.all(
        [0, 1].map((node) =>
          proxy((frame) => {
            if (methodOf(frame) === START) connections[node] = (connections[node] ?? 0) + 1
            return [frame]
          }),
        ),
      )
      const urls = nodes.map(({ port }) => urlOf(port))
      const users = Array.from({ length: 8 }, () => new User(urls).start())
      await Promise.all(users.map((user) => user.ready()))
      expect(Math.min(...connections)).toBeGreaterThan(0)
      nodes[0]?.stop()
      await until(() => (connections[1] ?? 0) >= 16, { what: "all 16 on the other node" })
      await Promise.all(users.map((user) => user.ready()))
    },
    LIMIT_MS,
  )

  test(
    "are each tried once before any is tried again",
    async () => {
      const tried: number[] = []
      const ports = [0, 1, 2].map((which) => {
        const server = Bun.listen({
          hostname: "127.0.0.1",
          port: 0,
          socket: {
            open(socket) {
              tried.push(which)
              socket.terminate()
            },
            data() {},
          },
        })
        closers.push(() => server.stop(true))
        return server.port
      })
      new User(ports.map((port) => urlOf(port))).start()
      await until(() => tried.length >= 9, { what: "three rounds", timeoutMs: LIMIT_MS })
      for (const round of [0, 3, 6]) {
        expect(tried.slice(round, round + 3).toSorted()).toEqual([0, 1, 2])
      }
    },
    LIMIT_MS,
  )
})

test(
  "a URL with an IPv6 address is connected to",
  async () => {
    const { port } = await proxy(null, "::1")
    await new User(urlOf(port, "[::1]")).start().ready()
  },
  LIMIT_MS,
)

describe("amqps: with a private CA", () => {
  /** Ends TLS before the broker. */
  async function encrypted(host: string): Promise<{ url: string; ca: string }> {
    const ca = await createCertificateAuthority()
    // For localhost and 127.0.0.1.
    const { certPem, keyPem } = await createServerCertificate(ca, [])
    const server = tls.createServer({ cert: certPem, key: keyPem }, (client) => {
      const broker = net.connect(rabbit.port, "127.0.0.1")
      for (const [socket, other] of [
        [client, broker],
        [broker, client],
      ] as const) {
        socket.on("error", () => undefined)
        socket.on("close", () => other.destroy())
        socket.pipe(other)
      }
    })
    server.on("tlsClientError", () => undefined)
    await new Promise<void>((resolve) => server.listen(0, host, resolve))
    closers.push(() => void server.close())
    const { port } = server.address() as net.AddressInfo
    return { url: `amqps://guest:guest@${host}:${port}`, ca: ca.certPem }
  }

  test(
    "connects when that has signed the broker's certificate",
    async () => {
      for (const host of ["localhost", "127.0.0.1"]) {
        const { url, ca } = await encrypted(host)
        await new User(url, ca).start().ready()
      }
    },
    LIMIT_MS,
  )

  test(
    "does not when it has not, when none is set, and when the certificate is for another name",
    async () => {
      const { url } = await encrypted("localhost")
      const other = await encrypted("127.0.0.2")
      const users = [new User(url), new User(url, other.ca), new User(other.url, other.ca)]
      const [none, wrong, elsewhere] = users.map((user) => user.start())
      await none?.awayFor(/certificate|issuer/i)
      await wrong?.awayFor(/certificate|issuer|signature/i)
      await elsewhere?.awayFor(/altname|hostname|identity/i)
      expect(users.flatMap(({ states }) => states).filter(({ kind }) => kind === "ready")).toEqual(
        [],
      )
    },
    LIMIT_MS,
  )
})

describe("a user without all permissions", () => {
  /** @param permissions to configure, write and read, as in `rabbitmqctl set_permissions`. */
  async function urlWith(...permissions: [string, string, string]): Promise<string> {
    const user = name("user")
    await rabbit.ctl("add_user", user, "a-password")
    await rabbit.ctl("set_permissions", user, ...permissions)
    return `amqp://${user}:a-password@127.0.0.1:${rabbit.port}`
  }

  test(
    "uses queues and exchanges that exist, without a warning",
    async () => {
      const exchange = { name: name("exchange"), type: "fanout" } as const
      const shared = queue("shared")
      const own = queue("own", { boundTo: [{ exchange: exchange.name, routingKey: "" }] })
      await asDeclared(shared)
      await declared((on) => on.exchangeDeclare(exchange.name, "fanout", { durable: true }))
      const url = await urlWith(`^${own.name}$`, `^${own.name}$`, ".*")
      const user = new User(url).start({ exchanges: [exchange], queues: [shared, own] }, [5])
      await user.ready()
      expect(user.warnings).toEqual([])
    },
    LIMIT_MS,
  )

  test(
    "is told which queue is missing and which permission",
    async () => {
      const shared = queue("shared")
      const user = new User(await urlWith("^$", ".*", ".*")).start({ queues: [shared] })
      const words = `queue ${shared.name} does not exist and cannot be declared: permission "configure" on ${shared.name} is missing`
      await user.awayFor(new RegExp(words.replaceAll(".", "\\.")))
    },
    LIMIT_MS,
  )

  test(
    "is told which exchange is missing and which permission",
    async () => {
      const exchange = { name: name("exchange"), type: "topic" } as const
      const user = new User(await urlWith("^$", ".*", ".*")).start({ exchanges: [exchange] })
      await user.awayFor(
        new RegExp(
          `exchange ${exchange.name} does not exist.* permission "configure" on ${exchange.name}`,
        ),
      )
    },
    LIMIT_MS,
  )

  test(
    "is told which permission a binding needs",
    async () => {
      const exchange = { name: name("exchange"), type: "fanout" } as const
      const own = queue("own", { boundTo: [{ exchange: exchange.name, routingKey: "" }] })
      const setup = { exchanges: [exchange], queues: [own] }
      const unwritten = new User(await urlWith(".*", "^$", ".*")).start(setup)
      await unwritten.awayFor(new RegExp(`permission "write" on ${own.name} is missing`))
      const readable = `^${own.name}$`
      await rabbit.ctl("add_user", name("reader"), "a-password")
      await rabbit.ctl("set_permissions", name("reader"), ".*", ".*", readable)
      const unread = new User(`amqp://${name("reader")}:a-password@127.0.0.1:${rabbit.port}`)
      await unread
        .start(setup)
        .awayFor(new RegExp(`permission "read" on ${exchange.name} is missing`))
    },
    LIMIT_MS,
  )

  test(
    "is told when the permission that a dead-letter exchange needs is missing",
    async () => {
      const args = { "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q" }
      const letters = queue("letters", { arguments: { "x-queue-type": "quorum", ...args } })
      const user = new User(await urlWith(".*", "^$", ".*")).start({ queues: [letters] })
      await user.awayFor(/permission "write" on amq\.default is missing/)
    },
    LIMIT_MS,
  )
})

describe("a broker of another kind", () => {
  const entry = (key: string, value: string) => {
    const size = Buffer.alloc(4)
    size.writeUInt32BE(value.length)
    return Buffer.concat([
      Buffer.from([key.length]),
      Buffer.from(`${key}S`),
      size,
      Buffer.from(value),
    ])
  }
  const sized = (bytes: Buffer) => {
    const size = Buffer.alloc(4)
    size.writeUInt32BE(bytes.length)
    return Buffer.concat([size, bytes])
  }
  const says = (product: string, version: string) =>
    proxy((frame) => {
      if (methodOf(frame) !== START) return [frame]
      const properties = sized(
        Buffer.concat([entry("product", product), entry("version", version)]),
      )
      const mechanisms = sized(Buffer.from("PLAIN"))
      const locales = sized(Buffer.from("en_US"))
      return [methodFrame(0, 10, 10, Buffer.from([0, 9]), properties, mechanisms, locales)]
    })

  test(
    "that has no quorum queues is used, with one warning of what that means",
    async () => {
      const { port } = await says("LavinMQ", "2.1.0")
      const user = await new User(urlOf(port)).start({ queues: [queue("a"), queue("b")] }).ready()
      expect(user.warnings).toEqual([expect.stringContaining("LavinMQ 2.1.0 has no quorum queues")])
      const classic = queue("c", { arguments: { "x-queue-type": "classic" } })
      const content = await new User(urlOf(port)).start({ queues: [classic] }).ready()
      expect(content.warnings).toEqual([])
    },
    LIMIT_MS,
  )

  test(
    "that has a delivery limit is asked for none; where a queue exists without that the warning names the policy",
    async () => {
      const { port } = await says("RabbitMQ", "4.0.5")
      const [quorum, classic] = [
        queue("quorum"),
        queue("c", { arguments: { "x-queue-type": "classic" } }),
      ]
      await asDeclared(quorum, classic)
      const user = await new User(urlOf(port)).start({ queues: [quorum, classic] }).ready()
      expect(user.warnings).toEqual([expect.stringContaining("x-delivery-limit")])
      expect(user.warnings[0]).toContain(`rabbitmqctl set_policy ${quorum.name} '^`)
      expect(user.warnings[0]).toContain(`'{"delivery-limit": -1}' --apply-to quorum_queues`)
    },
    LIMIT_MS,
  )

  test(
    "that has no delivery limit is asked for nothing",
    async () => {
      const quorum = queue("quorum")
      await asDeclared(quorum)
      const user = await new User(rabbit.url).start({ queues: [quorum] }).ready()
      expect(user.warnings).toEqual([])
    },
    LIMIT_MS,
  )
})
