/**
 * The configuration: each setting at and beyond its bounds, the rules between settings, secrets in files, and messages
 * that contain all faults and no secret. The last part runs the program itself, because it is responsible for the exit
 * status and the standard error.
 */

import { afterAll, describe, expect, test } from "bun:test"
import { randomBytes } from "node:crypto"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { availableParallelism, hostname, tmpdir } from "node:os"
import { join } from "node:path"
import {
  type Config,
  ConfigurationError,
  type Environment,
  loadConfig,
  risks,
} from "../../src/config/config.ts"
import { defaultInstanceId, SETTINGS } from "../../src/config/settings.ts"
import { DOCUMENTED_SECRETS } from "../../src/device/hello-secret.ts"
import { INSTANCE_ID } from "../../src/device/ids.ts"
import { createCertificateAuthority } from "../../src/ops/certificates.ts"

/** As if every file that is named could be read. */
const load = (environment: Environment) => loadConfig(environment, () => null)

const MAIN_FILE = join(import.meta.dir, "../../src/main.ts")
const TOKEN = "token-0123456789abcdef"
const OTHER_TOKEN = "other.token~ABC+/-_==="
/** As `openssl rand -hex 16` and `-base64 32` print them. */
const SECRET = "5f0c3a9be1d24768a1b0c2d3e4f56789"
const OTHER_SECRET = "nJ6m2cV0bq+R9sKxT1yUe/4LwZ8hGdPf3aQoXiCvB7E="
const AMQP_URL = "amqp://user:s3cret-pass@broker.test:5672/vhost"

const { certPem: certificate } = await createCertificateAuthority()
const directory = mkdtempSync(join(tmpdir(), "owsla-config-"))
afterAll(() => rmSync(directory, { recursive: true }))

function file(name: string, text: string): string {
  const path = join(directory, name)
  writeFileSync(path, text)
  return path
}

/** Every fault of an environment; none when it loads. */
function faultsOf(environment: Environment): readonly string[] {
  try {
    load(environment)
    return []
  } catch (error) {
    if (error instanceof ConfigurationError) return error.faults
    throw error
  }
}

/** The faults of one setting's own rule. */
const faultsNaming = (name: string, environment: Environment) =>
  faultsOf(environment).filter((fault) => fault.startsWith(`${name}:`))

describe("the secret of the fleet", () => {
  const secretOf = (environment: Environment) => load(environment).fleetSecret

  test("is FLEET_SECRET where it is set", () => {
    const secret = "a-fleet-secret-of-the-tests-0123456789"
    expect(secretOf({ FLEET_SECRET: secret, AMQP_URL: "amqp://a:b@host" })).toBe(secret)
  })

  test("is the password of AMQP_URL otherwise, alike for all orders of its URLs", () => {
    expect(secretOf({ AMQP_URL: "amqp://a:b%2Fc@host" })).toBe("b/c")
    expect(secretOf({ AMQP_URL: "amqp://a:x@one,amqp://a:y@two" })).toBe(
      secretOf({ AMQP_URL: "amqp://a:y@two,amqp://a:x@one" }),
    )
    expect(secretOf({ AMQP_URL: "amqp://host" })).toBe("guest")
  })

  test("has 32 characters at least, and is never shown", () => {
    expect(faultsOf({ FLEET_SECRET: "secret" })).toEqual([
      expect.stringMatching(/^FLEET_SECRET: must be at least 32 of .*, 10 of them different$/),
    ])
  })
})

