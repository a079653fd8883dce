/**
 * Publishes messages to a temporary exclusive queue, one after another, and measures the time to
 * each publisher confirm. Also finds an alarm of the broker, which it reports to a connection that
 * publishes (`connection.blocked`).
 *
 * The queue is in memory: the times are those of the network and of the broker's work, without the
 * disk and the other nodes of a quorum queue. Bounds: `MESSAGES`; `CONFIRMS_MS` in all.
 */

import type { Config } from "../../config/config.ts"
import { asError } from "../../errors.ts"
import type { BrokerSession } from "./broker-session.ts"
import { type Finding, failure, ok, skipped, warning } from "./finding.ts"

export const CONFIRMS_MS = 10_000
const MESSAGES = 100
const BODY = new Uint8Array(128)
/** With the default window, lines reach 2,000 a second and worker at this time. */
const SLOW_MS = 1_000

export async function checkConfirms(
  session: BrokerSession,
  { broker }: Config,
): Promise<Finding[]> {
  const alarm = Promise.withResolvers<"alarm">()
  session.onBlocked = () => alarm.resolve("alarm")
  if (session.blocked !== null) alarm.resolve("alarm")
  const late = Promise.withResolvers<"late">()
  const timer = setTimeout(() => late.resolve("late"), CONFIRMS_MS)
  try {
    const publishing = measured(session).catch((error: unknown) => asError(error))
    const timesMs = await Promise.race([publishing, alarm.promise, late.promise])
    if (timesMs instanceof Error) return [skipped("confirms", timesMs.message)]
    if (timesMs === "alarm") {
      return [
        failure(
          "alarms",
          `the broker accepts no messages: ${session.blocked ?? "alarm"}`,
          "free memory or disk space on the broker's node; devices stay connected meanwhile",
        ),
        skipped("confirms", "the broker accepts no messages"),
      ]
    }
    if (timesMs === "late") {
      const message = `fewer than ${MESSAGES} publisher confirms within ${CONFIRMS_MS / 1_000} s`
      const advice = "check the load of the broker and the network to it"
      return [failure("confirms", message, advice)]
    }
    return [ok("alarms", "the broker reports no alarm"), timesFinding(timesMs, broker.windowLines)]
  } finally {
    clearTimeout(timer)
    session.onBlocked = () => undefined
  }
}

/** The times of all confirms, milliseconds, in ascending order. */
async function measured(session: BrokerSession): Promise<readonly number[]> {
  const channel = await session.channel()
  await channel.confirmSelect()
  const queue = await session.temporaryQueue(channel)
  const timesMs: number[] = []
  for (let message = 0; message < MESSAGES; message += 1) {
    const sentAtMs = performance.now()
    await channel.basicPublish("", queue, BODY, { deliveryMode: 2 })
    timesMs.push(performance.now() - sentAtMs)
  }
  await channel.close()
  return timesMs.sort((one, other) => one - other)
}

function timesFinding(timesMs: readonly number[], windowLines: number): Finding {
  const at = (share: number) => timesMs[Math.ceil(share * timesMs.length) - 1] ?? 0
  const [p50, p99] = [at(0.5), at(0.99)]
  const message = `publisher confirms of ${MESSAGES} messages: p50 ${p50.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms`
  if (p99 < SLOW_MS) return ok("confirms", message)
  const perS = Math.round((windowLines / p50) * 1_000)
  const advice = `with PUBLISH_WINDOW_LINES=${windowLines} a worker publishes at most ${perS} lines per second: use a broker that is nearer or less busy, or raise the window`
  return warning("confirms", message, advice)
}
