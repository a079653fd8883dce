/**
 * Development certificates (CA, server and devices) and their files. Used at the start of the
 * gateway and by `bun run certs`.
 *
 *   no pair ─► make ─► temporary files ─► link the key ─► link the certificate ─► pair
 *                                             └─► name exists: another process made the pair, use that one
 *
 * `link` fails when the name exists, so only one process creates the key, and the same process then
 * creates the certificate. A lock file was rejected, because after a crash it would have to be
 * recognised as stale. A crash between the two links leaves half a pair. That is reported and not
 * repaired, because the file may be the operator's.
 *
 * Never overwrites a file, never logs, never reads the environment. Bounds: `PAIR_WAIT_MS` to wait
 * for the other half of a pair; a crash leaves at most two temporary files (`*.tmp`).
 */

import { createPrivateKey, X509Certificate } from "node:crypto"
import { lstatSync } from "node:fs"
import { link, mkdir, readFile, rm, writeFile } from "node:fs/promises"
import { isIP } from "node:net"
import { dirname, join } from "node:path"
import type { Extension, JsonGeneralName } from "@peculiar/x509"
import { DEVICE_NAME_RULE, isDeviceName } from "../device/ids.ts"

const DAY_MS = 86_400_000
const AUTHORITY_MS = 3650 * DAY_MS
/** The longest validity of a server certificate that Apple's clients accept. */
const LEAF_MS = 825 * DAY_MS
/**
 * Validity starts this long before now, so that a device with a slow clock accepts a new
 * certificate.
 */
const CLOCK_SKEW_MS = 3_600_000
/** The upper bound of a common name in X.520. */
const COMMON_NAME_MAX_CHARACTERS = 64
const DNS_NAME = /^(?=.{1,253}$)(\*\.)?(\w([\w-]{0,61}\w)?\.)*(?!\d+$)\w([\w-]{0,61}\w)?$/
/**
 * Another process needs microseconds between its two links. This leaves time for a machine that
 * swaps.
 */
const PAIR_WAIT_MS = 1000
const PAIR_POLL_MS = 20
const ECDSA_P256 = { name: "ECDSA", namedCurve: "P-256" } as const

/** PEM texts: one certificate (X.509) and its private key (PKCS #8). */
export type PemPair = { readonly certPem: string; readonly keyPem: string }
export type PairFiles = { readonly certFile: string; readonly keyFile: string }

/** The message is one sentence for the operator and contains no key material. */
export class CertificateError extends Error {
  override readonly name = "CertificateError"
  readonly code: "invalid_device_id" | "invalid_name" | "half_pair" | "present" | "unusable"

  constructor(code: CertificateError["code"], message: string, cause?: unknown) {
    super(message, { cause })
    this.code = code
  }
}

/** A new self-signed CA, valid for 10 years. It can sign leaf certificates only (path length 0). */
export function createCertificateAuthority(nowMs = Date.now()): Promise<PemPair> {
  return issue(null, "Owsla development CA", nowMs, (x509) => [
    new x509.BasicConstraintsExtension(true, 0, true),
    new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
  ])
}

/**
 * A server certificate for localhost, 127.0.0.1, ::1 and `names`, valid for 825 days. `names` are
 * IP addresses and DNS names, with a leading `*.` allowed.
 *
 * @throws CertificateError `invalid_name`, or `unusable` when `ca` cannot sign
 */
export async function createServerCertificate(ca: PemPair, names: string[], nowMs = Date.now()) {
  const san = [...new Set(["localhost", "127.0.0.1", "::1", ...names])].map(alternativeName)
  return issue(ca, "localhost", nowMs, leaf("serverAuth", san))
}

/**
 * A client certificate for a device: it has the SAN URI `urn:owsla:device:<id>`, and the id as CN
 * unless the id is longer than 64 characters. Valid for 825 days.
 *
 * @throws CertificateError `invalid_device_id`, or `unusable` when `ca` cannot sign
 */
