/** AMQP_URL: hosts, credentials and parameters. */

import { describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { AMQP_URL, faultsNaming, faultsOf, urlsOf } from "./config-harness.ts"

describe("the broker's URL", () => {
  test.each([
    "amqp://localhost",
    "amqps://user:pass@host.example:5671/%2f",
    "amqp://[::1]:5672",
    "amqp://user:p%40ss%2Fword@host/vhost?heartbeat=5",
  ])("may be %j", (url) => {
    expect(urlsOf({ AMQP_URL: url })).toEqual([url])
  })

  // The last ones are what a password with an unescaped / or % makes of a URL.
  test.each([
    "http://user:s3cret-pass@host",
    "user:s3cret-pass@host",
    "amqp:user:s3cret-pass@host",
    "AMQP//user:s3cret-pass@host",
    "amqp://user:s3cret-pass@host two",
    "amqp://user:s3cret-pass@host:99999",
    "amqp://user:s3cret-pass@[bad",
    "amqp://user:s3cret-pass/word@host:5672",
    "amqp://user:s3cret-pass%zz@host",
    "amqp://user:s3cret-pass#word@host",
    "amqp://user:1234?s3cret-pass@host",
    "amqp://host/?insecure",
    "amqp://host/?heartbeat=5&insecure=1&password=s3cret-pass",
    "amqp://host/?frameMax=4096",
    "amqp://host/?heartbeat=0",
    "amqp://host/?heartbeat=301",
    "amqp://host/?heartbeat=5&heartbeat=6",
    "amqp://host/?heartbeat=s3cret-pass",
    "amqp://host/#s3cret-pass",
    "amqp://host,other",
    "amqp://user:s3cret-pass@host,http://other",
  ])("is a fault, told without the password: %j", (url) => {
    const faults = faultsOf({ AMQP_URL: url })
    expect(faults.filter((fault) => fault.startsWith("AMQP_URL:"))).toHaveLength(1)
    expect(faults.join("\n")).not.toContain("s3cret-pass")
  })

  test("is CLOUDAMQP_URL when AMQP_URL is not set or empty", () => {
    const other = "amqps://other.test"
    expect(urlsOf({ CLOUDAMQP_URL: AMQP_URL })).toEqual([AMQP_URL])
    expect(urlsOf({ CLOUDAMQP_URL: AMQP_URL, AMQP_URL: "" })).toEqual([AMQP_URL])
    expect(urlsOf({ CLOUDAMQP_URL: AMQP_URL, AMQP_URL: other })).toEqual([other])
    const files = { TLS_CERT_FILE: "/a.crt", TLS_KEY_FILE: "/a.key" }
    expect(urlsOf({ CLOUDAMQP_URL: AMQP_URL, NODE_ENV: "production", ...files })).toEqual([
      AMQP_URL,
    ])
  })

  test("may be several, separated by commas with or without blanks, under either name", () => {
    const urls = ["amqp://one", "amqps://user:with,comma@two:5671/v", "amqp://[::1]:5673"]
    expect(urlsOf({ AMQP_URL: urls.join(",") })).toEqual(urls)
    expect(urlsOf({ CLOUDAMQP_URL: ` ${urls.join(" , ")}, ` })).toEqual(urls)
  })

  test("of several names the one at fault by its place", () => {
    const faults = faultsOf({
      AMQP_URL: "amqp://one,amqp://u:s3cret-pass@two/?insecure,amqp://three",
    })
    expect(faults).toEqual([
      "AMQP_URL: URL 2 of 3 must have no query parameter that changes how the broker's certificate is checked; to trust a private CA, set AMQP_CA_FILE",
    ])
  })

  test.each([
    "insecure",
    "insecure=0",
    "insecure=false",
    "heartbeat=5&insecure",
    "insecure&heartbeat=5",
    "%69nsecure",
    "in\tsecure",
    "INSECURE",
    "verify=verify_none",
    "cacertfile=/s3cret-pass",
  ])(
    "may not switch off the check of the broker's certificate, and names AMQP_CA_FILE: ?%s",
    (query) => {
      for (const scheme of ["amqps", "amqp"]) {
        const url = `${scheme}://user:s3cret-pass@host/vhost?${query}`
        for (const name of ["AMQP_URL", "CLOUDAMQP_URL"]) {
          const faults = faultsOf({ [name]: url })
          expect(faults).toEqual([
            `${name}: must have no query parameter that changes how the broker's certificate is checked; to trust a private CA, set AMQP_CA_FILE`,
          ])
        }
      }
    },
  )

  // Whatever the AMQP client reads beside these would pass unseen: it must be refused first.
  test("has no query parameter that the AMQP client understands, but heartbeat", () => {
    const client = readFileSync(
      join(import.meta.dir, "../../node_modules/@cloudamqp/amqp-client/src/amqp-socket-client.ts"),
      "utf8",
    )
    const names = [...client.matchAll(/searchParams\.get\("(\w+)"\)/g)].map(([, name]) => name)
    expect(names).toContain("insecure")
    for (const name of names.filter((name) => name !== "heartbeat")) {
      expect([name, faultsOf({ AMQP_URL: `amqps://host/?${name}=1` }).length]).toEqual([name, 1])
    }
  })

  test.each([",", " ", " , "])("set to %j, which holds none, is a fault", (value) => {
    expect(faultsNaming("AMQP_URL", { AMQP_URL: value })).toHaveLength(1)
  })

  test("a fault of CLOUDAMQP_URL names CLOUDAMQP_URL, the variable that was set", () => {
    const faults = faultsOf({ CLOUDAMQP_URL: "http://user:s3cret-pass@host" })
    expect(faults).toHaveLength(1)
    expect(faults[0]).toContain("CLOUDAMQP_URL")
    expect(faults[0]).not.toContain("s3cret-pass")
  })
})
