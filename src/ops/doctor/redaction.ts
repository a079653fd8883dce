/**
 * Removes secrets from findings, before anything is printed. The checks put none into their texts;
 * this covers the words of brokers, of TLS libraries and of the system. Pure.
 */

import { readBearerToken } from "../../bearer-token.ts"
import type { Config } from "../../config/config.ts"
import type { Finding } from "./finding.ts"

const HIDDEN = "***"
/** A shorter text occurs in ordinary words, and is no secret to protect. */
const MIN_CHARACTERS = 4

/** @param more secrets that are not in the configuration, such as those of the command line. */
export function secretsOf(config: Config, more: readonly string[] = []): string[] {
  const urls = config.amqp?.urls ?? []
  const passwords = urls.flatMap((url) => {
    const { password } = new URL(url)
    return [password, decodeURIComponent(password)]
  })
  const { http, device, fleetSecret } = config
  return [
    ...passwords,
    ...[...http.tokens, ...http.readTokens].map((entry) => readBearerToken(entry).token),
    ...device.helloSecrets,
    fleetSecret ?? "",
    ...more,
  ].filter((secret) => secret.length >= MIN_CHARACTERS && secret !== "guest")
}

export function withoutSecrets(finding: Finding, secrets: readonly string[]): Finding {
  const hide = (text: string) =>
    secrets.reduce((hidden, secret) => hidden.replaceAll(secret, HIDDEN), text)
  const message = hide(finding.message)
  if (finding.advice === null) return { ...finding, message }
  return { ...finding, message, advice: hide(finding.advice) }
}
