# A back-end: takes each line once, answers it by a command, reads the receipt of the command. Needs bunny.
#
# usage: AMQP_URL=amqp://guest:guest@localhost ruby back_end.rb

require "bunny"
require "json"

LINES = ENV.fetch("FROM_DEVICE", "from_device")
RECEIPTS = ENV.fetch("RECEIPTS", "backend.receipts")
BACKOFF_S = ENV.fetch("BACKOFF_MS", "1000").to_i / 1000.0
MAX_BACKOFF_S = 30
PREFETCH = 100
MAX_SEEN = 10_000
$stdout.sync = true

# The ids of the last lines. Store them together with the effect of the line when it must survive this process.
$seen = {}
$attempt = 0

def take_line(channel, delivery, properties, line)
  $attempt = 0
  # <connection_id>:<from_device_seq>. The same line comes again when its acknowledgement was lost.
  message_id = properties.message_id
  unless $seen.key?(message_id)
    $seen[message_id] = true
    $seen.shift if $seen.size > MAX_SEEN
    puts "line #{message_id} #{line}"
  end
  # The device's answer to a command. If it were answered, the two would talk without end.
  return channel.ack(delivery.delivery_tag) if line.start_with?("done: ")

  # `reply_to` of the line is the queue of the worker with the connection.
  channel.basic_publish(
    "thank you for #{line}", "owsla.commands", properties.reply_to,
    mandatory: true, persistent: true, reply_to: RECEIPTS, correlation_id: message_id,
    headers: { connection_id: properties.headers["connection_id"] },
    # The gateway writes a command with the same id once, however often it is published.
    message_id: "answer-#{message_id}"
  )
  # A command that is returned is confirmed too: that worker has gone, and its connections too.
  raise "the broker refused a command" unless channel.wait_for_confirms
  channel.ack(delivery.delivery_tag)
end

def take_receipt(channel, delivery, properties, receipt)
  puts "receipt #{properties.correlation_id} #{JSON.parse(receipt)["outcome"]}"
  channel.ack(delivery.delivery_tag)
end

def consume
  ended = Queue.new
  # Bunny reports the end of a connection by `raise`, by default to the thread that has opened it.
  ended.define_singleton_method(:raise) { |error| push(error) }
  connection = Bunny.new(
    ENV.fetch("AMQP_URL"),
    automatically_recover: false, recover_from_connection_close: false, session_error_handler: ended
  )
  connection.start
  # One thread for each channel: a thread that waits for confirms does not take receipts.
  lines, receipts = connection.create_channel, connection.create_channel
  lines.on_uncaught_exception { |error| ended << error }
  lines.confirm_select
  [lines, receipts].each { |channel| channel.prefetch(PREFETCH) }
  receipts.queue_declare(RECEIPTS, durable: true)
  lines.basic_consume(LINES) { |delivery, properties, line| take_line(lines, delivery, properties, line) }
  receipts.basic_consume(RECEIPTS) { |delivery, properties, body| take_receipt(receipts, delivery, properties, body) }
  puts "consuming"
  raise ended.pop
ensure
  connection&.close rescue nil
end

loop do
  begin
    consume
  rescue Bunny::Exception, SystemCallError, RuntimeError => error
    puts "broker lost: #{error.message}"
  end
  # Full jitter: back-ends that lost the broker together do not return together.
  sleep(rand * [MAX_BACKOFF_S, BACKOFF_S * 2**[$attempt, 16].min].min)
  $attempt += 1
end
