"""A device with a small receive buffer that reads nothing until it gets a line on standard input.

Writes what it then reads to standard output as it comes, after one line that says that it is connected.
"""

import socket
import ssl
import sys

RECEIVE_BUFFER_BYTES = 4096

plain = socket.socket()
plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
plain.connect(("127.0.0.1", int(sys.argv[1])))
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
device = context.wrap_socket(plain)
device.sendall(b"hello\n")
print("connected", flush=True)
sys.stdin.readline()
while True:
    chunk = device.recv(65536)
    if not chunk:
        break
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()
