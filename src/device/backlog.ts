/**
 * The backlog of a listening socket: connections that the kernel has established and no worker has accepted. Bun listens with
 * 512 and ignores its option; a storm of devices overflows that in a moment, and each that is dropped tries again
 * only after a second.
 *
 * `listen` once more on the same socket sets it, up to the system's `net.core.somaxconn`. Never throws: what cannot
 * be set is told.
 */

import { dlopen, FFIType } from "bun:ffi"

/** @returns why it could not be set, or null. */
export function setBacklog(fd: number, connections: number): string | null {
  if (process.platform !== "linux") return `not on ${process.platform}`
  try {
    const { i32 } = FFIType
    const libc = dlopen("libc.so.6", { listen: { args: [i32, i32], returns: i32 } })
    const result = libc.symbols.listen(fd, connections)
    libc.close()
    return result === 0 ? null : "listen failed"
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}
