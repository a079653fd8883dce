/** Which chains the CAs of a file trust, for valid and invalid certificates. */

import { beforeAll, describe, expect, test } from "bun:test"
import { X509Certificate } from "node:crypto"
import { ClientAuthorities, EXPIRED, UNKNOWN_CA } from "../../src/device/client-authorities.ts"
import {
  type ClientCertificate,
  clientCertificate,
  deviceUri,
  type Issuer,
  makeAuthority,
} from "../support/client-certificates.ts"

const HOUR_MS = 3_600_000
const PEM = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g

let root: Issuer
let otherRoot: Issuer
let upper: Issuer
let lower: Issuer
let shortLived: Issuer
/** A CA by its name and key that may not sign. */
let noAuthority: ClientCertificate

beforeAll(async () => {
  root = await makeAuthority("root")
  otherRoot = await makeAuthority("other root")
  upper = await makeAuthority("upper", root)
  lower = await makeAuthority("lower", upper)
  shortLived = await makeAuthority("short-lived", root, new Date(Date.now() + HOUR_MS / 2))
  noAuthority = await certified(root)
})

const certified = (issuer: Issuer, notAfter?: Date) =>
  clientCertificate({
    names: [deviceUri("lock:17")],
    issuer,
    ...(notAfter === undefined ? {} : { notAfter }),
  })

const pemOf = ({ certificate }: Issuer) => `${certificate.toString("pem")}\n`

const trusting = (...issuers: readonly Issuer[]) =>
  new ClientAuthorities(issuers.map(pemOf).join(""))

/** The device's certificate, and those between it and a root. */
const chainOf = ({ cert }: ClientCertificate) =>
  (cert.match(PEM) ?? []).map((text) => new X509Certificate(text))

const x509 = (issuer: Issuer) => new X509Certificate(pemOf(issuer))

const fault = (authorities: ClientAuthorities, chain: X509Certificate[] | null, inMs = 0) =>
  authorities.faultOf(chain, Date.now() + inMs)

describe("a chain", () => {
  test("is trusted up to a root of the file, with one or two CAs that the device sent", async () => {
    for (const issuer of [root, upper, lower]) {
      expect(fault(trusting(root), chainOf(await certified(issuer)))).toBeNull()
      expect(fault(trusting(otherRoot, root), chainOf(await certified(issuer)))).toBeNull()
      expect(fault(trusting(otherRoot), chainOf(await certified(issuer)))).toBe(UNKNOWN_CA)
    }
  })

  test("is trusted with an intermediate CA in the file, with and without the root, sent or not", async () => {
    const chain = chainOf(await certified(lower))
    for (const shown of [chain, chain.slice(0, 1), chain.slice(0, 2)]) {
      expect(fault(trusting(lower), shown)).toBeNull()
      expect(fault(trusting(lower, upper, root), shown)).toBeNull()
    }
    expect(fault(trusting(upper), chain)).toBeNull()
  })

  test("is not trusted when an intermediate CA is not sent", async () => {
    const chain = chainOf(await certified(lower))
    expect(fault(trusting(root), chain.slice(0, 1))).toBe(UNKNOWN_CA)
    expect(fault(trusting(root), chain.slice(0, 2))).toBe(UNKNOWN_CA)
  })

  test("is trusted with any other certificates that the device sent, in any order", async () => {
    const [certificate, ...between] = chainOf(await certified(lower)) as [X509Certificate]
    const sent = [x509(otherRoot), ...between.toReversed(), x509(root)]
    expect(fault(trusting(root), [certificate, ...sent])).toBeNull()
    expect(fault(trusting(upper), [certificate, ...sent])).toBeNull()
  })

  test("that ends at a root that the device sent is not trusted", async () => {
    const chain = [...chainOf(await certified(upper)), x509(root)]
    expect(fault(trusting(otherRoot), chain)).toBe(UNKNOWN_CA)
  })

  test("signed by another CA of the same name is not trusted", async () => {
    const namesake = await makeAuthority("root")
    expect(fault(trusting(namesake), chainOf(await certified(root)))).toBe(UNKNOWN_CA)
    expect(fault(trusting(namesake, root), chainOf(await certified(root)))).toBeNull()
  })

  test("with an issuer that is not a CA is not trusted", async () => {
    const chain = chainOf(await certified(noAuthority.issuer))
    expect(chain).toHaveLength(2)
    expect(fault(trusting(root), chain)).toBe(UNKNOWN_CA)
  })

  test("that cannot be read, or is empty, is not trusted", () => {
    for (const chain of [null, []]) expect(fault(trusting(root), chain)).toBe(UNKNOWN_CA)
  })

  test("of many certificates is followed up to its bound", async () => {
    const [certificate] = chainOf(await certified(lower)) as [X509Certificate]
    const sent = Array.from({ length: 1_000 }, () => x509(upper))
    expect(fault(trusting(root), [certificate, ...sent])).toBe(UNKNOWN_CA)
  })
})

