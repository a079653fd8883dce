/**
 * Compares AMQP messages with docs/asyncapi.yaml. In JSON payloads, and in the headers of messages
 * that the gateway makes, each field must be described.
 */

import type { AMQPMessage } from "@cloudamqp/amqp-client"
import type { MessageDescription } from "./asyncapi.ts"
import { valueFault } from "./json-schemas.ts"

export interface DescribedMessage {
  readonly headers: Readonly<Record<string, unknown>>
  /** By their names in AMQP 0-9-1, without headers. */
  readonly properties: Readonly<Record<string, unknown>>
  readonly body: Uint8Array
}

/** Why the message is not what the description says; null when it is. */
export function messageFault(
  description: MessageDescription,
  { headers, properties, body }: DescribedMessage,
  ofHeaders: "closed" | "open" = "open",
): string | null {
  const faults = [
    fault("headers", valueFault(description.headers, plain(headers), ofHeaders)),
    fault("properties", valueFault(description["x-amqp-properties"], properties, "open")),
    description.contentType === "application/json"
      ? fault("payload", valueFault(description.payload, JSON.parse(Buffer.from(body).toString())))
      : null,
  ].filter((each) => each !== null)
  return faults.length === 0 ? null : `${description.name}: ${faults.join("; ")}`
}

function fault(where: string, text: string | null): string | null {
  return text === null ? null : `${where}: ${text}`
}

/** As JSON has them: integers of 64 bits are numbers, and null is a missing header. */
function plain(headers: DescribedMessage["headers"]): Record<string, unknown> {
  const given = Object.entries(headers).filter(([, value]) => value !== null && value !== undefined)
  return Object.fromEntries(
    given.map(([name, value]) => [name, typeof value === "bigint" ? Number(value) : value]),
  )
}

/** A message as it was consumed. */
export function describedMessage(message: AMQPMessage): DescribedMessage {
  const { headers = {}, timestamp, ...others } = message.properties
  const named = Object.entries(others).map(([name, value]) => {
    return [name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`), value] as const
  })
  const seconds = timestamp === undefined ? {} : { timestamp: timestamp.getTime() / 1_000 }
  return {
    headers,
    properties: { ...Object.fromEntries(named), ...seconds },
    body: message.body ?? new Uint8Array(),
  }
}