describe("defaults", () => {
  test("are those of the contract, with nothing in the environment", () => {
    expect(load({})).toEqual({
      instanceId: defaultInstanceId(hostname()),
      amqp: null,
      fleetSecret: null,
      workers: 1,
      drainTimeoutMs: 60_000,
      tls: { certFile: "certs/server.crt", keyFile: "certs/server.key", development: true },
      device: {
        host: "0.0.0.0",
        port: 8443,
        auth: "none",
        clientCaFile: null,
        helloSecrets: [],
        identifyTimeoutMs: 5_000,
        denylistFile: null,
        ack: "off",
        maxLineBytes: 65_536,
        maxConnections: null,
        admission: { maxWaiting: 10_000, perS: 0 },
        backlog: 4_096,
        maxOutgoingBytes: 1_048_576,
        maxHeldBytes: 33_554_432,
        maxPartialBytes: 16_777_216,
        lineTimeoutMs: 30_000,
        handshakeTimeoutMs: 10_000,
        idleTimeoutMs: 600_000,
        slowDeviceTimeoutMs: 30_000,
        gapTimeoutMs: 2_000,
        windowCommands: 1_024,
      },
      broker: {
        fromDeviceQueue: "from_device",
        toDeviceQueue: "to_device",
        undeliveredQueue: "to_device.undelivered",
        queueType: "quorum",
        windowLines: 2_000,
        windowBytes: 8_388_608,
        confirmTimeoutMs: 15_000,
        prefetch: 900,
        maxCommandBytes: 67_108_864,
      },
      http: {
        host: "127.0.0.1",
        port: 8080,
        tokens: [],
        readTokens: [],
        maxConnections: 256,
        sendTimeoutMs: 5_000,
      },
      restarts: { max: 5, windowMs: 10_000 },
      log: { level: "info", format: "json" },
    })
  })

  test("with a broker there is a worker for each core", () => {
    expect(load({ AMQP_URL }).workers).toBe(availableParallelism())
  })

  test("every empty variable counts as unset", () => {
    const empty = Object.fromEntries(
      [...SETTINGS.map(({ name }) => name), "CLOUDAMQP_URL", "AMQP_URL_FILE"].map((n) => [n, ""]),
    )
    expect(load(empty)).toEqual(load({}))
  })

  test("unknown variables, with names of any kind, change nothing", () => {
    const odd = { PATH: "/bin", OTHER: "x", __proto__: "x", constructor: "x", toString: "x" }
    expect(load(odd)).toEqual(load({}))
  })

  test("each is within its own range, spelled out", () => {
    for (const { name, default: value } of SETTINGS.filter(({ default: d }) => !d.includes(" "))) {
      expect({ name, faults: faultsNaming(name, { AMQP_URL, [name]: value }) }).toEqual({
        name,
        faults: [],
      })
    }
  })
})

describe("whole numbers", () => {
  const numbers = SETTINGS.flatMap(({ name, range }) => {
    const bounds = /^(\d+) to (\d+)( [a-z]+)?$/.exec(range)
    return bounds === null ? [] : [{ name, range, min: Number(bounds[1]), max: Number(bounds[2]) }]
  })

  /** The others such that no rule between settings stands in the way. */
  const around = (name: string, value: string): Environment => ({
    AMQP_URL,
    MAX_LINE_BYTES: "1",
    MAX_OUTGOING_BYTES: "67108864",
    PUBLISH_WINDOW_BYTES: "1073741824",
    [name]: value,
  })

  test("are as many as the declarations say", () => {
    expect(numbers.map(({ name }) => name)).toEqual(
      SETTINGS.filter(({ range }) => /^\d/.test(range)).map(({ name }) => name),
    )
    expect(numbers.length).toBeGreaterThan(20)
  })

  for (const { name, range, min, max } of numbers) {
    test(`${name}: ${range}, and nothing else`, () => {
      for (const value of [min, max, min + 1, max - 1]) {
        expect(faultsNaming(name, around(name, String(value)))).toEqual([])
      }
      const outside = [min - 1, max + 1, max * 10].map(String)
      const odd = [" 5", "5 ", "5.0", "5e3", "0x10", "+5", "-5", "1_000", "5,000", "5ms", "abc"]
      const odder = ["٥", "５", "Infinity", "NaN", "null", "9".repeat(400), "5\n", "\0", "-0"]
      for (const value of [...outside, ...odd, ...odder]) {
        expect(faultsNaming(name, around(name, value))).toEqual([
          `${name}: must be a whole number from ${range}, not ${JSON.stringify(value)}`,
        ])
      }
    })
  }

  test("arrive as numbers where they are used", () => {
    const { device, http, broker } = load({
      DEVICE_PORT: "0",
      HTTP_PORT: "65535",
      MAX_CONNECTIONS: "12",
      PREFETCH: "7",
    })
    expect([device.port, http.port, device.maxConnections, broker.prefetch]).toEqual([
      0, 65_535, 12, 7,
    ])
  })
})

