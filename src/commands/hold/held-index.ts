/**
 * The held commands of one shard, in order for each device. It decides which commands may
 * be held and which is written next.
 *
 *   offer ─► storing ──stored──► held ──take──► forwarded ──end──► ending ──remove──► gone
 *   load ───────────────────────► │ ▲               │
 *                                 │ └────release────┘
 *                                 └──supersede, expire, cancel──► ending
 *
 * storing: it is being published to the log. held: it waits for its device. forwarded: it is on the
 * way to its connection, where it may have been written, so that it cannot be superseded, expire or
 * be cancelled. ending: it has its outcome, which is being stored.
 *
 * A command is written when no other one of its device is forwarded and no older one is storing or
 * held. Pure: the time is passed in. Bounds: `maxPerDevice` commands of one device, and the room
 * that the caller has left. Commands that are loaded from the log are kept beyond the bounds.
 */

import { MinHeap } from "../../structures/min-heap.ts"
import { type HeldCommand, isBefore, shownId } from "./held-command.ts"

export type HeldState = "storing" | "held" | "forwarded" | "ending"

export interface HeldEntry {
  readonly command: HeldCommand
  readonly state: HeldState
}

type Entry = { -readonly [K in keyof HeldEntry]: HeldEntry[K] }

export type HoldVerdict =
  | { readonly kind: "added"; readonly entry: HeldEntry }
  /** The same command is held already. */
  | { readonly kind: "known"; readonly heldUntilMs: number }
  /** Another command of the device with its message id is held. */
  | { readonly kind: "duplicate" }
  | { readonly kind: "full"; readonly detail: string }

/** What may be held in addition. */
export interface HeldRoom {
  readonly commands: number
  readonly bytes: number
}

/** The heap is rebuilt when it has more than twice the times of expiration plus this many. */
const HEAP_SLACK = 64

export class HeldIndex {
  readonly #maxPerDevice: number
  readonly #entries = new Map<string, Entry>()
  /** In order, never empty. */
  readonly #devices = new Map<string, Entry[]>()
  readonly #expiries = new MinHeap()
  readonly #byExpiry = new Map<number, Entry[]>()
  /** Entries whose time was over while they were storing or forwarded. */
  readonly #overdue = new Set<Entry>()
  #count = 0
  #bytes = 0

  constructor(maxPerDevice: number) {
    this.#maxPerDevice = maxPerDevice
  }

  /** The number of commands without an outcome. */
  get count(): number {
    return this.#count
  }

  /** The bytes of the bodies of all commands. */
  get bytes(): number {
    return this.#bytes
  }

  find(id: string): HeldEntry | undefined {
    return this.#entries.get(id)
  }

  /** The commands of a device, in the order in which they are written. */
  of(deviceId: string): readonly HeldEntry[] {
    return this.#devices.get(deviceId) ?? []
  }

  devices(): MapIterator<string> {
    return this.#devices.keys()
  }