export async function createDeviceCertificate(ca: PemPair, deviceId: string, nowMs = Date.now()) {
  if (!isDeviceName(deviceId)) {
    const message = `${JSON.stringify(deviceId)}: ${DEVICE_NAME_RULE}`
    throw new CertificateError("invalid_device_id", message)
  }
  const value = `urn:owsla:device:${deviceId}`
  return issue(ca, deviceId, nowMs, leaf("clientAuth", [{ type: "url", value }]))
}

/**
 * Makes the server certificate and its key when both are missing, and first the CA (`ca.crt` and
 * `ca.key` in `directory`) when that is missing too. An existing server pair is not changed and
 * needs no CA. Any number of processes may call this at the same time; all get the same pairs.
 *
 * @returns whether the server pair existed, and when its certificate expires or has expired
 * @throws CertificateError `half_pair` when one file of a pair is missing; `unusable` when a file
 * cannot be read or
 *   written, contains no certificate, or contains a CA that cannot sign
 */
export async function ensureDevelopmentCertificates(
  where: PairFiles & { readonly directory: string },
  nowMs = Date.now(),
): Promise<{ state: "present" | "made"; notAfter: Date; expired: boolean }> {
  const state = await ensurePair(where, async () =>
    createServerCertificate(await ensureCertificateAuthority(where.directory, nowMs), [], nowMs),
  )
  const notAfter = (await readCertificate(where.certFile)).validToDate
  return { state, notAfter, expired: notAfter.getTime() <= nowMs }
}

/**
 * The CA in `directory`. Makes it when it is missing. Throws the same errors as
 * `ensureDevelopmentCertificates`.
 */
export async function ensureCertificateAuthority(directory: string, nowMs = Date.now()) {
  const files = { certFile: join(directory, "ca.crt"), keyFile: join(directory, "ca.key") }
  await ensurePair(files, () => createCertificateAuthority(nowMs))
  return explaining(directory, async () => ({
    certPem: await readFile(files.certFile, "utf8"),
    keyPem: await readFile(files.keyFile, "utf8"),
  }))
}

/**
 * Puts the pair that `make` returns into `files` (the key with mode 0600) when both are missing.
 *
 * @returns "made", or "present" when both files existed or another process made them first
 * @throws CertificateError `half_pair` or `unusable`, and the errors of `make`
 */
export async function ensurePair(files: PairFiles, make: () => Promise<PemPair>) {
  while (!(await pairExists(files))) {
    const pair = await make()
    if (await explaining(dirname(files.keyFile), () => claimPair(files, pair))) return "made"
  }
  return "present"
}

/** @throws CertificateError `unusable` when the file cannot be read or contains no certificate */
export function readCertificate(path: string): Promise<X509Certificate> {
  return explaining(path, async () => new X509Certificate(await readFile(path)))
}

type X509Library = typeof import("@peculiar/x509")

/** A certificate for a new key, signed by `ca`, or by that key itself when `ca` is null. */
async function issue(
  ca: PemPair | null,
  commonName: string,
  nowMs: number,
  extensions: (x509: X509Library) => Extension[],
): Promise<PemPair> {
  // Loading takes about 60 ms, and most starts make no certificate. So the libraries are loaded
  // here.
  await import("reflect-metadata")
  const x509 = await import("@peculiar/x509")
  const keys = await crypto.subtle.generateKey(ECDSA_P256, true, ["sign", "verify"])
  const named = commonName.length <= COMMON_NAME_MAX_CHARACTERS ? [{ CN: [commonName] }] : []
  const subject = [{ O: ["Owsla development"] }, ...named]
  const signingKey = ca ? await openAuthorityKey(ca, nowMs) : keys.privateKey
  const parent = ca && new x509.X509Certificate(ca.certPem)
  const notBeforeMs = nowMs - CLOCK_SKEW_MS
  const certificate = await x509.X509CertificateGenerator.create({
    subject,
    issuer: parent?.subjectName ?? subject,
    notBefore: new Date(notBeforeMs),
    notAfter: new Date(notBeforeMs + (ca ? LEAF_MS : AUTHORITY_MS)),
    publicKey: keys.publicKey,
    signingKey,
    signingAlgorithm: { name: "ECDSA", hash: "SHA-256" },
    extensions: [
      ...extensions(x509),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      await x509.AuthorityKeyIdentifierExtension.create(parent?.publicKey ?? keys.publicKey),
    ],
  })
  const key = await crypto.subtle.exportKey("pkcs8", keys.privateKey)
  const keyPem = x509.PemConverter.encode(key, "PRIVATE KEY")
  return { certPem: `${certificate.toString("pem")}\n`, keyPem: `${keyPem}\n` }
}

