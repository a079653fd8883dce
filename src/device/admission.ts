/**
 * Admission: whether one more connection may begin its handshake, decided before a byte of TLS.
 *
 * Pure. Refusing is the cheap end: the caller terminates the socket and keeps nothing of it.
 */

import type { CloseReason } from "./close-reason.ts"

export interface AdmissionState {
  /** Connections of this worker in any state but closed. */
  readonly connections: number
  /** True while held lines fill the worker's memory bound. */
  readonly suspended: boolean
  readonly draining: boolean
}

/** Why the connection must be refused, or null when it may begin. */
export function refusal(state: AdmissionState, maxConnections: number): CloseReason | null {
  if (state.draining) return "drained"
  if (state.suspended || state.connections >= maxConnections) return "overloaded"
  return null
}
