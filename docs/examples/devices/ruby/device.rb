# A device: sends numbered lines, keeps each until it is acknowledged, answers commands. Needs no gem.
#
# usage: GATEWAY=localhost:8443 CA_FILE=certs/ca.crt [HELLO_LINE="HELLO lock:17 …"] ruby device.rb

require "openssl"
require "socket"

HOST, PORT = ENV.fetch("GATEWAY").split(":")
INTERVAL_S = ENV.fetch("INTERVAL_MS", "1000").to_i / 1000.0
SIGN_OF_LIFE_S = ENV.fetch("SIGN_OF_LIFE_MS", "60000").to_i / 1000.0
BACKOFF_S = ENV.fetch("BACKOFF_MS", "1000").to_i / 1000.0
MAX_BACKOFF_S = 60
TIMEOUT_S = 30
MAX_KEPT = 100
$stdout.sync = true

def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

class Device
  attr_accessor :attempt

  def initialize
    # The lines that are not acknowledged, by their number on the current connection.
    @kept = {}
    @readings = @attempt = @next_reading = 0
  end

  # Returns the seconds to wait as the goodbye line says; nil when the connection ends without one.
  def serve(tls)
    @tls, received = tls, +""
    # The gateway numbers the lines of each connection from 0, without the HELLO line and empty lines.
    @kept = @kept.values.each_with_index.to_h { |line, number| [number, line] }
    @number = @kept.size
    [ENV.fetch("HELLO_LINE", ""), *@kept.values].each { |line| send_line(line) }
    loop do
      read_sensor if now >= @next_reading
      send_line("") if now >= @sign_of_life
      case chunk = tls.read_nonblock(4096, exception: false)
      when nil then return nil
      when :wait_readable then IO.select([tls], nil, nil, [[@next_reading, @sign_of_life].min - now, 0].max)
      else received << chunk
      end
      while (line = received.slice!(/\A.*\n/))
        wait = take(line.chomp)
        return wait if wait
      end
    end
  end

  private

  # While too many lines are not acknowledged, readings are skipped.
  def read_sensor
    @next_reading = now + INTERVAL_S
    return if @kept.size >= MAX_KEPT
    send_kept("reading #{@readings}")
    @readings += 1
  end

  def take(line)
    @attempt = 0
    word, rest = line.split(" ", 2)
    case word
    when "ACK" then @kept.delete(rest.to_i)
    when "BYE"
      puts "goodbye #{rest}"
      return rest.split.last.to_i / 1000.0
    else
      puts "command #{line}"
      send_kept("done: #{line}")
    end
    nil
  end

  def send_kept(line)
    @kept[@number] = line
    @number += 1
    send_line(line)
  end

  def send_line(line)
    @tls.write("#{line}\n")
    @sign_of_life = now + SIGN_OF_LIFE_S
  end
end

context = OpenSSL::SSL::SSLContext.new
context.set_params(ca_file: ENV.fetch("CA_FILE"), verify_mode: OpenSSL::SSL::VERIFY_PEER, verify_hostname: true)
device = Device.new
loop do
  wait = nil
  begin
    Socket.tcp(HOST, PORT, connect_timeout: TIMEOUT_S) do |tcp|
      tls = OpenSSL::SSL::SSLSocket.new(tcp, context)
      tls.hostname = HOST # the name to verify
      tls.connect
      puts "connected"
      wait = device.serve(tls)
    end
  rescue SystemCallError, SocketError, IOError, OpenSSL::SSL::SSLError => error
    puts "disconnected: #{error.message}"
  end
  unless wait
    # Full jitter: devices that lost the gateway together do not return together.
    wait = rand * [MAX_BACKOFF_S, BACKOFF_S * 2**[device.attempt, 16].min].min
    device.attempt += 1
  end
  sleep(wait)
end