  /**
   * Takes a command as "storing".
   *
   * @param redelivered whether its source may have been delivered before: then a command with its
   * message id and body is the same one.
   */
  offer(command: HeldCommand, redelivered: boolean, room: HeldRoom): HoldVerdict {
    const same = this.#entries.get(command.id)
    if (same !== undefined) return known(same)
    const { deviceId, messageId, supersedeKey, body } = command
    let held = 0
    let superseded = 0
    for (const entry of this.of(deviceId)) {
      const { command: other, state } = entry
      if (messageId !== null && other.messageId === messageId) {
        return redelivered && isEqual(other.body, body) ? known(entry) : { kind: "duplicate" }
      }
      if (state === "ending") continue
      held += 1
      if (supersedeKey !== null && other.supersedeKey === supersedeKey && state === "held") {
        superseded += 1
      }
    }
    if (held - superseded >= this.#maxPerDevice) {
      return full(`${held} commands are held for this device (MAX_HELD_PER_DEVICE)`)
    }
    if (room.commands + superseded <= 0) return full("the fleet holds no more (MAX_HELD)")
    if (body.length > room.bytes) return full("its keeper holds no more (MAX_COMMAND_BYTES)")
    return { kind: "added", entry: this.#add(command, "storing") }
  }

  /** Adds a command from the log as "held". Has no effect when it is known. */
  load(command: HeldCommand): void {
    if (!this.#entries.has(command.id)) this.#add(command, "held")
  }

  /** The command is in the log. */
  stored(id: string): void {
    this.#change(id, "storing", "held")
  }

  /**
   * The next command for a device, which is connected; null when none is to be written now. It
   * counts as forwarded.
   */
  take(deviceId: string, nowMs: number): HeldCommand | null {
    const entries = this.#devices.get(deviceId) ?? []
    if (entries.some(({ state }) => state === "forwarded")) return null
    const next = entries.find(({ state }) => state !== "ending")
    if (next === undefined || next.state !== "held" || next.command.expiresAtMs <= nowMs) {
      return null
    }
    next.state = "forwarded"
    return next.command
  }

  /** The command is not on its way any more, and was not written. */
  release(id: string): void {
    this.#change(id, "forwarded", "held")
  }

  /** The command has an outcome. @returns false when it is not known or had one before. */
  end(id: string): boolean {
    const entry = this.#entries.get(id)
    if (entry === undefined || entry.state === "ending") return false
    this.#end(entry)
    return true
  }

  /** Ends the held commands of which a newer one of their device has the same key. */
  supersede(deviceId: string): HeldCommand[] {
    const newest = new Set<string>()
    const older: HeldCommand[] = []
    for (const entry of [...(this.#devices.get(deviceId) ?? [])].reverse()) {
      const { supersedeKey } = entry.command
      // One that is not stored yet may never be.
      if (supersedeKey === null || entry.state === "ending" || entry.state === "storing") continue
      if (entry.state === "held" && newest.has(supersedeKey)) {
        this.#end(entry)
        older.push(entry.command)
      }
      newest.add(supersedeKey)
    }
    return older.reverse()
  }

  /** Ends the held commands whose time is over, and returns them. */
  expire(nowMs: number): HeldCommand[] {
    for (;;) {
      const dueMs = this.#expiries.peek()
      if (dueMs === undefined || dueMs > nowMs) break
      this.#expiries.pop()
      for (const entry of this.#byExpiry.get(dueMs) ?? []) this.#overdue.add(entry)
      this.#byExpiry.delete(dueMs)
    }
    const expired = [...this.#overdue].filter(({ state }) => state === "held")
    for (const entry of expired) this.#end(entry)
    return expired.map(({ command }) => command)
  }

  /**
   * Ends held commands of a device, and returns them.
   * @param messageId as in `shownId`; null for all.
   */
  cancel(deviceId: string, messageId: string | null): HeldCommand[] {
    const cancelled = (this.#devices.get(deviceId) ?? []).filter(
      ({ state, command }) =>
        state === "held" && (messageId === null || shownId(command) === messageId),
    )
    for (const entry of cancelled) this.#end(entry)
    return cancelled.map(({ command }) => command)
  }

  /** Forgets a command. Its outcome is stored, or it was not stored. */
  remove(id: string): void {
    const entry = this.#entries.get(id)
    if (entry === undefined) return
    if (entry.state !== "ending") this.#end(entry)
    this.#entries.delete(id)
    const { deviceId, expiresAtMs, body } = entry.command
    this.#bytes -= body.length
    const left = (this.#devices.get(deviceId) ?? []).filter((other) => other !== entry)
    if (left.length > 0) this.#devices.set(deviceId, left)
    else this.#devices.delete(deviceId)
    const alike = this.#byExpiry.get(expiresAtMs)?.filter((other) => other !== entry)
    if (alike === undefined) return
    if (alike.length > 0) this.#byExpiry.set(expiresAtMs, alike)
    else this.#byExpiry.delete(expiresAtMs)
    if (this.#expiries.size <= 2 * this.#byExpiry.size + HEAP_SLACK) return
    this.#expiries.clear()
    for (const dueMs of this.#byExpiry.keys()) this.#expiries.push(dueMs)
  }

  #add(command: HeldCommand, state: HeldState): Entry {
    const entry: Entry = { command, state }
    this.#entries.set(command.id, entry)
    this.#count += 1
    this.#bytes += command.body.length
    const { deviceId, expiresAtMs } = command
    const entries = this.#devices.get(deviceId)
    if (entries === undefined) this.#devices.set(deviceId, [entry])
    else {
      const at = entries.findLastIndex((other) => isBefore(other.command, command))
      entries.splice(at + 1, 0, entry)
    }
    const alike = this.#byExpiry.get(expiresAtMs)
    if (alike === undefined) {
      this.#expiries.push(expiresAtMs)
      this.#byExpiry.set(expiresAtMs, [entry])
    } else alike.push(entry)
    return entry
  }

  #end(entry: Entry): void {
    entry.state = "ending"
    this.#count -= 1
    this.#overdue.delete(entry)
  }

  #change(id: string, from: HeldState, to: HeldState): void {
    const entry = this.#entries.get(id)
    if (entry?.state === from) entry.state = to
  }
}

function known({ command }: HeldEntry): HoldVerdict {
  return { kind: "known", heldUntilMs: command.expiresAtMs }
}

function full(detail: string): HoldVerdict {
  return { kind: "full", detail }
}

function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, at) => byte === b[at])
}
