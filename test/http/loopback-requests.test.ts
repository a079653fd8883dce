/**
 * Which requests are served without tokens, for all forms of `Host`, `Origin` and `Sec-Fetch-Site`.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { sourceFault } from "../../src/http/loopback-requests.ts"
import { check } from "../support/property.ts"

const LOCAL = { origin: undefined, site: undefined }

describe("a Host header", () => {
  test.each([
    "localhost",
    "LocalHost:8080",
    "127.0.0.1",
    "127.0.0.1:0",
    "127.255.3.4:65535",
    "[::1]",
    "[::1]:8080",
  ])("of loopback is served: %s", (host) => {
    expect(sourceFault({ host, ...LOCAL })).toBeNull()
  })

  test.each([
    undefined,
    "",
    " ",
    "evil.test",
    "evil.test:8080",
    "localhost.evil.test",
    "127.0.0.1.evil.test",
    "evil-localhost",
    "localhost.",
    "127.0.0.1.",
    "127.0.0.256",
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "0.0.0.0",
    "128.0.0.1",
    "[::]",
    "::1",
    "[::ffff:127.0.0.1]",
    "[::1",
    "localhost:",
    "localhost:65536",
    "localhost:080808",
    "localhost:80:80",
    "localhost:http",
    "user@localhost",
    "localhost/x",
    "localhost#",
    "evil.test#@localhost",
    "local host",
    "localhost\n",
    // Sent twice.
    "localhost, evil.test",
    "evil.test, localhost",
    "localhost, localhost",
  ])("of anything else is refused: %p", (host) => {
    expect(sourceFault({ host, ...LOCAL })).toStartWith("the Host header is refused")
  })
})

describe("an Origin header", () => {
  const host = "127.0.0.1:8080"

  test.each(["http://127.0.0.1:8080", "HTTP://127.0.0.1:8080"])(
    "of the request's own scheme and host is served: %s",
    (origin) => {
      expect(sourceFault({ ...LOCAL, host, origin })).toBeNull()
    },
  )

  test.each([
    "null",
    "",
    "http://127.0.0.1",
    "http://127.0.0.1:8081",
    "http://localhost:8080",
    "https://127.0.0.1:8080",
    "http://127.0.0.1:8080/",
    "http://127.0.0.1:8080.evil.test",
    "http://evil.test",
    "127.0.0.1:8080",
    "file://",
    // Sent twice.
    "http://127.0.0.1:8080, http://127.0.0.1:8080",
    "http://127.0.0.1:8080, http://evil.test",
  ])("of anything else is refused: %p", (origin) => {
    expect(sourceFault({ ...LOCAL, host, origin })).toStartWith("the Origin header names another")
  })
})

describe("a Sec-Fetch-Site header", () => {
  const host = "localhost:8080"

  test.each(["same-origin", "none"])("of the same origin or the user is served: %s", (site) => {
    expect(sourceFault({ ...LOCAL, host, site })).toBeNull()
  })

  test.each(["cross-site", "same-site", "", "None", "none, cross-site", "none, none", "nonsense"])(
    "of anything else is refused: %p",
    (site) => {
      expect(sourceFault({ ...LOCAL, host, site })).toStartWith("the Sec-Fetch-Site header names")
    },
  )
})

test("a request is served only with a loopback host, with any other headers", () => {
  const value = fc.oneof(fc.string(), fc.webAuthority(), fc.webUrl(), fc.domain())
  check(
    fc.property(value, fc.option(value), fc.option(value), (host, origin, site) => {
      const isLoopback = /^(localhost|127\.[\d.]+|\[::1\])(:\d+)?$/i.test(host)
      const fault = sourceFault({
        host,
        origin: origin ?? undefined,
        site: site ?? undefined,
      })
      if (!isLoopback || origin !== null || site !== null) expect(fault).not.toBeNull()
    }),
  )
})

test("a refusal says what to do, and contains no value from the request", () => {
  for (const source of [
    { ...LOCAL, host: "s3cret.test" },
    { ...LOCAL, host: "localhost", origin: "http://s3cret.test" },
    { ...LOCAL, host: "localhost", site: "s3cret" },
  ]) {
    expect(sourceFault(source)).toContain("set HTTP_TOKENS")
    expect(sourceFault(source)).not.toContain("s3cret")
  }
})
