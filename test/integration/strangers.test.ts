/**
 * Programs that nobody here wrote, on both sides of the gateway: `openssl s_client` and
 * `gnutls-cli` as devices, Debian's amqp-tools and Python's pika as back-ends.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { ownQueues, startGateway, type TestGateway, testCaFile } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import {
  amqpConsume,
  amqpPublish,
  gnutlsDevice,
  opensslDevice,
  type ProgramDevice,
  pikaConsume,
  pikaPublish,
} from "../support/tools.ts"

const LIMIT_MS = 60_000
const name = uniqueNames("strangers")
const queues = ownQueues(name)
let broker: TestBroker
let gateway: TestGateway

beforeAll(async () => {
  broker = await sharedRabbitMq()
  gateway = await startGateway({ AMQP_URL: broker.url, ...queues })
  await gateway.ready()
}, LIMIT_MS)

afterAll(() => gateway?.stop(), LIMIT_MS)

const devices: [string, () => ProgramDevice][] = [
  ["openssl s_client, TLS 1.3", () => openssl("-tls1_3")],
  ["openssl s_client, TLS 1.2", () => openssl("-tls1_2")],
  ["gnutls-cli", () => gnutlsDevice({ port: gateway.devicePort, caFile: testCaFile() })],
]

function openssl(version: string): ProgramDevice {
  return opensslDevice({ port: gateway.devicePort, caFile: testCaFile(), args: [version] })
}

describe.each(devices)("%s", (_program, connect) => {
  test(
    "talks with pika through the gateway",
    async () => {
      const device = connect()
      await device.send("from the device")
      const [line] = await pikaConsume({
        url: broker.url,
        queue: queues.FROM_DEVICE_QUEUE,
        count: 1,
      })
      expect(line?.body.toString()).toBe("from the device")
      const headers = { connection_id: line?.headers["connection_id"] }
      await pikaPublish({
        url: broker.url,
        messages: [{ routingKey: queues.TO_DEVICE_QUEUE, body: "to the device", headers }],
      })
      expect(await device.waitLines(1)).toEqual(["to the device"])
      await device.close()
    },
    LIMIT_MS,
  )
})

describe("amqp-consume and amqp-publish", () => {
  test(
    "are a back-end, numbers included",
    async () => {
      const device = openssl("-tls1_3")
      await device.send("one")
      await device.send("two")
      const [hello] = await pikaConsume({
        url: broker.url,
        queue: queues.FROM_DEVICE_QUEUE,
        count: 1,
      })
      const bodies = await amqpConsume({
        url: broker.url,
        queue: queues.FROM_DEVICE_QUEUE,
        count: 1,
      })
      expect(bodies.map(String)).toEqual(["two"])
      const connection_id = String(hello?.headers["connection_id"])
      for (const seq of ["1", "0"]) {
        await amqpPublish({
          url: broker.url,
          routingKey: queues.TO_DEVICE_QUEUE,
          body: `command ${seq}`,
          headers: { connection_id, to_device_seq: seq },
        })
      }
      expect(await device.waitLines(2)).toEqual(["command 0", "command 1"])
      await device.close()
    },
    LIMIT_MS,
  )
})