function leaf(usage: "serverAuth" | "clientAuth", names: JsonGeneralName[]) {
  return (x509: X509Library): Extension[] => [
    new x509.BasicConstraintsExtension(false, undefined, true),
    new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
    new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage[usage]]),
    new x509.SubjectAlternativeNameExtension(names),
  ]
}

function openAuthorityKey(ca: PemPair, nowMs: number) {
  return explaining("the development CA, ca.crt and ca.key", () => {
    const certificate = new X509Certificate(ca.certPem)
    const key = createPrivateKey(ca.keyPem)
    if (!certificate.ca) throw new Error("the certificate is no CA's")
    if (!certificate.checkPrivateKey(key)) throw new Error("the key is another certificate's")
    if (certificate.validToDate.getTime() <= nowMs) throw new Error("the certificate has expired")
    const der = key.export({ format: "der", type: "pkcs8" })
    return crypto.subtle.importKey("pkcs8", der, ECDSA_P256, false, ["sign"])
  })
}

function alternativeName(name: string): JsonGeneralName {
  // The library parses `::192.0.2.1` wrongly. A URL converts it to hexadecimal notation.
  const value = isIP(name) === 6 ? URL.parse(`http://[${name}]`)?.hostname.slice(1, -1) : name
  if (value && isIP(value)) return { type: "ip", value }
  if (value && DNS_NAME.test(value)) return { type: "dns", value: value.toLowerCase() }
  throw new CertificateError(
    "invalid_name",
    `${JSON.stringify(name)} is not a DNS name or IP address`,
  )
}

async function pairExists({ certFile, keyFile }: PairFiles): Promise<boolean> {
  const deadlineMs = performance.now() + PAIR_WAIT_MS
  for (;;) {
    const [cert, key] = await explaining(dirname(keyFile), async () =>
      [certFile, keyFile].map((path) => lstatSync(path, { throwIfNoEntry: false }) !== undefined),
    )
    if (cert === key) return cert === true
    if (performance.now() > deadlineMs) {
      const [here, gone] = cert ? [certFile, keyFile] : [keyFile, certFile]
      const remedy = `add ${gone}, or remove ${here} to have both made`
      throw new CertificateError("half_pair", `${here} exists without ${gone}: ${remedy}`)
    }
    await Bun.sleep(PAIR_POLL_MS)
  }
}

/** False when one of the names exists. Then nothing is written. */
async function claimPair({ certFile, keyFile }: PairFiles, pair: PemPair) {
  const suffix = `.${crypto.randomUUID()}.tmp`
  for (const path of [keyFile, certFile]) await mkdir(dirname(path), { recursive: true })
  try {
    await writeFile(keyFile + suffix, pair.keyPem, { mode: 0o600, flag: "wx", flush: true })
    await writeFile(certFile + suffix, pair.certPem, { flag: "wx", flush: true })
    await link(keyFile + suffix, keyFile)
    await link(certFile + suffix, certFile).catch(async (cause: unknown) => {
      await rm(keyFile)
      throw cause
    })
    return true
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "EEXIST") return false
    throw cause
  } finally {
    for (const path of [keyFile, certFile]) await rm(path + suffix, { force: true })
  }
}

/**
 * Converts each exception to a CertificateError that says what to do.
 * @param what a path, or the name of a file.
 */
async function explaining<T>(what: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action()
  } catch (cause) {
    const remedy = "correct this, or set TLS_CERT_FILE and TLS_KEY_FILE to your own files"
    const message = `cannot use ${what} (${(cause as Error).message}): ${remedy}`
    throw new CertificateError("unusable", message, cause)
  }
}
