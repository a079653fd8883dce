<?php
// A back-end: takes each line once, answers it by a command, reads the receipt of the command. Needs php-amqplib.
//
// usage: AMQP_URL=amqp://guest:guest@localhost php back_end.php

// With Composer: require 'vendor/autoload.php'.
require 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPTable;

define('LINES', getenv('FROM_DEVICE') ?: 'from_device');
define('RECEIPTS', getenv('RECEIPTS') ?: 'backend.receipts');
define('BACKOFF_MS', (int) (getenv('BACKOFF_MS') ?: 1000));
const MAX_BACKOFF_MS = 30_000, PREFETCH = 100, MAX_SEEN = 10_000, CONFIRM_TIMEOUT_S = 30;

// The ids of the last lines. Store them together with the effect of the line when it must survive this process.
$seen = [];
$attempt = 0;

function take_line(AMQPMessage $line): void
{
    global $seen, $attempt;
    $attempt = 0;
    // <connection_id>:<from_device_seq>. The same line comes again when its acknowledgement was lost.
    $id = $line->get('message_id');
    if (!isset($seen[$id])) {
        $seen[$id] = true;
        if (count($seen) > MAX_SEEN) {
            unset($seen[array_key_first($seen)]);
        }
        echo "line $id {$line->getBody()}\n";
    }
    // The device's answer to a command. If it were answered, the two would talk without end.
    if (str_starts_with($line->getBody(), 'done: ')) {
        $line->ack();
        return;
    }
    $headers = $line->get('application_headers')->getNativeData();
    $command = new AMQPMessage("thank you for {$line->getBody()}", [
        'application_headers' => new AMQPTable(['connection_id' => $headers['connection_id']]),
        // The gateway writes a command with the same id once, however often it is published.
        'message_id' => "answer-$id",
        'reply_to' => RECEIPTS,
        'correlation_id' => $id,
        'delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT,
    ]);
    // `reply_to` of the line is the queue of the worker with the connection. A command that is returned is
    // confirmed too: that worker has gone, and its connections too.
    $line->getChannel()->basic_publish($command, 'owsla.commands', $line->get('reply_to'), true);
    $line->getChannel()->wait_for_pending_acks_returns(CONFIRM_TIMEOUT_S);
    $line->ack();
}

function take_receipt(AMQPMessage $receipt): void
{
    echo "receipt {$receipt->get('correlation_id')} ", json_decode($receipt->getBody())->outcome, "\n";
    $receipt->ack();
}

/** Ends with an exception when the connection ends. */
function consume(array $url): void
{
    $vhost = isset($url['path']) ? urldecode(substr($url['path'], 1)) : '/';
    $user = urldecode($url['user'] ?? 'guest');
    $password = urldecode($url['pass'] ?? 'guest');
    $connection = new AMQPStreamConnection($url['host'], $url['port'] ?? 5672, $user, $password, $vhost);
    $channel = $connection->channel();
    $channel->set_nack_handler(fn () => throw new RuntimeException('the broker refused a command'));
    $channel->confirm_select();
    $channel->basic_qos(0, PREFETCH, false);
    $channel->queue_declare(RECEIPTS, false, true, false, false);
    $channel->basic_consume(RECEIPTS, '', false, false, false, false, 'take_receipt');
    $channel->basic_consume(LINES, '', false, false, false, false, 'take_line');
    echo "consuming\n";
    while ($channel->is_consuming()) {
        $channel->wait();
    }
}

while (true) {
    try {
        consume(parse_url(getenv('AMQP_URL')));
    } catch (Exception $error) {
        echo "broker lost: {$error->getMessage()}\n";
    }
    // Full jitter: back-ends that lost the broker together do not return together.
    $bound = min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** min($attempt, 16));
    usleep((int) (mt_rand() / mt_getrandmax() * $bound * 1000));
    $attempt += 1;
}
