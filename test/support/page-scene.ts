/**
 * Named devices for the tests and pictures of the operator page: real TLS connections that send
 * measurements and answer the command `get temperature <token>`.
 *
 *   lock:1000, meter:1007, bridge:1014, lock:1021, …
 */

import { helloLine } from "../../src/device/hello.ts"
import { connectDevice, type TestDevice } from "./tls-device.ts"

export const SECRET = "a-secret-of-the-tests-0123456789"
const KINDS = ["lock", "meter", "bridge"]
/** Handshakes at a time; more of them do not make it faster. */
const AT_A_TIME = 32
const ANSWER_EVERY_MS = 20

export interface SceneDevice {
  readonly id: string
  readonly device: TestDevice
}

/** The id of the n-th device. */
export function deviceIdOf(n: number): string {
  return `${KINDS[n % KINDS.length]}:${1_000 + 7 * n}`
}

export async function connectNamed(port: number, id: string): Promise<TestDevice> {
  const device = await connectDevice({ port })
  await device.send(helloLine(id, SECRET))
  return device
}

export class Scene {
  readonly devices: SceneDevice[] = []
  readonly #port: number
  #sending: ReturnType<typeof setInterval> | null = null
  readonly #answering = new Set<ReturnType<typeof setInterval>>()

  constructor(port: number) {
    this.#port = port
  }

  /** Connects devices `from` to `to`, without the last. */
  async connect(from: number, to: number): Promise<void> {
    let next = from
    const work = async () => {
      while (next < to) {
        const id = deviceIdOf(next)
        next += 1
        this.devices.push({ id, device: await connectNamed(this.#port, id) })
      }
    }
    await Promise.all(Array.from({ length: AT_A_TIME }, work))
  }

  device(id: string): TestDevice {
    const found = this.devices.find((each) => each.id === id)
    if (found === undefined) throw new Error(`no device ${id} in the scene`)
    return found.device
  }

  /** Each device sends a line every `everyMs`, one after another. */
  send(everyMs: number): void {
    let turn = 0
    const perTick = Math.max(1, Math.ceil((this.devices.length * ANSWER_EVERY_MS) / everyMs))
    this.#sending = setInterval(() => {
      for (let n = 0; n < perTick; n += 1) {
        turn += 1
        const { device } = this.devices[turn % this.devices.length] ?? {}
        const degrees = (21 + 2 * Math.sin(turn / 700)).toFixed(1)
        // A device whose connection has ended sends nothing.
        device?.send(`temperature ${degrees}`).catch(() => undefined)
      }
    }, ANSWER_EVERY_MS)
  }

  /** The device answers `get temperature <token>` with `<token> 21.5`. */
  answer(id: string): void {
    const device = this.device(id)
    let seen = 0
    const answering = setInterval(() => {
      for (; seen < device.lines.length; seen += 1) {
        const token = /^get temperature (\S+)$/.exec(device.lines[seen] ?? "")?.[1]
        if (token !== undefined) device.send(`${token} 21.5`).catch(() => undefined)
      }
    }, ANSWER_EVERY_MS)
    this.#answering.add(answering)
  }

  stop(): void {
    if (this.#sending !== null) clearInterval(this.#sending)
    for (const answering of this.#answering) clearInterval(answering)
    for (const { device } of this.devices) device.terminate()
  }
}
