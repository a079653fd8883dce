/**
 * Callers that send a line each now and then and time its answer: devices of the gateway with
 * `--port`, or with `--queue` one AMQP client that publishes for all of them, so that both ways are
 * timed by the same code.
 *
 *   stdout {"ready": n} ─► stdin "call" ─► stdout {"called", "answered", "p50", "p99": ms, "late": share} ─► again
 */

import { parseArgs } from "node:util"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { report } from "./child.ts"
import { atRate, percentile } from "./pace.ts"

const { values } = parseArgs({
  options: {
    port: { type: "string", default: "0" },
    url: { type: "string", default: "" },
    queue: { type: "string", default: "" },
    devices: { type: "string", default: "10" },
    /** Calls a second of all devices. */
    rate: { type: "string", default: "10" },
    seconds: { type: "string", default: "1" },
  },
})
const devices = Number(values.devices)
const rate = Number(values.rate)
const calls = Math.round(rate * Number(values.seconds))
const ANSWER_LIMIT_MS = 10_000
const HANDSHAKES = 32

/** When each call of this round was made, by its number. */
let madeAtMs: Float64Array = new Float64Array(0)
let tookMs: number[] = []

/** A line is `<number> xxx…`, and so is its answer. */
function answered(line: string): void {
  const atMs = madeAtMs[Number.parseInt(line, 10)]
  if (atMs !== undefined) tookMs.push(performance.now() - atMs)
}

function lineOf(call: number): string {
  return `${call} `.padEnd(100, "x")
}

/** Returns how to make one call. */
async function byGateway(): Promise<(call: number) => void> {
  const sockets: Bun.Socket<{ rest: string }>[] = []
  const connect = async () => {
    while (sockets.length < devices) {
      const handshaken = Promise.withResolvers<void>()
      const socket = await Bun.connect<{ rest: string }>({
        hostname: "127.0.0.1",
        port: Number(values.port),
        tls: { rejectUnauthorized: false },
        data: { rest: "" },
        socket: {
          handshake: () => handshaken.resolve(),
          data: (socket, chunk) => {
            const lines = (socket.data.rest + chunk.toString()).split("\n")
            socket.data.rest = lines.pop() ?? ""
            for (const line of lines) answered(line)
          },
          error: () => undefined,
        },
      })
      await handshaken.promise
      sockets.push(socket)
    }
  }
  await Promise.all(Array.from({ length: Math.min(HANDSHAKES, devices) }, connect))
  return (call) => {
    sockets[call % sockets.length]?.write(`${lineOf(call)}\n`)
  }
}

async function byQueue(): Promise<(call: number) => void> {
  const client = new AMQPClient(values.url)
  await client.connect()
  const channel = await client.channel()
  const { name } = await channel.queueDeclare("", { exclusive: true })
  await channel.basicConsume(name, { noAck: true }, (message) =>
    answered(message.bodyString() ?? ""),
  )
  const lines = await client.channel()
  await lines.confirmSelect()
  return (call) => {
    const headers = { connection_id: `bench.0.mb2k3f9zq7x2.${call % devices}` }
    const properties = { headers, replyTo: name, deliveryMode: 2 }
    void lines.basicPublish("", values.queue, lineOf(call), properties, true)
  }
}

const makeCall = values.queue === "" ? await byGateway() : await byQueue()

async function callAll(): Promise<Record<string, number>> {
  madeAtMs = new Float64Array(calls)
  tookMs = []
  const late = await atRate(calls, rate, (call) => {
    madeAtMs[call] = performance.now()
    makeCall(call)
  })
  const deadlineMs = performance.now() + ANSWER_LIMIT_MS
  while (tookMs.length < calls && performance.now() < deadlineMs) await Bun.sleep(10)
  const [p50, p99] = [percentile(tookMs, 0.5), percentile(tookMs, 0.99)]
  return { called: calls, answered: tookMs.length, p50, p99, late }
}

report({ ready: devices })
for await (const line of console) if (line === "call") report(await callAll())
process.exit(0)
