/**
 * Bad input gets a clear end: garbage on the TLS port, half a handshake, endless lines, bytes after
 * the close, a flood of connections. Each is counted under its reason; the process and the other
 * devices go on.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { randomBytes } from "node:crypto"
import net from "node:net"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const MAX_LINE_BYTES = 1_000
let gateway: TestGateway
let bystander: TestDevice
let process0: ReadonlyMap<number, number>

beforeAll(async () => {
  gateway = await startGateway({
    MAX_LINE_BYTES: String(MAX_LINE_BYTES),
    MAX_OUTGOING_BYTES: "65536",
    MAX_CONNECTIONS: "50",
    // Longer than a handshake takes on a busy machine.
    HANDSHAKE_TIMEOUT_MS: "2000",
    IDLE_TIMEOUT_MS: "5000",
    SLOW_DEVICE_TIMEOUT_MS: "1000",
    DEVICE_ACK: "seq",
  })
  process0 = gateway.workers()
}, LIMIT_MS)

afterAll(() => gateway?.stop(), LIMIT_MS)

beforeAll(async () => {
  bystander = await connectDevice({ port: gateway.devicePort })
  // Signs of life, so that it is never idle.
  const alive = setInterval(() => void bystander.sendBytes(Buffer.from("\n")), 500)
  void bystander.closed.then(() => clearInterval(alive))
}, LIMIT_MS)

let lines = 0
afterEach(async () => {
  await bystander.send("still here")
  expect(await bystander.nextLine()).toBe(`ACK ${lines}`)
  lines += 1
  expect(gateway.workers()).toEqual(process0)
  expect(await gateway.metric("owsla_faults_total")).toBe(0)
})

/** Runs `act` and waits until exactly `count` more connections have ended for `reason`. */
async function expectClosed(reason: string, act: () => Promise<unknown>, count = 1): Promise<void> {
  const metric = () => gateway.metric("owsla_connections_closed_total", reason)
  const before = await metric()
  await act()
  await until(async () => (await metric()) >= before + count, {
    what: `${count} connections to end as ${reason}`,
  })
  expect(await metric()).toBe(before + count)
}

/** A plain TCP connection that sends `bytes`; resolves when the gateway has closed it. */
function plain(bytes: Uint8Array | string, thenEnd = false): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const socket = net.connect(gateway.devicePort, "127.0.0.1", () => {
    socket.write(bytes)
    if (thenEnd) socket.end()
  })
  socket.on("error", () => undefined)
  socket.on("data", () => undefined)
  socket.on("close", () => resolve())
  return promise
}

/**
 * While a socket takes everything, a loop that sends lets no timer run, and the bystander would be
 * idle.
 */
