/** What the start prints: addresses and commands that work as they are, without a secret. */

import { expect, test } from "bun:test"
import { loadConfig } from "../../src/config/config.ts"
import { addressesOf, addressesText } from "../../src/process/addresses.ts"

const PORTS = { devicePort: 8443, httpPort: 8080 }
const TOKEN = "a-token-of-sixteen-or-more"

const addresses = (environment: Record<string, string> = {}) =>
  addressesOf(
    loadConfig(environment, () => null),
    PORTS,
  )

test("with the embedded broker: the page, the lines, a device and a command", () => {
  expect(addresses()).toEqual({
    page: "http://127.0.0.1:8080/",
    lines: "curl -N http://127.0.0.1:8080/messages",
    device: "openssl s_client -quiet -nocommands -connect localhost:8443 -CAfile certs/ca.crt",
    command:
      "curl -H 'content-type: text/plain' -d 'open the door' http://127.0.0.1:8080/devices/<device_id>/send",
  })
})

test("with a broker there is no stream of lines", () => {
  expect(addresses({ AMQP_URL: "amqp://u:a-password@b" }).lines).toBeUndefined()
})

test("a token is asked for and never shown", () => {
  const shown = addresses({ HTTP_HOST: "::", HTTP_TOKENS: TOKEN })
  expect(shown.command).toContain("-H 'authorization: Bearer <token>'")
  expect(shown.page).toBe("http://[::1]:8080/")
  expect(JSON.stringify(shown)).not.toContain(TOKEN)
})

test("a certificate of the operator needs no development CA", () => {
  const files = { TLS_CERT_FILE: "a.crt", TLS_KEY_FILE: "a.key" }
  expect(addresses({ ...files, DEVICE_HOST: "192.0.2.7" }).device).toEndWith(
    "-connect 192.0.2.7:8443",
  )
})

test("a device shows its certificate with DEVICE_AUTH=mtls", () => {
  const mtls = { DEVICE_AUTH: "mtls", TLS_CLIENT_CA_FILE: "ca.crt" }
  expect(addresses(mtls).device).toEndWith(" -cert <device>.crt -key <device>.key")
})

test("a device sends the line that identifies it before what is typed", () => {
  const secret = "a-secret-of-the-tests-0123456789"
  const hello = addresses({ DEVICE_AUTH: "hello", HELLO_SECRETS: secret })
  expect(hello.device).toBe(
    "(bun run --silent certs hello <device_id>; cat) | " +
      "openssl s_client -quiet -nocommands -connect localhost:8443 -CAfile certs/ca.crt",
  )
  expect(JSON.stringify(hello)).not.toContain(secret)
  const token = addresses({ DEVICE_AUTH: "token", TOKEN_KEYS_FILE: "keys.pem" })
  expect(token.device).toStartWith("(echo TOKEN <token>; cat) | openssl")
})

test.each<[string, Record<string, string>]>([
  ["lengths before its lines", { DEVICE_FRAMING: "u16" }],
  ["a PROXY header", { PROXY_PROTOCOL: "required", PROXY_FROM: "127.0.0.1/32" }],
])("openssl cannot send %s, so it is left out", (_, environment) => {
  expect(addresses(environment).device).toBeUndefined()
})

test("as text each is on its own line, and can be pasted", () => {
  const lines = addressesText(addresses()).split("\n")
  expect(lines).toHaveLength(5)
  expect(lines[1]).toBe("    lines    curl -N http://127.0.0.1:8080/messages")
  expect(lines[4]).toBe("    check    bun run doctor")
})
