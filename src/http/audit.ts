/**
 * What operators do through the HTTP API: the audit entries, and `GET /audit`.
 *
 *   kick, gate, bans, broadcast, tapes, drain ─► audit ─► log at info ─► ring of the instance ─► GET /audit
 *                                                                   └──► /events, as `audit`
 *
 * An entry is made when the act was carried out, or may have been. Commands to single devices are
 * not audited: back-ends send them, and each has its outcome. Read tokens may see the entries,
 * which contain names of tokens and addresses of clients but no secret, so that those who watch a
 * fleet need no token that can act. Bound: the newest 100 entries of the instance, in memory.
 */

import { type Context, Hono } from "hono"
import * as v from "valibot"
import type { InstanceLogReader } from "../log-entry.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"
import type { RouteDescription } from "./route-description.ts"

export const AUDIT_ACTIONS = [
  "kick",
  "gate",
  "deny",
  "ban_lifted",
  "broadcast",
  "tape_started",
  "tape_discarded",
  "drain",
  "drain_cancelled",
] as const

export type AuditAction = (typeof AUDIT_ACTIONS)[number]

export interface AuditAct {
  readonly action: AuditAction
  /** The device, or the prefix of devices; null for all. */
  readonly target: string | null
  /** What was done or found, such as the counts of a broadcast. */
  readonly detail: string
}

export interface AuditEntry extends AuditAct {
  /** The name of the token; null when no tokens are set. */
  readonly by: string | null
  /** Of the HTTP client, which may be a proxy. */
  readonly address: string
}

export interface AuditDependencies {
  readonly log: InstanceLogReader
}

const auditList = v.object({
  audit: v.array(
    v.object({
      at: v.number(),
      worker: v.string(),
      action: v.picklist(AUDIT_ACTIONS),
      target: v.nullable(v.string()),
      detail: v.string(),
      by: v.nullable(v.string()),
      address: v.string(),
    }),
  ),
})

export const AUDIT_ROUTES: readonly RouteDescription[] = [
  {
    method: "get",
    path: "/audit",
    name: "listAudit",
    summary: "What operators have done on the instance, the newest first",
    text: "`by` is the name of the token, or the beginning of its digest; null when no tokens are set. `address` is the other end of the HTTP connection.",
    answers: [{ status: 200, text: "The last 100 acts.", schema: auditList }],
    errors: ["busy"],
  },
]

/** Records what the caller of this request has done. */
export function audit(c: Context<HttpEnvironment>, act: AuditAct): void {
  c.get("audit")(act)
}

export function audits({ log }: AuditDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  routes.get("/audit", async (c) => {
    const recent = await log.recent()
    if (recent === null) return refuse(c, "busy", "the supervisor does not answer")
    const entries = recent.audit.map(({ at, source, fields }) => ({
      at,
      worker: source,
      ...fields,
    }))
    return c.json({ audit: entries })
  })
  return routes
}