test("CAs that have all signed each other are compared at most once for each pair", async () => {
  const keyHolder = await makeAuthority("ring", otherRoot)
  const ring = await Promise.all(
    Array.from({ length: 10 }, (_, n) =>
      makeAuthority(
        "ring",
        { ...keyHolder, chain: [] },
        new Date(Date.now() + HOUR_MS + n * 1_000),
        keyHolder.keys,
      ),
    ),
  )
  const [certificate] = chainOf(await certified(keyHolder)) as [X509Certificate]
  const verifies = ring.map((each) => x509(each))
  expect(verifies.every((each) => certificate.verify(each.publicKey))).toBe(true)
  // As many ways through them as orders, of which the first million would take minutes.
  expect(fault(trusting(root), [certificate, ...verifies])).toBe(UNKNOWN_CA)
})

describe("time", () => {
  test("a certificate that has expired or is not valid yet is refused", async () => {
    const chain = chainOf(await certified(root, new Date(Date.now() + HOUR_MS / 4)))
    const authorities = trusting(root)
    expect(fault(authorities, chain, HOUR_MS / 4 - 2_000)).toBeNull()
    expect(fault(authorities, chain, HOUR_MS / 4)).toBe(EXPIRED)
    expect(fault(authorities, chain, -2 * HOUR_MS)).toBe(EXPIRED)
  })

  test("a certificate is refused when its CA has expired, sent by the device or in the file", async () => {
    const chain = chainOf(await certified(shortLived))
    for (const authorities of [trusting(root), trusting(shortLived), trusting(shortLived, root)]) {
      expect(fault(authorities, chain)).toBeNull()
      expect(fault(authorities, chain, (HOUR_MS * 3) / 4)).toBe(EXPIRED)
    }
  })

  test("a root that was renewed with the same key is trusted beside its expired predecessor", async () => {
    const soon = new Date(Date.now() + HOUR_MS / 2)
    const older = await makeAuthority("renewed", undefined, soon)
    const later = new Date(Date.now() + 2 * HOUR_MS)
    const newer = await makeAuthority("renewed", undefined, later, older.keys)
    const chain = chainOf(await certified(older, later))
    for (const authorities of [trusting(older, newer), trusting(newer, older), trusting(newer)]) {
      expect(fault(authorities, chain, HOUR_MS)).toBeNull()
    }
    expect(fault(trusting(older), chain, HOUR_MS)).toBe(EXPIRED)
  })

  test("an intermediate CA in the file is a trust anchor, also beside an expired root", async () => {
    const soon = new Date(Date.now() + HOUR_MS / 2)
    const shortRoot = await makeAuthority("short root", undefined, soon)
    const between = await makeAuthority("below it", shortRoot)
    const chain = [...chainOf(await certified(between)), x509(shortRoot)]
    const laterMs = (HOUR_MS * 3) / 4
    for (const authorities of [trusting(between), trusting(between, shortRoot)]) {
      expect(fault(authorities, chain, laterMs)).toBeNull()
    }
    expect(fault(trusting(shortRoot), chain)).toBeNull()
    expect(fault(trusting(shortRoot), chain, laterMs)).toBe(EXPIRED)
  })
})
