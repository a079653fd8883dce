/**
 * Writes to a descriptor of any kind without blocking, and without changing the open file
 * description that other processes share.
 *
 * - File, null device: `write`, because the page cache accepts the bytes. A disk that hangs blocks
 *   the process; only a thread could prevent that.
 * - Pipe, terminal: opened again through /proc with O_NONBLOCK, which makes an open file
 *   description of this process only.
 * - Pipe without permission to open it (it belongs to another user, as under `sudo`): `splice` from
 *   a private pipe with SPLICE_F_NONBLOCK.
 * - Socket (systemd's journal): `send` with MSG_DONTWAIT.
 * - Terminal without permission to open it (as under `su`): `/dev/tty`, opened with O_NONBLOCK, if
 *   it is the same terminal. Each process may open it.
 * - Terminal of another session without permission to open it: `write` of one byte after `poll` has
 *   reported room.
 *
 * This applies to Linux. Other systems use `write`, which may block. The descriptors stay open
 * until the process exits.
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
 * @returns the number of bytes accepted; 0 when there is no room now.
 * @throws when the descriptor accepts no bytes any more: the disk is full, or the reader has
 * closed.
 */
export type Sink = (bytes: Uint8Array) => number

/**
 * The largest write that is atomic on a Linux pipe, so that it does not mix with other writes
 * (pipe(7)).
 */
export const PIPE_BUF = 4_096

// From the Linux headers. The values are the same on x86-64 and arm64.
const O_NONBLOCK_CLOEXEC = constants.O_NONBLOCK | 0o2000000
const MSG_DONTWAIT_NOSIGNAL = 0x4040
const SPLICE_F_NONBLOCK = 2
const POLLOUT = 4
const POLL_FAULTS = 8 | 16 | 32

/** Loaded on first use: a pipe or a file usually does not need it. */
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
  // `tty_nr` of proc_pid_stat(5): the fifth field after the name. The name may contain spaces and
  // ends with the last ")".
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

/**
 * Moves bytes through a private pipe, one page at a time, so that `splice` moves them in one step.
 */
export function splicedPipe(descriptor: number): Sink {
  const { pipe2, splice } = libc()
  const ends = new Int32Array(2)
  if (pipe2(ptr(ends), O_NONBLOCK_CLOEXEC) !== 0) throw new Error("pipe2 failed")
  const [readEnd = -1, writeEnd = -1] = ends
  /** The number of bytes in the private pipe. They are the first ones of the offered bytes. */
  let inside = 0
  return (bytes) => {
    if (inside === 0) inside = writeSync(writeEnd, bytes.subarray(0, PIPE_BUF))
    const taken = Number(splice(readEnd, null, descriptor, null, inside, SPLICE_F_NONBLOCK))
    if (taken <= 0) {
      if (room(descriptor) !== "fault") return 0
      // The line is dropped. Empty the private pipe, so that its rest is not written before the
      // next line.
      readSync(readEnd, new Uint8Array(PIPE_BUF))
      inside = 0
      throw new Error("the pipe accepts no bytes")
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
    if (room(descriptor) === "fault") throw new Error("the socket accepts no bytes")
    return 0
  }
}

function polled(descriptor: number): Sink {
  return (bytes) => {
    // `poll` reports room, but not for how many bytes: writing more than one could block. `write`
    // throws on a fault.
    if (room(descriptor) === "none") return 0
    return writeSync(descriptor, bytes.subarray(0, 1))
  }
}

/**
 * `errno` of a call through `bun:ffi` cannot be read reliably; poll(2) gives the same information.
 */
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
