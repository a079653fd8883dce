/**
 * Metrics of one process whose values are read only when a snapshot is made. So counting costs an
 * increment of a plain number, and nothing when nobody asks.
 */

import { type Aggregator, Counter, Gauge, type Registry } from "prom-client"

export interface CollectedMetrics {
  readonly counter: (name: string, help: string, read: () => number) => void
  /** A counter with one label. */
  readonly counterBy: (
    name: string,
    help: string,
    label: string,
    read: () => Iterable<[string, number]>,
  ) => void
  /**
   * @param read null: the gauge has no value now.
   * @param aggregator how the values of several processes become one; their sum by default.
   */
  readonly gauge: (
    name: string,
    help: string,
    read: () => number | null,
    aggregator?: Aggregator,
  ) => void
}

export function collectedMetrics(registry: Registry): CollectedMetrics {
  const registers = [registry]
  return {
    counter: (name, help, read) => {
      new Counter({
        name,
        help,
        registers,
        collect() {
          this.reset()
          this.inc(read())
        },
      })
    },
    counterBy: (name, help, label, read) => {
      new Counter({
        name,
        help,
        registers,
        labelNames: [label],
        collect() {
          this.reset()
          for (const [value, count] of read()) this.inc({ [label]: value }, count)
        },
      })
    },
    gauge: (name, help, read, aggregator = "sum") => {
      new Gauge({
        name,
        help,
        registers,
        aggregator,
        collect() {
          const value = read()
          if (value === null) this.remove()
          else this.set(value)
        },
      })
    },
  }
}
