/**
 * Tests of the test support itself, with a real node and real programs: a fault here would show as
 * a fault of the gateway everywhere else. Never tests the gateway. The parts share one node, and
 * each leaves it running.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { namespaceAdvice } from "../support/namespace.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import * as tools from "../support/tools.ts"
import { deferred, TimeoutError, until, within } from "../support/wait.ts"

const START_LIMIT_MS = 90_000
const LIMIT_MS = 30_000
const name = uniqueNames("support")

describe("waiting", () => {
  test("until resolves with the first truthy value", async () => {
    let looks = 0
    expect(await until(() => (looks++ < 3 ? 0 : looks), { what: "four looks" })).toBe(4)
  })

  test("until says what it waited for and what went wrong last", async () => {
    const condition = () => {
      throw new Error("no such queue")
    }
    const waiting = until(condition, { what: "a message", timeoutMs: 50 })
    await expect(waiting).rejects.toThrow("waited 50 ms for a message; last: no such queue")
  })

  test("until limits a condition that never answers", async () => {
    const waiting = until(() => deferred<boolean>().promise, { what: "silence", timeoutMs: 50 })
    await expect(waiting).rejects.toThrow("silence")
  })

  test("within passes on what the promise does, and limits it", async () => {
    expect(await within(Promise.resolve(7), { what: "seven" })).toBe(7)
    const failing = within(Promise.reject(new Error("own")), { what: "a fault" })
    await expect(failing).rejects.toThrow("own")
    const never = within(deferred<void>().promise, { what: "never", timeoutMs: 20 })
    await expect(never).rejects.toThrow(TimeoutError)
  })
})

describe("a RabbitMQ node", () => {
  let broker: PrivateBroker

  beforeAll(async () => {
    broker = await startRabbitMq()
  }, START_LIMIT_MS)

  afterAll(() => broker.dispose(), LIMIT_MS)

  test(
    "carries a message from amqp-publish to pika",
    async () => {
      const queue = await declareQueue(broker.url, name("to_pika"))
      const body = Buffer.from("a\0b\r\nzwölf")
      const headers = { device_id: "d-1", to_device_seq: "0" }
      await tools.amqpPublish({
        url: broker.url,
        routingKey: queue,
        body,
        headers,
        persistent: true,
        contentType: "text/plain",
        contentEncoding: "none",
        replyTo: "answers",
      })
      const [message] = await tools.pikaConsume({ url: broker.url, queue, count: 1 })
      expect(message).toEqual({
        body,
        headers,
        headersHex: expect.any(String),
        properties: {
          content_type: "text/plain",
          content_encoding: "none",
          delivery_mode: 2,
          reply_to: "answers",
        },
        exchange: "",
        routingKey: queue,
        redelivered: false,
      })
    },
    LIMIT_MS,
  )

  test(
    "carries messages from pika to amqp-consume and to pika",
    async () => {
      const queue = await declareQueue(broker.url, name("from_pika"))
      const bodies = [Buffer.from("one\ntwo"), Buffer.from([0, 255, 10, 13]), Buffer.from("")]
      const headers = { epoch: 1_785_000_000_123, small: 1, flag: true, text: "x" }
      const properties = { message_id: "c:0", correlation_id: "k", expiration: "60000" }
      const messages = bodies.map((body) => ({ routingKey: queue, body, headers, properties }))
      const outcomes = await tools.pikaPublish({ url: broker.url, messages })
      expect(outcomes).toEqual(["confirmed", "confirmed", "confirmed"])
      expect(await broker.queueDepth(queue)).toBe(3)

      const first = await tools.amqpConsume({ url: broker.url, queue, count: 2 })
      expect(first).toEqual(bodies.slice(0, 2))
      const [last] = await tools.pikaConsume({ url: broker.url, queue, count: 1 })
      expect(last).toMatchObject({ body: Buffer.from(""), headers, properties })
      expect(await broker.queueDepth(queue)).toBe(0)
    },
    LIMIT_MS,
  )

  test(
    "returns to pika what has no queue",
    async () => {
      const messages = [{ routingKey: name("nowhere"), body: "lost" }]
      expect(await tools.pikaPublish({ url: broker.url, messages })).toEqual(["returned"])
    },
    LIMIT_MS,
  )

  test(
    "makes consumers reject when messages do not come",
    async () => {
      const queue = await declareQueue(broker.url, name("empty"))
      const wanted = { url: broker.url, queue, count: 1, timeoutMs: 500 }
      await expect(tools.amqpConsume(wanted)).rejects.toThrow("over 500 ms")
      await expect(tools.pikaConsume(wanted)).rejects.toThrow("over 500 ms")
      await expect(broker.queueDepth(name("unknown"))).rejects.toThrow("404")
    },
    LIMIT_MS,
  )

  test(
    "reports what ctl complains about",
    async () => {
      await expect(broker.ctl("no_such_command")).rejects.toThrow("no_such_command")
      expect(await broker.ctl("list_vhosts")).toBe("/\n")
    },
    LIMIT_MS,
  )

  test(
    "serves a shared use elsewhere, by TEST_AMQP_URL, without obeying it",
    async () => {
      const queue = await declareQueue(broker.url, name("foreign"))
      const script = `
        const { sharedRabbitMq } = await import("./rabbitmq.ts")
        const broker = await sharedRabbitMq()
        console.log(await broker.queueDepth("${queue}"), broker.url, broker.port)
        console.log(await broker.ctl("status").catch((error) => error.message))
      `
      const child = runBun(script, { TEST_AMQP_URL: broker.url })
      expect(await child.stdout.text()).toBe(
        `0 ${broker.url} ${broker.port}\nThis needs the private node: unset TEST_AMQP_URL\n`,
      )
    },
    LIMIT_MS,
  )

  test(
    "leaves no process and no file, even when the test process is killed",
    async () => {
      const script = `
        const { sharedRabbitMq } = await import("./rabbitmq.ts")
        const broker = await sharedRabbitMq()
        console.log(JSON.stringify({
          same: broker === (await sharedRabbitMq()),
          directory: broker.directory,
          ids: broker.processIds(),
        }))
        await new Promise(() => setInterval(() => {}, 1000))
      `
      const child = runBun(script, { TEST_AMQP_URL: "" })
      let told = ""
      for await (const chunk of child.stdout) {
        told += new TextDecoder().decode(chunk)
        if (told.endsWith("\n")) break
      }
      const { same, directory, ids } = JSON.parse(told)
      expect(same).toBe(true)
      expect(ids.length).toBeGreaterThan(2)
      expect(ids.some(isAlive)).toBe(true)
      child.kill("SIGKILL")
      await until(() => !ids.some(isAlive) && !existsSync(directory), { what: "the node to go" })
    },
    START_LIMIT_MS,
  )

  test(
    "leaves no process and no file when it is disposed of",
    async () => {
      const ids = broker.processIds()
      expect(ids.length).toBeGreaterThan(2)
      await broker.kill()
      await broker.dispose()
      await broker.dispose()
      expect(ids.filter(isAlive)).toEqual([])
      expect(existsSync(broker.directory)).toBe(false)
      await expect(broker.start()).rejects.toThrow("the node is disposed")
    },
    LIMIT_MS,
  )
})

describe("devices", () => {
  const directory = mkdtempSync(join(tmpdir(), "owsla-support-"))
  const certFile = join(directory, "server.crt")
  const keyFile = join(directory, "server.key")
  let server: ReturnType<typeof startEcho>

  beforeAll(() => {
    const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    const files = ["-keyout", keyFile, "-out", certFile]
    const openssl = tools.findProgram("openssl", "openssl")
    const made = Bun.spawnSync([openssl, "req", "-x509", ...kind, ...subject, ...files])
    if (!made.success) throw new Error(made.stderr.toString())
    server = startEcho(certFile, keyFile)
  })

  afterAll(() => {
    server.stop()
    rmSync(directory, { recursive: true })
  })

  for (const make of [tools.opensslDevice, tools.gnutlsDevice]) {
    describe(make.name, () => {
      test("sends and receives lines, and closes in order", async () => {
        const device = make({ port: server.port, caFile: certFile })
        // Letters that these programs would take for commands of their own.
        for (const line of ["Quit", "R", "zwölf", "^rehandshake^"]) await device.send(line)
        expect(await device.waitLines(4)).toEqual(["Quit", "R", "zwölf", "^rehandshake^"])
        await device.close()
        expect(device.lines()).toHaveLength(4)
        expect((await device.closed).exitCode).toBe(0)
      })

      test("ends when the other side closes, and says why it failed", async () => {
        const closed = make({ port: server.port })
        await closed.send("close")
        expect((await closed.closed).exitCode).toBe(0)
        await expect(closed.send("late")).rejects.toThrow("has ended")
        const untrusting = make({ port: server.port, caFile: "/etc/ssl/certs/ca-certificates.crt" })
        await expect(untrusting.waitLines(1)).rejects.toThrow(/certificate/i)
      })
    })
  }

  test("a missing program names its package", () => {
    expect(() => tools.findProgram("no-such-program", "some-package")).toThrow(
      "This test needs no-such-program: apt-get install some-package",
    )
  })

  test.each([
    ["kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"],
    ["user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"],
    [
      "kernel/apparmor_restrict_unprivileged_userns",
      "1",
      "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ],
  ])(
    "a machine that forbids user namespaces by %s is told how to allow them",
    (file, value, remedy) => {
      const advice = namespaceAdvice(false, (asked) => (asked === file ? value : null))
      expect(advice).toContain(`allow them by: ${remedy}`)
    },
  )

  test("an ordinary user who could make a user namespace is told which commands do", () => {
    expect(namespaceAdvice(true, () => null)).toEndWith("bun run check and bun run faults make one")
  })

  test("connectDevice sends and receives lines as they are", async () => {
    const device = await connectDevice({
      port: server.port,
      tls: { ca: readFileSync(certFile, "utf8"), serverName: "localhost" },
    })
    await device.send("one")
    expect(await device.nextLine()).toBe("one")
    await device.sendBytes(Buffer.from([0x74, 0x77, 0x6f, 0x0d, 0x0a, 0xff, 0x00, 0x0a, 0x78]))
    expect(await device.waitLines(3)).toEqual(["one", "two\r", "\ufffd\0"])
    expect(device.lineBytes[2]).toEqual(Buffer.from([0xff, 0x00]))
    await until(() => device.rest.length === 1, { what: "the byte after the last line" })
    expect(await device.nextLine()).toBe("two\r")
    expect(await device.nextLine()).toBe("\ufffd\0")
    await expect(device.nextLine(30)).rejects.toThrow("line 4 at the device (3 received)")
    await device.send("")
    expect(await device.nextLine()).toBe("x")
    device.end()
    expect(await device.closed).toEqual({ by: "device", unsentBytes: 0 })
    await expect(device.send("late")).rejects.toThrow("closed")
  })

  test("connectDevice keeps what a full socket does not take", async () => {
    const device = await connectDevice({ port: server.port })
    await device.send("stall")
    await device.nextLine()
    const line = "x".repeat(65_535)
    const sent = Promise.all(Array.from({ length: 256 }, () => device.send(line)))
    const early = within(sent, { what: "a stalled server to read", timeoutMs: 200 })
    await expect(early).rejects.toThrow("a stalled server")
    server.resumeStalled()
    await sent
    await device.waitLines(257)
    expect(new Set(device.lines.slice(1))).toEqual(new Set([line]))
    device.end()
    await device.closed
  })

  test("connectDevice stops reading while paused", async () => {
    const device = await connectDevice({ port: server.port })
    device.pause()
    await device.send("held")
    await expect(device.nextLine(100)).rejects.toThrow("0 received")
    device.resume()
    expect(await device.nextLine()).toBe("held")
    device.terminate()
    expect((await device.closed).by).toBe("device")
  })

  test("connectDevice tells who closed, and ends every wait then", async () => {
    const ended = await connectDevice({ port: server.port })
    const line = ended.waitLines(9)
    void ended.send("close")
    await expect(line).rejects.toThrow("which is closed (0 received)")
    expect(await ended.closed).toEqual({ by: "peer", unsentBytes: 0 })

    const reset = await connectDevice({ port: server.port })
    void reset.send("reset")
    const { by, error } = await reset.closed
    expect(by).toBe("fault")
    expect(error?.message).toContain("ECONNRESET")

    const stalled = await connectDevice({ port: server.port })
    await stalled.send("stall")
    await stalled.nextLine()
    void stalled.sendBytes(new Uint8Array(16_777_216))
    stalled.terminate()
    expect((await stalled.closed).unsentBytes).toBeGreaterThan(0)
    server.resumeStalled()
  })

  test("connectDevice tells of a refused client certificate after the handshake", async () => {
    const [cert, key, ca] = [Bun.file(certFile), Bun.file(keyFile), Bun.file(certFile)]
    const strict = Bun.listen({
      hostname: "127.0.0.1",
      port: 0,
      tls: { cert, key, ca, requestCert: true, rejectUnauthorized: true },
      socket: { data() {}, handshake() {}, error() {} },
    })
    const device = await connectDevice({ port: strict.port })
    const { by, error } = await device.closed
    expect(by).toBe("fault")
    expect(error?.message).toContain("CERTIFICATE_REQUIRED")
    strict.stop(true)
  })

  test("connectDevice rejects when there is no handshake", async () => {
    const stranger = connectDevice({ port: server.port, tls: { rejectUnauthorized: true } })
    await expect(stranger).rejects.toThrow(/self.signed/i)
    const mute = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } })
    const { port } = mute
    await expect(connectDevice({ port, connectTimeoutMs: 100 })).rejects.toThrow("handshake")
    mute.stop(true)
    await expect(connectDevice({ port })).rejects.toThrow("connect")
  })
})

/** Echoes bytes; the lines `close`, `reset` and `stall` make it do so (and `stall` is echoed). */
function startEcho(certFile: string, keyFile: string) {
  const stalled = new Set<Bun.Socket<Echo>>()
  const flush = (socket: Bun.Socket<Echo>) => {
    const { held } = socket.data
    for (let first = held[0]; first !== undefined; first = held[0]) {
      const taken = socket.write(first)
      if (taken < first.length) {
        held[0] = first.subarray(Math.max(taken, 0))
        return
      }
      held.shift()
    }
  }
  const listener = Bun.listen<Echo>({
    hostname: "127.0.0.1",
    port: 0,
    tls: { cert: Bun.file(certFile), key: Bun.file(keyFile) },
    socket: {
      open: (socket) => {
        socket.data = { held: [] }
      },
      data: (socket, chunk) => {
        const text = chunk.length < 20 ? chunk.toString() : ""
        if (text === "close\n") return void socket.end()
        if (text === "reset\n") return socket.terminate()
        if (text === "stall\n") {
          stalled.add(socket)
          socket.pause()
        }
        socket.data.held.push(chunk)
        flush(socket)
      },
      drain: flush,
      handshake() {},
      close() {},
      error() {},
    },
  })
  return {
    port: listener.port,
    stop: () => listener.stop(true),
    resumeStalled: () => {
      for (const socket of stalled) socket.resume()
      stalled.clear()
    },
  }
}

interface Echo {
  held: Buffer[]
}

async function declareQueue(url: string, queue: string): Promise<string> {
  const client = new AMQPClient(url)
  await client.connect()
  const channel = await client.channel()
  await channel.queueDeclare(queue, { durable: true })
  await client.close()
  return queue
}

function runBun(script: string, env: Record<string, string>) {
  return Bun.spawn([process.execPath, "-e", script], {
    cwd: join(import.meta.dir, "../support"),
    env: { ...process.env, ...env },
    stdout: "pipe",
    stderr: "inherit",
  })
}

function processState(id: number): string | undefined {
  try {
    return /^State:\s+(\S)/m.exec(readFileSync(`/proc/${id}/status`, "utf8"))?.[1]
  } catch {
    return undefined
  }
}

/** A zombie is not: it is over, and only its parent can collect it. */
function isAlive(id: number): boolean {
  const state = processState(id)
  return state !== undefined && state !== "Z" && state !== "X"
}
