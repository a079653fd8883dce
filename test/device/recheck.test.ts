/** The recheck: a bounded number of connections in each sweep, each once, including new ones. */

import { expect, test } from "bun:test"
import { X509Certificate } from "node:crypto"
import { ClientAuthorities } from "../../src/device/client-authorities.ts"
import type { Connection } from "../../src/device/connection.ts"
import { CHECKS_A_SWEEP, Recheck } from "../../src/device/recheck.ts"
import {
  clientCertificate,
  deviceUri,
  type Issuer,
  makeAuthority,
} from "../support/client-certificates.ts"

const pemOf = ({ certificate }: Issuer) => `${certificate.toString("pem")}\n`

interface Device {
  state: Connection["state"]
  readonly peer: { readonly fingerprint: string | null }
  readonly chain: readonly X509Certificate[]
}

test("checks a bounded number in each sweep, each once, in order of arrival, and starts over", async () => {
  const trusted = await makeAuthority("trusted")
  const removed = await makeAuthority("removed")
  const chains = await Promise.all(
    [trusted, removed].map(async (issuer) => {
      const { cert } = await clientCertificate({ names: [deviceUri("a")], issuer })
      return [new X509Certificate(cert)]
    }),
  )
  const all = new Map<number, Device>()
  const add = (n: number, about: Partial<Device> = {}) => {
    const peer = { fingerprint: "shown" }
    all.set(n, { state: "open", peer, chain: chains[n % 2] ?? [], ...about })
  }
  const looked: Device[] = []
  const refused: Device[] = []
  const recheck = new Recheck<Device>({
    nowMs: Date.now,
    chainOf: (device) => {
      looked.push(device)
      return device.chain
    },
    refused: (device) => {
      device.state = "closing"
      refused.push(device)
    },
  })
  const start = (...issuers: Issuer[]) => {
    const authorities = new ClientAuthorities(issuers.map(pemOf).join(""))
    recheck.start(authorities, all.values())
  }

  recheck.sweep()
  expect(looked).toEqual([])
  const count = 2 * CHECKS_A_SWEEP + 10
  for (let n = 0; n < count; n += 1) add(n)
  add(1_001, { state: "handshaking" })
  add(1_003, { peer: { fingerprint: null } })
  start(trusted)
  recheck.sweep()
  expect([looked.length, refused.length]).toEqual([CHECKS_A_SWEEP, CHECKS_A_SWEEP / 2])
  // One connection has closed and one was added.
  all.delete(count - 1)
  add(2_001)
  recheck.sweep()
  expect(looked).toHaveLength(2 * CHECKS_A_SWEEP)
  recheck.sweep()
  expect(recheck.isRunning).toBe(false)
  expect(looked).toHaveLength(count)
  expect(new Set(looked).size).toBe(count)
  expect(looked.at(-1)).toBe(all.get(2_001) as Device)
  expect(refused).toEqual(looked.filter(({ chain }) => chain === chains[1]))
  recheck.sweep()
  expect(looked).toHaveLength(count)

  // Another reload in the middle of one begins with the first again, and with its own CAs.
  start(trusted)
  recheck.sweep()
  start(trusted, removed)
  const before = refused.length
  looked.length = 0
  for (let n = 0; n < 3; n += 1) recheck.sweep()
  expect([looked.length, refused.length]).toEqual([count / 2, before])
})