describe("words", () => {
  test.each<[string, readonly string[]]>([
    ["DEVICE_AUTH", ["none", "mtls", "hello"]],
    ["DEVICE_ACK", ["off", "seq"]],
    ["QUEUE_TYPE", ["quorum", "classic"]],
    ["LOG_LEVEL", ["debug", "info", "warn", "error"]],
    ["LOG_FORMAT", ["json", "text"]],
  ])("%s is one of %j", (name, words) => {
    for (const word of words) expect(faultsNaming(name, { [name]: word })).toEqual([])
    for (const word of ["x", words[0]?.toUpperCase(), ` ${words[0]}`, "toString", "0"]) {
      expect(faultsOf({ [name]: word })).toEqual([
        `${name}: must be one of ${words.join(", ")}, not ${JSON.stringify(word)}`,
      ])
    }
  })

  test.each([
    ["INSTANCE_ID", "a b"],
    ["INSTANCE_ID", "a/b"],
    ["INSTANCE_ID", "a:b"],
    ["INSTANCE_ID", "é"],
    ["INSTANCE_ID", "a\n"],
    ["INSTANCE_ID", "x".repeat(33)],
    ["DEVICE_HOST", " "],
    ["HTTP_HOST", "local host"],
    ["FROM_DEVICE_QUEUE", "amq.direct"],
    ["TO_DEVICE_QUEUE", "two words"],
    ["UNDELIVERED_QUEUE", "q".repeat(201)],
    ["NODE_ENV", "two\nlines"],
  ])("%s is not %j", (name, value) => {
    const [fault, ...others] = faultsOf({ [name]: value, HTTP_TOKENS: TOKEN })
    expect(fault).toStartWith(`${name}: must be `)
    expect(fault).toEndWith(`, not ${JSON.stringify(value)}`)
    expect(others).toEqual([])
  })

  test.each([
    ["INSTANCE_ID", "x".repeat(32)],
    ["INSTANCE_ID", "A-z_0.9"],
    ["DEVICE_HOST", "::"],
    ["FROM_DEVICE_QUEUE", "q".repeat(200)],
    ["FROM_DEVICE_QUEUE", "amqx/é#*"],
    ["TLS_CERT_FILE", "a path/with spaces.pem"],
    ["NODE_ENV", "test"],
  ])("%s may be %j", (name, value) => {
    expect(faultsNaming(name, { [name]: value })).toEqual([])
  })
})

describe("tokens", () => {
  test("several, separated by commas with or without blanks", () => {
    const { tokens } = load({ HTTP_TOKENS: ` ${TOKEN},${OTHER_TOKEN} , ` }).http
    expect(tokens).toEqual([TOKEN, OTHER_TOKEN])
  })

  test.each(["short", "x".repeat(15), "with blank 0123456789", "umlaut-ä-0123456789", '"quoted"'])(
    "not %j, alone or beside a good one",
    (token) => {
      for (const name of ["HTTP_TOKENS", "HTTP_READ_TOKENS"]) {
        for (const value of [token, `${TOKEN},${token}`, `${token},${TOKEN}`]) {
          const faults = faultsOf({ [name]: value })
          expect(faults).toHaveLength(1)
          expect(faults[0]).toStartWith(`${name}: each must be at least 16 of `)
          expect(faults[0]).not.toContain(token)
        }
      }
    },
  )

  test("to read with are a list of their own", () => {
    const { http } = load({ HTTP_TOKENS: TOKEN, HTTP_READ_TOKENS: ` ${OTHER_TOKEN} ,` })
    expect([http.tokens, http.readTokens]).toEqual([[TOKEN], [OTHER_TOKEN]])
    expect(load({ HTTP_READ_TOKENS: TOKEN }).http.tokens).toEqual([])
  })

  test("one that may both read and act is a fault, told without it", () => {
    const faults = faultsOf({
      HTTP_TOKENS: `x${OTHER_TOKEN},${TOKEN}`,
      HTTP_READ_TOKENS: `${OTHER_TOKEN},${TOKEN}`,
    })
    expect(faults).toEqual(["HTTP_READ_TOKENS: must have no token of HTTP_TOKENS"])
    expect(faultsOf({ HTTP_TOKENS: TOKEN, HTTP_READ_TOKENS: `x${TOKEN}` })).toEqual([])
  })

  // Whoever sets the variable wants the API guarded; taking it for "no tokens" opens it instead.
  test.each([",", " ", " , ,"])("set to %j, which holds none, is a fault", (value) => {
    for (const name of ["HTTP_TOKENS", "HTTP_READ_TOKENS"]) {
      expect(faultsNaming(name, { [name]: value })).toHaveLength(1)
    }
  })
})

