/*
 * A device with wolfSSL, which allocates memory for each record. Once the handshake is done, the
 * allocator refuses a block of more than <receive bytes>, so that wolfSSL cannot receive a longer
 * record. During the handshake wolfSSL needs larger blocks for other purposes. TLS 1.3.
 */

#include <wolfssl/options.h>
#include <wolfssl/ssl.h>
#include <wolfssl/wolfcrypt/memory.h>

#include "client.h"

static size_t max_block = (size_t)-1;

static void *allocate(size_t length) { return length > max_block ? NULL : malloc(length); }

static void *reallocate(void *block, size_t length) {
  return length > max_block ? NULL : realloc(block, length);
}

int main(int count, char **values) {
  struct arguments arguments = read_arguments(count, values);
  int fd = connect_to(arguments.port);

  if (wolfSSL_SetAllocators(allocate, free, reallocate) != 0) fail("wolfSSL_SetAllocators", 0);
  wolfSSL_Init();
  WOLFSSL_CTX *context = wolfSSL_CTX_new(wolfTLSv1_3_client_method());
  if (context == NULL) fail("wolfSSL_CTX_new", 0);
  int status = wolfSSL_CTX_load_verify_locations(context, arguments.ca_file, NULL);
  if (status != SSL_SUCCESS) fail("the CA file cannot be read", status);
  WOLFSSL *ssl = wolfSSL_new(context);
  if (ssl == NULL || wolfSSL_check_domain_name(ssl, SERVER_NAME) != SSL_SUCCESS) fail("wolfSSL_new", 0);
  wolfSSL_set_fd(ssl, fd);
  if (wolfSSL_connect(ssl) != SSL_SUCCESS) fail("wolfSSL_connect", wolfSSL_get_error(ssl, 0));
  max_block = arguments.receive_bytes;
  if (wolfSSL_write(ssl, HELLO, strlen(HELLO)) < 0) fail("wolfSSL_write", wolfSSL_get_error(ssl, 0));

  char bytes[256];
  for (int ended = 0; !ended;) {
    int length = wolfSSL_read(ssl, bytes, sizeof bytes);
    if (length <= 0) fail("wolfSSL_read", wolfSSL_get_error(ssl, length));
    ended = print_bytes(bytes, length);
  }
  return 0;
}
