# A device: sends numbered lines, keeps each until it is acknowledged, answers commands. Needs no package.
#
# usage: GATEWAY=localhost:8443 CA_FILE=certs/ca.crt [HELLO_LINE="HELLO lock:17 …"] elixir device.exs

defmodule Device do
  @max_backoff_ms 60_000
  @timeout_ms 30_000
  @max_kept 100

  # `kept` has the lines that are not acknowledged, oldest first, with their numbers on the current connection.
  defstruct tls: nil, kept: [], number: 0, readings: 0, attempt: 0, next_reading: 0, sign_of_life: 0

  def start, do: run(%Device{next_reading: now()})

  defp run(device) do
    [host, port] = String.split(System.fetch_env!("GATEWAY"), ":")
    # Without `verify_peer` any certificate is accepted. The host is verified too.
    options = [:binary, packet: :line, active: true, verify: :verify_peer, cacertfile: System.fetch_env!("CA_FILE")]

    case :ssl.connect(to_charlist(host), String.to_integer(port), options, @timeout_ms) do
      {:ok, tls} ->
        IO.puts("connected")
        {device, wait} = serve(device, tls)
        :ssl.close(tls)
        again(device, wait)

      {:error, reason} ->
        IO.puts("disconnected: #{inspect(reason)}")
        again(device, nil)
    end
  end

  defp again(device, nil) do
    # Full jitter: devices that lost the gateway together do not return together.
    bound = min(@max_backoff_ms, setting("BACKOFF_MS", 1_000) * 2 ** min(device.attempt, 16))
    again(%{device | attempt: device.attempt + 1}, floor(:rand.uniform() * bound))
  end

  defp again(device, wait) do
    Process.sleep(wait)
    run(device)
  end

  # Returns the device and the wait of the goodbye line, or nil when the connection ends without one.
  defp serve(device, tls) do
    # The gateway numbers the lines of each connection from 0, without the HELLO line and empty lines.
    start = send_line(%{device | tls: tls, kept: [], number: 0}, System.get_env("HELLO_LINE", ""))
    device.kept |> Enum.reduce(start, fn {_, line}, device -> send_kept(device, line) end) |> loop()
  end

  defp loop(device) do
    device = if now() >= device.next_reading, do: read_sensor(device), else: device
    device = if now() >= device.sign_of_life, do: send_line(device, ""), else: device
    tls = device.tls

    receive do
      {:ssl, ^tls, line} -> take(%{device | attempt: 0}, String.trim_trailing(line, "\n"))
      {:ssl_closed, ^tls} -> {device, nil}
      {:ssl_error, ^tls, _} -> {device, nil}
    after
      max(min(device.next_reading, device.sign_of_life) - now(), 0) -> loop(device)
    end
  end

  defp take(device, "ACK " <> number) do
    loop(%{device | kept: List.keydelete(device.kept, String.to_integer(number), 0)})
  end

  defp take(device, "BYE " <> rest) do
    IO.puts("goodbye #{rest}")
    {device, rest |> String.split() |> List.last() |> String.to_integer()}
  end

  defp take(device, command) do
    IO.puts("command #{command}")
    device |> send_kept("done: #{command}") |> loop()
  end

  defp read_sensor(device) do
    device = %{device | next_reading: now() + setting("INTERVAL_MS", 1_000)}
    # While too many lines are not acknowledged, readings are skipped.
    if length(device.kept) >= @max_kept,
      do: device,
      else: send_kept(%{device | readings: device.readings + 1}, "reading #{device.readings}")
  end

  defp send_kept(device, line) do
    send_line(%{device | kept: device.kept ++ [{device.number, line}], number: device.number + 1}, line)
  end

  # An error is not handled here: a message `ssl_closed` comes too.
  defp send_line(device, line) do
    :ssl.send(device.tls, [line, "\n"])
    %{device | sign_of_life: now() + setting("SIGN_OF_LIFE_MS", 60_000)}
  end

  defp setting(name, default), do: String.to_integer(System.get_env(name, to_string(default)))
  defp now, do: System.monotonic_time(:millisecond)
end

{:ok, _} = Application.ensure_all_started(:ssl)
Device.start()
