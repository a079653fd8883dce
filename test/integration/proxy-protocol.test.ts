/**
 * Devices behind load balancers that speak the PROXY protocol: Debian's HAProxy and nginx with TLS
 * passed through, and headers that no load balancer would send.
 *
 * The load balancers connect from addresses of their own, so that the address of a device, which is
 * 127.0.0.1, is never that of the socket.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import tls from "node:tls"
import {
  clientAuthority,
  deviceCertificate,
  writeAuthorities,
} from "../support/client-certificates.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { HaProxy } from "../support/haproxy.ts"
import { type Nginx, startNginx } from "../support/nginx.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const HAPROXY_ADDRESS = "127.0.0.5"
const NGINX_ADDRESS = "127.0.0.6"
const SOURCE = `source ${HAPROXY_ADDRESS}`

interface DeviceView {
  readonly device_id: string
  readonly remote_address: string
}

async function devices(gateway: TestGateway): Promise<DeviceView[]> {
  const response = await gateway.fetch("/devices")
  return ((await response.json()) as { devices: DeviceView[] }).devices
}

const closedAs = (gateway: TestGateway, reason: string) =>
  gateway.metric("owsla_connections_closed_total", reason)

describe("behind load balancers, with device certificates", () => {
  const directory = mkdtempSync(join(tmpdir(), "owsla-proxy-"))
  let gateway: TestGateway
  let servers: string
  let nginx: Nginx

  beforeAll(async () => {
    const caFile = writeAuthorities([await clientAuthority()], directory)
    gateway = await startGateway({
      DEVICE_AUTH: "mtls",
      TLS_CLIENT_CA_FILE: caFile,
      DEVICE_ACK: "seq",
      PROXY_PROTOCOL: "required",
      PROXY_FROM: `${HAPROXY_ADDRESS},${NGINX_ADDRESS}`,
      MAX_CONNECTIONS_PER_ADDRESS: "2",
      LOG_LEVEL: "debug",
    })
    servers = `127.0.0.1:${gateway.devicePort}`
    nginx = await startNginx(servers, NGINX_ADDRESS)
  }, LIMIT_MS)

  afterAll(async () => {
    await nginx?.stop()
    await gateway?.stop()
    rmSync(directory, { recursive: true, force: true })
  }, LIMIT_MS)

  /** Connects a device through the port, and gets a line of it acknowledged. */
  async function visit(port: number, name: string) {
    const { cert, key } = await deviceCertificate(name)
    const device = await connectDevice({ port, tls: { cert, key } })
    await device.send("a line")
    expect(await device.nextLine()).toBe("ACK 0")
    return device
  }

  async function expectAddress(port: number, name: string): Promise<void> {
    const device = await visit(port, name)
    const shown = (await devices(gateway)).find(({ device_id }) => device_id === name)
    expect(shown?.remote_address).toBe("127.0.0.1")
    device.end()
    await device.closed
    const admitted = gateway.log.find(
      (line) => line.msg.includes("admitted") && line["deviceId"] === name,
    )
    expect(admitted?.["remoteAddress"]).toBe("127.0.0.1")
    await until(async () => (await devices(gateway)).length === 0, { what: "no device left" })
  }

  test.each(["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl"])(
    "HAProxy with %s gives the device's address",
    async (option) => {
      const haproxy = await HaProxy.start([servers], `${SOURCE} ${option}`)
      try {
        await expectAddress(haproxy.port, "lock:1")
      } finally {
        await haproxy.dispose()
      }
    },
    LIMIT_MS,
  )

  test(
    "nginx gives the device's address",
    async () => {
      await expectAddress(nginx.port, "lock:2")
    },
    LIMIT_MS,
  )

  test(
    "HAProxy's health checks pass, are no failed handshakes, and disturb no device",
    async () => {
      const options = `${SOURCE} send-proxy-v2 check-send-proxy check inter 50 fall 1 rise 1`
      const haproxy = await HaProxy.start([servers], options)
      try {
        const device = await visit(haproxy.port, "lock:3")
        // After the connection that found HAProxy to listen, which ends in its handshake.
        const failedBefore = await closedAs(gateway, "handshake_failed")
        const closedBefore = await closedAs(gateway, "peer_closed")
        await until(async () => (await closedAs(gateway, "peer_closed")) >= closedBefore + 5, {
          what: "some health checks",
        })
        expect(await closedAs(gateway, "handshake_failed")).toBe(failedBefore)
        expect(await gateway.metric("owsla_faults_total")).toBe(0)
        await device.send("another")
        expect(await device.nextLine()).toBe("ACK 1")
        device.terminate()
      } finally {
        await haproxy.dispose()
      }
    },
    LIMIT_MS,
  )

  test(
    "limits by address count the device's address, not the proxy's",
    async () => {
      const haproxy = await HaProxy.start([servers], `${SOURCE} send-proxy`)
      try {
        const first = await visit(haproxy.port, "lock:4")
        const second = await visit(nginx.port, "lock:5")
        const before = await closedAs(gateway, "overloaded_address")
        await expect(visit(nginx.port, "lock:6")).rejects.toThrow()
        expect(await closedAs(gateway, "overloaded_address")).toBe(before + 1)
        first.terminate()
        const again = await until(() => visit(haproxy.port, "lock:6").catch(() => null), {
          what: "a place of the address",
        })
        for (const device of [second, again]) device.terminate()
      } finally {
        await haproxy.dispose()
      }
    },
    LIMIT_MS,
  )

  test(
    "a peer that is no proxy is closed, with or without a header",
    async () => {
      const before = await closedAs(gateway, "not_proxied")
      await expect(connectDevice({ port: gateway.devicePort })).rejects.toThrow()
      const socket = net.connect(gateway.devicePort, "127.0.0.1")
      socket.on("error", () => undefined)
      socket.write("PROXY TCP4 203.0.113.9 192.0.2.1 1 2\r\n")
      await new Promise((resolve) => socket.once("close", resolve))
      expect(await closedAs(gateway, "not_proxied")).toBe(before + 2)
      expect(gateway.log.some(({ msg }) => msg.includes("127.0.0.1 is not in PROXY_FROM"))).toBe(
        true,
      )
    },
    LIMIT_MS,
  )
})

