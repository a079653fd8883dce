/**
 * The command line: defaults, every fault at once, and what goes with what.
 */

import { describe, expect, test } from "bun:test"
import { usage } from "../../src/simulator/flags.ts"
import { HOSTILE_KINDS } from "../../src/simulator/hostile-kinds.ts"
import { parseRequest, UsageError } from "../../src/simulator/options.ts"

function run(...args: string[]) {
  const request = parseRequest(args)
  if (request.kind !== "run") throw new Error(`this asks for ${request.kind}`)
  return request.options
}

function faultsOf(...args: string[]): readonly string[] {
  try {
    parseRequest(args)
  } catch (error) {
    if (error instanceof UsageError) return error.faults
    throw error
  }
  return []
}

const URL_OF_BROKER = ["--backend", "--amqp-url", "amqp://guest:hunter2@localhost"]

describe("a run", () => {
  test("needs no flag", () => {
    expect(run()).toEqual({
      host: "127.0.0.1",
      port: 8443,
      addresses: 0,
      other: null,
      caFile: null,
      devices: 10,
      name: "sim",
      rampPerS: 100,
      handshakes: 32,
      ratePerS: 1,
      bytes: 128,
      lines: null,
      durationMs: 10_000,
      settleMs: 30_000,
      auth: { kind: "none" },
      deviceAck: false,
      goodbye: null,
      backoff: { firstMs: 100, maxMs: 5000 },
      backEnd: null,
      ledger: null,
      hostile: [],
      json: false,
    })
  })

  test("with --lines lasts as long as these need and a minute", () => {
    expect(run("--lines", "100", "--rate", "2").durationMs).toBe(110_000)
    expect(run("--lines", "100", "--rate", "0").durationMs).toBe(60_000)
    expect(run("--lines", "100", "--duration", "5").durationMs).toBe(5_000)
  })

  test("knows a back-end by its flags", () => {
    expect(run(...URL_OF_BROKER, "--from-device", "lines", "--command-every", "7").backEnd).toEqual(
      {
        amqpUrl: "amqp://guest:hunter2@localhost",
        fromDevice: ["lines"],
        toDevice: "to_device",
        prefetch: 2000,
        commandEvery: 7,
        hold: null,
      },
    )
  })

  test("with --partitions its back-end consumes as many queues", () => {
    const { backEnd } = run(...URL_OF_BROKER, "--from-device", "lines", "--partitions", "3")
    expect(backEnd?.fromDevice).toEqual(["lines.0", "lines.1", "lines.2"])
  })

  test("with --hold sends commands while devices are away", () => {
    const args = [...URL_OF_BROKER, "--auth", "hello", "--secret", "s", "--hold", "3"]
    expect(run(...args).backEnd?.hold).toEqual({ commands: 3, awayMs: 10_000 })
    expect(run(...args, "--away", "60").backEnd?.hold?.awayMs).toBe(60_000)
  })

  test("knows who devices are", () => {
    expect(run("--auth", "hello", "--secret", "s").auth).toEqual({ kind: "hello", secret: "s" })
    const files = ["--client-ca-cert", "ca.crt", "--client-ca-key", "ca.key"]
    expect(run("--auth", "mtls", ...files).auth).toEqual({
      kind: "mtls",
      caCertFile: "ca.crt",
      caKeyFile: "ca.key",
    })
  })

  test.each([...HOSTILE_KINDS])("takes %s devices", (kind) => {
    const auth = ["--auth", "hello", "--secret", "s"]
    const { hostile } = run("--hostile", kind, "--hostile", `${kind}:3`, ...auth)
    expect(hostile).toEqual([
      { kind, count: 1 },
      { kind, count: 3 },
    ])
  })
})

