/**
 * The Prometheus metrics of one worker, and their sum over an instance.
 *
 * Counters and gauges are read only when a snapshot is made. Bound: label values come from closed
 * lists, never from a device.
 */

import { type Aggregator, AggregatorRegistry, Registry } from "prom-client"
import type { Counters } from "../counters.ts"
import { collectedMetrics } from "./collected-metrics.ts"
import { histogramMetrics } from "./histogram-metrics.ts"
import { registerProcessMetrics } from "./process-metrics.ts"

/**
 * A metric of one process, in prom-client's JSON format. prom-client's own type claims that `type`
 * is a number.
 */
export interface Metric {
  readonly name: string
  readonly help: string
  readonly type: string
  /** How the values of several processes become one. */
  readonly aggregator: Aggregator
  readonly values: readonly MetricSample[]
}

export interface MetricSample {
  readonly labels: Readonly<Record<string, string | number | undefined>>
  readonly value: number
  /** Of a histogram: the metric's name with `_bucket`, `_sum` or `_count`. */
  readonly metricName?: string | undefined
}

/** The metrics of one process. */
export type MetricsSnapshot = readonly Metric[]

/** Values at the time of a snapshot. */
export interface Gauges {
  readonly connections: number
  readonly connectionsLimit: number
  /** Seconds since 1970; null before the worker listens. */
  readonly certificateNotAfterS: number | null
  readonly waiting: number
  readonly windowLines: number
  readonly windowBytes: number
  readonly heldBytes: number
  readonly partialLineBytes: number
  readonly waitingForRoom: number
  readonly unacknowledgedCommands: number
  /** Commands that wait for a missing number. */
  readonly heldCommands: number
  /** Commands that are held until their devices connect. */
  readonly keptCommands: number
  readonly outboundMessages: number
  readonly brokerReady: boolean
  readonly locationCache: number
  readonly directory: number
  readonly keptShards: number
  readonly lookUps: number
  readonly members: number
  readonly presence: number
}

const LOG_LINES_DROPPED =
  "Log lines dropped because standard output or standard error did not accept them"

export class WorkerMetrics {
  readonly #registry = new Registry()
  readonly #counters: Counters

