/**
 * The metrics of one worker, as Prometheus knows them, and their sum over an instance.
 *
 * Reads counters and gauges when asked; costs nothing in between. Bound: label values come from closed
 * lists only, never from a device.
 */

import {
  AggregatorRegistry,
  Counter,
  Gauge,
  type MetricObjectWithValues,
  type MetricValueWithName,
  Registry,
} from "prom-client"
import type { Counters } from "../counters.ts"

/** The metrics of one process, as prom-client exchanges them. */
export type MetricsSnapshot = MetricObjectWithValues<MetricValueWithName<string>>[]

/** What is measured at the moment of asking. */
export interface Gauges {
  readonly connections: number
  readonly waiting: number
  readonly windowLines: number
  readonly windowBytes: number
  readonly heldBytes: number
  readonly partialLineBytes: number
  readonly waitingForRoom: number
  readonly unacknowledgedCommands: number
  readonly heldCommands: number
  readonly outboundMessages: number
  readonly brokerReady: boolean
  readonly locationCache: number
  readonly members: number
  readonly presence: number
}

const LOG_LINES_DROPPED = "Log lines dropped because standard output or standard error took no more"

export class WorkerMetrics {
  readonly #registry = new Registry()

  constructor(counters: Counters, gauges: () => Gauges) {
    const registers = [this.#registry]
    const counter = (name: string, help: string, read: () => number) => {
      new Counter({
        name,
        help,
        registers,
        collect() {
          this.reset()
          this.inc(read())
        },
      })
    }
    const counterBy = (
      name: string,
      help: string,
      label: string,
      read: () => Iterable<[string, number]>,
    ) => {
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
    }
    const gauge = (name: string, help: string, read: () => number) => {
      new Gauge({
        name,
        help,
        registers,
        collect() {
          this.set(read())
        },
      })
    }
    const c = counters
    gauge("owsla_connections", "Connections in any state", () => gauges().connections)
    gauge("owsla_connections_waiting", "Waiting for their handshakes", () => gauges().waiting)
    counter("owsla_connections_accepted_total", "Accepted, before TLS", () => c.connectionsAccepted)
    counter("owsla_connections_admitted_total", "Admitted, after TLS", () => c.connectionsAdmitted)
    counterBy("owsla_connections_closed_total", "Ended or refused, by reason", "reason", () =>
      Object.entries(c.connectionsClosed),
    )
    counter("owsla_lines_in_total", "Lines from devices", () => c.linesIn)
    counter("owsla_line_bytes_in_total", "Bytes of those lines", () => c.lineBytesIn)
    counter("owsla_empty_lines_total", "Empty lines, signs of life", () => c.emptyLines)
    counter("owsla_lines_confirmed_total", "Lines that the broker has", () => c.linesConfirmed)
    counter("owsla_lines_republished_total", "Publishes repeated", () => c.linesRepublished)
    counter("owsla_lines_returned_total", "Publishes no queue took", () => c.linesReturned)
    counter("owsla_lines_nacked_total", "Publishes the broker refused", () => c.linesNacked)
    counter(
      "owsla_unterminated_bytes_total",
      "Bytes after the last LF of a connection, never published",
      () => c.unterminatedBytes,
    )
    counter(
      "owsla_bytes_after_close_total",
      "Bytes that came after the gateway had begun to close",
      () => c.bytesAfterClose,
    )
    counter("owsla_reading_paused_total", "Times a device had to wait", () => c.readingPaused)
    gauge("owsla_window_lines", "Lines unconfirmed", () => gauges().windowLines)
    gauge("owsla_window_bytes", "Bytes of those lines", () => gauges().windowBytes)
    gauge("owsla_held_bytes", "Bytes read and waiting for the window", () => gauges().heldBytes)
    gauge(
      "owsla_partial_line_bytes",
      "Bytes of lines whose end has not come, bounded by MAX_PARTIAL_BYTES in each worker",
      () => gauges().partialLineBytes,
    )
    gauge("owsla_waiting_for_room", "Connections with such bytes", () => gauges().waitingForRoom)
    counter("owsla_commands_received_total", "Commands taken", () => c.commandsReceived)
    counter("owsla_commands_forwarded_total", "Sent to other workers", () => c.commandsForwarded)
    counter("owsla_commands_redelivered_total", "Repeats let go", () => c.commandsRedelivered)
    counterBy("owsla_commands_total", "Commands ended, by outcome", "outcome", () =>
      Object.entries(c.commandsSettled),
    )
    counter("owsla_dead_letters_total", "Commands the broker gave up", () => c.deadLettersReceived)
    counter(
      "owsla_commands_dropped_total",
      "Commands whose delivery was lost with a broker connection before they were written or forwarded; the broker delivers them again",
      () => c.commandsDropped,
    )
    counter(
      "owsla_commands_possibly_repeated_total",
      "Commands ended by this instance that the broker had delivered before, possibly to a worker that wrote or ended them; not counted with a message_id that the connection knows",
      () => c.commandsPossiblyRepeated,
    )
    counter("owsla_gaps_skipped_total", "Gaps in numbers given up", () => c.gapsSkipped)
    counter(
      "owsla_gaps_given_up_early_total",
      "Gaps in numbers given up before SEQ_GAP_TIMEOUT_MS because PREFETCH left no room for the missing command",
      () => c.gapsGivenUpEarly,
    )
    counter("owsla_command_bytes_out_total", "Bytes sockets took", () => c.commandBytesOut)
    counter("owsla_receipts_total", "Receipts stored", () => c.receiptsSent)
    counter("owsla_receipts_unroutable_total", "Receipts nobody took", () => c.receiptsUnroutable)
    counter(
      "owsla_outbound_messages_republished_total",
      "Own messages repeated",
      () => c.outboundRepublished,
    )
    gauge(
      "owsla_commands_unacknowledged",
      "Held of the broker",
      () => gauges().unacknowledgedCommands,
    )
    gauge("owsla_commands_held", "Waiting for a number", () => gauges().heldCommands)
    gauge("owsla_outbound_messages", "Own messages unconfirmed", () => gauges().outboundMessages)
    gauge("owsla_devices_located", "Other workers' devices known", () => gauges().locationCache)
    gauge("owsla_fleet_members", "Other workers heard of", () => gauges().members)
    gauge("owsla_presence_waiting", "Presence events unconfirmed", () => gauges().presence)
    counter("owsla_locations_asked_total", "Devices asked for", () => c.locationsAsked)
    counter("owsla_fleet_messages_total", "To other workers", () => c.fleetMessagesSent)
    counter("owsla_fleet_messages_dropped_total", "Not sent", () => c.fleetMessagesDropped)
    counter("owsla_fleet_messages_unknown_total", "Not read", () => c.fleetMessagesUnknown)
    counter(
      "owsla_fleet_messages_unverified_total",
      "Messages in a fleet queue dropped because no member of the fleet has signed them",
      () => c.fleetMessagesUnverified,
    )
    counter(
      "owsla_fleet_rows_refused_total",
      "Devices in messages between workers that were ignored because they are not valid",
      () => c.fleetRowsRefused,
    )
    counter("owsla_presence_total", "Presence events stored", () => c.presenceSent)
    counter("owsla_presence_dropped_total", "Presence events lost", () => c.presenceDropped)
    gauge("owsla_broker_ready_workers", "Workers whose broker takes messages", () =>
      gauges().brokerReady ? 1 : 0,
    )
    counter("owsla_broker_connects_total", "Times the broker was reached", () => c.brokerConnects)
    counter("owsla_broker_losses_total", "Times it was lost", () => c.brokerLosses)
    counterBy("owsla_http_errors_total", "Requests refused, by code", "code", () => c.httpErrors)
    counterBy(
      "owsla_http_connections_closed_total",
      "HTTP connections closed by the gateway, by reason",
      "reason",
      () => Object.entries(c.httpConnectionsClosed),
    )
    counter("owsla_log_lines_dropped_total", LOG_LINES_DROPPED, () => c.logLinesDropped)
    counter("owsla_faults_total", "Defects met and survived", () => c.faults)
    gauge("owsla_resident_bytes", "Resident memory", () => process.memoryUsage.rss())
    counter("owsla_cpu_seconds_total", "User and system time", cpuSeconds)
  }

  async snapshot(): Promise<MetricsSnapshot> {
    return (await this.#registry.getMetricsAsJSON()) as MetricsSnapshot
  }
}

/** The supervisor's own part. */
export async function supervisorMetrics(
  restarts: number,
  logLinesDropped: number,
): Promise<MetricsSnapshot> {
  const registry = new Registry()
  const registers = [registry]
  new Counter({ name: "owsla_worker_restarts_total", help: "Workers replaced", registers }).inc(
    restarts,
  )
  new Counter({ name: "owsla_log_lines_dropped_total", help: LOG_LINES_DROPPED, registers }).inc(
    logLinesDropped,
  )
  new Gauge({ name: "owsla_resident_bytes", help: "Resident memory", registers }).set(
    process.memoryUsage.rss(),
  )
  new Counter({ name: "owsla_cpu_seconds_total", help: "User and system time", registers }).inc(
    cpuSeconds(),
  )
  return (await registry.getMetricsAsJSON()) as MetricsSnapshot
}

/** Prometheus text of the sum over processes. */
export function summed(snapshots: readonly MetricsSnapshot[]): Promise<string> {
  return AggregatorRegistry.aggregate([...snapshots]).metrics()
}

function cpuSeconds(): number {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1_000_000
}
