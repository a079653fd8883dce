/* A device: sends numbered lines, keeps each until it is acknowledged, answers commands. Needs mbedTLS 2.28.
 *
 * usage: gcc -o device mbedtls.c -lmbedtls -lmbedx509 -lmbedcrypto
 *        GATEWAY=localhost:8443 CA_FILE=certs/ca.crt [HELLO_LINE="HELLO lock:17 …"] ./device
 */
#define _GNU_SOURCE
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_BACKOFF_MS = 60000, TIMEOUT_MS = 30000, MAX_KEPT = 100, LINE_BYTES = 512 };

/* The lines that are not acknowledged, oldest first, with their numbers on the current connection. */
static struct { long number; char line[LINE_BYTES]; } kept[MAX_KEPT];
static int kept_count;
static mbedtls_ssl_config config;
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
static void send_line(mbedtls_ssl_context *tls, const char *line) {
  char bytes[LINE_BYTES + 1];
  int length = snprintf(bytes, sizeof bytes, "%s\n", line);
  for (int sent = 0, count; sent < length; sent += count)
    if ((count = mbedtls_ssl_write(tls, (unsigned char *)bytes + sent, length - sent)) < 0) break;
  sign_of_life = now() + setting("SIGN_OF_LIFE_MS", 60000);
}

/* While too many lines are not acknowledged, new ones are dropped. */
static void send_kept(mbedtls_ssl_context *tls, const char *line) {
  if (kept_count == MAX_KEPT) return;
  kept[kept_count].number = next_number++;
  snprintf(kept[kept_count++].line, LINE_BYTES, "%s", line);
  send_line(tls, line);
}

/* Returns the wait of the goodbye line, otherwise -1. */
static long take(mbedtls_ssl_context *tls, const char *line) {
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
static long serve(mbedtls_ssl_context *tls) {
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
    mbedtls_ssl_conf_read_timeout(&config, due);
    int count = mbedtls_ssl_read(tls, (unsigned char *)received + used, LINE_BYTES - 1 - used);
    if (count == MBEDTLS_ERR_SSL_TIMEOUT) continue;
    if (count <= 0) return -1;
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
  mbedtls_entropy_context entropy;
  mbedtls_ctr_drbg_context random;
  mbedtls_x509_crt ca;
  char *host = strdup(getenv("GATEWAY")), *port = strrchr(host, ':') + 1;
  port[-1] = 0;
  setvbuf(stdout, NULL, _IOLBF, 0);
  mbedtls_entropy_init(&entropy);
  mbedtls_ctr_drbg_init(&random);
  mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0);
  /* The CA is parsed once: parsing it for each connection fragments the memory of a small device. */
  mbedtls_x509_crt_init(&ca);
  if (mbedtls_x509_crt_parse_file(&ca, getenv("CA_FILE")) != 0) return 1;
  mbedtls_ssl_config_init(&config);
  mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT);
  mbedtls_ssl_conf_authmode(&config, MBEDTLS_SSL_VERIFY_REQUIRED);
  mbedtls_ssl_conf_ca_chain(&config, &ca, NULL);
  mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random);
  for (;;) {
    long wait = -1;
    mbedtls_net_context tcp;
    mbedtls_ssl_context tls;
    mbedtls_net_init(&tcp);
    mbedtls_ssl_init(&tls);
    mbedtls_ssl_setup(&tls, &config);
    mbedtls_ssl_set_bio(&tls, &tcp, mbedtls_net_send, NULL, mbedtls_net_recv_timeout);
    mbedtls_ssl_conf_read_timeout(&config, TIMEOUT_MS);
    /* Without mbedtls_ssl_set_hostname only the CA is verified, and not the name of the gateway. */
    if (mbedtls_ssl_set_hostname(&tls, host) == 0 &&
        mbedtls_net_connect(&tcp, host, port, MBEDTLS_NET_PROTO_TCP) == 0 && mbedtls_ssl_handshake(&tls) == 0) {
      puts("connected");
      wait = serve(&tls);
    }
    mbedtls_ssl_free(&tls);
    mbedtls_net_free(&tcp);
    if (wait < 0) {
      /* Full jitter: devices that lost the gateway together do not return together. */
      unsigned number = 0;
      long bound = setting("BACKOFF_MS", 1000) << (attempt < 16 ? attempt : 16);
      mbedtls_ctr_drbg_random(&random, (unsigned char *)&number, sizeof number);
      wait = number % (bound < MAX_BACKOFF_MS ? bound : MAX_BACKOFF_MS);
      attempt++;
      puts("disconnected");
    }
    usleep(wait * 1000);
  }
}
