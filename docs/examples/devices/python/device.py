"""A device: sends numbered lines, keeps each until it is acknowledged, answers commands. Needs no package.

usage: GATEWAY=localhost:8443 CA_FILE=certs/ca.crt [HELLO_LINE="HELLO lock:17 …"] python3 device.py
"""

import os
import random
import socket
import ssl
import time

HOST, _, PORT = os.environ["GATEWAY"].rpartition(":")
INTERVAL_S = int(os.environ.get("INTERVAL_MS", 1_000)) / 1_000
SIGN_OF_LIFE_S = int(os.environ.get("SIGN_OF_LIFE_MS", 60_000)) / 1_000
BACKOFF_S = int(os.environ.get("BACKOFF_MS", 1_000)) / 1_000
MAX_BACKOFF_S, TIMEOUT_S, MAX_KEPT = 60, 30, 100


class Device:
    # The lines that are not acknowledged, by their number on the current connection.
    kept = {}
    readings = attempt = next_reading = 0

    def send(self, line):
        self.tls.settimeout(TIMEOUT_S)
        self.tls.sendall(line.encode() + b"\n")
        self.sign_of_life = time.monotonic() + SIGN_OF_LIFE_S

    def send_kept(self, line):
        self.kept[self.number] = line
        self.number += 1
        self.send(line)

    def serve(self, tls):
        """Returns the seconds to wait as the goodbye line says; None when the connection ends without one."""
        self.tls, received = tls, b""
        # The gateway numbers the lines of each connection from 0, without the HELLO line and empty lines.
        self.kept = dict(enumerate(self.kept.values()))
        self.number = len(self.kept)
        for line in [os.environ.get("HELLO_LINE", ""), *self.kept.values()]:
            self.send(line)
        while True:
            now = time.monotonic()
            if now >= self.next_reading:
                self.next_reading = now + INTERVAL_S
                # While too many lines are not acknowledged, readings are skipped.
                if len(self.kept) < MAX_KEPT:
                    self.send_kept(f"reading {self.readings}")
                    self.readings += 1
            if now >= self.sign_of_life:
                self.send("")
            tls.settimeout(max(0.001, min(self.next_reading, self.sign_of_life) - time.monotonic()))
            try:
                chunk = tls.recv(4096)
            except TimeoutError:
                continue
            if not chunk:
                return None
            *lines, received = (received + chunk).split(b"\n")
            for line in lines:
                self.attempt = 0
                word, _, rest = line.decode(errors="replace").partition(" ")
                if word == "ACK":
                    self.kept.pop(int(rest), None)
                elif word == "BYE":
                    print("goodbye", rest, flush=True)
                    return int(rest.split()[-1]) / 1_000
                else:
                    print("command", line.decode(errors="replace"), flush=True)
                    self.send_kept(f"done: {line.decode(errors='replace')}")


context = ssl.create_default_context(cafile=os.environ["CA_FILE"])
device = Device()
while True:
    wait_s = None
    try:
        with socket.create_connection((HOST, int(PORT)), TIMEOUT_S) as tcp:
            with context.wrap_socket(tcp, server_hostname=HOST) as tls:
                print("connected", flush=True)
                wait_s = device.serve(tls)
    except OSError as error:
        print("disconnected:", error, flush=True)
    if wait_s is None:
        # Full jitter: devices that lost the gateway together do not return together.
        wait_s = random.uniform(0, min(MAX_BACKOFF_S, BACKOFF_S * 2 ** min(device.attempt, 16)))
        device.attempt += 1
    time.sleep(wait_s)
