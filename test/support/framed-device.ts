/**
 * A device for the tests that sends length-prefixed messages and reads length-prefixed commands. It
 * has its own framing, like `tls-device.ts`, on which it is built.
 */

import { connectDevice, type TestDevice, type TestDeviceOptions } from "./tls-device.ts"
import { until } from "./wait.ts"

const LF = Buffer.from("\n")

export interface FramedDevice {
  readonly closed: TestDevice["closed"]
  /** Sends one message with its length. */
  send(message: string): Promise<void>
  /** Sends only the length of a message. */
  sendLength(bytes: number): Promise<void>
  sendBytes(bytes: Uint8Array): Promise<void>
  /** The first `count` commands, as UTF-8. Rejects when they do not come in time. */
  waitCommands(count: number): Promise<string[]>
  end(): void
}

export async function connectFramed(
  lengthBytes: 2 | 4,
  options: TestDeviceOptions,
): Promise<FramedDevice> {
  const device = await connectDevice(options)
  const lengthOf = (bytes: number) => {
    const length = Buffer.alloc(lengthBytes)
    length.writeUIntBE(bytes, 0, lengthBytes)
    return length
  }
  const commands = () => {
    const wire = Buffer.concat([...device.lineBytes.flatMap((line) => [line, LF]), device.rest])
    const found: string[] = []
    for (let at = 0; at + lengthBytes <= wire.length; ) {
      const start = at + lengthBytes
      at = start + wire.readUIntBE(at, lengthBytes)
      if (at <= wire.length) found.push(wire.toString("utf8", start, at))
    }
    return found
  }
  return {
    closed: device.closed,
    send: (message) =>
      device.sendBytes(Buffer.concat([lengthOf(Buffer.byteLength(message)), Buffer.from(message)])),
    sendLength: (bytes) => device.sendBytes(lengthOf(bytes)),
    sendBytes: (bytes) => device.sendBytes(bytes),
    waitCommands: (count) =>
      until(() => (commands().length >= count ? commands().slice(0, count) : null), {
        what: `command ${count} at the device`,
      }),
    end: () => device.end(),
  }
}
