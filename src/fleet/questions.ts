/**
 * Questions to other workers that have not ended.
 *
 *   ask ─► sent ─┬─ all have answered ──────► their answers
 *                ├─ time-out ───────────────► the answers so far
 *                ├─ returned by the broker ─► one answer: the process has ended
 *                ├─ not confirmed ──────────► "unreachable"
 *                └─ caller gone ────────────► "timeout"
 *
 * Bounds: `MAX_QUESTIONS` at a time; `ANSWER_TIMEOUT_MS` for each.
 */

import type { Members } from "./members.ts"
import type { Answer } from "./messages.ts"

export const ANSWER_TIMEOUT_MS = 1_000
export const MAX_QUESTIONS = 100

export type QuestionFailure =
  /** The broker is not available, so other workers cannot be asked. */
  | "unreachable"
  /** No answer in time, or the caller closed its connection. */
  | "timeout"
  /** Too many open questions. */
  | "busy"

/** The deadline and the caller of a request, which may need several questions. */
export interface Inquiry {
  /** Milliseconds of the monotonic clock. */
  readonly deadlineMs: number
  /** Aborted when the caller closes its HTTP connection. */
  readonly caller: AbortSignal | undefined
}

interface Question {
  readonly awaited: Set<string>
  readonly answers: Answer[]
  /** Milliseconds of the monotonic clock. */
  readonly deadlineMs: number
  /**
   * Whether the workers had the full `ANSWER_TIMEOUT_MS`. If so, those that did not answer are slow
   * or dead.
   */
  readonly hadFullTime: boolean
  readonly done: (answers: readonly Answer[] | QuestionFailure) => void
}

/** The answer for a process that has ended. */
const ENDED: Answer = { type: "described", from: "", incarnation: "", ask: 0, device: null }

export class Questions {
  readonly #members: Members
  readonly #steadyMs: () => number
  readonly #open = new Map<number, Question>()
  #nextAsk = 0

  /** @param steadyMs milliseconds of a monotonic clock. */
  constructor(members: Members, steadyMs: () => number) {
    this.#members = members
    this.#steadyMs = steadyMs
  }

  get count(): number {
    return this.#open.size
  }

  isOver({ deadlineMs, caller }: Inquiry): boolean {
    return caller?.aborted === true || this.#steadyMs() >= deadlineMs
  }

  /** The deadline for the answer to a question that is asked now. */
  answerDeadlineMs({ deadlineMs }: Inquiry): number {
    return Math.min(deadlineMs, this.#steadyMs() + ANSWER_TIMEOUT_MS)
  }

  /**
   * @param awaited the workers that must answer. "returned" is the answer of a single one.
   * @param send sends the question with this number, and reports the result of its publish.
   */
  ask(
    awaited: readonly string[],
    inquiry: Inquiry,
    send: (ask: number, settled: (result: string) => void) => void,
  ): Promise<readonly Answer[] | QuestionFailure> {
    if (this.isOver(inquiry)) return Promise.resolve("timeout")
    if (this.#open.size >= MAX_QUESTIONS) return Promise.resolve("busy")
    const { caller } = inquiry
    const { promise, resolve } = Promise.withResolvers<readonly Answer[] | QuestionFailure>()
    const ask = this.#nextAsk
    this.#nextAsk += 1
    const hungUp = () => this.#end(ask, "timeout")
    const deadlineMs = this.answerDeadlineMs(inquiry)
    this.#open.set(ask, {
      awaited: new Set(awaited),
      answers: [],
      deadlineMs,
      hadFullTime: deadlineMs < inquiry.deadlineMs,
      done: (result) => {
        caller?.removeEventListener("abort", hungUp)
        resolve(result)
      },
    })
    caller?.addEventListener("abort", hungUp)
    send(ask, (result) => {
      if (result === "returned") this.#end(ask, [ENDED])
      else if (result !== "confirmed") this.#end(ask, "unreachable")
    })
    return promise
  }

  /** Handles the answer of another worker. */
  answered(answer: Answer): void {
    const question = this.#open.get(answer.ask)
    if (question === undefined || !question.awaited.delete(answer.from)) return
    question.answers.push(answer)
    if (question.awaited.size === 0) this.#end(answer.ask, question.answers)
  }

  /** Ends overdue questions. To be called periodically. */
  sweep(): void {
    const nowMs = this.#steadyMs()
    for (const [ask, { awaited, answers, deadlineMs, hadFullTime }] of this.#open) {
      if (nowMs < deadlineMs) continue
      if (hadFullTime) for (const worker of awaited) this.#members.missed(worker)
      this.#end(ask, answers)
    }
  }

  #end(ask: number, result: readonly Answer[] | QuestionFailure): void {
    const question = this.#open.get(ask)
    this.#open.delete(ask)
    question?.done(result)
  }
}
