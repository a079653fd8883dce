/**
 * Waiting in tests: for a condition, or for a promise within a limit.
 *
 * Every wait names what it waits for and has a limit, so that a test that hangs says why. Never
 * waits for time to pass: the only sleep is the short one between two looks at a condition.
 */

export interface WaitOptions {
  /** What is waited for, in words that complete "waited 10000 ms for …". */
  what: string
  /** Default 20000, long enough for a busy machine; a hang becomes a failure. */
  timeoutMs?: number
}

const DEFAULT_TIMEOUT_MS = 20_000

/**
 * Short, because a test's speed is the sum of these; not zero, because the gateway under test
 * shares the process and the machine's few cores.
 */
const LOOK_EVERY_MS = 10

/**
 * Resolves with the condition's first truthy value, looked at every 10 ms. A condition that throws
 * is "not yet", since what it asks (a queue, a port) may not exist yet; the last error becomes the
 * cause of the rejection.
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
      // The look itself is limited too: one at a paused broker would otherwise outlast the wait.
      const value = await within(Promise.resolve(condition()), { ...options, timeoutMs: leftMs })
      if (value) return value
      lastError = undefined
    } catch (error) {
      if (!(error instanceof TimeoutError)) lastError = error
    }
    await Bun.sleep(LOOK_EVERY_MS)
  }
}

/** The promise's own result, or a rejection naming `what` when that takes longer than the limit. */
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

/** A wait that ran into its limit; everything else that a wait rejects with is the promise's own. */
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

/** A promise that others settle; one that is rejected before anybody waits is not a fault. */
export function deferred<T>(): Deferred<T> {
  const made = Promise.withResolvers<T>()
  made.promise.catch(() => {})
  return made
}
