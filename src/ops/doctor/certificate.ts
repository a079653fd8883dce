/**
 * Checks the files of the TLS listener: the server certificate with its key, its chain, its names,
 * its days and its key type, the devices' CAs, and the keys of tokens. Reads the files and changes
 * nothing: development certificates are made by the start, not here.
 */

import { X509Certificate } from "node:crypto"
import { accessSync, constants, readFileSync } from "node:fs"
import { rootCertificates } from "node:tls"
import type { Config } from "../../config/config.ts"
import { isLoopback } from "../../config/config.ts"
import { parseTokenKeys } from "../../device/token-keys.ts"
import { errorText } from "../../errors.ts"
import {
  PEM_CERTIFICATE,
  readClientAuthorities,
  readServerCertificate,
} from "../server-certificate.ts"
import { type Finding, failure, ok, skipped, warning } from "./finding.ts"

const CHECK = "certificate"
const DAY_MS = 86_400_000
/** Certificates of 90 days are usually renewed 30 days before their end. */
const SOON_DAYS = 14
const MIN_RSA_BITS = 2_048
const MAX_SHOWN_NAMES = 5
/** As OpenSSL writes ::1. */
const LONG_LOOPBACK = "0:0:0:0:0:0:0:1"

/** The reason for which the files are not checked; null when they are. */
export function missingFiles({ tls }: Config): string | null {
  const readable = [tls.certFile, tls.keyFile].filter(isReadable).length
  if (!tls.development) {
    return readable === 2 ? null : "the files cannot be read, see the findings about configuration"
  }
  if (readable > 0) return null
  return `${tls.certFile} does not exist yet; the first start makes a development certificate`
}

function isReadable(path: string): boolean {
  try {
    accessSync(path, constants.R_OK)
    return true
  } catch {
    return false
  }
}

export function checkCertificate(config: Config, nowMs: number): Finding[] {
  const missing = missingFiles(config)
  if (missing !== null) return [skipped(CHECK, missing)]
  let chain: X509Certificate[]
  try {
    chain = certificatesIn(readServerCertificate(config.tls).certPem)
  } catch (error) {
    return [failure(CHECK, errorText(error), "correct TLS_CERT_FILE and TLS_KEY_FILE")]
  }
  const [leaf] = chain
  if (leaf === undefined) {
    const advice = "put the server certificate and its intermediate certificates into it, as PEM"
    return [failure(CHECK, "TLS_CERT_FILE has no certificate", advice)]
  }
  const renew = config.tls.development
    ? "bun run certs server makes a new development certificate"
    : "renew it, then send SIGHUP to the gateway: connections stay open"
  return [
    ok(CHECK, `TLS_KEY_FILE is the key of TLS_CERT_FILE (${oneLine(leaf.subject)})`),
    ...chain.flatMap((each) => checkDays(CHECK, each, nowMs, renew)),
    checkChain(chain),
    checkNames(leaf, config),
    checkKey(leaf),
  ]
}

export function checkClientAuthorities({ device }: Config, nowMs: number): Finding[] {
  if (device.clientCaFile === null) return []
  try {
    const authorities = certificatesIn(readClientAuthorities(device.clientCaFile))
    const advice = "replace it in TLS_CLIENT_CA_FILE: devices that it has signed are refused"
    return authorities.flatMap((each) => checkDays("client_ca", each, nowMs, advice))
  } catch (error) {
    return [failure("client_ca", errorText(error), "correct TLS_CLIENT_CA_FILE")]
  }
}

export function checkTokenKeys({ device }: Config): Finding[] {
  if (device.token === null) return []
  try {
    const { length } = parseTokenKeys(readFileSync(device.token.keysFile, "utf8"))
    return [ok("token_keys", `TOKEN_KEYS_FILE has ${length} key(s)`)]
  } catch (error) {
    const message = `TOKEN_KEYS_FILE: ${errorText(error)}`
    return [failure("token_keys", message, "put a JWK Set or PEM public keys into the file")]
  }
}

function checkDays(
  check: "certificate" | "client_ca",
  certificate: X509Certificate,
  nowMs: number,
  advice: string,
): Finding[] {
  const name = oneLine(certificate.subject)
  const fromMs = certificate.validFromDate.getTime()
  const days = Math.floor((certificate.validToDate.getTime() - nowMs) / DAY_MS)
  if (fromMs > nowMs) {
    const message = `${name} is valid only from ${certificate.validFromDate.toISOString()} on`
    return [failure(check, message, "set the clock of this machine, or use another certificate")]
  }
  if (days < 0) {
    const message = `${name} expired at ${certificate.validToDate.toISOString()}`
    return [failure(check, message, advice)]
  }
  const message = `${name} is valid for ${days} more days`
  return [days < SOON_DAYS ? warning(check, message, advice) : ok(check, message)]
}

