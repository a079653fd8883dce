/**
 * The backlog of a listening socket: connections that the kernel has established and no worker has
 * accepted. Bun always uses 512 and ignores its `backlog` option. A storm of devices overflows that
 * at once, and a device whose connection was dropped retries only after a second.
 *
 * A second `listen` call on the same socket changes the backlog, up to the system's
 * `net.core.somaxconn`. Never throws: the reason for a failure is returned.
 */

import { dlopen, FFIType } from "bun:ffi"
import { errorText } from "../errors.ts"

/** @returns why the backlog could not be set, or null. */
export function setBacklog(fd: number, connections: number): string | null {
  if (process.platform !== "linux") return `not supported on ${process.platform}`
  try {
    const { i32 } = FFIType
    const libc = dlopen("libc.so.6", { listen: { args: [i32, i32], returns: i32 } })
    const result = libc.symbols.listen(fd, connections)
    libc.close()
    return result === 0 ? null : "listen failed"
  } catch (error) {
    return errorText(error)
  }
}
