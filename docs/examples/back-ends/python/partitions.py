"""A back-end of a gateway with FROM_DEVICE_PARTITIONS. Needs Python 3 and pika.

usage: partitions.py AMQP_URL PARTITIONS FIRST [QUEUE]

Start it as often as there are partitions, or more often, each time with another FIRST: the partition to
subscribe to first, from 0. Then it stands by for all other partitions: the broker delivers a partition to one
subscriber at a time, and to the next one when that has gone. QUEUE is FROM_DEVICE_QUEUE.

It prints each line as JSON, in order and once. It recognises repeats by the numbers of the lines. These numbers are
in its memory, so a process that takes a partition over prints again what the one before it had not acknowledged. To
avoid that, store the last number of each connection together with the effect of the line, in one transaction.
"""

import json
import sys
import time

import pika

# For so long it waits until each partition has a subscriber, before it stands by for others.
STAND_BY_AFTER_S = 10
# Lines of a partition that are delivered and not acknowledged.
PREFETCH = 100

url, partitions, first, *name = sys.argv[1:]
prefix = name[0] if name else "from_device"
queues = [f"{prefix}.{number}" for number in range(int(partitions))]
own = queues[int(first) % len(queues)]
others = [queue for queue in queues if queue != own]
next_seq = {}


def take(channel, delivery, properties, line):
    connection_id = properties.headers["connection_id"]
    seq = properties.headers["from_device_seq"]
    if seq >= next_seq.get(connection_id, 0):
        next_seq[connection_id] = seq + 1
        taken = {
            "queue": delivery.routing_key,
            "device_id": properties.headers["device_id"],
            "connection_id": connection_id,
            "seq": seq,
            "line": line.decode(errors="replace"),
            "redelivered": delivery.redelivered,
            "at_ns": time.monotonic_ns(),
        }
        print(json.dumps(taken), flush=True)
    channel.basic_ack(delivery.delivery_tag)


def subscribers(channel, queue):
    return channel.queue_declare(queue, passive=True).method.consumer_count


connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
# The broker cancels a subscription when its queue is deleted. A service manager starts this program again.
channel.add_on_cancel_callback(lambda _: sys.exit("a queue was deleted"))
channel.basic_qos(prefetch_count=PREFETCH)
channel.basic_consume(own, take)
deadline = time.monotonic() + STAND_BY_AFTER_S
while time.monotonic() < deadline and not all(subscribers(channel, queue) for queue in queues):
    # Takes lines meanwhile.
    connection.sleep(0.2)
for queue in others:
    channel.basic_consume(queue, take)
channel.start_consuming()
