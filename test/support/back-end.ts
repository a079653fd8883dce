/**
 * A back-end for the tests: publishes commands, and collects their receipts, undelivered commands
 * and presence. It is a plain AMQP client and uses only the documented protocol of the gateway.
 *
 * Keeps everything that it received, without a bound.
 */

import { AMQPClient, type AMQPMessage } from "@cloudamqp/amqp-client"

export interface BackEndCommand {
  readonly body: string
  readonly device?: string
  readonly connection?: string
  readonly seq?: number
  readonly messageId?: string
  /** Milliseconds. */
  readonly expiration?: number
  /** Further headers. */
  readonly headers?: Record<string, string | number | boolean>
  /** Default: the queue for all commands. */
  readonly queue?: string
  /** Instead of a queue, with an empty routing key. */
  readonly exchange?: string
}

export interface ReceivedReceipt {
  readonly outcome: string
  /** Of a broadcast: the number of its lines by outcome. */
  readonly outcomes?: Readonly<Record<string, number>>
  readonly device_id: string | null
  readonly connection_id: string | null
  readonly epoch: number | null
  readonly at: number
  readonly detail: string
  readonly reply?: {
    readonly line: string
    readonly encoding: string
    readonly from_device_seq: number
  }
  /** Of the message. */
  readonly headers: Record<string, unknown>
  /** The index of the command among those that were sent. */
  readonly command: number
  readonly receivedAtMs: number
}

export interface ReceivedPresence {
  readonly key: string
  readonly device_id: string
  readonly connection_id: string
  readonly epoch: number
  readonly instance: string
  readonly reason?: string
  readonly lines_in?: number
  readonly lines_out?: number
  readonly tls_version: string
  readonly worker: string
  readonly remote_address: string
  readonly at: number
}

export interface Queues {
  readonly FROM_DEVICE_QUEUE: string
  readonly TO_DEVICE_QUEUE: string
  readonly UNDELIVERED_QUEUE: string
}

export class BackEnd {
  readonly receipts: ReceivedReceipt[] = []
  readonly presence: ReceivedPresence[] = []
  /** Bodies and outcomes of commands in the undelivered queue. */
  readonly undelivered: { body: string; outcome: string; messageId: string | undefined }[] = []
  /** Lines in order of arrival: body, connection, number, device. */
  readonly lines: {
    body: string
    connection: string
    seq: number
    device: string
    replyTo: string
    headers: Record<string, unknown>
  }[] = []
  readonly #client: AMQPClient
  readonly #queues: Queues
  #channel: Awaited<ReturnType<AMQPClient["channel"]>> | null = null
  #receiptQueue = ""
  #sent = 0

  private constructor(url: string, queues: Queues) {
    this.#client = new AMQPClient(url)
    this.#queues = queues
  }

  /** Call this after the gateway has declared its queues. */
  static async connect(url: string, queues: Queues): Promise<BackEnd> {
    const backEnd = new BackEnd(url, queues)
    await backEnd.#start()
    return backEnd
  }

  /**
   * Resolves when the broker has confirmed the command, with the number that identifies its
   * receipt.
   */
  async send(command: BackEndCommand): Promise<number> {
    const number = this.#sent
    this.#sent += 1
    const { body, device, connection, seq, messageId, expiration } = command
    const headers = {
      ...(device === undefined ? {} : { device_id: device }),
      ...(connection === undefined ? {} : { connection_id: connection }),
      ...(seq === undefined ? {} : { to_device_seq: BigInt(seq) }),
      ...command.headers,
    }
    const { exchange = "", queue = this.#queues.TO_DEVICE_QUEUE } = command
    await this.#channel?.basicPublish(exchange, exchange === "" ? queue : "", body, {
      headers,
      deliveryMode: 2,
      replyTo: this.#receiptQueue,
      correlationId: String(number),
      ...(messageId === undefined ? {} : { messageId }),
      ...(expiration === undefined ? {} : { expiration: String(expiration) }),
    })
    return number
  }

  receiptOf(command: number): ReceivedReceipt | undefined {
    return this.receipts.find((receipt) => receipt.command === command)
  }

  async close(): Promise<void> {
    await this.#client.close()
  }

  async #start(): Promise<void> {
    await this.#client.connect()
    const channel = await this.#client.channel()
    this.#channel = channel
    await channel.confirmSelect()
    const { name } = await channel.queueDeclare("", { exclusive: true })
    this.#receiptQueue = name
    const { name: presence } = await channel.queueDeclare("", { exclusive: true })
    await channel.queueBind(presence, "owsla.presence", "device.*")
    const consume = (queue: string, take: (message: AMQPMessage) => void) =>
      channel.basicConsume(queue, { noAck: true }, take)
    await consume(name, (message) => {
      const receipt = JSON.parse(message.bodyString() ?? "")
      const command = Number(message.properties.correlationId)
      const headers = message.properties.headers ?? {}
      this.receipts.push({ ...receipt, command, headers, receivedAtMs: performance.now() })
    })
    await consume(presence, (message) => {
      this.presence.push({ key: message.routingKey, ...JSON.parse(message.bodyString() ?? "") })
    })
    await consume(this.#queues.UNDELIVERED_QUEUE, (message) => {
      this.undelivered.push({
        body: message.bodyString() ?? "",
        outcome: String(message.properties.headers?.["owsla-outcome"]),
        messageId: message.properties.messageId,
      })
    })
    await consume(this.#queues.FROM_DEVICE_QUEUE, (message) => {
      const { connection_id, device_id, from_device_seq } = message.properties.headers ?? {}
      this.lines.push({
        body: message.bodyString() ?? "",
        connection: String(connection_id),
        device: String(device_id),
        seq: Number(from_device_seq),
        replyTo: String(message.properties.replyTo),
        headers: message.properties.headers ?? {},
      })
    })
  }
}
