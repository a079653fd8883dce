"""A device of a gateway with DEVICE_FRAMING=u16. Needs Python 3 and no package.

usage: device-u16.py HOST PORT CA_FILE [FIRST_LINE]

FIRST_LINE is needed with DEVICE_AUTH=hello: HELLO, the device id and its proof. With DEVICE_AUTH=token: TOKEN and a JWT. The device sends
one message of two lines, then prints each command and answers it. With DEVICE_FRAMING=u32 the
length has four bytes: replace ">H" by ">I", and 2 by 4.
"""

import socket
import ssl
import struct
import sys


def send(tls, message):
    tls.sendall(struct.pack(">H", len(message)) + message)


def receive(tls):
    (length,) = struct.unpack(">H", read(tls, 2))
    return read(tls, length)


def read(tls, count):
    data = b""
    while len(data) < count:
        part = tls.recv(count - len(data))
        if not part:
            sys.exit("the gateway closed the connection")
        data += part
    return data


host, port, ca_file, *first_line = sys.argv[1:]
context = ssl.create_default_context(cafile=ca_file)
with socket.create_connection((host, int(port))) as connection:
    with context.wrap_socket(connection, server_hostname=host) as tls:
        for line in first_line:
            send(tls, line.encode())
        send(tls, b"temperature 21.5\nhumidity 40")
        while True:
            command = receive(tls)
            print(command, flush=True)
            # With DEVICE_ACK=seq, ACK n confirms message n.
            if not command.startswith(b"ACK "):
                send(tls, b"done: " + command)
