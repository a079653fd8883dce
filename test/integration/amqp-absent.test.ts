/** Brokers that are absent, refuse, or are no brokers. */

import { describe, expect, test } from "bun:test"
import type { BrokerState, PublishResult } from "../../src/broker/broker.ts"
import { until, within } from "../support/wait.ts"
import {
  closers,
  FRAME,
  frame,
  is,
  LIMIT_MS,
  LOCALHOST,
  mute,
  queue,
  rabbit,
  setUpBroker,
  User,
} from "./amqp-harness.ts"

setUpBroker()

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
      const limit = { timeoutMs: 40_000 }
      await until(() => mute.states.length >= 2, { what: "both tries to fail", ...limit })
      await until(() => mute.accepted >= 4, { what: "both to be tried again" })
      expect(mute.broker.state.kind).toBe("away")
      expect(new Set(mute.states.map(is))).toEqual(new Set<BrokerState["kind"]>(["away"]))
    },
    LIMIT_MS,
  )
})
