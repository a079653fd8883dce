// A device: sends numbered lines, keeps each until it is acknowledged, answers commands. Needs no module.
//
// usage: GATEWAY=localhost:8443 CA_FILE=certs/ca.crt [HELLO_LINE="HELLO lock:17 …"] go run device.go
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math"
	"math/rand"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	maxBackoffMs = 60_000
	timeout      = 30 * time.Second
	maxKept      = 100
)

var (
	kept     []keptLine // the lines that are not acknowledged, oldest first
	readings int
	attempt  int
	ticker   = time.NewTicker(milliseconds("INTERVAL_MS", 1_000))
)

// A line with its number on the current connection.
type keptLine struct {
	number int
	line   string
}

func milliseconds(name string, otherwise int) time.Duration {
	if value, err := strconv.Atoi(os.Getenv(name)); err == nil {
		otherwise = value
	}
	return time.Duration(otherwise) * time.Millisecond
}

// Returns the wait of the goodbye line; false when the connection ends without one.
func serve(connection net.Conn) (time.Duration, bool) {
	number := 0
	signOfLife := time.NewTicker(milliseconds("SIGN_OF_LIFE_MS", 60_000))
	defer signOfLife.Stop()
	// An error of a write is not handled: the reads of the connection end with it too.
	send := func(line string) {
		connection.SetWriteDeadline(time.Now().Add(timeout))
		fmt.Fprintf(connection, "%s\n", line)
	}
	sendKept := func(line string) {
		kept = append(kept, keptLine{number, line})
		number++
		send(line)
	}
	received := make(chan string)
	go func() {
		defer close(received)
		for lines := bufio.NewReader(connection); ; {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			received <- strings.TrimSuffix(line, "\n")
		}
	}()
	send(os.Getenv("HELLO_LINE"))
	// The gateway numbers the lines of each connection from 0, without the HELLO line and empty lines.
	again := kept
	kept = nil
	for _, unacknowledged := range again {
		sendKept(unacknowledged.line)
	}
	for {
		select {
		case <-signOfLife.C:
			send("")
		case <-ticker.C:
			// While too many lines are not acknowledged, readings are skipped.
			if len(kept) < maxKept {
				sendKept(fmt.Sprintf("reading %d", readings))
				readings++
			}
		case line, open := <-received:
			if !open {
				return 0, false
			}
			attempt = 0
			words := strings.Split(line, " ")
			switch words[0] {
			case "ACK":
				acknowledged, _ := strconv.Atoi(words[1])
				for at := range kept {
					if kept[at].number == acknowledged {
						kept = append(kept[:at], kept[at+1:]...)
						break
					}
				}
			case "BYE":
				fmt.Println("goodbye", line[4:])
				wait, _ := strconv.Atoi(words[len(words)-1])
				return time.Duration(wait) * time.Millisecond, true
			default:
				fmt.Println("command", line)
				sendKept("done: " + line)
			}
		}
	}
}

func main() {
	pem, err := os.ReadFile(os.Getenv("CA_FILE"))
	authorities := x509.NewCertPool()
	if err != nil || !authorities.AppendCertsFromPEM(pem) {
		fmt.Println("no certificate in CA_FILE")
		os.Exit(1)
	}
	rand.Seed(time.Now().UnixNano())
	for {
		wait, said := time.Duration(0), false
		// It verifies the CA, and the host of GATEWAY as the name of the server.
		dialer := &net.Dialer{Timeout: timeout}
		connection, err := tls.DialWithDialer(dialer, "tcp", os.Getenv("GATEWAY"), &tls.Config{RootCAs: authorities})
		if err == nil {
			fmt.Println("connected")
			wait, said = serve(connection)
			connection.Close()
		}
		if !said {
			fmt.Println("disconnected")
			// Full jitter: devices that lost the gateway together do not return together.
			backoff := float64(milliseconds("BACKOFF_MS", 1_000).Milliseconds())
			bound := math.Min(maxBackoffMs, backoff*math.Pow(2, float64(attempt)))
			wait = time.Duration(rand.Float64() * bound * float64(time.Millisecond))
			attempt++
		}
		time.Sleep(wait)
	}
}
