/** Each setting alone: its default, its bounds and its faults. */

import { describe, expect, test } from "bun:test"
import { randomBytes } from "node:crypto"
import { availableParallelism, hostname } from "node:os"
import type { Environment } from "../../src/config/config.ts"
import { defaultInstanceId, SETTINGS } from "../../src/config/settings.ts"
import { DOCUMENTED_SECRETS } from "../../src/device/hello-secret.ts"
import {
  AMQP_URL,
  faultsNaming,
  faultsOf,
  load,
  OTHER_SECRET,
  OTHER_TOKEN,
  SECRET,
  TOKEN,
} from "./config-harness.ts"

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
      misspelled: [],
      instanceId: defaultInstanceId(hostname()),
      amqp: null,
      fleetSecret: null,
      fleetShards: 16,
      workers: 1,
      drainTimeoutMs: 60_000,
      tls: { certFile: "certs/server.crt", keyFile: "certs/server.key", development: true },
      device: {
        host: "0.0.0.0",
        port: 8443,
        auth: "none",
        clientCaFile: null,
        helloSecrets: [],
        token: null,
        identifyTimeoutMs: 5_000,
        denylistFile: null,
        linesPerS: 0,
        bytesPerS: 0,
        maxAgeMs: 0,
        goodbyeLine: "",
        addressLimits: null,
        flapping: null,
        proxyFrom: null,
        ack: "off",
        framing: "line",
        maxLineBytes: 65_536,
        maxConnections: null,
        admission: { maxWaiting: 10_000, perS: 0 },
        backlog: 4_096,
        resumption: "tickets",
        minVersion: "1.2",
        maxRecordBytes: 16_384,
        maxOutgoingBytes: 1_048_576,
        maxHeldBytes: 33_554_432,
        maxPartialBytes: 16_777_216,
        lineTimeoutMs: 30_000,
        handshakeTimeoutMs: 10_000,
        idleTimeoutMs: 600_000,
        slowDeviceTimeoutMs: 30_000,
        gapTimeoutMs: 2_000,
        windowCommands: 1_024,
        maxReplyMs: 60_000,
      },
      hold: { maxHoldMs: 604_800_000, maxPerDevice: 50, maxHeld: 100_000 },
      broker: {
        fromDeviceQueue: "from_device",
        fromDevicePartitions: 1,
        toDeviceQueue: "to_device",
        undeliveredQueue: "to_device.undelivered",
        queueType: "quorum",
        windowLines: 2_000,
        windowBytes: 8_388_608,
        gatherMs: 2,
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
      metrics: null,
      traces: null,
      restarts: { max: 5, windowMs: 10_000 },
      stallTimeoutMs: 30_000,
      systemd: null,
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
  /** The other numbers may have a fraction. */
  const DECIMALS = ["TRACE_SAMPLE"]
  const numbers = SETTINGS.filter(({ name }) => !DECIMALS.includes(name)).flatMap(
    ({ name, range }) => {
      const bounds = /^(\d+) to (\d+)( [a-z]+)?$/.exec(range)
      return bounds === null
        ? []
        : [{ name, range, min: Number(bounds[1]), max: Number(bounds[2]) }]
    },
  )

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
      SETTINGS.filter(({ name, range }) => /^\d+ to /.test(range) && !DECIMALS.includes(name)).map(
        ({ name }) => name,
      ),
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
    ["DEVICE_AUTH", ["none", "mtls", "hello", "token"]],
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

  test("may have names", () => {
    const { http } = load({ HTTP_TOKENS: `alice:${TOKEN}`, HTTP_READ_TOKENS: `a.b-c_1:x${TOKEN}` })
    expect([http.tokens, http.readTokens]).toEqual([[`alice:${TOKEN}`], [`a.b-c_1:x${TOKEN}`]])
    for (const name of ["", "two words", "a:b", "ä", "x".repeat(33)]) {
      const faults = faultsOf({ HTTP_TOKENS: `${name}:${TOKEN}` })
      expect(faults).toHaveLength(1)
      expect(faults[0]).not.toContain(TOKEN)
    }
  })

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
    expect(faultsOf({ HTTP_TOKENS: `alice:${TOKEN}`, HTTP_READ_TOKENS: `bob:${TOKEN}` })).toEqual(
      faults,
    )
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
