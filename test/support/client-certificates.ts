/**
 * Device certificates for the tests: valid ones, and ones that a client CA must never sign.
 *
 * Names are written into a certificate as the given bytes, so that tests can use names that no tool
 * would write, such as a line feed or another name within a name. Nothing is validated. One CA is
 * kept for each test process. ECDSA P-256.
 */

import { createHash, randomBytes } from "node:crypto"
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import "reflect-metadata"
import * as x509 from "@peculiar/x509"

const HOUR_MS = 3_600_000
const ECDSA_P256 = { name: "ECDSA", namedCurve: "P-256" } as const
const SUBJECT_ALTERNATIVE_NAME = "2.5.29.17"

/** A certificate with its key, so that it can sign others, whether or not it is a CA. */
export interface Issuer {
  readonly certificate: x509.X509Certificate
  readonly keys: CryptoKeyPair
  /** The certificates that a device must present between its own certificate and a trusted CA. */
  readonly chain: readonly x509.X509Certificate[]
}

/** One name of a subjectAltName. A directory name is the text of one CN. */
export interface AlternativeName {
  readonly type: "other" | "email" | "dns" | "directory" | "uri"
  readonly value: string
}

/** The attributes of one RDN, by the short name or number of their type. */
export type SubjectPart = Readonly<Record<string, string | readonly string[]>>

export interface ClientCertificateOptions {
  /** Appended to an organization, which all certificates have. */
  readonly subject?: readonly SubjectPart[]
  readonly names?: readonly AlternativeName[]
  /** A second subjectAltName extension. */
  readonly moreNames?: readonly AlternativeName[]
  /** The content of the extension, instead of names. */
  readonly namesDer?: Uint8Array
  readonly notBefore?: Date
  /** Truncated to seconds. */
  readonly notAfter?: Date
  readonly purpose?: "clientAuth" | "serverAuth"
  /** "self" for a self-signed certificate. Default: `clientAuthority()`. */
  readonly issuer?: Issuer | "self"
}

/** PEM texts for TLS libraries. */
export interface ClientCertificate {
  /** With the chain. */
  readonly cert: string
  /** The CAs between this certificate and a trusted one; may be empty. */
  readonly chain: string
  readonly key: string
  /** SHA-256, 64 lower-case hexadecimal digits. */
  readonly fingerprint: string
  /** The same certificate as a signer, for certificates that it may not sign. */
  readonly issuer: Issuer
}

let authority: Promise<Issuer> | undefined

/** The root CA of this process's devices. */
export function clientAuthority(): Promise<Issuer> {
  authority ??= makeAuthority("Owsla test clients")
  return authority
}

/** A root CA, or an intermediate CA signed by `issuer`. It has new keys unless `keys` are given. */
export async function makeAuthority(
  commonName: string,
  issuer?: Issuer,
  notAfter?: Date,
  keys?: CryptoKeyPair,
): Promise<Issuer> {
  const subject = nameOf([{ CN: commonName }])
  const times = notAfter === undefined ? {} : { notAfter }
  const extensions = [
    new x509.BasicConstraintsExtension(true, undefined, true),
    new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
  ]
  const made = await sign(subject, issuer ?? "self", times, extensions, keys)
  return { ...made, chain: issuer === undefined ? [] : [made.certificate, ...issuer.chain] }
}

/** A usual device certificate, with the id as URI. */
export function deviceCertificate(deviceId: string): Promise<ClientCertificate> {
  return clientCertificate({ names: [deviceUri(deviceId)] })
}

export function deviceUri(deviceId: string): AlternativeName {
  return { type: "uri", value: `urn:owsla:device:${deviceId}` }
}

