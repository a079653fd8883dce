// A back-end: takes each line once, answers it by a command, reads the receipt of the command. Needs amqp091-go.
//
// usage: AMQP_URL=amqp://guest:guest@localhost go run back_end.go
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand"
	"os"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	maxBackoffMs = 30_000
	prefetch     = 100
	maxSeen      = 10_000
)

var (
	lines    = setting("FROM_DEVICE", "from_device")
	receipts = setting("RECEIPTS", "backend.receipts")
	// The ids of the last lines. Store them together with the effect of the line when it must survive this process.
	seen    = map[string]bool{}
	oldest  []string
	attempt int
)

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func takeLine(channel *amqp.Channel, confirms <-chan amqp.Confirmation, line amqp.Delivery) error {
	attempt = 0
	// <connection_id>:<from_device_seq>. The same line comes again when its acknowledgement was lost.
	id := line.MessageId
	if !seen[id] {
		seen[id] = true
		oldest = append(oldest, id)
		if len(oldest) > maxSeen {
			delete(seen, oldest[0])
			oldest = oldest[1:]
		}
		fmt.Printf("line %s %s\n", id, line.Body)
	}
	// The device's answer to a command. If it were answered, the two would talk without end.
	if bytes.HasPrefix(line.Body, []byte("done: ")) {
		return line.Ack(false)
	}
	command := amqp.Publishing{
		Headers: amqp.Table{"connection_id": line.Headers["connection_id"]},
		// The gateway writes a command with the same id once, however often it is published.
		MessageId:     "answer-" + id,
		ReplyTo:       receipts,
		CorrelationId: id,
		DeliveryMode:  amqp.Persistent,
		Body:          append([]byte("thank you for "), line.Body...),
	}
	// ReplyTo of the line is the queue of the worker with the connection. A command that is returned is
	// confirmed too: that worker has gone, and its connections too.
	err := channel.PublishWithContext(context.Background(), "owsla.commands", line.ReplyTo, true, false, command)
	if err != nil {
		return err
	}
	// Not PublishWithDeferredConfirm: in version 1.5 it can miss a confirm that arrives at once, and wait without end.
	if confirm := <-confirms; !confirm.Ack {
		return fmt.Errorf("a command was not confirmed")
	}
	return line.Ack(false)
}

func takeReceipt(receipt amqp.Delivery) error {
	var content struct{ Outcome string }
	if err := json.Unmarshal(receipt.Body, &content); err != nil {
		return err
	}
	fmt.Println("receipt", receipt.CorrelationId, content.Outcome)
	return receipt.Ack(false)
}

// Returns when the connection ends.
func consume() error {
	connection, err := amqp.Dial(os.Getenv("AMQP_URL"))
	if err != nil {
		return err
	}
	defer connection.Close()
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	confirms := channel.NotifyPublish(make(chan amqp.Confirmation, 1))
	closed := connection.NotifyClose(make(chan *amqp.Error, 1))
	if err = channel.Confirm(false); err != nil {
		return err
	}
	if err = channel.Qos(prefetch, 0, false); err != nil {
		return err
	}
	if _, err = channel.QueueDeclare(receipts, true, false, false, false, nil); err != nil {
		return err
	}
	fromReceipts, err := channel.Consume(receipts, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	fromDevices, err := channel.Consume(lines, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	fmt.Println("consuming")
	for {
		select {
		case line, open := <-fromDevices:
			if !open {
				return fmt.Errorf("the channel is closed")
			}
			err = takeLine(channel, confirms, line)
		case receipt, open := <-fromReceipts:
			if !open {
				return fmt.Errorf("the channel is closed")
			}
			err = takeReceipt(receipt)
		case reason := <-closed:
			return reason
		}
		if err != nil {
			return err
		}
	}
}

func main() {
	rand.Seed(time.Now().UnixNano())
	backoff, _ := strconv.ParseFloat(setting("BACKOFF_MS", "1000"), 64)
	for {
		fmt.Println("broker lost:", consume())
		// Full jitter: back-ends that lost the broker together do not return together.
		bound := math.Min(maxBackoffMs, backoff*math.Pow(2, float64(attempt)))
		time.Sleep(time.Duration(rand.Float64() * bound * float64(time.Millisecond)))
		attempt++
	}
}
