/** The HTTP application, asked through `app.request()` without a port. */

import { expect } from "bun:test"
import type { SendRequest, SendResult } from "../../src/commands/http-sender.ts"
import { Counters } from "../../src/counters.ts"
import type { DeviceView } from "../../src/fleet/device-view.ts"
import type { AppDependencies } from "../../src/http/app.ts"
import type { WorkerReport } from "../../src/process/control.ts"
import { countedErrors } from "../support/counted-errors.ts"
import { localApp, NO_PAGE } from "../support/local-app.ts"
import { NO_HELD } from "./no-held.ts"
import { NO_LOG } from "./no-log.ts"
import { NO_RULES } from "./no-rules.ts"

export const MAX_LINE_BYTES = 16
export const MAX_REPLY_MS = 60_000
export const TOKENS = ["first-token-0123456789", "second.token~ABC+/-_==", "third-token-9876543210"]
export const SERVING: WorkerReport = {
  worker: "gw1.0",
  pid: 7,
  state: "serving",
  broker: { kind: "ready" },
  connections: 3,
  admission: {
    waiting: 0,
    handshakes_in_progress: 0,
    handshake_limit: 64,
    handshakes_per_s: 0,
    estimated_wait_ms: 0,
  },
  drain: null,
  consuming_paused: false,
  refusing: null,
}
export const DEVICE: DeviceView = {
  device_id: "lock:1",
  connection_id: "gw.1.mb2k3f9zq7x2.1a",
  epoch: 1_750_000_000_000,
  instance: "gw",
  worker: "gw.1",
  state: "open",
  remote_address: "192.0.2.1",
  tls_version: "TLSv1.3",
  lines_in: 3,
  lines_out: 4,
  last_activity: 1_750_000_000_123,
  reading_paused_by: ["window"],
  outgoing_bytes: 0,
  reorder: { held: 0, gaps: 0 },
}
export const WRITTEN = {
  outcome: "written",
  device_id: "d",
  connection_id: "gw1.0.x.0",
  epoch: 1_700_000_000_123,
  at: 1_700_000_000_999,
  detail: "",
} as const satisfies SendResult

export type Body = RequestInit["body"]

export type AppChanges = Partial<AppDependencies>

/** What an app depends on, with nothing behind it. */
export function dependencies(changes: AppChanges = {}): AppDependencies {
  return {
    tokens: [],
    readTokens: [],
    framing: "line",
    maxLineBytes: MAX_LINE_BYTES,
    maxReplyMs: MAX_REPLY_MS,
    version: "1.2.3",
    startedAtMs: 1_000,
    nowMs: () => 6_999,
    counters: new Counters(),
    report: () => SERVING,
    reports: async () => [SERVING],
    metricsText: async () => "owsla_connections 3\n",
    fleetQuery: {
      list: async () => "unreachable",
      describe: async () => "unreachable",
      kick: async () => "unreachable",
    },
    messages: null,
    fault: () => undefined,
    ...NO_LOG,
    ...NO_RULES,
    ...NO_HELD,
    ...NO_PAGE,
    empty: () => undefined,
    send: async () => WRITTEN,
    ...changes,
  }
}

/** The app with recorders where the gateway would be. */
export function sidecar(changes: AppChanges = {}) {
  const counters = new Counters()
  const sent: SendRequest[] = []
  const faults: Error[] = []
  const routes = localApp(
    dependencies({
      counters,
      fault: (error) => faults.push(error),
      send: async (request) => {
        sent.push(request)
        return WRITTEN
      },
      ...changes,
    }),
  )
  const get = (path: string, headers: Record<string, string> = {}) =>
    Promise.resolve(routes.request(path, { headers }))
  const post = (body: Body, contentType?: string, path = "/devices/d/send") =>
    Promise.resolve(
      routes.request(path, {
        method: "POST",
        body,
        headers: contentType === undefined ? {} : { "content-type": contentType },
      }),
    )
  return {
    routes,
    counters,
    sent,
    faults,
    get,
    post,
    postText: (body: Body, path?: string) => post(body, "text/plain", path),
    postJson: (body: unknown) => post(JSON.stringify(body), "application/json"),
    counted: () => countedErrors(counters),
  }
}

export type Sidecar = ReturnType<typeof sidecar>

/** The one form of an error, and that it was counted once and no other was. Returns its message. */
export async function expectRefusal(
  { counted }: Pick<Sidecar, "counted">,
  response: Response,
  status: number,
  code: string,
): Promise<string> {
  const text = await response.text()
  expect({ status: response.status, text }).toEqual({ status, text: expect.stringMatching(/^\{/) })
  expect(response.headers.get("content-type")).toStartWith("application/json")
  const body = JSON.parse(text)
  expect(body).toEqual({ error: { code, message: expect.stringMatching(/./) } })
  expect(counted()).toEqual({ [code]: 1 })
  if (status === 503) expect(response.headers.get("retry-after")).toMatch(/^[1-9]\d*$/)
  return body.error.message
}

/** A body in chunks, without Content-Length. */
export function chunked(chunk: Uint8Array, count: number): ReadableStream<Uint8Array> {
  let left = count
  return new ReadableStream({
    pull(controller) {
      if (left === 0) return controller.close()
      left -= 1
      controller.enqueue(chunk)
    },
  })
}
