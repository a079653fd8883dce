import { expect, test } from "bun:test"
import { risks } from "../../src/config/config.ts"
import { misspelled } from "../../src/config/misspelled.ts"
import { faultsOf, load } from "./config-harness.ts"

const SETTINGS = ["HTTP_TOKENS", "HTTP_TOKENS_FILE", "HTTP_HOST", "WORKERS", "DEVICE_AUTH"]

test.each([
  ["HTTP_TOKEN", "HTTP_TOKENS"],
  ["HTTP_TOKEN_FILE", "HTTP_TOKENS_FILE"],
  ["DEVICE_AUHT", "DEVICE_AUTH"],
  ["WORKER", "WORKERS"],
  ["DEVICEAUTH", "DEVICE_AUTH"],
  ["DEVICE_OAUTH2", "DEVICE_AUTH"],
])("%s is taken for %s", (name, setting) => {
  expect(misspelled([name], SETTINGS)).toEqual([{ name, setting }])
})

test.each(["HTTP_TOKENS", "HTTP_PROXY", "PATH", "HOME", "WORK", "KUBERNETES_SERVICE_HOST"])(
  "%s is taken for none",
  (name) => {
    expect(misspelled([name], SETTINGS)).toEqual([])
  },
)

test("a misspelt setting is a risk that names both, and not its value", () => {
  const found = risks(load({ HTTP_TOKEN: "a-token-0123456789abcdef", HELLO_SECRETS_FIEL: "x" }))
  const texts = found.map(({ risk, advice }) => `${risk}; ${advice}`).join("\n")
  expect(texts).toContain("HTTP_TOKEN is not a setting and has no effect; did you mean HTTP_TOKENS")
  expect(texts).toContain("did you mean HELLO_SECRETS_FILE")
  expect(texts).not.toContain("0123456789")
})

test("the faults of a configuration end with the misspelt settings", () => {
  const faults = faultsOf({ DEVICE_AUTH: "mtls", TLS_CLIENT_CA_FLE: "/ca.crt" })
  expect(faults).toEqual([
    "TLS_CLIENT_CA_FILE: needed with DEVICE_AUTH=mtls",
    "TLS_CLIENT_CA_FLE is not a setting and has no effect; did you mean TLS_CLIENT_CA_FILE?",
  ])
})