describe("faults", () => {
  test("are told all at once", () => {
    expect(faultsOf("--prot", "--devices", "x", "--rate", "--auth", "hello", "word")).toEqual([
      '"word" is neither verify, replay nor a flag',
      "--prot is no flag",
      "--rate needs a value",
      "--devices must be a whole number from 0 to 20000",
      "--auth hello needs --secret",
    ])
  })

  test.each([
    ["--port", "0"],
    ["--port", "65536"],
    ["--devices", "20001"],
    ["--devices", "1.5"],
    ["--rate", "-1"],
    ["--bytes", "63"],
    ["--bytes", "65537"],
    ["--duration", "604801"],
    ["--settle", "1e3"],
    ["--prefetch", "0", ...URL_OF_BROKER],
  ])("%s %s is out of range", (name, value, ...others) => {
    const faults = faultsOf(name, value, ...others)
    expect(faults).toHaveLength(1)
    expect(faults[0]).toStartWith(`${name} must be a`)
  })

  test.each([
    [["--auth", "some"], "--auth must be one of none, mtls, hello"],
    [["--secret", "s"], "--secret goes with --auth hello"],
    [["--name", "a-b"], "--name must be text that matches"],
    [["--json=no"], "--json takes no value"],
    [["--ca="], "--ca needs a value"],
    [["--ca"], "--ca needs a value"],
    [["--hostile", "rude"], "--hostile rude: rude is no kind"],
    [["--hostile", "silent:0"], "--hostile silent:0: write KIND:COUNT"],
    [["--hostile", "silent:1001"], "--hostile silent:1001: write KIND:COUNT"],
    [["--hostile", "silent:1:1"], "--hostile silent:1:1: write KIND:COUNT"],
    [["--hostile", "duplicate-id"], "--hostile duplicate-id needs --auth mtls or hello"],
    [["--backoff-first", "200", "--backoff-most", "100"], "--backoff-first exceeds"],
    [["--devices", "0"], "--devices 0 leaves nothing to do"],
    [["--amqp-url", "amqp://localhost"], "--amqp-url goes with --backend"],
    [["--command-every", "5"], "--command-every goes with --backend"],
    [["--partitions", "2"], "--partitions goes with --backend"],
    [["--hold", "2", "--auth", "hello", "--secret", "s"], "--hold goes with --backend"],
    [["--hold", "2", ...URL_OF_BROKER], "--hold needs --devices, and --auth mtls or hello"],
    [["--away", "5"], "--away goes with --hold"],
    [["--backend"], "--backend needs --amqp-url"],
    [["--allow-lost", "5"], "--allow-lost goes with verify only"],
    [["verify"], "verify needs --ledger"],
    [["verify", "--ledger", "l", "--port", "1"], "--port does not go with verify"],
    [["verify", "--ledger", "l", "--order", "any"], "--order must be one of first, follow"],
  ])("%p: %s", (args, fault) => {
    const faults = faultsOf(...args)
    expect(faults).toHaveLength(1)
    expect(faults[0]).toStartWith(fault)
  })

  test("never repeat the broker's URL or a secret", () => {
    const args = ["--backend", "--amqp-url", "http://user:hunter2@host", "--secret", "hunter2"]
    expect(faultsOf(...args).join("\n")).not.toContain("hunter2")
  })
})

test("verify has its own flags", () => {
  const args = ["verify", "--ledger", "l", "--allow-lost", "3", "--no-repeats", "--order", "follow"]
  expect(parseRequest([...args, "--allow-repeats", "2", "--json"])).toEqual({
    kind: "verify",
    options: {
      ...{ ledger: "l", allowLost: 3, allowRepeats: 2, noRepeats: true, order: "follow" },
      json: true,
    },
  })
})

describe("replay", () => {
  test("needs a file, and sends at the recorded pace to a gateway on this machine", () => {
    expect(parseRequest(["replay", "tape.jsonl"])).toEqual({
      kind: "replay",
      options: {
        ...{ file: "tape.jsonl", host: "127.0.0.1", port: 8443, caFile: null, device: "" },
        ...{ auth: { kind: "none" }, speed: 1, json: false },
      },
    })
    expect(faultsOf("replay")).toEqual(["replay needs the file of a tape"])
    expect(faultsOf("replay", "a", "b")).toHaveLength(1)
  })

  test.each([
    ["max", "max"],
    ["10", 10],
    ["0.25", 0.25],
  ] as const)("takes the speed %s", (speed, expected) => {
    expect(parseRequest(["replay", "t", "--speed", speed])).toMatchObject({
      options: { speed: expected },
    })
  })

  test.each(["0", "-1", "fast", "1e9", "0.0", "max1"])("refuses the speed %s", (speed) => {
    expect(faultsOf("replay", "t", `--speed=${speed}`)).toHaveLength(1)
  })

  test("identifies the device like the other commands, or by a token", () => {
    const hello = ["--auth", "hello", "--secret", "s", "--device", "lock:1"]
    expect(parseRequest(["replay", "t", ...hello])).toMatchObject({
      options: { device: "lock:1", auth: { kind: "hello", secret: "s" } },
    })
    expect(parseRequest(["replay", "t", "--token-file", "jwt"])).toMatchObject({
      options: { auth: { kind: "token", file: "jwt" } },
    })
    expect(faultsOf("replay", "t", ...hello, "--token-file", "jwt")).toHaveLength(1)
    expect(faultsOf("replay", "t", ...hello.slice(0, 4))).toHaveLength(1)
    expect(faultsOf("replay", "t", "--device", "lock:1")).toHaveLength(1)
  })

  test("has its own flags", () => {
    expect(faultsOf("replay", "t", "--devices", "3")).toEqual(["--devices does not go with replay"])
    expect(faultsOf("--speed", "3")).toEqual(["--speed goes with replay only"])
    expect(faultsOf("verify", "--ledger", "l", "--speed", "3")).toHaveLength(1)
  })
})

test("help is given whatever else is asked, and names every flag that is read", () => {
  expect(parseRequest(["--help", "--prot"])).toEqual({ kind: "help" })
  const { length } = usage()
    .matchAll(/^ {2}--[a-z-]+/gm)
    .toArray()
  expect(length).toBe(42)
})
