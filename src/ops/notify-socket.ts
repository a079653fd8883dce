/**
 * Sends messages to systemd on the socket that NOTIFY_SOCKET names (sd_notify(3)): each is one Unix
 * datagram. Neither Bun nor Node has Unix datagrams (nodejs/node#31414), so this calls libc.
 *
 * A name that starts with "@" is in the abstract namespace. Never blocks: a message for which the
 * socket has no room is not sent. Linux only. The descriptor stays open until the process exits.
 */

import { dlopen, FFIType, ptr } from "bun:ffi"

// From the Linux headers. The values are the same on x86-64 and arm64.
const AF_UNIX = 1
const SOCK_DGRAM_CLOEXEC = 2 | 0o2000000
const MSG_DONTWAIT_NOSIGNAL = 0x4040
const CLOCK_MONOTONIC = 1
const FAMILY_BYTES = 2
/** `sun_path` of unix(7). */
const MAX_NAME_BYTES = 108

export class NotifySocket {
  readonly #libc = openLibc()
  readonly #address: Uint8Array
  readonly #descriptor: number

  /**
   * @param name the value of NOTIFY_SOCKET.
   * @throws when the name is not valid, or libc cannot be called.
   */
  constructor(name: string) {
    this.#address = socketAddress(name)
    this.#descriptor = this.#libc.socket(AF_UNIX, SOCK_DGRAM_CLOEXEC, 0)
    if (this.#descriptor < 0) throw new Error("socket failed")
  }

  /** @returns whether the socket has accepted the message. */
  send(message: string): boolean {
    const bytes = Buffer.from(message)
    const sent = this.#libc.sendto(
      this.#descriptor,
      ptr(bytes),
      bytes.length,
      MSG_DONTWAIT_NOSIGNAL,
      ptr(this.#address),
      this.#address.length,
    )
    return Number(sent) === bytes.length
  }

  /** The clock of MONOTONIC_USEC; Bun's `process.hrtime` counts from the start of the process. */
  monotonicUs(): bigint {
    const time = new BigInt64Array(2)
    this.#libc.clock_gettime(CLOCK_MONOTONIC, ptr(time))
    const [seconds = 0n, nanoseconds = 0n] = time
    return seconds * 1_000_000n + nanoseconds / 1_000n
  }
}

/** The family in the order of the machine's bytes, then the name. */
function socketAddress(name: string): Uint8Array {
  const path = Buffer.from(name)
  if (!/^[/@]./.test(name) || path.length >= MAX_NAME_BYTES) {
    throw new Error("NOTIFY_SOCKET must be a path or a name that starts with @, below 108 bytes")
  }
  // The first byte of an abstract name is 0.
  if (name.startsWith("@")) path[0] = 0
  const family = new Uint8Array(Uint16Array.of(AF_UNIX).buffer)
  const address = new Uint8Array(FAMILY_BYTES + path.length)
  address.set(family)
  address.set(path, FAMILY_BYTES)
  return address
}

function openLibc() {
  const { i32, u32, u64, i64_fast, ptr: pointer } = FFIType
  return dlopen("libc.so.6", {
    socket: { args: [i32, i32, i32], returns: i32 },
    sendto: { args: [i32, pointer, u64, i32, pointer, u32], returns: i64_fast },
    clock_gettime: { args: [i32, pointer], returns: i32 },
  }).symbols
}
