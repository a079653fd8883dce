"""Stands in for systemd: binds the Unix datagram socket given as the only argument, "@" for an abstract
name, prints "bound", and prints each datagram as one line of JSON."""

import json
import socket
import sys

name = sys.argv[1]
heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
heard.bind("\0" + name[1:] if name.startswith("@") else name)
print("bound", flush=True)
while True:
    print(json.dumps(heard.recv(65536).decode()), flush=True)
