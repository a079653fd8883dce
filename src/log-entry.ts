/** A line of the log as data, for `/events` and `/audit`. Types only. */

export interface LogEntry {
  /** Milliseconds since 1970. */
  readonly at: number
  readonly level: "info" | "warn" | "error"
  /** audit: an operator has done something; `fields` then has the fields of an audit entry. */
  readonly kind: "log" | "audit"
  /** The worker, or the instance for its supervisor. */
  readonly source: string
  readonly message: string
  /** The structured fields of the line; empty for a line that is too long. */
  readonly fields: Readonly<Record<string, unknown>>
}

/** An entry with its place in the log of the instance. */
export interface NumberedEntry extends LogEntry {
  readonly seq: number
}

/** The newest entries of the instance. */
export interface RecentEntries {
  /** Warnings and errors, the oldest first. */
  readonly notices: readonly NumberedEntry[]
  /** Entries of the kind `audit`, the newest first. */
  readonly audit: readonly NumberedEntry[]
}

/** Gets the entries of the instance as they are made. */
export interface LogTap {
  readonly entry: (entry: NumberedEntry) => void
  /** So many entries were dropped since the last one, because a process did not keep up. */
  readonly missed: (count: number) => void
}

/** The log of the instance, as any of its processes can read it. */
export interface InstanceLogReader {
  /** Null when the supervisor does not answer. */
  readonly recent: () => Promise<RecentEntries | null>
  /** Calls `tap` for each entry from now on. Returns a function that stops this. */
  readonly follow: (tap: LogTap) => () => void
}
