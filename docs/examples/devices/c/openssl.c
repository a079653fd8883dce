/* A device: sends numbered lines, keeps each until it is acknowledged, answers commands. Needs OpenSSL.
 *
 * usage: gcc -o device openssl.c -lssl -lcrypto
 *        GATEWAY=localhost:8443 CA_FILE=certs/ca.crt [HELLO_LINE="HELLO lock:17 …"] ./device
 */
#define _GNU_SOURCE
#include <openssl/ssl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_BACKOFF_MS = 60000, TIMEOUT_MS = 30000, MAX_KEPT = 100, LINE_BYTES = 512 };

/* The lines that are not acknowledged, oldest first, with their numbers on the current connection. */
static struct { long number; char line[LINE_BYTES]; } kept[MAX_KEPT];
static int kept_count;
static long next_number, readings, attempt, next_reading, sign_of_life;

static long now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static long setting(const char *name, long otherwise) {
  const char *value = getenv(name);
  return value ? atol(value) : otherwise;
}

/* An error is not handled: the next read fails too. */
static void send_line(SSL *tls, const char *line) {
  char bytes[LINE_BYTES + 1];
  int length = snprintf(bytes, sizeof bytes, "%s\n", line);
  SSL_write(tls, bytes, length);
  sign_of_life = now() + setting("SIGN_OF_LIFE_MS", 60000);
}

/* While too many lines are not acknowledged, new ones are dropped. */
static void send_kept(SSL *tls, const char *line) {
  if (kept_count == MAX_KEPT) return;
  kept[kept_count].number = next_number++;
  snprintf(kept[kept_count++].line, LINE_BYTES, "%s", line);
  send_line(tls, line);
}

/* Returns the wait of the goodbye line, otherwise -1. */
static long take(SSL *tls, const char *line) {
  char answer[LINE_BYTES];
  attempt = 0;
  if (strncmp(line, "ACK ", 4) == 0) {
    for (int at = 0; at < kept_count; at++)
      if (kept[at].number == atol(line + 4)) {
        memmove(&kept[at], &kept[at + 1], (--kept_count - at) * sizeof kept[0]);
        break;
      }
  } else if (strncmp(line, "BYE ", 4) == 0) {
    printf("goodbye %s\n", line + 4);
    return atol(strrchr(line, ' '));
  } else {
    printf("command %s\n", line);
    snprintf(answer, sizeof answer, "done: %.500s", line);
    send_kept(tls, answer);
  }
  return -1;
}

/* Returns the wait of the goodbye line; -1 when the connection ends without one. */
static long serve(SSL *tls) {
  char received[LINE_BYTES], *end;
  int used = 0;
  send_line(tls, getenv("HELLO_LINE") ? getenv("HELLO_LINE") : "");
  /* The gateway numbers the lines of each connection from 0, without the HELLO line and empty lines. */
  for (next_number = 0; next_number < kept_count; next_number++) {
    kept[next_number].number = next_number;
    send_line(tls, kept[next_number].line);
  }
  for (;;) {
    if (now() >= next_reading) {
      char reading[LINE_BYTES];
      next_reading = now() + setting("INTERVAL_MS", 1000);
      snprintf(reading, sizeof reading, "reading %ld", readings);
      if (kept_count < MAX_KEPT) readings++;
      send_kept(tls, reading);
    }
    if (now() >= sign_of_life) send_line(tls, "");
    long due = (next_reading < sign_of_life ? next_reading : sign_of_life) - now();
    if (due < 1) due = 1;
    struct timeval timeout = {due / 1000, due % 1000 * 1000};
    setsockopt(SSL_get_fd(tls), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    int count = SSL_read(tls, received + used, LINE_BYTES - 1 - used);
    if (count <= 0) {
      if (SSL_get_error(tls, count) == SSL_ERROR_WANT_READ) continue;
      return -1;
    }
    used += count;
    while ((end = memchr(received, '\n', used))) {
      *end = 0;
      long wait = take(tls, received);
      if (wait >= 0) return wait;
      used -= end + 1 - received;
      memmove(received, end + 1, used);
    }
    /* A command that does not fit ends the connection. */
    if (used == LINE_BYTES - 1) return -1;
  }
}

int main(void) {
  char *host = strdup(getenv("GATEWAY"));
  SSL_CTX *context = SSL_CTX_new(TLS_client_method());
  *strrchr(host, ':') = 0;
  signal(SIGPIPE, SIG_IGN);
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (!SSL_CTX_load_verify_locations(context, getenv("CA_FILE"), NULL)) return 1;
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
  for (;;) {
    long wait = -1;
    BIO *tcp = BIO_new_connect(getenv("GATEWAY"));
    SSL *tls = SSL_new(context);
    SSL_set_bio(tls, tcp, tcp);
    /* Without SSL_set1_host only the CA is verified, and not the name of the gateway. */
    if (BIO_do_connect(tcp) == 1 && SSL_set1_host(tls, host) && SSL_set_tlsext_host_name(tls, host)) {
      struct timeval timeout = {TIMEOUT_MS / 1000, 0};
      setsockopt(SSL_get_fd(tls), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
      setsockopt(SSL_get_fd(tls), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
      if (SSL_connect(tls) == 1) {
        puts("connected");
        wait = serve(tls);
      }
    }
    SSL_free(tls);
    if (wait < 0) {
      /* Full jitter: devices that lost the gateway together do not return together. */
      unsigned random = 0;
      long bound = setting("BACKOFF_MS", 1000) << (attempt < 16 ? attempt : 16);
      getrandom(&random, sizeof random, 0);
      wait = random % (bound < MAX_BACKOFF_MS ? bound : MAX_BACKOFF_MS);
      attempt++;
      puts("disconnected");
    }
    usleep(wait * 1000);
  }
}
