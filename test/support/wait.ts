/**
 * Waiting in tests: for a condition, or for a promise, with a limit.
 *
 * Each wait has a description and a limit, so that the error of a test that hangs gives the cause.
 * No function waits for time to pass: the only sleep is the short one between two checks of a
 * condition.
 */

export interface WaitOptions {
  /** Describes the condition, as a continuation of "waited 10000 ms for …". */
  what: string
  /** Default 20000, long enough for a busy machine. After that the wait fails. */
  timeoutMs?: number
}

const DEFAULT_TIMEOUT_MS = 20_000

/**
 * Short, because these sleeps determine the speed of the tests. Not zero, because the gateway under
 * test needs the CPU of the process and the machine.
 */
const LOOK_EVERY_MS = 10

/**
 * Checks the condition every 10 ms and resolves with its first truthy value. An exception in the
 * condition counts as "not yet", because a queue or a port may not exist yet. The last exception
 * becomes the cause of the rejection.
 */
export async function until<T>(
  condition: () => T | Promise<T>,
  options: WaitOptions,
): Promise<NonNullable<T>> {
  const deadline = performance.now() + (options.timeoutMs ?? DEFAULT_TIMEOUT_MS)
  let lastError: unknown
  for (;;) {
    const leftMs = deadline - performance.now()
    if (leftMs <= 0) throw new TimeoutError(options, lastError)
    try {
      // Each check has a limit too, because a request to a paused broker would otherwise take
      // longer than the wait.
      const value = await within(Promise.resolve(condition()), { ...options, timeoutMs: leftMs })
      if (value) return value
      lastError = undefined
    } catch (error) {
      if (!(error instanceof TimeoutError)) lastError = error
    }
    await Bun.sleep(LOOK_EVERY_MS)
  }
}

/** The result of the promise, or a rejection that contains `what` after the limit. */
export async function within<T>(promise: Promise<T>, options: WaitOptions): Promise<T> {
  const limit = deferred<never>()
  const timer = setTimeout(
    () => limit.reject(new TimeoutError(options)),
    options.timeoutMs ?? DEFAULT_TIMEOUT_MS,
  )
  try {
    return await Promise.race([promise, limit.promise])
  } finally {
    clearTimeout(timer)
  }
}

/** A wait has reached its limit. All other rejections of a wait come from its promise. */
export class TimeoutError extends Error {
  override readonly name = "TimeoutError"

  constructor(options: WaitOptions, cause?: unknown) {
    const reason = cause instanceof Error ? `; last: ${cause.message}` : ""
    const limitMs = Math.round(options.timeoutMs ?? DEFAULT_TIMEOUT_MS)
    super(`waited ${limitMs} ms for ${options.what}${reason}`, { cause })
  }
}

export interface Deferred<T> {
  promise: Promise<T>
  resolve: (value: T | PromiseLike<T>) => void
  reject: (reason: unknown) => void
}

/**
 * A promise with its resolve and reject functions. A rejection before anything waits for it is not
 * an error.
 */
export function deferred<T>(): Deferred<T> {
  const made = Promise.withResolvers<T>()
  made.promise.catch(() => {})
  return made
}