describe("secrets of devices", () => {
  const TOO_SHORT = "must be at least 32 of A-Z a-z 0-9 . _ ~ + / -"
  const TOO_FEW = "must have at least 10 different characters"
  const SHOWN = "must not be or contain a secret that the documentation shows"

  test("several, separated by commas with or without blanks", () => {
    const { helloSecrets } = load({ HELLO_SECRETS: ` ${SECRET},${OTHER_SECRET} , ` }).device
    expect(helloSecrets).toEqual([SECRET, OTHER_SECRET])
  })

  test.each([
    [SECRET.slice(0, 31), TOO_SHORT],
    ["s3cret-of-today", TOO_SHORT],
    ["with blank 0123456789 abcdefghijklmnop", TOO_SHORT],
    ["umlaut-\u00e4-0123456789-abcdefghijklmnopq", TOO_SHORT],
    ["0".repeat(64), TOO_FEW],
    ["abcabcabcabcabcabcabcabcabcabcabcabc", TOO_FEW],
    ["123456789".repeat(8), TOO_FEW],
    ...DOCUMENTED_SECRETS.map((shown) => [shown.padEnd(32, SECRET), SHOWN] as const),
    ["Change-Me-To-16-Or-More-0123456789", SHOWN],
    [`${SECRET}-change-me`, SHOWN],
  ])("not %j, alone or beside a good one, and the fault names the rule only", (secret, rule) => {
    expect(faultsOf({ HELLO_SECRETS: secret })).toEqual([`HELLO_SECRETS: ${rule}`])
    expect(faultsOf({ HELLO_SECRETS: `${SECRET},${secret}` })).toEqual([
      `HELLO_SECRETS: item 2 of 2 ${rule}`,
    ])
    expect(faultsOf({ HELLO_SECRETS: `${secret},${SECRET}` })).toEqual([
      `HELLO_SECRETS: item 1 of 2 ${rule}`,
    ])
  })

  test("each that is wrong is a fault", () => {
    expect(faultsOf({ HELLO_SECRETS: `${"0".repeat(40)},${SECRET},short` })).toEqual([
      `HELLO_SECRETS: item 1 of 3 ${TOO_FEW}`,
      `HELLO_SECRETS: item 3 of 3 ${TOO_SHORT}`,
    ])
  })

  test("10 different characters in 32 are enough", () => {
    expect(faultsOf({ HELLO_SECRETS: "0123456789".padEnd(32, "0") })).toEqual([])
  })

  test("what tools make at random is good enough", () => {
    for (let n = 0; n < 1_000; n += 1) {
      for (const secret of [randomBytes(32).toString("hex"), randomBytes(24).toString("base64")]) {
        expect(faultsOf({ HELLO_SECRETS: secret })).toEqual([])
      }
    }
  })

  test.each([",", " ", " , ,"])("set to %j, which holds none, is a fault", (value) => {
    expect(faultsNaming("HELLO_SECRETS", { HELLO_SECRETS: value })).toHaveLength(1)
  })
})

const urlsOf = (environment: Environment) => load(environment).amqp?.urls

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
    const production = { CLOUDAMQP_URL: AMQP_URL, NODE_ENV: "production" }
    expect(urlsOf(production)).toEqual([AMQP_URL])
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