  constructor(counters: Counters, gauges: () => Gauges) {
    const { counter, counterBy, gauge } = collectedMetrics(this.#registry)
    const c = counters
    gauge(
      "owsla_connections",
      "Open device connections, those in their handshake included",
      () => gauges().connections,
    )
    gauge(
      "owsla_connections_limit",
      "Device connections that the workers of the instance accept (MAX_CONNECTIONS of each)",
      () => gauges().connectionsLimit,
    )
    gauge(
      "owsla_connections_waiting",
      "Accepted connections that wait for their handshake",
      () => gauges().waiting,
    )
    counter(
      "owsla_connections_accepted_total",
      "TCP connections accepted on the device port",
      () => c.connectionsAccepted,
    )
    counter(
      "owsla_connections_admitted_total",
      "Device connections admitted after TLS and identification",
      () => c.connectionsAdmitted,
    )
    counterBy(
      "owsla_connections_closed_total",
      "Device connections closed or refused, by reason",
      "reason",
      () => Object.entries(c.connectionsClosed),
    )
    counter("owsla_lines_in_total", "Lines received from devices", () => c.linesIn)
    counter("owsla_line_bytes_in_total", "Bytes received in lines", () => c.lineBytesIn)
    counter(
      "owsla_empty_lines_total",
      "Empty lines received; they are not published",
      () => c.emptyLines,
    )
    counter("owsla_lines_confirmed_total", "Lines confirmed by the broker", () => c.linesConfirmed)
    counter(
      "owsla_lines_republished_total",
      "Lines published again after a lost connection or a refusal",
      () => c.linesRepublished,
    )
    counter(
      "owsla_lines_returned_total",
      "Lines returned by the broker because no queue took them; they are published again",
      () => c.linesReturned,
    )
    counter(
      "owsla_lines_nacked_total",
      "Lines refused by the broker (basic.nack); they are published again",
      () => c.linesNacked,
    )
    counter(
      "owsla_unterminated_bytes_total",
      "Bytes of unfinished lines of closed connections, never published",
      () => c.unterminatedBytes,
    )
    counter(
      "owsla_bytes_after_close_total",
      "Bytes received on connections that the gateway had begun to close",
      () => c.bytesAfterClose,
    )
    counterBy(
      "owsla_reading_paused_total",
      "Times that reading from a device was paused, by cause. window: the publish window was full. rate: the device reached DEVICE_LINES_PER_S or DEVICE_BYTES_PER_S",
      "by",
      () => Object.entries(c.readingPaused),
    )
    gauge(
      "owsla_window_lines",
      "Lines published and not yet confirmed by the broker",
      () => gauges().windowLines,
    )
    gauge(
      "owsla_window_bytes",
      "Bytes of lines published and not yet confirmed by the broker",
      () => gauges().windowBytes,
    )
    gauge(
      "owsla_held_bytes",
      "Bytes of received lines that wait for room in the publish window, bounded by MAX_HELD_BYTES in each worker",
      () => gauges().heldBytes,
    )
    gauge(
      "owsla_partial_line_bytes",
      "Bytes of unfinished lines, bounded by MAX_PARTIAL_BYTES in each worker",
      () => gauges().partialLineBytes,
    )
    gauge(
      "owsla_waiting_for_room",
      "Connections whose lines wait for room in the publish window",
      () => gauges().waitingForRoom,
    )
    counter(
      "owsla_commands_received_total",
      "Commands received from the broker and by HTTP",
      () => c.commandsReceived,
    )
    counter(
      "owsla_commands_forwarded_total",
      "Commands forwarded to other workers",
      () => c.commandsForwarded,
    )
    counter(
      "owsla_commands_redelivered_total",
      "Repeated deliveries of commands, acknowledged without effect",
      () => c.commandsRedelivered,
    )
    counterBy("owsla_commands_total", "Commands by outcome", "outcome", () =>
      Object.entries(c.commandsSettled),
    )
    counter(
      "owsla_broadcasts_total",
      "Broadcasts begun by this instance; owsla_commands_total counts their lines",
      () => c.broadcasts,
    )
    counter(
      "owsla_dead_letters_total",
      "Commands dead-lettered by the broker and received from owsla.dead_letters",
      () => c.deadLettersReceived,
    )
    counter(
      "owsla_commands_dropped_total",
      "Commands whose delivery was lost with a broker connection before they were written or forwarded; the broker redelivers them",
      () => c.commandsDropped,
    )
    counter(
      "owsla_commands_possibly_repeated_total",
      "Redelivered commands that got their outcome from this instance and may have been written before; those that their connection recognises by message_id or number are not counted",
      () => c.commandsPossiblyRepeated,
    )
    counter("owsla_gaps_skipped_total", "Gaps in to_device_seq given up", () => c.gapsSkipped)
    counter(
      "owsla_gaps_given_up_early_total",
      "Gaps in to_device_seq given up before SEQ_GAP_TIMEOUT_MS because PREFETCH left no room for the missing command",
      () => c.gapsGivenUpEarly,
    )
    counter(
      "owsla_commands_gave_way_total",
      "Commands ended as no_reply or slow_device before their time because commands that wait had taken all of PREFETCH",
      () => c.commandsGaveWay,
    )
    counter(
      "owsla_command_bytes_out_total",
      "Bytes of commands written to device sockets",
      () => c.commandBytesOut,
    )
    counter("owsla_receipts_total", "Receipts confirmed by the broker", () => c.receiptsSent)
    counter(
      "owsla_receipts_unroutable_total",
      "Receipts given up because their queue does not exist, refused them or did not confirm them",
      () => c.receiptsUnroutable,
    )
    counter(
      "owsla_outbound_messages_republished_total",
      "Receipts, copies and forwarded commands published again",
      () => c.outboundRepublished,
    )
    gauge(
      "owsla_commands_unacknowledged",
      "Commands received from the broker and not yet acknowledged",
      () => gauges().unacknowledgedCommands,
    )
    gauge(
      "owsla_commands_waiting_for_number",
      "Commands that wait for a missing to_device_seq",
      () => gauges().heldCommands,
    )
    gauge(
      "owsla_held_commands",
      "Commands held until their devices connect (hold_ms), bounded by MAX_HELD in the fleet",
      () => gauges().keptCommands,
    )
    gauge(
      "owsla_outbound_messages",
      "Receipts, copies and forwarded commands not yet confirmed by the broker",
      () => gauges().outboundMessages,
    )
    gauge(
      "owsla_devices_located",
      "Devices of other workers in the location cache",
      () => gauges().locationCache,
    )
    gauge(
      "owsla_directory_devices",
      "Devices of other workers that the fleet's directory has in this instance",
      () => gauges().directory,
    )
    gauge(
      "owsla_directory_shards",
      "Shards of the fleet's directory that workers of this instance keep",
      () => gauges().keptShards,
    )
    gauge(
      "owsla_location_lookups",
      "Devices that are being looked up at other workers",
      () => gauges().lookUps,
    )
    gauge(
      "owsla_fleet_members",
      "Other workers known to the workers of this instance",
      () => gauges().members,
    )
    gauge(
      "owsla_presence_waiting",
      "Presence events not yet confirmed by the broker",
      () => gauges().presence,
    )
    counter(
      "owsla_locations_asked_total",
      "Devices that this instance has looked up at other workers",
      () => c.locationsAsked,
    )
    counter(
      "owsla_fleet_messages_total",
      "Messages sent to other workers",
      () => c.fleetMessagesSent,
    )
    counter(
      "owsla_fleet_messages_dropped_total",
      "Messages between workers dropped because the broker was away or slow",
      () => c.fleetMessagesDropped,
    )
    counter(
      "owsla_fleet_messages_unknown_total",
      "Messages from other workers that could not be parsed",
      () => c.fleetMessagesUnknown,
    )
    counter(
      "owsla_fleet_messages_unverified_total",
      "Messages in fleet queues dropped because their MAC is not valid",
      () => c.fleetMessagesUnverified,
    )
    counter(
      "owsla_fleet_rows_refused_total",
      "Invalid device entries in messages between workers, which were ignored",
      () => c.fleetRowsRefused,
    )
    counterBy(
      "owsla_trace_spans_total",
      "Spans of traced lines, exported to OTLP_URL or dropped",
      "result",
      () => Object.entries(c.spans),
    )
    counter("owsla_presence_total", "Presence events confirmed by the broker", () => c.presenceSent)
    counter(
      "owsla_presence_dropped_total",
      "Presence events dropped because too many were waiting",
      () => c.presenceDropped,
    )
    gauge("owsla_workers", "Workers of the instance that answered", () => 1)
    gauge("owsla_broker_ready_workers", "Workers whose broker connection accepts messages", () =>
      gauges().brokerReady ? 1 : 0,
    )
    counter("owsla_broker_connects_total", "Broker connections established", () => c.brokerConnects)
    counter("owsla_broker_losses_total", "Broker connections lost", () => c.brokerLosses)
    counterBy(
      "owsla_http_errors_total",
      "HTTP requests refused, by error code",
      "code",
      () => c.httpErrors,
    )
    counterBy(
      "owsla_http_connections_closed_total",
      "HTTP connections closed by the gateway, by reason",
      "reason",
      () => Object.entries(c.httpConnectionsClosed),
    )
    counter("owsla_log_lines_dropped_total", LOG_LINES_DROPPED, () => c.logLinesDropped)
    counter("owsla_faults_total", "Internal errors that were caught and logged", () => c.faults)
    gauge(
      "owsla_certificate_not_after_seconds",
      "Time at which the server certificate, or a CA certificate in TLS_CERT_FILE, expires, seconds since 1970. The earliest one of all workers",
      () => gauges().certificateNotAfterS,
      "min",
    )
    registerProcessMetrics(this.#registry)
    this.#counters = counters
  }

  async snapshot(): Promise<MetricsSnapshot> {
    return [...(await metricsOf(this.#registry)), ...histogramMetrics(this.#counters)]
  }
}

/** The metrics of the supervisor process. */
export async function supervisorMetrics(
  restarts: number,
  logLinesDropped: number,
): Promise<MetricsSnapshot> {
  const registry = new Registry()
  const { counter } = collectedMetrics(registry)
  counter("owsla_worker_restarts_total", "Workers restarted after they ended", () => restarts)
  counter("owsla_log_lines_dropped_total", LOG_LINES_DROPPED, () => logLinesDropped)
  registerProcessMetrics(registry)
  return metricsOf(registry)
}

/**
 * All processes together in the Prometheus text format: the sum, or what the metric's `aggregator`
 * says.
 */
export function summed(snapshots: readonly MetricsSnapshot[]): Promise<string> {
  return AggregatorRegistry.aggregate([...snapshots]).metrics()
}

async function metricsOf(registry: Registry): Promise<MetricsSnapshot> {
  const metrics = await registry.getMetricsAsJSON()
  return metrics.map((metric) => ({ ...metric, type: String(metric.type) }))
}
