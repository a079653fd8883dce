/**
 * What the checks read from this machine: files of the kernel, the systemd unit, the clock. The
 * tests replace it. Reads only; it changes nothing. Bound: `COMMAND_MS` for a command.
 */

import { dlopen, FFIType, ptr } from "bun:ffi"
import { readFileSync } from "node:fs"

const COMMAND_MS = 2_000

export interface Machine {
  /** The text of a file; null when it cannot be read. */
  readonly read: (path: string) => string | null
  /** The standard output of a command; null when it cannot be run or fails. */
  readonly output: (command: readonly string[]) => string | null
  /** The state of the kernel's clock; null when the system does not tell it. */
  readonly kernelClock: () => KernelClock | null
}

export interface KernelClock {
  /** Whether a time service keeps the clock synchronised. */
  readonly isSynchronised: boolean
  /** The largest possible error according to the kernel. */
  readonly maxErrorMs: number
}

export const thisMachine: Machine = {
  read: (path) => {
    try {
      return readFileSync(path, "utf8")
    } catch {
      return null
    }
  },
  output: (command) => {
    try {
      const { stdout, success } = Bun.spawnSync([...command], {
        stdio: ["ignore", "pipe", "ignore"],
        timeout: COMMAND_MS,
      })
      return success ? stdout.toString() : null
    } catch {
      return null
    }
  },
  kernelClock: () => {
    try {
      return adjtimex()
    } catch {
      return null
    }
  },
}

/** The size of `struct timex` on 64-bit Linux, and positions in it (adjtimex(2)). */
const TIMEX = { bytes: 208, maxErrorAt: 24, statusAt: 40 }
const STA_UNSYNC = 0x40
const TIME_ERROR = 5

/** With `modes` 0 the call only reads, and needs no privilege. */
function adjtimex(): KernelClock | null {
  const libc = dlopen("libc.so.6", {
    adjtimex: { args: [FFIType.ptr], returns: FFIType.i32 },
  })
  const timex = new DataView(new ArrayBuffer(TIMEX.bytes))
  const state = libc.symbols.adjtimex(ptr(timex))
  libc.close()
  if (state < 0) return null
  const isUnsynchronised = (timex.getInt32(TIMEX.statusAt, true) & STA_UNSYNC) !== 0
  const maxErrorUs = Number(timex.getBigInt64(TIMEX.maxErrorAt, true))
  return {
    isSynchronised: state !== TIME_ERROR && !isUnsynchronised,
    maxErrorMs: maxErrorUs / 1_000,
  }
}

/** Memory that programs can still get, bytes; null when the system does not tell it. */
export function availableMemory({ read }: Machine): number | null {
  const kib = /^MemAvailable:\s+(\d+) kB$/m.exec(read("/proc/meminfo") ?? "")?.[1]
  return kib === undefined ? null : Number(kib) * 1_024
}
