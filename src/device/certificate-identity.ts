/**
 * Which device a client certificate names, once TLS has verified it: its one SAN URI
 * `urn:owsla:device:<id>`, else its one common name.
 *
 * Pure: takes what OpenSSL prints of the certificate. A comma, a control character or a byte over 127
 * within a value is printed escaped, so ", " and a line's end separate values and nothing that stands in
 * one value can pass for another. A certificate that names a device badly or twice names none.
 */

import { isDeviceName } from "./ids.ts"

const URN_PREFIX = "URI:urn:owsla:device:"
const CN_PREFIX = "CN="

export interface PeerCertificate {
  /** `DNS:a, URI:b`, values with odd characters in quotes; undefined without the extension. */
  readonly subjectAltName: string | undefined
  /** One attribute a line: `O=a\nCN=b`. */
  readonly subject: string
  /** Dates that a Date can read. */
  readonly validFrom: string
  readonly validTo: string
  /** SHA-256, hexadecimal digits with colons. */
  readonly fingerprint256: string
}

export type CertificateIdentity =
  | { readonly deviceId: string }
  /** Why it names no device; says nothing of what stands in it. */
  | { readonly fault: string }

export function identityOf(certificate: PeerCertificate, nowMs: number): CertificateIdentity {
  // A resumed session skips the verification, and the certificate may have expired since.
  if (nowMs >= Date.parse(certificate.validTo)) return { fault: "the certificate has expired" }
  if (nowMs < Date.parse(certificate.validFrom))
    return { fault: "the certificate is not yet valid" }
  const names = (certificate.subjectAltName ?? "").split(", ")
  // Quoted when it holds odd characters: no device id does, but it must not fall back to the CN.
  const urns = names.map((name) => name.replace(/^URI:"/, "URI:")).filter(isDeviceUrn)
  if (urns.length > 1) return { fault: "the certificate names more than one device" }
  const urn = urns[0]
  if (urn !== undefined) return named(urn.slice(URN_PREFIX.length))
  // Several attributes in one RDN stand in one line; a plus within a value is escaped.
  const attributes = certificate.subject.split(/\n| \+ /)
  const commonNames = attributes.filter((attribute) => attribute.startsWith(CN_PREFIX))
  if (commonNames.length !== 1)
    return { fault: "the certificate has neither a device URI nor one CN" }
  return named(commonNames[0]?.slice(CN_PREFIX.length) ?? "")
}

/** URN namespaces are case-insensitive (RFC 8141), so case makes no other name. */
function isDeviceUrn(name: string): boolean {
  return name.slice(0, URN_PREFIX.length).toLowerCase() === URN_PREFIX.toLowerCase()
}

function named(deviceId: string): CertificateIdentity {
  return isDeviceName(deviceId) ? { deviceId } : { fault: "what it names is no device id" }
}
