/** Findings: the exit status, the time-out of a check, the text for a person, and no secrets. */

import { describe, expect, test } from "bun:test"
import { loadConfig } from "../../../src/config/config.ts"
import {
  type Finding,
  failure,
  ok,
  runCheck,
  skipped,
  statusOf,
  warning,
} from "../../../src/ops/doctor/finding.ts"
import { secretsOf, withoutSecrets } from "../../../src/ops/doctor/redaction.ts"
import { findingText, summaryText } from "../../../src/ops/doctor/report.ts"

const good = ok("clock", "fine")
const skip = skipped("policies", "no URL")
const bad = warning("somaxconn", "too small", "raise it")
const worse = failure("broker", "away", "start it")

describe("the exit status", () => {
  test.each<[string, Finding[], number]>([
    ["nothing to do", [good, skip], 0],
    ["a warning", [good, bad, skip], 1],
    ["a failure", [worse, bad, good], 2],
    ["no finding", [], 0],
  ])("of %s", (_, findings, status) => {
    expect<number>(statusOf(findings)).toBe(status)
  })
})

describe("a check", () => {
  test("gives its findings", async () => {
    expect(await runCheck({ name: "clock", timeoutMs: 10_000, run: () => [good] })).toEqual([good])
  })

  test("that takes longer than its time-out is a failure, and does not hold up the others", async () => {
    const never = () => new Promise<Finding[]>(() => undefined)
    const [finding] = await runCheck({ name: "broker", timeoutMs: 20, run: never })
    expect(finding).toMatchObject({ level: "failure", message: "no result within 0.02 s" })
    expect(finding?.advice).toContain("run the doctor again")
  })

  test.each<[string, () => Promise<Finding[]> | Finding[]]>([
    ["rejects", () => Promise.reject(new Error("what happened"))],
    [
      "throws",
      () => {
        throw new Error("what happened")
      },
    ],
  ])("that %s is a failure with the reason", async (_, run) => {
    const [finding] = await runCheck({ name: "broker", timeoutMs: 10_000, run })
    expect(finding).toEqual(
      failure(
        "broker",
        "what happened",
        "correct what the message names, and run the doctor again",
      ),
    )
  })
})

describe("the text", () => {
  const plain = { width: 60, colour: false }

  test("has columns, and advice on a line of its own", () => {
    expect(findingText(bad, plain)).toBe(
      "warning  somaxconn       too small\n                         ─► raise it\n",
    )
    expect(findingText(ok("open_files", "enough"), plain)).toBe("ok       open files      enough\n")
  })

  test("is wrapped at spaces, and keeps a long word whole", () => {
    const word = "x".repeat(50)
    const text = findingText(ok("clock", `one two three four five six seven ${word} end`), plain)
    const indent = " ".repeat(25)
    expect(text).toBe(
      `ok       clock           one two three four five six seven\n${indent}${word}\n${indent}end\n`,
    )
  })

  test("is coloured only when asked for", () => {
    expect(findingText(bad, { ...plain, colour: true })).toStartWith("\u001b[33mwarning  \u001b[0m")
    expect(findingText(bad, plain)).not.toContain("\u001b")
  })

  test("ends with the counts", () => {
    expect(summaryText([good, bad, worse, skip])).toBe(
      "\n1 failure, 1 warning, 1 ok, 1 not checked\n",
    )
    expect(summaryText([good])).toBe("\n0 failures, 0 warnings, 1 ok\n")
  })
})

test("no secret is left in a finding, whatever a broker says", () => {
  const tokens = {
    HTTP_TOKENS: "a-token-of-sixteen-or-more",
    HTTP_READ_TOKENS: "another-of-16-or-more",
  }
  const hello = "0123456789abcdefghijklmnopqrstuvwxyz"
  const config = loadConfig({
    HTTP_TOKENS: `alice:${tokens.HTTP_TOKENS}`,
    HTTP_READ_TOKENS: tokens.HTTP_READ_TOKENS,
    AMQP_URL: "amqp://user:p%40ssword@a,amqp://user:other-one@b",
    HELLO_SECRETS: hello,
    FLEET_SECRET: "zyxwvutsrqponmlkjihgfedcba9876543210",
  })
  const secrets = secretsOf(config, ["of-the-command-line"])
  const said = [
    ...["p%40ssword", "p@ssword", "other-one", hello, "zyxwvutsrqponmlkjihgfedcba9876543210"],
    ...[...Object.values(tokens), "of-the-command-line"],
  ]
  for (const secret of said) {
    const finding = withoutSecrets(failure("broker", `no ${secret}`, `not ${secret}`), secrets)
    expect(finding).toMatchObject({ message: "no ***", advice: "not ***" })
  }
})