describe("rules between settings", () => {
  test("DEVICE_AUTH=mtls needs TLS_CLIENT_CA_FILE, and one that can be read", () => {
    const fault = "TLS_CLIENT_CA_FILE: needed with DEVICE_AUTH=mtls"
    expect(faultsOf({ DEVICE_AUTH: "mtls" })).toEqual([fault])
    const unreadable = { DEVICE_AUTH: "mtls", TLS_CLIENT_CA_FILE: "/nowhere/ca.crt" }
    expect(() => loadConfig(unreadable)).toThrow("1 fault")
  })

  test("DEVICE_AUTH=hello needs HELLO_SECRETS", () => {
    expect(faultsOf({ DEVICE_AUTH: "hello" })).toEqual([
      "HELLO_SECRETS: needed with DEVICE_AUTH=hello",
    ])
    const { device } = load({ DEVICE_AUTH: "hello", HELLO_SECRETS: `${SECRET},${OTHER_SECRET}` })
    expect(device.helloSecrets).toEqual([SECRET, OTHER_SECRET])
  })

  test.each([
    "0.0.0.0",
    "::",
    "10.0.0.1",
    "example.test",
    "127.0.0.1.example.test",
    "localhost.test",
  ])("HTTP_HOST=%s needs tokens of either kind", (host) => {
    const fault = `HTTP_HOST: ${JSON.stringify(host)} is not loopback and needs HTTP_TOKENS or HTTP_READ_TOKENS`
    expect(faultsOf({ HTTP_HOST: host })).toEqual([fault])
    expect(faultsOf({ HTTP_HOST: host, HTTP_TOKENS: TOKEN })).toEqual([])
    expect(faultsOf({ HTTP_HOST: host, HTTP_READ_TOKENS: TOKEN })).toEqual([])
  })

  test.each(["127.0.0.1", "127.9.8.7", "::1", "localhost"])("HTTP_HOST=%s needs none", (host) => {
    expect(load({ HTTP_HOST: host }).http.host).toBe(host)
  })

  test.each([
    [{}, ["embedded broker: nothing is kept, for a first try only; set AMQP_URL"]],
    [{ AMQP_URL, DEVICE_HOST: "127.0.0.1" }, []],
    [
      { AMQP_URL, DEVICE_HOST: "0.0.0.0" },
      ["DEVICE_AUTH=none on 0.0.0.0: every device that reaches the port is admitted"],
    ],
    [{ AMQP_URL, DEVICE_HOST: "0.0.0.0", DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET }, []],
  ] satisfies [Environment, string[]][])("what is allowed and risky is told: %j", (set, told) => {
    expect(risks(load({ DEVICE_HOST: "127.0.0.1", ...set }))).toEqual(told)
  })

  test("production needs a broker", () => {
    const fault = "AMQP_URL: needed with NODE_ENV=production; the embedded broker keeps nothing"
    expect(faultsOf({ NODE_ENV: "production" })).toEqual([fault])
    expect(faultsOf({ NODE_ENV: "production", AMQP_URL: "" })).toEqual([fault])
    expect(faultsOf({ NODE_ENV: "production", AMQP_URL })).toEqual([])
    expect(faultsOf({ NODE_ENV: "development" })).toEqual([])
  })

  test("the embedded broker serves one process", () => {
    const [fault, ...others] = faultsOf({ WORKERS: "2" })
    expect(fault).toStartWith("WORKERS: the embedded broker serves one process")
    expect(others).toEqual([])
    for (const one of ["1", "01"]) expect(load({ WORKERS: one }).workers).toBe(1)
    expect(load({ WORKERS: "2", AMQP_URL }).workers).toBe(2)
    expect(load({ WORKERS: "2", CLOUDAMQP_URL: AMQP_URL }).workers).toBe(2)
  })

  test("TLS_CERT_FILE and TLS_KEY_FILE go together, and then nothing is made", () => {
    const fault = "TLS_CERT_FILE and TLS_KEY_FILE: set both or neither"
    expect(faultsOf({ TLS_CERT_FILE: "a" })).toEqual([fault])
    expect(faultsOf({ TLS_KEY_FILE: "b" })).toEqual([fault])
    expect(faultsOf({ TLS_CERT_FILE: "a", TLS_KEY_FILE: "" })).toEqual([fault])
    const { tls } = load({ TLS_CERT_FILE: "a", TLS_KEY_FILE: "b" })
    expect(tls).toEqual({ certFile: "a", keyFile: "b", development: false })
  })

  test("the window holds a line", () => {
    const window = { PUBLISH_WINDOW_BYTES: "100000", MAX_LINE_BYTES: "100000" }
    expect(faultsOf(window)).toEqual([])
    expect(faultsOf({ ...window, MAX_LINE_BYTES: "100001" })).toEqual([
      "PUBLISH_WINDOW_BYTES: must be at least MAX_LINE_BYTES",
    ])
  })

  test("what waits for a device holds a line and its terminator", () => {
    const out = { MAX_OUTGOING_BYTES: "2000", MAX_LINE_BYTES: "1999" }
    expect(faultsOf(out)).toEqual([])
    expect(faultsOf({ ...out, MAX_LINE_BYTES: "2000" })).toEqual([
      "MAX_OUTGOING_BYTES: must be more than MAX_LINE_BYTES",
    ])
  })

  test("unfinished lines may be at least one line", () => {
    const partial = { MAX_PARTIAL_BYTES: "70000", MAX_LINE_BYTES: "69999" }
    expect(faultsOf(partial)).toEqual([])
    expect(faultsOf({ ...partial, MAX_LINE_BYTES: "70000" })).toEqual([
      "MAX_PARTIAL_BYTES: must be more than MAX_LINE_BYTES",
    ])
  })

  test("certificates are checked", () => {
    const [fault, ...others] = faultsOf({ NODE_TLS_REJECT_UNAUTHORIZED: "0" })
    expect(fault).toStartWith("NODE_TLS_REJECT_UNAUTHORIZED: ")
    expect(others).toEqual([])
    expect(faultsOf({ NODE_TLS_REJECT_UNAUTHORIZED: "1" })).toEqual([])
  })
})

