/** Rules between settings, all faults together, and the loaded configuration. */

import { describe, expect, test } from "bun:test"
import {
  type Config,
  type ConfigurationError,
  type Environment,
  loadConfig,
  risks,
} from "../../src/config/config.ts"
import { defaultInstanceId } from "../../src/config/settings.ts"
import { INSTANCE_ID } from "../../src/device/ids.ts"
import {
  ALL_WRONG,
  AMQP_URL,
  faultsOf,
  load,
  OTHER_SECRET,
  OTHER_TOKEN,
  SECRET,
  TOKEN,
} from "./config-harness.ts"

describe("rules between settings", () => {
  test("only with partitions no other queue may have the name of one", () => {
    const queues = { FROM_DEVICE_QUEUE: "lines", TO_DEVICE_QUEUE: "lines.3" }
    expect(faultsOf(queues)).toEqual([])
    expect(faultsOf({ ...queues, FROM_DEVICE_PARTITIONS: "2" })).toEqual([
      "TO_DEVICE_QUEUE: must not be the name of a partition with FROM_DEVICE_PARTITIONS",
    ])
    const other = { FROM_DEVICE_PARTITIONS: "2", UNDELIVERED_QUEUE: "from_device.x" }
    expect(faultsOf(other)).toEqual([])
  })

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

  test("DEVICE_AUTH=token needs TOKEN_KEYS_FILE, and one that can be read", () => {
    const fault = "TOKEN_KEYS_FILE: needed with DEVICE_AUTH=token"
    expect(faultsOf({ DEVICE_AUTH: "token" })).toEqual([fault])
    const file = { DEVICE_AUTH: "token", TOKEN_KEYS_FILE: "/nowhere/keys" }
    expect(() => loadConfig(file)).toThrow("1 fault")
    expect(load(file).device.token).toEqual({
      keysFile: "/nowhere/keys",
      issuer: null,
      audience: null,
    })
    const { device } = load({ ...file, TOKEN_ISSUER: "https://issuer/", TOKEN_AUDIENCE: "owsla" })
    expect(device.token).toMatchObject({ issuer: "https://issuer/", audience: "owsla" })
    expect(load({ TOKEN_KEYS_FILE: "/nowhere/keys" }).device.token).toBeNull()
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
    [{}, ["embedded broker: nothing is kept, for a first try only"]],
    [{ AMQP_URL, DEVICE_HOST: "127.0.0.1" }, []],
    [
      { AMQP_URL, DEVICE_HOST: "0.0.0.0" },
      ["DEVICE_AUTH=none on 0.0.0.0: every device that reaches the port is admitted"],
    ],
    [{ AMQP_URL, DEVICE_HOST: "0.0.0.0", DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET }, []],
    [
      { AMQP_URL, DEVICE_AUTH: "token", TOKEN_KEYS_FILE: "keys" },
      [
        "TOKEN_AUDIENCE is not set: tokens that the issuer has made for other services are accepted too",
      ],
    ],
    [{ AMQP_URL, DEVICE_AUTH: "token", TOKEN_KEYS_FILE: "keys", TOKEN_AUDIENCE: "a" }, []],
  ] satisfies [Environment, string[]][])("what is allowed and risky is told: %j", (set, told) => {
    const found = risks(load({ DEVICE_HOST: "127.0.0.1", ...set }))
    expect(found.map(({ risk }) => risk)).toEqual(told)
    for (const { advice } of found) expect(advice).toStartWith("set ")
  })

  test("the metrics have a port of their own only when it is set, on any address", () => {
    expect(load({ METRICS_HOST: "0.0.0.0" }).metrics).toBeNull()
    const local = { host: "127.0.0.1", port: 9091, isLoopback: true }
    expect(load({ METRICS_PORT: "9091" }).metrics).toEqual(local)
    const shared = { host: "::", port: 9091, isLoopback: false }
    expect(load({ METRICS_PORT: "9091", METRICS_HOST: "::" }).metrics).toEqual(shared)
  })

  test.each([
    [{ METRICS_PORT: "8080" }, ["HTTP_PORT and METRICS_PORT: must be different ports"]],
    [{ METRICS_PORT: "8443" }, ["DEVICE_PORT and METRICS_PORT: must be different ports"]],
    [{ HTTP_PORT: "8443" }, ["DEVICE_PORT and HTTP_PORT: must be different ports"]],
    [{ DEVICE_PORT: "0", HTTP_PORT: "0", METRICS_PORT: "0" }, []],
  ] satisfies [Environment, string[]][])("each port has one purpose: %j", (set, faults) => {
    expect(faultsOf(set)).toEqual(faults)
  })

  test("production needs a broker", () => {
    const fault = "AMQP_URL: needed with NODE_ENV=production; the embedded broker keeps nothing"
    const files = { TLS_CERT_FILE: "/a.crt", TLS_KEY_FILE: "/a.key" }
    expect(faultsOf({ NODE_ENV: "production", ...files })).toEqual([fault])
    expect(faultsOf({ NODE_ENV: "production", ...files, AMQP_URL: "" })).toEqual([fault])
    expect(faultsOf({ NODE_ENV: "production", ...files, AMQP_URL })).toEqual([])
    expect(faultsOf({ NODE_ENV: "development" })).toEqual([])
  })

  test("production needs a certificate", () => {
    const needed = "needed with NODE_ENV=production; no development certificate is made"
    const fault = `TLS_CERT_FILE and TLS_KEY_FILE: ${needed}`
    expect(faultsOf({ NODE_ENV: "production", AMQP_URL })).toEqual([fault])
    expect(faultsOf({ AMQP_URL })).toEqual([])
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
      "MAX_OUTGOING_BYTES: must be at least MAX_LINE_BYTES + 1 with DEVICE_FRAMING=line",
    ])
  })

  test("unfinished lines may be at least one line", () => {
    const partial = { MAX_PARTIAL_BYTES: "70000", MAX_LINE_BYTES: "69999" }
    expect(faultsOf(partial)).toEqual([])
    expect(faultsOf({ ...partial, MAX_LINE_BYTES: "70000" })).toEqual([
      "MAX_PARTIAL_BYTES: must be at least MAX_LINE_BYTES + 1 with DEVICE_FRAMING=line",
    ])
  })

  test.each([
    ["u16", 2],
    ["u32", 4],
  ])("with DEVICE_FRAMING=%s both hold a line and its length", (framing, lengthBytes) => {
    const line = 65_536 - lengthBytes
    const bounds = { MAX_OUTGOING_BYTES: "65536", MAX_PARTIAL_BYTES: "65536" }
    const set = { ...bounds, DEVICE_FRAMING: framing }
    expect(faultsOf({ ...set, MAX_LINE_BYTES: String(line) })).toEqual([])
    const rule = `must be at least MAX_LINE_BYTES + ${lengthBytes} with DEVICE_FRAMING=${framing}`
    expect(faultsOf({ ...set, MAX_LINE_BYTES: String(line + 1) })).toEqual([
      `MAX_PARTIAL_BYTES: ${rule}`,
      `MAX_OUTGOING_BYTES: ${rule}`,
    ])
  })

  test("a length of 2 bytes limits lines, and lowers the default", () => {
    const u16 = { DEVICE_FRAMING: "u16" }
    expect(load(u16).device.maxLineBytes).toBe(65_535)
    expect(load({ ...u16, MAX_LINE_BYTES: "65535" }).device.maxLineBytes).toBe(65_535)
    expect(load({ ...u16, MAX_LINE_BYTES: "100" }).device.maxLineBytes).toBe(100)
    expect(faultsOf({ ...u16, MAX_LINE_BYTES: "65536" })).toEqual([
      "MAX_LINE_BYTES: must be at most 65535 with DEVICE_FRAMING=u16",
    ])
    const longest = { MAX_LINE_BYTES: "1048576", MAX_OUTGOING_BYTES: "2000000" }
    for (const DEVICE_FRAMING of ["line", "u32"]) {
      expect(load({ ...longest, DEVICE_FRAMING }).device.maxLineBytes).toBe(1_048_576)
    }
    expect(load({ DEVICE_FRAMING: "u32" }).device.maxLineBytes).toBe(65_536)
  })

  test("certificates are checked", () => {
    const [fault, ...others] = faultsOf({ NODE_TLS_REJECT_UNAUTHORIZED: "0" })
    expect(fault).toStartWith("NODE_TLS_REJECT_UNAUTHORIZED: ")
    expect(others).toEqual([])
    expect(faultsOf({ NODE_TLS_REJECT_UNAUTHORIZED: "1" })).toEqual([])
  })
})

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
    const names = ["HTTP_HOST", "AMQP_URL", "TLS_CERT_FILE and TLS_KEY_FILE"]
    for (const name of [...names, "MAX_OUTGOING_BYTES", "LOG_FORMAT"]) {
      expect(faults.filter((fault) => fault.startsWith(`${name}:`))).toHaveLength(1)
    }
    expect(faults).toHaveLength(5)
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

