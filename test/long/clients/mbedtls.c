/*
 * A device with mbedTLS. On a device MBEDTLS_SSL_IN_CONTENT_LEN sets the size of the receive buffer.
 * In Debian's library it is 16,384, but mbedTLS reads the rest of each record with one call after its
 * header, so that a longer read than <receive bytes> is a record that such a device refuses.
 * Debian's mbedTLS has TLS 1.2 only.
 */

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>

#include "client.h"

static size_t receive_bytes;

static int receive(void *net, unsigned char *to, size_t length) {
  if (length > receive_bytes) fail("a record is longer than the receive buffer", length);
  return mbedtls_net_recv(net, to, length);
}

int main(int count, char **values) {
  struct arguments arguments = read_arguments(count, values);
  receive_bytes = arguments.receive_bytes;
  mbedtls_net_context net = {connect_to(arguments.port)};

  mbedtls_entropy_context entropy;
  mbedtls_ctr_drbg_context random;
  mbedtls_x509_crt ca;
  mbedtls_ssl_config config;
  mbedtls_ssl_context ssl;
  mbedtls_entropy_init(&entropy);
  mbedtls_ctr_drbg_init(&random);
  mbedtls_x509_crt_init(&ca);
  mbedtls_ssl_config_init(&config);
  mbedtls_ssl_init(&ssl);

  int status = mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0);
  if (status == 0) status = mbedtls_x509_crt_parse_file(&ca, arguments.ca_file);
  if (status == 0) {
    status = mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
                                         MBEDTLS_SSL_PRESET_DEFAULT);
  }
  mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random);
  mbedtls_ssl_conf_ca_chain(&config, &ca, NULL);
  mbedtls_ssl_conf_authmode(&config, MBEDTLS_SSL_VERIFY_REQUIRED);
  if (status == 0) status = mbedtls_ssl_setup(&ssl, &config);
  if (status == 0) status = mbedtls_ssl_set_hostname(&ssl, SERVER_NAME);
  mbedtls_ssl_set_bio(&ssl, &net, mbedtls_net_send, receive, NULL);
  if (status == 0) status = mbedtls_ssl_handshake(&ssl);
  if (status != 0) fail("the mbedTLS handshake", status);
  status = mbedtls_ssl_write(&ssl, (const unsigned char *)HELLO, strlen(HELLO));
  if (status < 0) fail("mbedtls_ssl_write", status);

  unsigned char bytes[256];
  for (int ended = 0; !ended;) {
    int length = mbedtls_ssl_read(&ssl, bytes, sizeof bytes);
    if (length <= 0) fail("mbedtls_ssl_read", length);
    ended = print_bytes(bytes, length);
  }
  return 0;
}
