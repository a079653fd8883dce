/**
 * Extracts the device id from a client certificate that TLS has verified: the id in its single SAN
 * URI `urn:owsla:device:<id>`, otherwise its single common name.
 *
 * Pure: takes the text that OpenSSL prints for the certificate. OpenSSL escapes a comma, a control
 * character or a byte over 127 within a value. So ", " and line feeds separate values, and no value
 * can imitate another. A certificate with an invalid device id, or with more than one, is rejected.
 */

import { isDeviceName } from "./ids.ts"

const URN_PREFIX = "URI:urn:owsla:device:"
const CN_PREFIX = "CN="

export interface PeerCertificate {
  /** `DNS:a, URI:b`. Values with special characters are quoted. Undefined without the extension. */
  readonly subjectAltName: string | undefined
  /** One attribute in each line: `O=a\nCN=b`. */
  readonly subject: string
  /** Both in a format that `Date.parse` accepts. */
  readonly validFrom: string
  readonly validTo: string
  /** SHA-256, hexadecimal digits with colons. */
  readonly fingerprint256: string
}

export type CertificateIdentity =
  | { readonly deviceId: string }
  /** Why the certificate has no valid device id. Contains no text from the certificate. */
  | { readonly fault: string }

export function identityOf(certificate: PeerCertificate, nowMs: number): CertificateIdentity {
  // A resumed session skips the verification, so the certificate may have expired since the full
  // handshake.
  if (nowMs >= Date.parse(certificate.validTo)) return { fault: "the certificate has expired" }
  if (nowMs < Date.parse(certificate.validFrom))
    return { fault: "the certificate is not yet valid" }
  return namedBy(certificate)
}

/** The id in a certificate, whether it is valid or not. */
export function namedBy(certificate: PeerCertificate): CertificateIdentity {
  const names = (certificate.subjectAltName ?? "").split(", ")
  // OpenSSL quotes a URI with special characters. No device id has any, but such a URI must not
  // make the CN count.
  const urns = names.map((name) => name.replace(/^URI:"/, "URI:")).filter(isDeviceUrn)
  if (urns.length > 1) return { fault: "the certificate names more than one device" }
  const urn = urns[0]
  if (urn !== undefined) return named(urn.slice(URN_PREFIX.length))
  // OpenSSL prints a multi-valued RDN as one line, joined by " + ". It escapes a plus within a
  // value.
  const attributes = certificate.subject.split(/\n| \+ /)
  const commonNames = attributes.filter((attribute) => attribute.startsWith(CN_PREFIX))
  if (commonNames.length !== 1)
    return { fault: "the certificate has neither a device URI nor one CN" }
  return named(commonNames[0]?.slice(CN_PREFIX.length) ?? "")
}

/** URN namespaces are case-insensitive (RFC 8141). */
function isDeviceUrn(name: string): boolean {
  return name.slice(0, URN_PREFIX.length).toLowerCase() === URN_PREFIX.toLowerCase()
}

function named(deviceId: string): CertificateIdentity {
  return isDeviceName(deviceId)
    ? { deviceId }
    : { fault: "the name in the certificate is not a valid device id" }
}
