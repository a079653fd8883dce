/**
 * The lines of simulated devices and the commands of the simulated back-end. Pure.
 *
 *   line      <run> <device> <attempt> <n> <answers> xxxx…     `MIN_LINE_BYTES` to 65,536 bytes
 *   command   CMD <number>                                     from the back-end to the device
 *   held      HELD <run> <device> <n>                          a command that was sent while the device was away
 *   hostile   hostile <kind> <number>                          a line of a device that misbehaves
 *
 * run: ten random characters for each start. device: its name. attempt: the number of the device's
 * connection, from 1. n: the number of the line of that connection, from 0, by which loss, repeats
 * and order are judged. answers: the number of the command that this line answers, or "-".
 *
 * Every line of a run has the same length, so the number of accepted lines follows from the number
 * of accepted bytes. Bounds: `MAX` of each field, which together fit into `MIN_LINE_BYTES`.
 */

export const NAME = /^[A-Za-z][A-Za-z0-9_.:]{0,15}$/
export const MIN_LINE_BYTES = 64
/** A line with the longest fields has 62 characters, and a space. */
export const MAX = {
  devices: 20_000,
  attempts: 999_999,
  lines: 9_999_999_999,
  held: 1_000,
} as const

const LINE = /^([0-9a-z]{10}) ([A-Za-z0-9_.:]{1,16}-\d{1,5}) (\d{1,6}) (\d{1,10}) (-|\d{1,10}) x*$/
const COMMAND = /^CMD (\d{1,10})$/
const HELD = /^HELD ([0-9a-z]{10}) ([A-Za-z0-9_.:]{1,16}-\d{1,5}) (\d{1,4})$/
const HOSTILE = /^hostile ([a-z-]{1,20}) \d+/

export interface SimulatedLine {
  readonly run: string
  readonly device: string
  readonly attempt: number
  readonly n: number
  readonly answers: number | null
}

/** The n-th held command for a device, from 0. */
export interface HeldCommand {
  readonly run: string
  readonly device: string
  readonly n: number
}

/** @param random in [0, 1). Runs that start in one millisecond differ by two of 36 characters. */
export function newRun(startedAtMs: number, random: number): string {
  const suffix = Math.floor(random * 36 ** 2)
  return startedAtMs.toString(36).padStart(8, "0") + suffix.toString(36).padStart(2, "0")
}

export function deviceName(name: string, index: number): string {
  return `${name}-${index}`
}

/** Composes the lines of a run; `padding` is shared by all of them. */
export class LineWriter {
  readonly run: string
  /** With the LF. */
  readonly lineBytes: number
  readonly #padding: string

  constructor(run: string, bytes: number) {
    this.run = run
    this.lineBytes = bytes + 1
    this.#padding = `${"x".repeat(bytes)}\n`
  }

  /** ASCII, ended by LF, of `lineBytes`. */
  compose(device: string, attempt: number, n: number, answers: number | null): string {
    const says = `${this.run} ${device} ${attempt} ${n} ${answers ?? "-"}`
    return `${says} ${this.#padding.slice(says.length + 1)}`
  }
}

/** Null when it is not a line of a simulated device. */
export function readLine(text: string): SimulatedLine | null {
  const [, run, device, attempt, n, answers] = LINE.exec(text) ?? []
  if (run === undefined || device === undefined) return null
  return {
    run,
    device,
    attempt: Number(attempt),
    n: Number(n),
    answers: answers === "-" ? null : Number(answers),
  }
}

export function command(number: number): string {
  return `CMD ${number}`
}

/** The number of a command of the simulated back-end, or null. */
export function readCommandNumber(text: string): number | null {
  const number = COMMAND.exec(text)?.[1]
  return number === undefined ? null : Number(number)
}

export function heldCommand({ run, device, n }: HeldCommand): string {
  return `HELD ${run} ${device} ${n}`
}

/** Null when it is not a held command of the simulated back-end. */
export function readHeldCommand(text: string): HeldCommand | null {
  const [, run, device, n] = HELD.exec(text) ?? []
  if (run === undefined || device === undefined) return null
  return { run, device, n: Number(n) }
}

export function hostileLine(kind: string, number: number): string {
  return `hostile ${kind} ${number}`
}

/** The kind of the misbehaving device that wrote it, or null. */
export function readHostile(text: string): string | null {
  return HOSTILE.exec(text)?.[1] ?? null
}