describe("with headers of any kind", () => {
  let gateway: TestGateway
  const sockets: net.Socket[] = []

  beforeAll(async () => {
    gateway = await startGateway({
      DEVICE_ACK: "seq",
      PROXY_PROTOCOL: "required",
      PROXY_FROM: "127.0.0.0/8",
      HANDSHAKE_TIMEOUT_MS: "1000",
      MAX_WAITING: "20",
    })
  }, LIMIT_MS)

  afterEach(() => {
    for (const socket of sockets.splice(0)) socket.destroy()
  })

  afterAll(async () => {
    await gateway?.stop()
  }, LIMIT_MS)

  async function connect(): Promise<net.Socket> {
    const socket = net.connect({ port: gateway.devicePort, host: "127.0.0.1", noDelay: true })
    sockets.push(socket)
    socket.on("error", () => undefined)
    await new Promise((resolve) => {
      socket.once("connect", resolve)
      // A reset may be reported in place of the connect.
      socket.once("close", resolve)
    })
    return socket
  }

  /** Begins TLS on the socket and gets a line acknowledged. */
  async function handshake(socket: net.Socket): Promise<void> {
    const secure = tls.connect({ socket, rejectUnauthorized: false })
    await new Promise((resolve, reject) => {
      secure.once("secureConnect", resolve)
      secure.once("error", reject)
      socket.once("close", () => reject(new Error("closed")))
    })
    secure.write("a line\n")
    const answer = await new Promise((resolve) => secure.once("data", resolve))
    expect(String(answer)).toBe("ACK 0\n")
  }

  test(
    "a header in pieces of one byte is read",
    async () => {
      const socket = await connect()
      for (const byte of Buffer.from("PROXY TCP6 2001:DB8::7 2001:db8::1 40000 8443\r\n")) {
        socket.write(Buffer.from([byte]))
        // So that the bytes arrive in many pieces; how many does not matter.
        await Bun.sleep(2)
      }
      await handshake(socket)
      const addresses = (await devices(gateway)).map(({ remote_address }) => remote_address)
      expect(addresses).toContain("2001:db8::7")
    },
    LIMIT_MS,
  )

  test(
    "UNKNOWN and LOCAL keep the address of the proxy",
    async () => {
      const unknown = await connect()
      unknown.write("PROXY UNKNOWN\r\n")
      await handshake(unknown)
      const local = await connect()
      local.write(Buffer.from("0d0a0d0a000d0a515549540a20000000", "hex"))
      await handshake(local)
      const addresses = (await devices(gateway)).map(({ remote_address }) => remote_address)
      expect(addresses.filter((address) => address === "127.0.0.1")).toHaveLength(2)
    },
    LIMIT_MS,
  )

  const ENDED: readonly [string, string | Buffer, string][] = [
    ["TLS without a header", Buffer.from([0x16, 3, 1, 2, 0, 1]), "does not start with"],
    ["HTTP", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "does not start with"],
    ["a header that is too long", `PROXY TCP4 ${"1".repeat(300)}`, "without CRLF"],
    [
      "a binary header that announces too much",
      Buffer.from("0d0a0d0a000d0a515549540a2111ffff", "hex"),
      "65535 bytes",
    ],
    ["half a header, and then nothing", "PROXY TCP4 192.", "within HANDSHAKE_TIMEOUT_MS"],
    ["nothing", "", "within HANDSHAKE_TIMEOUT_MS"],
  ]

  test.each(ENDED)(
    "%s ends as not_proxied",
    async (_name, bytes) => {
      const before = await closedAs(gateway, "not_proxied")
      const socket = await connect()
      if (bytes.length > 0) socket.write(bytes)
      await new Promise((resolve) => socket.once("close", resolve))
      expect(await closedAs(gateway, "not_proxied")).toBe(before + 1)
    },
    LIMIT_MS,
  )

  test(
    "a peer that closes before its header counts as peer_closed",
    async () => {
      const before = await closedAs(gateway, "peer_closed")
      const socket = await connect()
      socket.end()
      await until(async () => (await closedAs(gateway, "peer_closed")) === before + 1, {
        what: "the closed one to be counted",
      })
    },
    LIMIT_MS,
  )

  test(
    "more than MAX_WAITING silent peers are refused, and devices get in once they are gone",
    async () => {
      const refused = await closedAs(gateway, "overloaded")
      const timedOut = await closedAs(gateway, "not_proxied")
      for (let n = 0; n < 25; n += 1) await connect()
      await until(async () => (await closedAs(gateway, "overloaded")) === refused + 5, {
        what: "five refused",
      })
      await until(async () => (await closedAs(gateway, "not_proxied")) === timedOut + 20, {
        what: "twenty timed out",
      })
      const socket = await connect()
      socket.write("PROXY TCP4 203.0.113.9 192.0.2.1 1 2\r\n")
      await handshake(socket)
    },
    LIMIT_MS,
  )
})