const ALL_WRONG: Record<string, string> = {
  AMQP_URL: "http://user:s3cret-pass@host",
  HTTP_TOKENS: "s3cret-token",
  HELLO_SECRETS: "s3cret-of-devices",
  INSTANCE_ID: "a b",
  DEVICE_PORT: "65536",
  HTTP_PORT: "abc",
  WORKERS: "0",
  LOG_LEVEL: "loud",
  QUEUE_TYPE: "stream",
  IDLE_TIMEOUT_MS: "5.0",
  TLS_CERT_FILE: "only-one.crt",
  NODE_TLS_REJECT_UNAUTHORIZED: "0",
}

describe("all faults together", () => {
  test("one for each setting that is wrong, by name and rule", () => {
    const faults = faultsOf(ALL_WRONG)
    expect(faults.map((fault) => fault.split(/[: ]/)[0]).sort()).toEqual(
      Object.keys(ALL_WRONG).sort(),
    )
    for (const fault of faults) expect(fault).toMatch(/must be|set both|would switch off/)
  })

  test("rules between settings beside those of single settings", () => {
    const faults = faultsOf({
      HTTP_HOST: "0.0.0.0",
      NODE_ENV: "production",
      MAX_LINE_BYTES: "1048576",
      LOG_FORMAT: "xml",
    })
    for (const name of ["HTTP_HOST", "AMQP_URL", "MAX_OUTGOING_BYTES", "LOG_FORMAT"]) {
      expect(faults.filter((fault) => fault.startsWith(`${name}:`))).toHaveLength(1)
    }
    expect(faults).toHaveLength(4)
  })

  test("nothing that is made of the error tells a secret", () => {
    try {
      load(ALL_WRONG)
      expect.unreachable()
    } catch (error) {
      const { message, stack, faults } = error as ConfigurationError
      const told = [message, stack, ...faults, Bun.inspect(error), JSON.stringify(error)].join("\n")
      expect(told).not.toContain("s3cret")
    }
  })
})

describe("what is loaded", () => {
  const paths = (value: object, path = "config"): [string, object][] => [
    [path, value],
    ...Object.entries(value).flatMap(([key, inner]) =>
      typeof inner === "object" && inner !== null ? paths(inner, `${path}.${key}`) : [],
    ),
  ]

  test("is frozen, every part of it", () => {
    const open = paths(load({ HTTP_TOKENS: TOKEN })).filter(([, part]) => !Object.isFrozen(part))
    expect(open.map(([path]) => path)).toEqual([])
  })

  test("does not follow the environment", () => {
    const environment: Record<string, string> = { HTTP_TOKENS: TOKEN }
    const config: Config = load(environment)
    environment["HTTP_TOKENS"] = OTHER_TOKEN
    expect(config.http.tokens).toEqual([TOKEN])
  })
})

describe("the instance id from the host name", () => {
  test.each([
    ["gw1", "gw1"],
    ["", "owsla"],
    ["host.example.test", "host.example.test"],
    ["x".repeat(32), "x".repeat(32)],
    ["with blank", "with-blank"],
    ["hôte", "h-te"],
    ["a/b:c\n\0", "a-b-c--"],
  ])("%j gives %j", (host, id) => {
    expect(defaultInstanceId(host)).toBe(id)
  })

  test("is one whatever the host name", () => {
    const odd = [
      "",
      "-",
      "...",
      "日本語",
      "😀".repeat(100),
      "\0",
      "x".repeat(10_000),
      "é".repeat(33),
    ]
    for (const host of odd) expect(defaultInstanceId(host)).toMatch(INSTANCE_ID)
  })

  test("of long names that differ at their end only is not the same", () => {
    const long = `ip-10-0-0-1.${"x".repeat(60)}`
    const ids = new Set(Array.from({ length: 200 }, (_, i) => defaultInstanceId(`${long}${i}`)))
    expect(ids.size).toBe(200)
    expect(defaultInstanceId(long)).toBe(defaultInstanceId(long))
  })
})

describe("the program", () => {
  async function run(environment: Record<string, string>) {
    const child = Bun.spawn([process.execPath, MAIN_FILE], {
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
