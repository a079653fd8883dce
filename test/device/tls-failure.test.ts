/** What OpenSSL's and BoringSSL's messages say about a peer. */

import { expect, test } from "bun:test"
import { LEFT_HANDSHAKE, tlsFailure } from "../../src/device/tls-failure.ts"

const packed = (reason: string) => `error:1000009c:SSL routines:OPENSSL_internal:${reason}`

test.each([
  [packed("HTTP_REQUEST"), "handshake_failed", "HTTP_REQUEST: the peer sent HTTP, not TLS"],
  [
    packed("WRONG_VERSION_NUMBER"),
    "handshake_failed",
    "WRONG_VERSION_NUMBER: the peer did not send TLS",
  ],
  [
    "Client network socket disconnected before secure TLS connection was established",
    "handshake_failed",
    LEFT_HANDSHAKE,
  ],
  [packed("A_NEW_ONE"), "handshake_failed", packed("A_NEW_ONE")],
  ["self signed certificate", "handshake_failed", "self signed certificate"],
  [undefined, "handshake_failed", "unknown cause"],
  [packed("PEER_DID_NOT_RETURN_A_CERTIFICATE"), "not_identified", "no certificate"],
] as const)("%s is %s: %s", (message, reason, detail) => {
  expect(tlsFailure(message)).toEqual({ reason, detail })
})
