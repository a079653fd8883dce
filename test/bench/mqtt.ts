/**
 * The part of MQTT 3.1.1 that a device needs that only publishes with QoS 1 (OASIS standard,
 * sections 3.1 to 3.4). Plain functions on bytes: no socket, no time. Written here because a client
 * library would cost the driver more than the packets do.
 */

const CONNECT = 0x10
const CONNACK = 0x20
/** PUBLISH with QoS 1, neither duplicate nor retained. */
const PUBLISH_QOS_1 = 0x32
const PUBACK = 0x40
const PROTOCOL_LEVEL = 4
const CLEAN_SESSION = 0x02
const NO_KEEP_ALIVE = 0
const ACCEPTED = 0
/** CONNACK and PUBACK have the same size. */
const REPLY_BYTES = 4
const MAX_PACKET_ID = 0xffff

export function connectPacket(clientId: string): Buffer {
  const flags = Buffer.from([PROTOCOL_LEVEL, CLEAN_SESSION])
  return packet(CONNECT, text("MQTT"), flags, uint16(NO_KEEP_ALIVE), text(clientId))
}

export function publishPacket(topic: string, packetId: number, payload: Uint8Array): Buffer {
  return packet(PUBLISH_QOS_1, text(topic), uint16(packetId), payload)
}

/** Packet identifiers are 1 to 65,535. */
export function nextPacketId(packetId: number): number {
  return (packetId % MAX_PACKET_ID) + 1
}

/** CONNACK of an accepted connection, or PUBACK. */
export type Reply = "accepted" | "acknowledged"

/** Reads what the server sends. A packet may be split over chunks, so its beginning is kept. */
export class ReplyReader {
  readonly #partial = Buffer.alloc(REPLY_BYTES)
  #length = 0

  /** Throws when the server refuses the connection, or sends another packet. */
  read(chunk: Uint8Array, each: (reply: Reply) => void): void {
    for (const byte of chunk) {
      this.#partial[this.#length] = byte
      this.#length += 1
      if (this.#length < REPLY_BYTES) continue
      this.#length = 0
      each(replyOf(this.#partial))
    }
  }
}

function replyOf(bytes: Buffer): Reply {
  if (bytes[1] === REPLY_BYTES - 2) {
    if (bytes[0] === PUBACK) return "acknowledged"
    if (bytes[0] === CONNACK && bytes[3] === ACCEPTED) return "accepted"
  }
  throw new Error(`MQTT: expected CONNACK with code 0 or PUBACK, got ${bytes.toString("hex")}`)
}

function packet(head: number, ...parts: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat(parts)
  return Buffer.concat([Buffer.from([head, ...remainingLength(body.length)]), body])
}

/** Section 2.2.3: seven bits a byte, the lowest first; the top bit says that more follow. */
function remainingLength(length: number): number[] {
  const low = length % 128
  const rest = Math.floor(length / 128)
  return rest === 0 ? [low] : [low | 128, ...remainingLength(rest)]
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value)
  return Buffer.concat([uint16(bytes.length), bytes])
}

function uint16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}
