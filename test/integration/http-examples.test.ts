/**
 * The examples of the HTTP API in the documents, run with curl against a gateway. Its answers must
 * be what the OpenAPI document says of them, and what is shown. A new example needs no change here.
 *
 * The gateway has the embedded broker. The device `thermostat:7` is connected, and was connected once
 * before; `<device_id>` in an example is this one. Another device was refused once. Others are not
 * connected.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { helloLine } from "../../src/device/hello.ts"
import { DESCRIPTIONS } from "../../src/http/openapi.ts"
import { answerFault, DOCUMENT, type HttpAnswer } from "../support/described-answers.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { hasForm, httpExamplesOf } from "../support/http-examples.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { findProgram } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const ROOT = join(import.meta.dir, "../..")
const LIMIT_MS = 60_000
const SECRET = "a-secret-of-the-tests-0123456789"
const DEVICE = "thermostat:7"
const SHOWN_BASE = "http://127.0.0.1:8080"

/** Examples that are not run, each with the reason. An entry without an example fails. */
const NOT_RUN: Readonly<Record<string, string>> = {
  "curl -H 'Authorization: Bearer <token>' http://127.0.0.1:8080/audit":
    "the gateway has no tokens, and the acts are those of the other examples",
}

const documents = [...new Bun.Glob("**/*.md").scanSync({ cwd: ROOT })]
  // `tour.test.ts` runs the whole tour.
  .filter((path) => path !== "docs/TOUR.md" && !/^(node_modules|tmp)\//.test(path))
  .sort()
const examples = documents.flatMap((path) =>
  httpExamplesOf(readFileSync(join(ROOT, path), "utf8")).map((example) => ({ path, ...example })),
)
const run = examples.filter(({ command }) => !(command in NOT_RUN))

/** Where examples write their files. */
const directory = mkdtempSync(join(tmpdir(), "owsla-http-examples-"))
let gateway: TestGateway
let device: TestDevice

beforeAll(async () => {
  gateway = await startGateway({ DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET })
  const stranger = await connectDevice({ port: gateway.devicePort })
  await stranger.send(helloLine("lock:1", "another-secret-of-nobody-0123456"))
  await stranger.closed
  const earlier = await connected()
  earlier.end()
  const isGone = async () => (await gateway.fetch(`/devices/${DEVICE}`)).status === 404
  await until(isGone, { what: "the first connection to end" })
  device = await connected()
  void answerCommands()
}, LIMIT_MS)

async function connected(): Promise<TestDevice> {
  const device = await connectDevice({ port: gateway.devicePort })
  await device.send(helloLine(DEVICE, SECRET))
  const isAdmitted = async () => (await gateway.fetch(`/devices/${DEVICE}`)).ok
  await until(isAdmitted, { what: "the device to be admitted" })
  return device
}

afterAll(async () => {
  device?.end()
  await gateway?.stop()
  rmSync(directory, { recursive: true, force: true })
}, LIMIT_MS)

/** `get temperature t7` is answered `t7 21.5`. Ends when the connection does. */
async function answerCommands(): Promise<void> {
  try {
    for (;;) {
      const [, token] = /^get temperature (\S+)$/.exec(await device.nextLine(LIMIT_MS)) ?? []
      if (token !== undefined) await device.send(`${token} 21.5`)
    }
  } catch {
    // The connection has ended.
  }
}

/** Runs the command in a shell. An event stream is read up to its first event. */
async function runExample(command: string): Promise<HttpAnswer> {
  const curl = findProgram("curl", "curl")
  const here = command
    .replaceAll(SHOWN_BASE, `http://127.0.0.1:${gateway.httpPort}`)
    .replaceAll("<device_id>", DEVICE)
  // Without the user's .curlrc. The log on standard error has the request and the headers.
  const script = `curl() { exec ${curl} --disable --verbose --no-progress-meter "$@"; }\n${here}`
  const shell = Bun.spawn(["sh", "-c", script], {
    cwd: directory,
    env: { LC_ALL: "C.UTF-8" },
    stdio: ["ignore", "pipe", "pipe"],
  })
  let log = ""
  let body = ""
  const reading = Promise.all([
    read(shell.stderr, (text) => {
      log += text
    }),
    read(shell.stdout, (text) => {
      body += text
    }),
  ])
  let isOver = false
  void reading.then(() => {
    isOver = true
  })
  const isStream = () => /^< content-type: text\/event-stream/im.test(log) && body !== ""
  await until(() => isOver || isStream(), { what: `an answer to ${here}` })
  if (!isOver) {
    await device.send("hello")
    await until(() => /^data: /m.test(body), { what: "an event" })
    shell.kill()
    await reading
  }
  const [, method = "", path = ""] = /^> (\S+) (\S+) HTTP/m.exec(log) ?? []
  const [, status] = /^< HTTP\/1\.1 (\d+)/m.exec(log) ?? []
  const [, contentType = null] = /^< content-type: (.*?)\r?$/im.exec(log) ?? []
  if (status === undefined) throw new Error(`no answer to ${here}\n${log}${body}`)
  return { method, path, status: Number(status), contentType, body }
}

async function read(stream: ReadableStream<Uint8Array>, each: (text: string) => void) {
  const decoder = new TextDecoder()
  for await (const chunk of stream) each(decoder.decode(chunk, { stream: true }))
}

test("there are examples, and those that are not run exist", () => {
  expect(run.length).toBeGreaterThan(5)
  const commands = examples.map(({ command }) => command)
  expect(Object.keys(NOT_RUN).filter((command) => !commands.includes(command))).toEqual([])
})

describe("an example of the documents", () => {
  test.each(run)(
    "in $path: $command",
    async ({ command, answer: shown }) => {
      expect(command).toContain(SHOWN_BASE)
      expect(command.match(/\bcurl\s/g)).toHaveLength(1)
      const answer = await runExample(command)
      expect(answerFault(answer)).toBeNull()
      expect(answer.status).toBeLessThan(300)
      if (shown === null) return
      expect(answerFault({ ...answer, body: shown })).toBeNull()
      const isAsShown = hasForm(JSON.parse(shown), JSON.parse(answer.body))
      expect({ isAsShown, answer: answer.body }).toMatchObject({ isAsShown: true })
    },
    LIMIT_MS,
  )
})

describe("the gateway", () => {
  test("serves the document that the tests use", async () => {
    const served = (await (await gateway.fetch("/openapi.json")).json()) as typeof DOCUMENT
    const { version } = served.info
    expect(served).toEqual({ ...DOCUMENT, info: { ...DOCUMENT.info, version } })
  })

  const streams = DESCRIPTIONS.filter(({ answers }) =>
    answers.some(({ mediaType }) => mediaType === "text/event-stream"),
  )
  const routes = DESCRIPTIONS.filter(
    (route) => route.method === "get" && !streams.includes(route),
  ).map(({ path }) => path.replace(":id", DEVICE))

  test.each(routes)("answers GET %s as described", async (path) => {
    const response = await gateway.fetch(path)
    const { status } = response
    const contentType = response.headers.get("content-type")
    const body = await response.text()
    expect(answerFault({ method: "GET", path, status, contentType, body })).toBeNull()
    expect(status).toBeLessThan(500)
  })
})

describe("the reader of examples", () => {
  const FENCE = "```"

  test("finds commands and the answers that are shown", () => {
    const text = [
      ...[
        "# A",
        `${FENCE}sh`,
        "# curl is a program",
        "curl -X PUT \\",
        "  http://a/b",
        "ls",
        FENCE,
      ],
      ...["says", `${FENCE}json`, '{"a":1}', FENCE, `${FENCE}sh`, "A=1 curl c", "curl d", FENCE],
      ...[`${FENCE}python`, "print()", FENCE, `${FENCE}json`, "[]", FENCE],
      ...["Use `curl`, as in `curl e`."],
    ].join("\n")
    expect(httpExamplesOf(text)).toEqual([
      { command: "curl -X PUT http://a/b", answer: '{"a":1}' },
      { command: "A=1 curl c", answer: null },
      { command: "curl d", answer: null },
      { command: "", answer: "[]" },
      { command: "curl e", answer: null },
    ])
  })

  test.each<[unknown, unknown, boolean]>([
    [{ a: 1, b: "x" }, { b: "y", a: 2 }, true],
    [{ a: 1 }, { a: "1" }, false],
    [{ a: 1 }, { a: 1, b: 2 }, false],
    [{ a: 1, b: 2 }, { a: 1 }, false],
    [{ a: null }, { a: {} }, false],
    [{ a: [{ b: 1 }] }, { a: [{ b: 2 }] }, true],
    [{ a: [1] }, { a: { 0: 1 } }, false],
    [[1], [1, 2], false],
  ])("compares %j with %j: %p", (shown, value, expected) => {
    expect(hasForm(shown, value)).toBe(expected)
  })
})