export async function clientCertificate(
  options: ClientCertificateOptions,
): Promise<ClientCertificate> {
  const { names, moreNames, namesDer, purpose = "clientAuth" } = options
  // Different in each certificate, because otherwise an issuer would look like the certificate that
  // it signed.
  const organization = { O: `Owsla tests ${randomBytes(4).toString("hex")}` }
  const subject = nameOf([organization, ...(options.subject ?? [])])
  const issuer = options.issuer ?? (await clientAuthority())
  const made = await sign(subject, issuer, options, [
    new x509.BasicConstraintsExtension(false, undefined, true),
    new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
    new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage[purpose]]),
    ...[names && encodeNames(names), moreNames && encodeNames(moreNames), namesDer]
      .filter((value) => value !== undefined)
      .map((value) => new x509.Extension(SUBJECT_ALTERNATIVE_NAME, false, new Uint8Array(value))),
  ])
  const key = await crypto.subtle.exportKey("pkcs8", made.keys.privateKey)
  const { certificate } = made
  const chain = made.chain.map(pem).join("")
  return {
    cert: pem(certificate) + chain,
    chain,
    key: `${x509.PemConverter.encode(key, "PRIVATE KEY")}\n`,
    fingerprint: createHash("sha256").update(Buffer.from(certificate.rawData)).digest("hex"),
    issuer: { ...made, chain: [certificate, ...made.chain] },
  }
}

/** Writes certificate, key and chain into files in `directory`, for programs. */
export function writeClientCertificate(
  { cert, chain, key }: ClientCertificate,
  directory: string,
): { certFile: string; chainFile: string; keyFile: string } {
  const path = join(directory, randomBytes(8).toString("hex"))
  const files = { certFile: `${path}.crt`, chainFile: `${path}.chain`, keyFile: `${path}.key` }
  writeFileSync(files.certFile, cert)
  writeFileSync(files.chainFile, chain)
  writeFileSync(files.keyFile, key, { mode: 0o600 })
  return files
}

/** Writes CAs into one file for `TLS_CLIENT_CA_FILE` and returns its path. */
export function writeAuthorities(authorities: readonly Issuer[], directory: string): string {
  const path = join(directory, "clients.crt")
  writeFileSync(path, authorities.map(({ certificate }) => pem(certificate)).join(""))
  return path
}

async function sign(
  subject: x509.Name,
  issuer: Issuer | "self",
  times: { readonly notBefore?: Date; readonly notAfter?: Date },
  extensions: x509.Extension[],
  given?: CryptoKeyPair,
): Promise<Issuer> {
  const keys = given ?? (await crypto.subtle.generateKey(ECDSA_P256, true, ["sign", "verify"]))
  const parent = issuer === "self" ? null : issuer
  const certificate = await x509.X509CertificateGenerator.create({
    subject,
    issuer: parent?.certificate.subjectName ?? subject,
    notBefore: times.notBefore ?? new Date(Date.now() - HOUR_MS),
    notAfter: times.notAfter ?? new Date(Date.now() + HOUR_MS),
    publicKey: keys.publicKey,
    signingKey: (parent?.keys ?? keys).privateKey,
    signingAlgorithm: { name: "ECDSA", hash: "SHA-256" },
    extensions,
  })
  return { certificate, keys, chain: parent?.chain ?? [] }
}

function nameOf(parts: readonly SubjectPart[]): x509.Name {
  const texts = (values: string | readonly string[]) =>
    [values].flat().map((utf8String) => ({ utf8String }))
  return new x509.Name(
    parts.map((part) =>
      Object.fromEntries(Object.entries(part).map(([type, values]) => [type, texts(values)])),
    ),
  )
}

function pem(certificate: x509.X509Certificate): string {
  return `${certificate.toString("pem")}\n`
}

function encodeNames(names: readonly AlternativeName[]): Uint8Array {
  return der(0x30, ...names.map(encodeName))
}

/** Encoded by hand, because the library refuses names that are not valid. */
function encodeName({ type, value }: AlternativeName): Buffer {
  const text = Buffer.from(value)
  switch (type) {
    case "other": {
      const userPrincipalName = Buffer.from("060a2b060104018237140203", "hex")
      return der(0xa0, userPrincipalName, der(0xa0, der(0x0c, text)))
    }
    case "email":
      return der(0x81, text)
    case "dns":
      return der(0x82, text)
    case "directory": {
      const commonName = Buffer.from("0603550403", "hex")
      return der(0xa4, der(0x30, der(0x31, der(0x30, commonName, der(0x0c, text)))))
    }
    case "uri":
      return der(0x86, text)
  }
}

function der(tag: number, ...contents: Buffer[]): Buffer {
  const content = Buffer.concat(contents)
  const { length } = content
  // Only the shortest form is valid DER.
  const form = length < 128 ? [] : length < 256 ? [0x81] : [0x82, length >> 8]
  return Buffer.concat([Buffer.from([tag, ...form, length & 255]), content])
}
