/**
 * Writes to a descriptor of any kind without blocking, and without changing what other processes share.
 *
 * | kind | how |
 * |---|---|
 * | file, null device | `write`: the page cache takes it. A disk that hangs blocks; nothing but a thread would help |
 * | pipe, terminal | opened once more with O_NONBLOCK, by way of /proc: an open file description that no other process shares |
 * | pipe that may not be opened (it belongs to another user, as under `sudo`) | `splice` from a private pipe, with SPLICE_F_NONBLOCK |
 * | socket (systemd's journal) | `send` with MSG_DONTWAIT |
 * | terminal that may not be opened (as under `su`) | `/dev/tty`, opened with O_NONBLOCK, when it is the same terminal; every process may open it |
 * | terminal of another session that may not be opened | `write` of one byte at a time after `poll` says that there is room |
 *
 * On Linux. Elsewhere `write`, which may block. No state but descriptors, which stay open as long as the process lives.
 */

import { dlopen, FFIType, ptr } from "bun:ffi"
import {
  constants,
  fstatSync,
  openSync,
  readFileSync,
  readSync,
  type Stats,
  writeSync,
} from "node:fs"
import { isatty } from "node:tty"

/**
 * @returns how many bytes were taken; 0 when there is no room now.
 * @throws when the descriptor can take no bytes: a full disk, a reader that has gone.
 */
export type Sink = (bytes: Uint8Array) => number

/** The largest write that is atomic on a Linux pipe: all or nothing, never mixed with other writes (pipe(7)). */
export const PIPE_BUF = 4_096

// From Linux' headers; the same on x86-64 and arm64.
const O_NONBLOCK_CLOEXEC = constants.O_NONBLOCK | 0o2000000
const MSG_DONTWAIT_NOSIGNAL = 0x4040
const SPLICE_F_NONBLOCK = 2
const POLLOUT = 4
const POLL_FAULTS = 8 | 16 | 32

/** Opened when it is needed, which with a pipe or a file it is not. */
let opened: ReturnType<typeof openLibc> | null = null
const libc = () => {
  opened ??= openLibc()
  return opened
}

export function openSink(descriptor: number): Sink {
  const plain: Sink = (bytes) => writeSync(descriptor, bytes)
  try {
    if (process.platform !== "linux") return plain
    const stats = fstatSync(descriptor)
    if (stats.isSocket()) return socketSink(descriptor)
    if (!stats.isFIFO() && !isatty(descriptor)) return plain
    const own = ownDescription(descriptor)
    if (own !== null) return own
    return stats.isFIFO()
      ? splicedPipe(descriptor)
      : (controllingTerminal(stats) ?? polled(descriptor))
  } catch {
    return plain
  }
}

function ownDescription(descriptor: number): Sink | null {
  return reopened(`/proc/self/fd/${descriptor}`)
}

/** Null when the terminal with these stats does not control this process. */
function controllingTerminal({ rdev }: Stats): Sink | null {
  // `tty_nr` of proc_pid_stat(5): the fifth field after the name, which may hold spaces and ends with the last ")".
  const fields = readFileSync("/proc/self/stat", "utf8").split(") ").at(-1)?.split(" ") ?? []
  return Number(fields[4]) === rdev ? reopened("/dev/tty") : null
}

function reopened(path: string): Sink | null {
  try {
    const { O_WRONLY, O_NONBLOCK, O_NOCTTY } = constants
    const own = openSync(path, O_WRONLY | O_NONBLOCK | O_NOCTTY)
    return (bytes) => {
      try {
        return writeSync(own, bytes)
      } catch (error) {
        if (error instanceof Error && "code" in error && error.code === "EAGAIN") return 0
        throw error
      }
    }
  } catch {
    return null
  }
}

/** Bytes go through a private pipe, one page at a time, so that its contents are moved as one. */
export function splicedPipe(descriptor: number): Sink {
  const { pipe2, splice } = libc()
  const ends = new Int32Array(2)
  if (pipe2(ptr(ends), O_NONBLOCK_CLOEXEC) !== 0) throw new Error("pipe2 failed")
  const [readEnd = -1, writeEnd = -1] = ends
  /** Bytes that are in the pipe already: the beginning of the offered bytes. */
  let inside = 0
  return (bytes) => {
    if (inside === 0) inside = writeSync(writeEnd, bytes.subarray(0, PIPE_BUF))
    const taken = Number(splice(readEnd, null, descriptor, null, inside, SPLICE_F_NONBLOCK))
    if (taken <= 0) {
      if (room(descriptor) !== "fault") return 0
      // The line is given up; its rest must not be written before the next one.
      readSync(readEnd, new Uint8Array(PIPE_BUF))
      inside = 0
      throw new Error("the pipe takes no bytes")
    }
    inside -= taken
    return taken
  }
}

function socketSink(descriptor: number): Sink {
  const { send } = libc()
  return (bytes) => {
    const part = bytes.subarray(0, PIPE_BUF)
    const taken = Number(send(descriptor, ptr(part), part.length, MSG_DONTWAIT_NOSIGNAL))
    if (taken > 0) return taken
    if (room(descriptor) === "fault") throw new Error("the socket takes no bytes")
    return 0
  }
}

function polled(descriptor: number): Sink {
  return (bytes) => {
    // `poll` promises room for some bytes, not for how many: more than one might block. `write` reports a fault.
    if (room(descriptor) === "none") return 0
    return writeSync(descriptor, bytes.subarray(0, 1))
  }
}

/** `errno` of a call through `bun:ffi` is lost before it could be read; poll(2) gives the same information. */
function room(descriptor: number): "some" | "none" | "fault" {
  const entry = new Int32Array([descriptor, POLLOUT])
  if (libc().poll(ptr(entry), 1, 0) <= 0) return "none"
  const events = (entry[1] ?? 0) >>> 16
  return (events & POLL_FAULTS) !== 0 ? "fault" : "some"
}

function openLibc() {
  const { i32, u32, u64, i64_fast, ptr: pointer } = FFIType
  return dlopen("libc.so.6", {
    pipe2: { args: [pointer, i32], returns: i32 },
    poll: { args: [pointer, u64, i32], returns: i32 },
    send: { args: [i32, pointer, u64, i32], returns: i64_fast },
    splice: { args: [i32, pointer, i32, pointer, u64, u32], returns: i64_fast },
  }).symbols
}
