# A device in MicroPython 1.22 or later, for a board with Wi-Fi. It was not run by the tests of this project.
#
# It sends numbered lines, keeps each until it is acknowledged, and answers commands. Connect the board to the
# network first, and set its clock (ntptime.settime()), because the certificate is checked against it.
import random
import select
import socket
import ssl
import time

HOST, PORT, HELLO_LINE = "gateway.example", 8443, "HELLO lock:17 <proof>"
INTERVAL_MS, SIGN_OF_LIFE_MS, BACKOFF_MS, MAX_BACKOFF_MS, MAX_KEPT = 1000, 60000, 1000, 60000, 20

context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.verify_mode = ssl.CERT_REQUIRED
context.load_verify_locations(cafile="ca.der")
kept = {}  # The lines that are not acknowledged, by their number on the current connection.
number = readings = attempt = 0


def send_kept(tls, line):
    global number
    kept[number] = line
    number += 1
    tls.write(line + b"\n")


def serve(tls, poll):
    """Returns the wait of the goodbye line in milliseconds; None when the connection ends without one."""
    global kept, number, readings, attempt
    # The gateway numbers the lines of each connection from 0, without the HELLO line.
    kept = dict(enumerate(kept[n] for n in sorted(kept)))
    number = len(kept)
    for line in [HELLO_LINE.encode()] + [kept[n] for n in sorted(kept)]:
        tls.write(line + b"\n")
    next_reading = sign_of_life = time.ticks_ms()
    while True:
        if time.ticks_diff(time.ticks_ms(), next_reading) >= 0:
            next_reading = time.ticks_add(time.ticks_ms(), INTERVAL_MS)
            if len(kept) < MAX_KEPT:
                send_kept(tls, b"reading %d" % readings)
                readings += 1
        if time.ticks_diff(time.ticks_ms(), sign_of_life) >= SIGN_OF_LIFE_MS:
            tls.write(b"\n")
            sign_of_life = time.ticks_ms()
        if not poll.poll(max(0, time.ticks_diff(next_reading, time.ticks_ms()))):
            continue
        line = tls.readline()
        if not line:
            return None
        attempt = 0
        line = line.rstrip(b"\n")
        if line.startswith(b"ACK "):
            kept.pop(int(line[4:]), None)
        elif line.startswith(b"BYE "):
            return int(line.split()[-1])
        else:
            send_kept(tls, b"done: " + line)


while True:
    wait_ms, tcp = None, socket.socket()
    try:
        tcp.connect(socket.getaddrinfo(HOST, PORT)[0][-1])
        tls = context.wrap_socket(tcp, server_hostname=HOST)
        poll = select.poll()
        poll.register(tls, select.POLLIN)
        wait_ms = serve(tls, poll)
    except OSError as error:
        print("disconnected:", error)
    tcp.close()
    if wait_ms is None:
        # Full jitter: devices that lost the gateway together do not return together.
        wait_ms = random.randint(0, min(MAX_BACKOFF_MS, BACKOFF_MS << min(attempt, 16)))
        attempt += 1
    time.sleep_ms(wait_ms)
