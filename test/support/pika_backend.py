"""A back-end in Python, for the tests: what the gateway publishes is read by, and what it consumes is
written by, a client that shares no code with it.

  pika_backend.py URL consume QUEUE COUNT   one JSON object a line on stdout for each message
  pika_backend.py URL publish               one JSON object a line on stdin for each message

Publishing is mandatory and confirmed; for each input line one of "confirmed", "returned" and
"nacked" is printed. Run it with /usr/bin/python3 (Debian's python3-pika), not with the python of a
version manager. Never declares a queue, an exchange or a binding.
"""

import base64
import json
import sys

import pika
from pika.exceptions import NackError, UnroutableError

PROPERTIES = (
    "content_type content_encoding delivery_mode priority correlation_id reply_to "
    "expiration message_id timestamp type user_id app_id"
).split()


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
        message = json.loads(line)
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
