"""A back-end: takes each line once, answers it by a command, reads the receipt of the command. Needs aio-pika.

usage: AMQP_URL=amqp://guest:guest@localhost python3 aio_pika_back_end.py
"""

import asyncio
import json
import os
import random

import aio_pika

LINES = os.environ.get("FROM_DEVICE", "from_device")
RECEIPTS = os.environ.get("RECEIPTS", "backend.receipts")
BACKOFF_S = int(os.environ.get("BACKOFF_MS", 1_000)) / 1_000
MAX_BACKOFF_S, PREFETCH, MAX_SEEN = 30, 100, 10_000

# The ids of the last lines. Store them together with the effect of the line when it must survive this process.
seen = {}
attempt = 0


async def take_lines(queue, commands):
    global attempt
    async with queue.iterator() as messages:
        async for message in messages:
            attempt = 0
            # <connection_id>:<from_device_seq>. The same line comes again when its acknowledgement was lost.
            message_id = message.message_id
            if message_id not in seen:
                seen[message_id] = True
                if len(seen) > MAX_SEEN:
                    del seen[next(iter(seen))]
                print("line", message_id, message.body.decode(errors="replace"), flush=True)
            # The device's answer to a command. If it were answered, the two would talk without end.
            if message.body.startswith(b"done: "):
                await message.ack()
                continue
            command = aio_pika.Message(
                b"thank you for " + message.body,
                headers={"connection_id": message.headers["connection_id"]},
                # The gateway writes a command with the same id once, however often it is published.
                message_id=f"answer-{message_id}",
                reply_to=RECEIPTS,
                correlation_id=message_id,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            # `reply_to` of the line is the queue of the worker with the connection. Waits for the confirm of the broker.
            try:
                await commands.publish(command, message.reply_to)
            except aio_pika.exceptions.DeliveryError:
                # That worker has gone, and its connections too.
                print("gone", message_id, flush=True)
            await message.ack()


async def take_receipts(queue):
    async with queue.iterator() as receipts:
        async for receipt in receipts:
            print("receipt", receipt.correlation_id, json.loads(receipt.body)["outcome"], flush=True)
            await receipt.ack()


async def consume():
    # Not `connect_robust`, so that the program knows when a connection ends.
    async with await aio_pika.connect(os.environ["AMQP_URL"]) as connection:
        channel = await connection.channel(on_return_raises=True)
        await channel.set_qos(PREFETCH)
        lines = await channel.get_queue(LINES, ensure=False)
        receipts = await channel.declare_queue(RECEIPTS, durable=True)
        commands = await channel.get_exchange("owsla.commands", ensure=False)
        print("consuming", flush=True)
        closed = asyncio.get_running_loop().create_future()
        connection.close_callbacks.add(lambda *_: closed.done() or closed.set_result(None))
        tasks = [asyncio.create_task(take_lines(lines, commands)), asyncio.create_task(take_receipts(receipts))]
        await asyncio.wait([*tasks, closed], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def main():
    global attempt
    while True:
        try:
            await consume()
        except (aio_pika.exceptions.AMQPError, OSError) as error:
            print("broker lost:", repr(error), flush=True)
        # Full jitter: back-ends that lost the broker together do not return together.
        await asyncio.sleep(random.uniform(0, min(MAX_BACKOFF_S, BACKOFF_S * 2 ** min(attempt, 16))))
        attempt += 1


asyncio.run(main())