describe("the messages to systemd", () => {
  const NOTIFY_SOCKET = "/run/systemd/notify"
  const systemd = (environment: Environment) => load(environment).systemd

  test("are wanted when it has named a socket", () => {
    expect(systemd({})).toBeNull()
    expect(systemd({ WATCHDOG_USEC: "30000000" })).toBeNull()
    expect(systemd({ NOTIFY_SOCKET })).toEqual({ socket: NOTIFY_SOCKET, watchdogMs: null })
  })

  test("include those of the watchdog when they are meant for this process", () => {
    const watchdog = { NOTIFY_SOCKET, WATCHDOG_USEC: "30000000" }
    expect(systemd(watchdog)?.watchdogMs).toBe(30_000)
    expect(systemd({ ...watchdog, WATCHDOG_PID: String(process.pid) })?.watchdogMs).toBe(30_000)
    expect(systemd({ ...watchdog, WATCHDOG_PID: "1" })?.watchdogMs).toBeNull()
    expect(systemd({ ...watchdog, WATCHDOG_USEC: "0" })?.watchdogMs).toBeNull()
  })
})

describe("traces", () => {
  test("are off by default, and a share of the lines goes to a collector", () => {
    expect(load({}).traces).toBeNull()
    expect(load({ TRACE_SAMPLE: "0.01" }).traces).toEqual({
      ...{ share: 0.01, url: "http://127.0.0.1:4318/v1/traces" },
    })
    expect(load({ TRACE_SAMPLE: "1", OTLP_URL: "https://otel.example/v1/traces" }).traces).toEqual({
      ...{ share: 1, url: "https://otel.example/v1/traces" },
    })
  })

  test.each([
    [{ TRACE_SAMPLE: "1.1" }, 'TRACE_SAMPLE: must be a number from 0 to 1, not "1.1"'],
    [{ TRACE_SAMPLE: "-0.1" }, 'TRACE_SAMPLE: must be a number from 0 to 1, not "-0.1"'],
    [{ TRACE_SAMPLE: ".5" }, 'TRACE_SAMPLE: must be a number from 0 to 1, not ".5"'],
  ])("%j is a fault", (environment, fault) => {
    expect(faultsOf(environment)).toEqual([fault])
  })
})
