/**
 * Devices of the `held` bench that were away and come back at a rate: each identifies itself, sends
 * one line, and takes its commands: those that were held, in order, and then the newer one that
 * answers its line.
 *
 *   stdout {"ready": 1} ─► stdin "come" ─► stdout {"came": ms} ─► stdin "status" ─► stdout {"whole", "held", "newer",
 *                                          "disorder", "repeated", "early", "lastMs"}
 */

import { parseArgs } from "node:util"
import { helloLine } from "../../src/device/hello.ts"
import { report } from "./child.ts"
import { atRate } from "./pace.ts"

const { values } = parseArgs({
  options: {
    port: { type: "string", default: "0" },
    secret: { type: "string", default: "" },
    /** Devices `away-<from>` to `away-<from + devices - 1>`. */
    from: { type: "string", default: "0" },
    devices: { type: "string", default: "0" },
    rate: { type: "string", default: "0" },
    /** Held commands of each device. */
    each: { type: "string", default: "0" },
  },
})
const each = Number(values.each)

interface Device {
  readonly name: string
  rest: string
  /** The number of the next held command. */
  next: number
  newer: number
  lastAtMs: number
}

const devices: Device[] = []
const counts = { disorder: 0, repeated: 0, early: 0 }

function took(device: Device, line: string): void {
  const [kind, number] = line.split(" ")
  // What acknowledges the line of the device.
  if (kind === "ACK") return
  device.lastAtMs = performance.now()
  if (kind === "newer") {
    if (device.next < each) counts.early += 1
    device.newer += 1
    return
  }
  const n = Number(number)
  if (n < device.next) counts.repeated += 1
  else if (n > device.next) counts.disorder += 1
  device.next = Math.max(device.next, n + 1)
}

function connect(name: string): void {
  const device: Device = { name, rest: "", next: 0, newer: 0, lastAtMs: 0 }
  devices.push(device)
  const dial = () =>
    void Bun.connect({
      hostname: "127.0.0.1",
      port: Number(values.port),
      tls: { rejectUnauthorized: false },
      socket: {
        handshake: (socket, success) => {
          if (success) socket.write(`${helloLine(name, values.secret)}\nback\n`)
        },
        data: (_socket, chunk) => {
          const lines = (device.rest + chunk.toString()).split("\n")
          device.rest = lines.pop() ?? ""
          for (const line of lines) took(device, line)
        },
        close: () => void setTimeout(dial, 1_000),
        error: () => undefined,
      },
    }).catch(() => void setTimeout(dial, 1_000))
  dial()
}

report({ ready: 1 })
for await (const line of console) {
  if (line === "come") {
    const sinceMs = performance.now()
    const from = Number(values.from)
    await atRate(Number(values.devices), Number(values.rate), (n) => connect(`away-${from + n}`))
    report({ came: performance.now() - sinceMs })
  }
  if (line === "status") {
    let whole = 0
    let held = 0
    let newer = 0
    let lastAtMs = 0
    for (const device of devices) {
      if (device.next === each && device.newer > 0) whole += 1
      held += device.next
      newer += device.newer
      lastAtMs = Math.max(lastAtMs, device.lastAtMs)
    }
    report({ whole, held, newer, ...counts, idleMs: performance.now() - lastAtMs })
  }
}
process.exit(0)
