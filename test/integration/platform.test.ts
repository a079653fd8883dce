/**
 * What the gateway leans on in Bun and in the AMQP client, and neither promises: each fact has a
 * test, so that an upgrade shows what moved. No code of the gateway is run here.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import http from "node:http"
import net from "node:net"
import { AMQPView } from "../../node_modules/@cloudamqp/amqp-client/src/amqp-view.ts"
import { createCertificateAuthority, createServerCertificate } from "../../src/ops/certificates.ts"
import { clientCertificate, deviceUri, makeAuthority } from "../support/client-certificates.ts"
import { connectDevice } from "../support/tls-device.ts"
import { findProgram } from "../support/tools.ts"
import { until } from "../support/wait.ts"

type Listening = ReturnType<typeof Bun.listen<undefined>> & { readonly port: number }
type Handlers = Bun.SocketHandler<undefined>

let tls: { cert: string; key: string }
const listening: Listening[] = []

beforeAll(async () => {
  const { certPem, keyPem } = await createServerCertificate(await createCertificateAuthority(), [])
  tls = { cert: certPem, key: keyPem }
})

afterAll(() => {
  for (const listener of listening) listener.stop(true)
})

function listen(socket: Handlers, more: Record<string, unknown> = {}): Listening {
  const options = { hostname: "127.0.0.1", port: 0, reusePort: true, tls, socket, ...more }
  const listener = Bun.listen(options as never) as unknown as Listening
  listening.push(listener)
  return listener
}

describe("Bun.listen", () => {
  test("shares a port with reusePort, and an exclusive bind finds that out", () => {
    const { port } = listen({ data: () => undefined })
    expect(listen({ data: () => undefined }, { port }).port).toBe(port)
    const alone = { port, reusePort: false, exclusive: true, tls: undefined }
    expect(() => listen({ data: () => undefined }, alone)).toThrow()
  })

  test("reports a failed handshake to `handshake`, and `close` follows", async () => {
    const told: string[] = []
    const { port } = listen({
      open: () => void told.push("open"),
      handshake: (_socket, success) => void told.push(`handshake ${success}`),
      close: () => void told.push("close"),
      data: () => undefined,
    })
    const garbage = net.connect(port, "127.0.0.1", () => garbage.write("no TLS\n"))
    garbage.on("error", () => undefined)
    await until(() => told.includes("close"), { what: "the close" })
    expect(told).toEqual(["open", "handshake false", "close"])
  })

  test("trusts an intermediate CA without its root with allowPartialTrustChain", async () => {
    const root = await makeAuthority("root")
    const issuer = await makeAuthority("intermediate", root)
    const { cert, key } = await clientCertificate({ names: [deviceUri("a")], issuer })
    const ca = issuer.certificate.toString("pem")
    const asked = { ...tls, requestCert: true, rejectUnauthorized: true, ca }
    for (const allowPartialTrustChain of [true, false]) {
      const { promise, resolve } = Promise.withResolvers<string | null>()
      const { port } = listen(
        {
          handshake: (_socket, _success, error) => resolve(error?.message ?? null),
          data: () => undefined,
        },
        { tls: { ...asked, allowPartialTrustChain } },
      )
      const device = await connectDevice({ port, tls: { cert, key } }).catch(() => null)
      expect(await promise).toBe(allowPartialTrustChain ? null : "unable to get issuer certificate")
      device?.terminate()
    }
  })

  test.each([
    ["ended", false],
    ["shut down", true],
  ])(
    "a socket that was %s to a peer that does not answer can be terminated: %p",
    async (how, can) => {
      let closed = false
      const { promise: shaken, resolve } = Promise.withResolvers<Bun.Socket<undefined>>()
      const { port } = listen({
        handshake: (socket) => resolve(socket),
        close: () => {
          closed = true
        },
        data: () => undefined,
      })
      const program = findProgram("openssl", "openssl")
      const peer = Bun.spawn([program, "s_client", "-quiet", "-connect", `127.0.0.1:${port}`], {
        stdio: ["pipe", "ignore", "ignore"],
      })
      try {
        const socket = await shaken
        peer.kill("SIGSTOP")
        if (how === "ended") socket.end()
        else socket.shutdown()
        socket.terminate()
        expect(closed).toBe(can)
      } finally {
        peer.kill("SIGKILL")
        await peer.exited
      }
      await until(() => closed, { what: "the close once the peer is gone" })
    },
  )

  test("calls `close` before `terminate` returns, also before the handshake", async () => {
    const told: string[] = []
    const { port } = listen({
      open: (socket) => {
        socket.terminate()
        told.push("terminated")
      },
      close: () => void told.push("close"),
      data: () => undefined,
    })
    await connectDevice({ port }).catch(() => undefined)
    await until(() => told.length === 2, { what: "both" })
    expect(told).toEqual(["close", "terminated"])
  })

  test("hands out chunks that are copies of their own, and none after `pause`", async () => {
    const chunks: Uint8Array[] = []
    let socket: Bun.Socket<undefined> | undefined
    const { port } = listen({
      binaryType: "uint8array",
      data: (from, chunk) => {
        socket = from
        chunks.push(chunk)
        from.pause()
      },
    } as Handlers)
    const device = await connectDevice({ port })
    await device.sendBytes(Buffer.alloc(40_000, "a"))
    await until(() => chunks.length === 1, { what: "a chunk" })
    await device.sendBytes(Buffer.alloc(40_000, "b"))
    const first = chunks[0] ?? new Uint8Array()
    expect(first.constructor.name).toBe("Uint8Array")
    expect(first.buffer.byteLength).toBe(first.length)
    expect(chunks.length).toBe(1)
    const read = () => chunks.reduce((sum, chunk) => sum + chunk.length, 0)
    await until(() => socket?.resume() === undefined && read() === 80_000, { what: "the rest" })
    expect(first.every((byte) => byte === 97)).toBe(true)
    device.terminate()
  })

  test("takes no more than the kernel does, and calls `drain` when there is room", async () => {
    const offered = Buffer.alloc(65_536, "x")
    let accepted = 0
    let drained = 0
    const { port } = listen({
      handshake: (socket) => {
        for (;;) {
          const taken = socket.write(offered)
          accepted += taken
          if (taken < offered.length) return
        }
      },
      drain: () => {
        drained += 1
      },
      data: () => undefined,
    })
    const device = await connectDevice({ port })
    device.pause()
    await until(() => accepted > 0, { what: "a full socket" })
    device.resume()
    await until(() => drained > 0, { what: "drain" })
    await until(() => device.rest.length === accepted, { what: "every accepted byte" })
    device.terminate()
  })

  test("gives errors of TLS and of the system a number, and those of callbacks none", async () => {
    const errors: Error[] = []
    const { port } = listen({
      error: (_socket, error) => void errors.push(error),
      data: () => {
        throw new Error("ours")
      },
    })
    const device = await connectDevice({ port })
    await device.send("x")
    await until(() => errors.length === 1, { what: "the error" })
    expect(errors[0]?.message).toBe("ours")
    expect("errno" in (errors[0] as Error)).toBe(false)
    device.terminate()
  })
})

describe("node:net and node:http", () => {
  const servers: (net.Server | http.Server)[] = []
  afterAll(() => {
    for (const server of servers) server.close()
  })

  /** The port, or the code of the error. */
  function listenOn(server: net.Server | http.Server, port: number): Promise<number | string> {
    servers.push(server)
    return new Promise((resolve) => {
      server.on("error", (error) => resolve("code" in error ? String(error.code) : error.message))
      server.on("listening", () => resolve((server.address() as net.AddressInfo).port))
      server.listen({ host: "127.0.0.1", port, reusePort: true })
    })
  }

  test("share a port with reusePort as net.Server, and not yet as http.Server", async () => {
    const port = Number(await listenOn(net.createServer(), 0))
    expect(await listenOn(net.createServer(), port)).toBe(port)
    const alone = Number(await listenOn(http.createServer(), 0))
    expect(await listenOn(http.createServer(), alone)).toBe("EADDRINUSE")
  })

  test("take a connection by the event `connection`, with the same socket in each request", async () => {
    const sockets = new Set<net.Socket>()
    const server = http.createServer(({ socket }, response) => {
      response.end(String(sockets.has(socket)))
    })
    const acceptor = net.createServer((socket) => {
      sockets.add(socket)
      server.emit("connection", socket)
    })
    const port = await listenOn(acceptor, 0)
    expect(await (await fetch(`http://127.0.0.1:${port}/`)).text()).toBe("true")
    for (const socket of sockets) socket.destroy()
  })
})

describe("the AMQP client", () => {
  test("writes integers as they are only as bigint", () => {
    const view = new AMQPView(new ArrayBuffer(64))
    const large = 2 ** 31 + 5
    view.setField(0, large)
    expect(view.getField(0)[0]).toBe(large - 2 ** 32)
    view.setField(0, BigInt(large))
    expect(view.getField(0)[0]).toBe(large)
  })
})