/** Each certificate must have signed the one before it. */
function checkChain(chain: readonly X509Certificate[]): Finding {
  for (const [at, certificate] of chain.entries()) {
    const issuer = chain[at + 1]
    if (issuer === undefined) break
    if (!certificate.checkIssued(issuer) || !certificate.verify(issuer.publicKey)) {
      const message = `certificate ${at + 2} of TLS_CERT_FILE has not signed certificate ${at + 1}`
      const advice =
        "order the file: the server certificate, then each CA that signed the one before"
      return failure(CHECK, message, advice)
    }
  }
  const last = chain.at(-1) as X509Certificate
  const length = `${chain.length} certificate(s)`
  if (isRoot(last)) return ok(CHECK, `the chain has ${length} and ends at its root`)
  const issuer = oneLine(last.issuer)
  if (roots().some((root) => last.checkIssued(root) && last.verify(root.publicKey))) {
    return ok(CHECK, `the chain has ${length} and leads to ${issuer}, a public CA`)
  }
  // Public CAs name the place of their own certificate; private ones seldom do.
  if (/^CA Issuers/m.test(last.infoAccess ?? "")) {
    const message = `the chain has ${length} and ends before ${issuer}, which is no public root`
    return warning(CHECK, message, "add the intermediate certificates of the CA to TLS_CERT_FILE")
  }
  return ok(CHECK, `the chain has ${length} and leads to ${issuer}, which devices must trust`)
}

function checkNames(leaf: X509Certificate, { device }: Config): Finding {
  const names = namesOf(leaf)
  if (names.length === 0) {
    const message = "the certificate has no subject alternative name"
    return failure(CHECK, message, "use one with the name or address that devices connect to")
  }
  const shown = names.slice(0, MAX_SHOWN_NAMES).join(", ")
  const more = names.length > MAX_SHOWN_NAMES ? `, and ${names.length - MAX_SHOWN_NAMES} more` : ""
  if (names.every(isLoopback) && !isLoopback(device.host)) {
    const message = `the certificate is valid for ${shown} only: devices on other machines refuse it`
    const advice =
      "use one with the name that devices connect to, or bun run certs server --name <name>"
    return warning(CHECK, message, advice)
  }
  return ok(CHECK, `the certificate is valid for ${shown}${more}`)
}

function checkKey({ publicKey }: X509Certificate): Finding {
  const { asymmetricKeyType: type, asymmetricKeyDetails: details } = publicKey
  if (type === "ec") {
    const curve = details?.namedCurve ?? "an unknown curve"
    return ok(CHECK, `the key is ECDSA with ${curve === "prime256v1" ? "P-256" : curve}`)
  }
  if (type !== "rsa") return ok(CHECK, `the key is ${type}`)
  const bits = details?.modulusLength ?? 0
  if (bits < MIN_RSA_BITS) {
    const message = `the RSA key has ${bits} bits, which TLS clients refuse`
    return failure(CHECK, message, "use an ECDSA key with P-256, or RSA with 2,048 bits")
  }
  const advice = "an ECDSA key with P-256 costs a quarter of the CPU time for each handshake"
  return ok(CHECK, `the key is RSA with ${bits} bits`, advice)
}

function namesOf({ subjectAltName }: X509Certificate): string[] {
  const entries = subjectAltName?.split(", ") ?? []
  const names = entries.flatMap((entry) => /^(?:DNS|IP Address):(.+)$/.exec(entry)?.[1] ?? [])
  return names.map((name) => (name === LONG_LOOPBACK ? "::1" : name))
}

function certificatesIn(pem: string): X509Certificate[] {
  return (pem.match(PEM_CERTIFICATE) ?? []).map((each) => new X509Certificate(each))
}

function roots(): X509Certificate[] {
  return rootCertificates.map((pem) => new X509Certificate(pem))
}

function isRoot(certificate: X509Certificate): boolean {
  return certificate.ca && certificate.checkIssued(certificate)
}

/** A subject is shown with one attribute a line. */
function oneLine(name: string): string {
  return name.replaceAll("\n", ", ")
}
