/**
 * HTTP connections are bounded: requests without end, for which no token is needed, neither keep
 * devices out nor other requests, and each ends by itself. Connections that are used stay open.
 */

import { afterEach, describe, expect, test } from "bun:test"
import { readdirSync } from "node:fs"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { RawHttp } from "../support/raw-http.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 90_000
const UNFINISHED = "GET /health HTTP/1.1\r\nHost: localhost\r\nX-Endless: "
let gateway: TestGateway
let clients: RawHttp[] = []

afterEach(async () => {
  for (const client of clients) client.socket.destroy()
  clients = []
  await gateway?.stop()
}, LIMIT_MS)

function connect(count: number, text: string): RawHttp[] {
  const connected = Array.from({ length: count }, () => new RawHttp(gateway.httpPort))
  for (const client of connected) if (text !== "") client.write(text)
  clients.push(...connected)
  return connected
}

const closedFor = (reason: string) => gateway.metric("owsla_http_connections_closed_total", reason)
const openOf = (some: readonly RawHttp[]) => some.filter(({ closed }) => !closed).length

describe("requests without end", () => {
  test.each([
    ["the beginning of a request", UNFINISHED],
    ["nothing", ""],
    ["a request line", "GET /devices HTTP/1.1\r\n"],
    [
      "a body without end",
      "POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
    ],
  ])(
    "of more connections than open files keep out neither devices nor other requests: %s",
    async (_, text) => {
      const limited = ["sh", "-c", 'ulimit -n 700; exec "$@"', "sh"]
      gateway = await startGateway({ DEVICE_ACK: "seq" }, { prefix: limited })
      const flood = connect(720, text)
      await until(() => flood.every(({ isConnected }) => isConnected), { what: "the flood" })
      const device = await connectDevice({ port: gateway.devicePort })
      await device.send("hello")
      expect(await device.nextLine()).toBe("ACK 0")
      expect((await gateway.fetch("/health")).status).toBe(200)
      // A quarter of 700, and the descriptors of everything else.
      expect(readdirSync(`/proc/${gateway.pid}/fd`).length).toBeLessThan(300)
      expect(await closedFor("made_room")).toBeGreaterThan(0)
      expect(await gateway.metric("owsla_faults_total")).toBe(0)
      device.end()
    },
    LIMIT_MS,
  )

  test(
    "are at most MAX_HTTP_CONNECTIONS: the one that has waited longest makes room",
    async () => {
      gateway = await startGateway({ MAX_HTTP_CONNECTIONS: "5" })
      const first = connect(5, UNFINISHED)
      await until(() => first.every(({ isConnected }) => isConnected), { what: "the first" })
      const next = connect(5, UNFINISHED)
      await until(() => openOf(first) === 0, { what: "the first to make room" })
      expect(openOf(next)).toBeGreaterThan(0)
      expect((await gateway.fetch("/health")).status).toBe(200)
      expect(await closedFor("made_room")).toBeGreaterThanOrEqual(6)
    },
    LIMIT_MS,
  )

  test(
    "end by themselves, whatever they trickle",
    async () => {
      gateway = await startGateway()
      const silent = connect(3, "")
      const trickling = connect(3, UNFINISHED)
      // The second request of a connection, after one that was answered.
      const second = connect(3, `GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n${UNFINISHED}`)
      const timer = setInterval(() => {
        for (const { closed, socket } of [...trickling, ...second]) if (!closed) socket.write("x")
      }, 200)
      await until(() => openOf([...silent, ...trickling, ...second]) === 0, { what: "their end" })
      clearInterval(timer)
      expect(await closedFor("header_timeout")).toBe(6)
      expect(await closedFor("idle")).toBeGreaterThanOrEqual(3)
      for (const { received } of trickling) expect(received).toBe("")
      for (const { received } of second) expect(received).toStartWith("HTTP/1.1 200")
    },
    LIMIT_MS,
  )
})

describe("a connection that is used", () => {
  test("serves many requests, also beside a flood", async () => {
    gateway = await startGateway({ MAX_HTTP_CONNECTIONS: "20" })
    const [caller] = connect(1, "")
    const request = "GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
    const answers = () => (caller?.received.match(/HTTP\/1\.1 200/g) ?? []).length
    for (let n = 1; n <= 200; n += 1) {
      if (n % 20 === 0) connect(1, UNFINISHED)
      caller?.write(request)
      await until(() => answers() === n, { what: `answer ${n}` })
    }
    expect(caller?.closed).toBe(false)
  })

  test("by an event stream stays open while its client reads", async () => {
    gateway = await startGateway({ SEND_TIMEOUT_MS: "100" })
    const [follower] = connect(1, "GET /messages HTTP/1.1\r\nHost: localhost\r\n\r\n")
    const comments = () => (follower?.received.match(/\r\n: keep-alive\n/g) ?? []).length
    // Longer than the time for one answer.
    await until(() => comments() === 3, { what: "three keep-alives", timeoutMs: 40_000 })
    expect(follower?.closed).toBe(false)
  }, 60_000)

  test("is refused when all others are being answered, and counted", async () => {
    gateway = await startGateway({ MAX_HTTP_CONNECTIONS: "3" })
    const followers = connect(3, "GET /messages HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(() => followers.every(({ received }) => received.includes("200 OK")), {
      what: "the followers",
    })
    const [refused] = connect(1, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(() => refused?.closed, { what: "the refusal" })
    expect(refused?.received).toBe("")
    expect(openOf(followers)).toBe(3)
    followers[0]?.socket.destroy()
    await until(async () => (await gateway.fetch("/health")).status === 200, { what: "room" })
    expect(await closedFor("refused")).toBeGreaterThanOrEqual(1)
  })

  test("answers requests that are sent at once, up to 100 of them", async () => {
    gateway = await startGateway()
    const request = "GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
    const [many] = connect(1, request.repeat(100))
    const answers = () => (many?.received.match(/HTTP\/1\.1 200/g) ?? []).length
    await until(() => answers() === 100, { what: "all answers" })
    const [tooMany] = connect(1, request.repeat(101))
    await until(() => tooMany?.closed, { what: "the close" })
    expect(await closedFor("pipelined")).toBe(1)
  })

  test("ends when the gateway drains, also an event stream", async () => {
    gateway = await startGateway()
    const [follower, idle] = connect(2, "")
    follower?.write("GET /messages HTTP/1.1\r\nHost: localhost\r\n\r\n")
    idle?.write("GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(() => follower?.received.includes("the devices' lines"), { what: "the stream" })
    await until(() => idle?.received.includes("ready"), { what: "an answer" })
    expect(await gateway.stop()).toBe(0)
    await until(() => openOf(clients) === 0, { what: "all to be closed" })
  })
})
