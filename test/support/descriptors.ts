/**
 * Descriptors for the output of a process, of all kinds that a shell, a service manager or a
 * container uses. The test has the other end and decides when to read. Linux only.
 *
 * They use kernel buffers; `close` releases them.
 */

import { dlopen, FFIType, ptr } from "bun:ffi"
import { closeSync, constants, mkdtempSync, openSync, readSync, rmSync, writeSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

export interface Unread {
  /** For the process under test. */
  readonly descriptor: number
  /** Everything that can be read now. */
  readonly read: () => string
  /** Writes until the descriptor accepts no more bytes. */
  readonly fill: () => void
  /** Closes the reading end. */
  readonly hangUp: () => void
  readonly close: () => void
}

const { i32, ptr: pointer } = FFIType
const libc = dlopen("libc.so.6", {
  fcntl: { args: [i32, i32, i32], returns: i32 },
  socketpair: { args: [i32, i32, i32, pointer], returns: i32 },
  posix_openpt: { args: [i32], returns: i32 },
  unlockpt: { args: [i32], returns: i32 },
  ptsname: { args: [i32], returns: FFIType.cstring },
}).symbols

const F_SETFL = 4
const { O_RDONLY, O_RDWR, O_WRONLY, O_NONBLOCK, O_NOCTTY } = constants

export const KINDS = { pipe, socket, terminal } as const

/** A pipe, as with a shell's `|` and in Docker. */
export function pipe(): Unread {
  const directory = mkdtempSync(join(tmpdir(), "owsla-pipe-"))
  const path = join(directory, "pipe")
  if (!Bun.spawnSync(["mkfifo", path]).success) throw new Error("mkfifo failed")
  const reader = openSync(path, O_RDONLY | O_NONBLOCK)
  const writer = openSync(path, O_WRONLY)
  const filler = openSync(path, O_WRONLY | O_NONBLOCK)
  return unread(reader, writer, filler, () => rmSync(directory, { recursive: true }))
}

/** A socket, as from systemd for its journal. */
export function socket(): Unread {
  const ends = new Int32Array(2)
  const [unix, stream] = [1, 1]
  if (libc.socketpair(unix, stream, 0, ptr(ends)) !== 0) throw new Error("socketpair failed")
  const [reader = -1, writer = -1] = ends
  libc.fcntl(reader, F_SETFL, O_NONBLOCK)
  return unread(reader, writer, null, () => undefined)
}

export function terminal(): Unread {
  const reader = libc.posix_openpt(O_RDWR | O_NOCTTY)
  if (reader < 0 || libc.unlockpt(reader) !== 0) throw new Error("no terminal")
  libc.fcntl(reader, F_SETFL, O_NONBLOCK)
  const path = String(libc.ptsname(reader))
  const writer = openSync(path, O_WRONLY | O_NOCTTY)
  return unread(reader, writer, openSync(path, O_WRONLY | O_NOCTTY | O_NONBLOCK), () => undefined)
}

function unread(reader: number, writer: number, filler: number | null, end: () => void): Unread {
  const open = new Set([reader, writer, ...(filler === null ? [] : [filler])])
  const close = (descriptor: number) => {
    if (open.delete(descriptor)) closeSync(descriptor)
  }
  return {
    descriptor: writer,
    read: () => readAll(reader),
    fill: () => {
      if (filler === null) throw new Error("cannot be filled without blocking")
      fill(filler)
    },
    hangUp: () => close(reader),
    close: () => {
      for (const descriptor of [...open]) close(descriptor)
      end()
    },
  }
}

/** A pipe may accept a short write after it has refused a long one. */
function fill(descriptor: number): void {
  for (const length of [4_096, 1]) {
    const bytes = new Uint8Array(length).fill(0x0a)
    try {
      for (;;) writeSync(descriptor, bytes)
    } catch (error) {
      if (!isAgain(error)) throw error
    }
  }
}

function readAll(descriptor: number): string {
  const decoder = new TextDecoder()
  const bytes = new Uint8Array(65_536)
  let text = ""
  try {
    for (;;) {
      const count = readSync(descriptor, bytes)
      if (count === 0) return text
      text += decoder.decode(bytes.subarray(0, count), { stream: true })
    }
  } catch (error) {
    // EIO: no process has the terminal open any more.
    if (isAgain(error) || hasCode(error, "EIO")) return text
    throw error
  }
}

function isAgain(error: unknown): boolean {
  return hasCode(error, "EAGAIN")
}

function hasCode(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code
}