function otherEvents(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

const CLIENT_HELLO_BEGINNING = Buffer.from("16030100a5010000a10303", "hex")

describe("on the TLS port", () => {
  test("plain text", () => expectClosed("handshake_failed", () => plain("hello\n")))
  test("an HTTP request", () =>
    expectClosed("handshake_failed", () => plain("GET / HTTP/1.1\r\nHost: x\r\n\r\n")))
  test("random bytes", () =>
    expectClosed("handshake_failed", () => plain(crypto.getRandomValues(new Uint8Array(4_096)))))
  test("nothing, closed at once", () => expectClosed("handshake_failed", () => plain("", true)))
  test("half a handshake, closed", () =>
    expectClosed("handshake_failed", () => plain(CLIENT_HELLO_BEGINNING, true)))
  test("half a handshake, and silence", () =>
    expectClosed("handshake_timeout", () => plain(CLIENT_HELLO_BEGINNING)))
  test("silence", () => expectClosed("handshake_timeout", () => plain("")))
  test("TLS 1.1", () =>
    expectClosed("handshake_failed", async () => {
      const program = Bun.spawn(
        [
          ...["openssl", "s_client", "-connect", `127.0.0.1:${gateway.devicePort}`],
          ...["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        ],
        { stdio: ["ignore", "ignore", "ignore"] },
      )
      expect(await program.exited).not.toBe(0)
    }))
})

describe("a device", () => {
  test("that sends a line that is too long", () =>
    expectClosed("line_too_long", async () => {
      const device = await connectDevice({ port: gateway.devicePort })
      const confirmed = await gateway.metric("owsla_lines_confirmed_total")
      await device.sendBytes(Buffer.from(`fine\n${"x".repeat(MAX_LINE_BYTES + 1)}\nunread\n`))
      await device.closed
      const now = async () => (await gateway.metric("owsla_lines_confirmed_total")) - confirmed
      await until(async () => (await now()) === 1, { what: "the line before it to be confirmed" })
    }))

  test("that sends a line without end", () =>
    expectClosed("line_too_long", async () => {
      const device = await connectDevice({ port: gateway.devicePort })
      const chunk = Buffer.alloc(65_536, "x")
      let open = true
      void device.closed.then(() => {
        open = false
      })
      while (open) {
        await device.sendBytes(chunk).catch(() => undefined)
        await otherEvents()
      }
    }))

  test("that goes on sending after it was closed: the bytes are counted", async () => {
    const before = await gateway.metric("owsla_bytes_after_close_total")
    // On a busy machine a device may learn of the close before it has sent more.
    const isCounted = async () => {
      await expectClosed("line_too_long", async () => {
        const device = await connectDevice({ port: gateway.devicePort })
        let open = true
        void device.closed.then(() => {
          open = false
        })
        await device.sendBytes(Buffer.alloc(MAX_LINE_BYTES + 2, "x"))
        while (open) {
          await device.sendBytes(Buffer.from("more\n")).catch(() => undefined)
          await otherEvents()
        }
      })
      return (await gateway.metric("owsla_bytes_after_close_total")) > before
    }
    await until(isCounted, { what: "bytes after a close to be counted", timeoutMs: 60_000 })
  })

  test("that is silent", () =>
    expectClosed("idle", async () => {
      const device = await connectDevice({ port: gateway.devicePort })
      expect((await device.closed).by).toBe("peer")
    }))

  test("that breaks its TLS session", () =>
    expectClosed("peer_closed", async () => {
      const device = await throughProxy()
      await device.send("whole")
      expect(await device.nextLine()).toBe("ACK 0")
      device.corrupt()
      await device.closed
    }))

  test(
    "that does not read its acknowledgements",
    async () => {
      const device = await connectDevice({ port: gateway.devicePort })
      device.pause()
      const many = Buffer.from("x\n".repeat(10_000))
      let sending: Promise<unknown> = Promise.resolve()
      await expectClosed("slow_device", async () => {
        sending = (async () => {
          for (;;) {
            await device.sendBytes(many)
            await otherEvents()
          }
        })().catch(() => undefined)
      })
      device.terminate()
      await sending
    },
    LIMIT_MS,
  )
})

test("more connections than there may be are refused, and one that goes makes room", async () => {
  await expectClosed("overloaded", async () => {
    const connect = () => connectDevice({ port: gateway.devicePort })
    // All at once, so that no connection is idle before the last one is open.
    const devices = await Promise.all(Array.from({ length: 49 }, connect))
    await until(async () => (await gateway.metric("owsla_connections")) === 50, {
      what: "the gateway to be full",
    })
    expect(
      await connect().then(
        () => "let in",
        () => "refused",
      ),
    ).toBe("refused")
    devices[0]?.end()
    await until(async () => (await gateway.metric("owsla_connections")) === 49, {
      what: "room for one",
    })
    devices.push(await connect())
    for (const device of devices) device.terminate()
  })
  await until(async () => (await gateway.metric("owsla_connections")) === 1, { what: "all gone" })
})

/** A device behind a proxy of ours that can spoil what the device sends. */
async function throughProxy() {
  const outbound = Promise.withResolvers<net.Socket>()
  const proxy = net.createServer((inbound) => {
    const socket = net.connect(gateway.devicePort, "127.0.0.1")
    outbound.resolve(socket)
    inbound.pipe(socket)
    socket.pipe(inbound)
    inbound.on("error", () => undefined)
    socket.on("error", () => undefined)
  })
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve))
  const device = await connectDevice({ port: (proxy.address() as net.AddressInfo).port })
  const socket = await outbound.promise
  void device.closed.then(() => proxy.close())
  return {
    send: device.send.bind(device),
    nextLine: device.nextLine.bind(device),
    closed: device.closed,
    /** Sends a TLS record of the right form that nobody sealed. */
    corrupt: () => socket.write(Buffer.concat([Buffer.from("1703030020", "hex"), randomBytes(32)])),
  }
}
