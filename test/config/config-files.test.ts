/** Settings that name files, and the program with a configuration that cannot be used. */

import { afterAll, describe, expect, test } from "bun:test"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { Environment } from "../../src/config/config.ts"
import { SETTINGS } from "../../src/config/settings.ts"
import { createCertificateAuthority } from "../../src/ops/certificates.ts"
import {
  ALL_WRONG,
  AMQP_URL,
  faultsNaming,
  faultsOf,
  load,
  MAIN_FILE,
  OTHER_TOKEN,
  SECRET,
  TOKEN,
  urlsOf,
} from "./config-harness.ts"

const { certPem: certificate } = await createCertificateAuthority()
const directory = mkdtempSync(join(tmpdir(), "owsla-config-"))
afterAll(() => rmSync(directory, { recursive: true }))

function file(name: string, text: string): string {
  const path = join(directory, name)
  writeFileSync(path, text)
  return path
}

describe("the broker's CA", () => {
  const AMQP_URL = "amqps://localhost"

  test("is read at the start, each certificate of the file", () => {
    const path = file("ca", `a comment\n${certificate}${certificate}`)
    const ca = load({ AMQP_URL, AMQP_CA_FILE: path }).amqp?.ca
    expect(ca?.match(/BEGIN CERTIFICATE/g)).toHaveLength(2)
    expect(load({ AMQP_URL }).amqp?.ca).toBeNull()
  })

  test.each<[string, string | null]>([
    ["is not there", null],
    ["is empty", ""],
    ["holds no PEM", "no certificate"],
    [
      "holds something else in PEM",
      "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ],
    ["holds one that is cut short", certificate.replace(/\n[^-]{20}.*\n-----END/, "\n-----END")],
  ])("a file that %s is a fault", (_, content) => {
    const path = content === null ? "/nonexistent/ca.pem" : file("bad-ca", content)
    expect(faultsNaming("AMQP_CA_FILE", { AMQP_URL, AMQP_CA_FILE: path })).toHaveLength(1)
  })

  test.each<[Environment]>([[{}], [{ AMQP_URL: "amqp://localhost" }]])(
    "without an amqps: URL is a fault: %j",
    (environment) => {
      const path = file("ca", certificate)
      expect(faultsOf({ ...environment, AMQP_CA_FILE: path })).toEqual([
        "AMQP_CA_FILE: needs an amqps: URL in AMQP_URL",
      ])
    },
  )

  test("is for the amqps: URLs among several", () => {
    const path = file("ca", certificate)
    const { amqp } = load({ AMQP_URL: "amqp://one,amqps://two", AMQP_CA_FILE: path })
    expect(amqp?.ca).toContain("BEGIN CERTIFICATE")
  })
})

describe("secrets in files", () => {
  const secrets = SETTINGS.filter(({ secret }) => secret).map(({ name }) => name)

  test("are these", () => {
    expect(secrets).toEqual([
      "AMQP_URL",
      "FLEET_SECRET",
      "HELLO_SECRETS",
      "HTTP_TOKENS",
      "HTTP_READ_TOKENS",
    ])
  })

  test.each(["", "\n", "\r\n", "\n\n", " \n"])(
    "the end of the file, %j, is not part of it",
    (end) => {
      const { amqp, http } = load({
        AMQP_URL_FILE: file("amqp", `${AMQP_URL}${end}`),
        HTTP_TOKENS_FILE: file("tokens", `${TOKEN},${OTHER_TOKEN}${end}`),
      })
      expect(amqp?.urls).toEqual([AMQP_URL])
      expect(http.tokens).toEqual([TOKEN, OTHER_TOKEN])
    },
  )

  test("CLOUDAMQP_URL too, behind AMQP_URL", () => {
    const path = file("cloud", AMQP_URL)
    expect(urlsOf({ CLOUDAMQP_URL_FILE: path })).toEqual([AMQP_URL])
    const url = "amqp://other.test"
    expect(urlsOf({ CLOUDAMQP_URL_FILE: path, AMQP_URL: url })).toEqual([url])
  })

  test.each([...secrets, "CLOUDAMQP_URL"])("%s and its file at once are a fault", (name) => {
    const value = name.endsWith("AMQP_URL") ? AMQP_URL : SECRET
    const faults = faultsOf({ [name]: value, [`${name}_FILE`]: file("both", value) })
    expect(faults).toEqual([`${name}: set it or ${name}_FILE, not both`])
  })

  test.each([...secrets, "CLOUDAMQP_URL"])("a file of %s that is not there is a fault", (name) => {
    const path = join(directory, "not-there")
    expect(faultsOf({ [`${name}_FILE`]: path })).toEqual([
      `${name}_FILE: the file cannot be read (ENOENT)`,
    ])
  })

  test("a directory is no file", () => {
    const path = join(directory, "a-directory")
    mkdirSync(path)
    expect(faultsOf({ AMQP_URL_FILE: path })).toEqual([
      `AMQP_URL_FILE: the file cannot be read (EISDIR)`,
    ])
  })

  test("an empty NAME_FILE counts as unset", () => {
    expect(faultsOf({ AMQP_URL_FILE: "", HTTP_TOKENS_FILE: "" })).toEqual([])
  })

  test("what is wrong in a file is a fault that does not tell it", () => {
    const faults = faultsOf({
      AMQP_URL_FILE: file("wrong-url", "http://user:s3cret-pass@host\n"),
      HTTP_TOKENS_FILE: file("wrong-tokens", `${TOKEN}\n${OTHER_TOKEN}\n`),
    })
    expect(faults).toHaveLength(2)
    for (const part of ["s3cret-pass", TOKEN, OTHER_TOKEN]) {
      expect(faults.join("\n")).not.toContain(part)
    }
  })

  // A secret that was not mounted: without it the API is open, and lines go to a broker in memory.
  test.each([...secrets, "CLOUDAMQP_URL"])("an empty file of %s is a fault", (name) => {
    expect(faultsOf({ [`${name}_FILE`]: file("empty", "\n") }).join("\n")).toContain(name)
  })

  test("settings that are no secrets have no file", () => {
    const path = file("port", "1234")
    expect(load({ HTTP_PORT_FILE: path }).http.port).toBe(8080)
  })
})

describe("the program", () => {
  async function run(environment: Record<string, string>, args: readonly string[] = []) {
    const child = Bun.spawn([process.execPath, MAIN_FILE, ...args], {
      // Away from the checkout: Bun would read its `.env`, and certificates would be made there.
      cwd: directory,
      env: { PATH: process.env["PATH"] ?? "", HOME: directory, ...environment },
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 30_000,
      killSignal: "SIGKILL",
    })
    const [stdout, stderr, status] = await Promise.all([
      child.stdout.text(),
      child.stderr.text(),
      child.exited,
    ])
    return { stdout, stderr, status, output: stdout + stderr }
  }

  const ports = { DEVICE_HOST: "127.0.0.1", DEVICE_PORT: "0", HTTP_PORT: "0" }

  test.each(["--port=1", "serve"])("ends with status 2 on the argument %s", async (argument) => {
    const { stdout, stderr, status } = await run({}, [argument])
    expect([status, stdout]).toEqual([2, ""])
    expect(stderr).toContain(argument.replace(/=.*/, ""))
    expect(stderr.trim().split("\n")).toHaveLength(2)
    expect(stderr).toContain("docs/CONFIGURATION.md")
  })

  test("ends with status 2 and every fault on standard error", async () => {
    const { stdout, stderr, status, output } = await run(ALL_WRONG)
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" })
    for (const fault of faultsOf(ALL_WRONG)) expect(stderr).toContain(`${fault}\n`)
    expect(output).not.toContain("s3cret")
  })

  test("writes even a long list of faults whole", async () => {
    const long = Object.fromEntries(
      SETTINGS.filter(({ range }) => /^\d/.test(range)).map(({ name }) => [
        name,
        "9".repeat(9_000),
      ]),
    )
    const { stderr, status } = await run(long)
    expect(status).toBe(2)
    for (const fault of faultsOf(long)) expect(stderr.includes(fault)).toBe(true)
  })

  test("ends with status 2 when TLS_CERT_FILE cannot be read", async () => {
    const missing = join(directory, "missing.crt")
    for (const broker of [{}, { AMQP_URL: "amqp://user:s3cret-pass@127.0.0.1:1", WORKERS: "1" }]) {
      const key = file("server.key", "")
      const environment = { ...ports, ...broker, TLS_CERT_FILE: missing, TLS_KEY_FILE: key }
      const { stderr, status, output } = await run(environment)
      expect(status).toBe(2)
      expect(stderr).toContain("TLS_CERT_FILE")
      expect(stderr).toContain(missing)
      expect(output).not.toContain("s3cret")
    }
  })

  test("tells of both files when neither can be read", async () => {
    const { stderr, status } = await run({
      ...ports,
      TLS_CERT_FILE: join(directory, "missing.crt"),
      TLS_KEY_FILE: join(directory, "missing.key"),
    })
    expect(status).toBe(2)
    expect(stderr).toContain("missing.crt")
    expect(stderr).toContain("missing.key")
  })

  test("tells of a file that cannot be read together with the other faults", async () => {
    const { stderr, status } = await run({
      HTTP_PORT: "abc",
      TLS_CERT_FILE: join(directory, "missing.crt"),
      TLS_KEY_FILE: file("server.key", ""),
    })
    expect(status).toBe(2)
    expect(stderr).toContain("HTTP_PORT")
    expect(stderr).toContain("missing.crt")
  })

  // As an operator makes them: a password with a character that a URL does not take.
  test.each(["s3cret-pass/word@127.0.0.1:1", "s3cret-pass%zz@127.0.0.1:1", "s3cret-pass@[bad"])(
    "ends with status 2 on a broker's URL that cannot be parsed, and does not print it: %s",
    async (rest) => {
      const pem = file("any.pem", "")
      const { stderr, status, output } = await run({
        ...ports,
        AMQP_URL: `amqp://user:${rest}`,
        WORKERS: "1",
        TLS_CERT_FILE: pem,
        TLS_KEY_FILE: pem,
      })
      expect(output).not.toContain("s3cret-pass")
      expect({ status, named: stderr.includes("AMQP_URL") }).toEqual({ status: 2, named: true })
    },
  )
})
