/*
 * A device with BearSSL, as on the ESP8266. BearSSL receives into one buffer of fixed size and
 * refuses a record that does not fit (BR_ERR_TOO_LARGE, 6). It has TLS 1.2 only.
 */

#include <bearssl.h>

#include "client.h"

#define FILE_BYTES 16384
/* Room for what BearSSL sends: the smallest fragment and its overhead. */
#define SEND_BYTES (512 + 85)

struct bytes {
  unsigned char data[FILE_BYTES];
  size_t length;
};

static void append(void *to, const void *data, size_t length) {
  struct bytes *bytes = to;
  if (bytes->length + length > FILE_BYTES) fail("a certificate is too long", length);
  memcpy(bytes->data + bytes->length, data, length);
  bytes->length += length;
}

/* The first certificate of the file as a trust anchor. It refers to static memory. */
static br_x509_trust_anchor read_anchor(const char *path) {
  static unsigned char pem[FILE_BYTES];
  static struct bytes certificate, name;
  static br_x509_decoder_context x509;
  FILE *file = fopen(path, "rb");
  if (file == NULL) fail("the CA file cannot be read", 0);
  size_t length = fread(pem, 1, sizeof pem, file);
  fclose(file);

  br_pem_decoder_context decoder;
  br_pem_decoder_init(&decoder);
  for (size_t at = 0, ended = 0; at < length && !ended;) {
    at += br_pem_decoder_push(&decoder, pem + at, length - at);
    int event = br_pem_decoder_event(&decoder);
    if (event == BR_PEM_BEGIN_OBJ) br_pem_decoder_setdest(&decoder, append, &certificate);
    if (event == BR_PEM_ERROR) fail("the CA file is not PEM", 0);
    ended = event == BR_PEM_END_OBJ;
  }

  br_x509_decoder_init(&x509, append, &name);
  br_x509_decoder_push(&x509, certificate.data, certificate.length);
  br_x509_pkey *key = br_x509_decoder_get_pkey(&x509);
  if (key == NULL) fail("the CA cannot be read", br_x509_decoder_last_error(&x509));
  br_x509_trust_anchor anchor = {{name.data, name.length}, BR_X509_TA_CA, *key};
  return anchor;
}

static int read_socket(void *fd, unsigned char *to, size_t length) {
  ssize_t got = read(*(int *)fd, to, length);
  return got > 0 ? (int)got : -1;
}

static int write_socket(void *fd, const unsigned char *from, size_t length) {
  ssize_t put = write(*(int *)fd, from, length);
  return put > 0 ? (int)put : -1;
}

int main(int count, char **values) {
  struct arguments arguments = read_arguments(count, values);
  br_x509_trust_anchor anchor = read_anchor(arguments.ca_file);
  int fd = connect_to(arguments.port);

  br_ssl_client_context client;
  br_x509_minimal_context verifier;
  br_sslio_context io;
  unsigned char sent[SEND_BYTES];
  unsigned char *received = malloc(arguments.receive_bytes);
  br_ssl_client_init_full(&client, &verifier, &anchor, 1);
  br_ssl_engine_set_buffers_bidi(&client.eng, received, arguments.receive_bytes, sent, sizeof sent);
  br_ssl_client_reset(&client, SERVER_NAME, 0);
  br_sslio_init(&io, &client.eng, read_socket, &fd, write_socket, &fd);
  br_sslio_write_all(&io, HELLO, strlen(HELLO));
  br_sslio_flush(&io);

  char bytes[256];
  for (int ended = 0; !ended;) {
    int length = br_sslio_read(&io, bytes, sizeof bytes);
    if (length < 0) fail("BearSSL", br_ssl_engine_last_error(&client.eng));
    ended = print_bytes(bytes, length);
  }
  return 0;
}
