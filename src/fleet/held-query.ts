/**
 * The held query: shows and cancels held commands of a device for an operator. It asks the keeper
 * of the device's shard, which may be this worker.
 *
 *   list, cancel ─┬─ this worker keeps the shard ─► its keeper of held commands
 *                 └─ another worker does ─────────► held_list, held_cancel ─► held_listed, held_cancelled
 *
 * Bounds: `MAX_QUESTIONS` at a time; `MAX_ROWS` commands in an answer; `ANSWER_TIMEOUT_MS`.
 */

import * as v from "valibot"
import type { HeldRow, HoldKeeper } from "../commands/hold/keeper.ts"
import type { WorkerProcess } from "../device/ids.ts"
import type { Channel } from "./channel.ts"
import type { Members } from "./members.ts"
import { type Answer, type FleetContent, type FleetMessage, MAX_ROWS } from "./messages.ts"
import { ANSWER_TIMEOUT_MS, type QuestionFailure, Questions } from "./questions.ts"

export type HeldQueryFailure =
  | QuestionFailure
  /** The keeper is reading the held commands of the shard, or the shard changes its keeper. */
  | "reading"

export const heldRowSchema = v.object({
  message_id: v.string(),
  supersede_key: v.nullable(v.string()),
  held_at: v.number(),
  expires_at: v.number(),
  bytes: v.number(),
  line: v.exactOptional(v.string()),
})
const rows = v.pipe(v.array(heldRowSchema), v.maxLength(MAX_ROWS))

type Asked = Extract<FleetMessage, { type: "held_list" | "held_cancel" }>
type Unnumbered<T> = T extends unknown ? Omit<T, "ask"> : never

export interface HeldQueryOptions {
  /** The keeper of the device's shard, as far as it is known. */
  readonly keeperOf: (deviceId: string) => WorkerProcess | null
  readonly keeping: Pick<HoldKeeper, "list" | "cancel">
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
}

export class HeldQuery {
  readonly #self: WorkerProcess
  readonly #channel: Channel
  readonly #options: HeldQueryOptions
  readonly #questions: Questions

  constructor(self: WorkerProcess, channel: Channel, members: Members, options: HeldQueryOptions) {
    this.#self = self
    this.#channel = channel
    this.#options = options
    this.#questions = new Questions(members, options.steadyMs)
  }

  /** @param caller aborted when the HTTP client closes its connection. */
  async list(
    deviceId: string,
    withLines: boolean,
    caller?: AbortSignal,
  ): Promise<readonly HeldRow[] | HeldQueryFailure> {
    const keeper = this.#options.keeperOf(deviceId)
    if (keeper === null || !this.#channel.open) return "unreachable"
    if (this.#isSelf(keeper)) return this.#options.keeping.list(deviceId, withLines) ?? "reading"
    const content = { type: "held_list", device: deviceId, lines: withLines } as const
    const answer = await this.#ask(keeper, content, caller)
    if (typeof answer === "string") return answer
    if (answer.type !== "held_listed" || answer.held === null) return "reading"
    const checked = v.safeParse(rows, answer.held)
    return checked.success ? checked.output : "timeout"
  }

  /**
   * @param messageId null for all.
   * @param caller aborted when the HTTP client closes its connection: then nothing more is sent.
   * @returns the number of commands that end as `cancelled`.
   */
  async cancel(
    deviceId: string,
    messageId: string | null,
    caller?: AbortSignal,
  ): Promise<number | HeldQueryFailure> {
    const keeper = this.#options.keeperOf(deviceId)
    if (keeper === null || !this.#channel.open) return "unreachable"
    if (this.#isSelf(keeper)) {
      return this.#options.keeping.cancel(deviceId, messageId) ?? "reading"
    }
    const content = { type: "held_cancel", device: deviceId, message_id: messageId } as const
    const answer = await this.#ask(keeper, content, caller)
    if (typeof answer === "string") return answer
    if (answer.type !== "held_cancelled") return "reading"
    return answer.cancelled ?? "reading"
  }

  /** Answers another worker's question. */
  asked(message: Asked): void {
    const { keeping } = this.#options
    const to = { worker: message.from, incarnation: message.incarnation }
    const { ask, device } = message
    if (message.type === "held_list") {
      const held = keeping.list(device, message.lines)?.slice(0, MAX_ROWS) ?? null
      this.#channel.tell(to, { type: "held_listed", ask, held })
    } else {
      const cancelled = keeping.cancel(device, message.message_id)
      this.#channel.tell(to, { type: "held_cancelled", ask, cancelled })
    }
  }

  answered(answer: Answer): void {
    this.#questions.answered(answer)
  }

  /** Ends overdue questions. To be called periodically. */
  sweep(): void {
    this.#questions.sweep()
  }

  #isSelf({ worker, incarnation }: WorkerProcess): boolean {
    return worker === this.#self.worker && incarnation === this.#self.incarnation
  }

  async #ask(
    keeper: WorkerProcess,
    content: Unnumbered<Extract<FleetContent, { type: Asked["type"] }>>,
    caller: AbortSignal | undefined,
  ): Promise<Answer | QuestionFailure> {
    const inquiry = { deadlineMs: this.#options.steadyMs() + ANSWER_TIMEOUT_MS, caller }
    const answers = await this.#questions.ask([keeper.worker], inquiry, (ask, settled) =>
      this.#channel.tell(keeper, { ...content, ask }, settled),
    )
    if (typeof answers === "string") return answers
    return answers[0] ?? "timeout"
  }
}
