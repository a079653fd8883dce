"""A back-end in Python, for the tests: what the gateway publishes is read by, and what it consumes is
written by, a client that shares no code with it.

  pika_backend.py URL consume QUEUE COUNT   one JSON object a line on stdout for each message
  pika_backend.py URL publish               one JSON object a line on stdin for each message

JSON has few types: a value {"pika": "long" | "decimal", "text": …} is written as a 64-bit integer or a decimal,
{"pika": "bytes" | "string", "hex": …} as AMQP's byte array or as a string of these very bytes. What is consumed has the
table of its headers in hexadecimal digits too, as it came.

Publishing is mandatory and confirmed; for each input line one of "confirmed", "returned" and
"nacked" is printed. Run it with /usr/bin/python3 (Debian's python3-pika), not with the python of a
version manager. Never declares a queue, an exchange or a binding.
"""

import base64
import decimal
import json
import sys

import pika
import pika.compat
import pika.data
from pika.exceptions import NackError, UnroutableError

PROPERTIES = (
    "content_type content_encoding delivery_mode priority correlation_id reply_to "
    "expiration message_id timestamp type user_id app_id"
).split()


class String(str):
    """Encoded as its bytes, which need not be UTF-8."""

    def encode(self, *_):
        return bytes.fromhex(self)


TYPES = {
    "long": lambda value: pika.compat.long(value["text"]),
    "decimal": lambda value: decimal.Decimal(value["text"]),
    "bytes": lambda value: bytes.fromhex(value["hex"]),
    "string": lambda value: String(value["hex"]),
}


def typed(value):
    return TYPES[value["pika"]](value) if "pika" in value else value


class Table(dict):
    """A table that keeps the bytes it was read from."""


decode_table = pika.data.decode_table


def decode_kept(encoded, offset):
    result, end = decode_table(encoded, offset)
    table = Table(result)
    table.encoded = encoded[offset:end]
    return table, end


pika.data.decode_table = decode_kept


def emit(value):
    print(json.dumps(value, default=str), flush=True)


def consume(channel, queue, count):
    # Never more than asked for, so that nothing else is delivered; 65535 is the most AMQP can say.
    channel.basic_qos(prefetch_count=min(count, 65535))
    for method, properties, body in channel.consume(queue):
        channel.basic_ack(method.delivery_tag)
        present = {name: getattr(properties, name) for name in PROPERTIES}
        emit(
            {
                "body_base64": base64.b64encode(body).decode(),
                "headers": properties.headers or {},
                "headers_hex": getattr(properties.headers, "encoded", b"").hex(),
                "properties": {name: v for name, v in present.items() if v is not None},
                "exchange": method.exchange,
                "routing_key": method.routing_key,
                "redelivered": method.redelivered,
            }
        )
        count -= 1
        if count == 0:
            break
    channel.cancel()


def publish(channel):
    channel.confirm_delivery()
    for line in sys.stdin:
        message = json.loads(line, object_hook=typed)
        properties = pika.BasicProperties(
            headers=message.get("headers"), **message.get("properties", {})
        )
        try:
            channel.basic_publish(
                message.get("exchange", ""),
                message["routing_key"],
                base64.b64decode(message["body_base64"]),
                properties,
                mandatory=True,
            )
            emit("confirmed")
        except UnroutableError:
            emit("returned")
        except NackError:
            emit("nacked")


def main():
    url, mode, *rest = sys.argv[1:]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    if mode == "consume":
        queue, count = rest
        consume(channel, queue, int(count))
    elif mode == "publish":
        publish(channel)
    else:
        sys.exit(f"no such mode: {mode}")
    connection.close()


main()
