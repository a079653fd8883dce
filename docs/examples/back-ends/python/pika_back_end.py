"""A back-end: takes each line once, answers it by a command, reads the receipt of the command. Needs pika.

usage: AMQP_URL=amqp://guest:guest@localhost python3 pika_back_end.py
"""

import json
import os
import random
import time

import pika

LINES = os.environ.get("FROM_DEVICE", "from_device")
RECEIPTS = os.environ.get("RECEIPTS", "backend.receipts")
BACKOFF_S = int(os.environ.get("BACKOFF_MS", 1_000)) / 1_000
MAX_BACKOFF_S, PREFETCH, MAX_SEEN = 30, 100, 10_000

# The ids of the last lines. Store them together with the effect of the line when it must survive this process.
seen = {}
attempt = 0


def take_line(channel, delivery, properties, line):
    global attempt
    attempt = 0
    # <connection_id>:<from_device_seq>. The same line comes again when its acknowledgement was lost.
    message_id = properties.message_id
    if message_id not in seen:
        seen[message_id] = True
        if len(seen) > MAX_SEEN:
            del seen[next(iter(seen))]
        print("line", message_id, line.decode(errors="replace"), flush=True)
    # The device's answer to a command. If it were answered, the two would talk without end.
    if line.startswith(b"done: "):
        return channel.basic_ack(delivery.delivery_tag)
    command = pika.BasicProperties(
        headers={"connection_id": properties.headers["connection_id"]},
        # The gateway writes a command with the same id once, however often it is published.
        message_id=f"answer-{message_id}",
        reply_to=RECEIPTS,
        correlation_id=message_id,
        delivery_mode=2,
    )
    # `reply_to` of the line is the queue of the worker with the connection. Waits for the confirm of the broker.
    try:
        channel.basic_publish("owsla.commands", properties.reply_to, b"thank you for " + line, command, mandatory=True)
    except pika.exceptions.UnroutableError:
        # That worker has gone, and its connections too.
        print("gone", message_id, flush=True)
    channel.basic_ack(delivery.delivery_tag)


def take_receipt(channel, delivery, properties, receipt):
    print("receipt", properties.correlation_id, json.loads(receipt)["outcome"], flush=True)
    channel.basic_ack(delivery.delivery_tag)


while True:
    try:
        with pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])) as connection:
            channel = connection.channel()
            channel.queue_declare(RECEIPTS, durable=True)
            channel.confirm_delivery()
            channel.basic_qos(prefetch_count=PREFETCH)
            channel.basic_consume(LINES, take_line)
            channel.basic_consume(RECEIPTS, take_receipt)
            print("consuming", flush=True)
            channel.start_consuming()
    except pika.exceptions.AMQPError as error:
        print("broker lost:", repr(error), flush=True)
    # Full jitter: back-ends that lost the broker together do not return together.
    time.sleep(random.uniform(0, min(MAX_BACKOFF_S, BACKOFF_S * 2 ** min(attempt, 16))))
    attempt += 1
