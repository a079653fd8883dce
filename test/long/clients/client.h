/*
 * What the clients have in common. Each is a device in C with the TLS library of its name:
 *
 *   <program> <port> <CA file, PEM> <receive bytes>
 *
 * It connects to 127.0.0.1, verifies the certificate for the name localhost, sends the line "hello",
 * and writes what it receives to standard output, up to and with the first LF. It has room for
 * <receive bytes> of a record; how it enforces that depends on the library.
 *
 * Exit status: 0 after the LF, 1 with a message on standard error when anything failed.
 */

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SERVER_NAME "localhost"
static const char HELLO[] = "hello\n";

struct arguments {
  int port;
  const char *ca_file;
  size_t receive_bytes;
};

static void fail(const char *what, long code) {
  fprintf(stderr, "%s: %ld\n", what, code);
  exit(1);
}

static struct arguments read_arguments(int count, char **values) {
  if (count != 4) fail("arguments: port, CA file, receive bytes", count);
  struct arguments read = {atoi(values[1]), values[2], strtoul(values[3], NULL, 10)};
  return read;
}

static int connect_to(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0) fail("connect", port);
  return fd;
}

/* Whether these bytes have the end of the line. */
static int print_bytes(const void *bytes, size_t length) {
  fwrite(bytes, 1, length, stdout);
  return memchr(bytes, '\n', length) != NULL;
}
