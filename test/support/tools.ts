/**
 * Independent programs as peers in tests: back-ends (amqp-tools, Python's pika) and devices
 * (openssl, gnutls-cli). They show that the gateway conforms to AMQP and TLS, and not only to its
 * own libraries.
 *
 * They are looked up in Debian's directories only, because version managers shadow them. A missing
 * program is an error that names its package. No test is skipped, and nothing is retried.
 */
import { isIP } from "node:net"
import { join } from "node:path"
import { until, within } from "./wait.ts"

const DEBIAN_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
const PYTHON = "/usr/bin/python3"
const PIKA_BACKEND = join(import.meta.dir, "pika_backend.py")
const DEFAULT_TIMEOUT_MS = 20_000

/** One message for `amqp-publish`, which can set these properties and no others. */
export interface AmqpPublishOptions {
  url: string
  /** Default: the default exchange, where the routing key is a queue. */
  exchange?: string
  routingKey: string
  body: string | Uint8Array
  /** Always AMQP strings, because the program does not support numbers. */
  headers?: Record<string, string>
  persistent?: boolean
  contentType?: string
  contentEncoding?: string
  replyTo?: string
  timeoutMs?: number
}

/**
 * Publishes unconfirmed and not mandatory, but the broker has read the message when this resolves.
 */
export async function amqpPublish(options: AmqpPublishOptions): Promise<void> {
  const command = [findProgram("amqp-publish", "amqp-tools"), `--url=${options.url}`]
  command.push(`--routing-key=${options.routingKey}`)
  if (options.exchange !== undefined) command.push(`--exchange=${options.exchange}`)
  if (options.persistent === true) command.push("--persistent")
  if (options.contentType !== undefined) command.push(`--content-type=${options.contentType}`)
  if (options.contentEncoding !== undefined) {
    command.push(`--content-encoding=${options.contentEncoding}`)
  }
  if (options.replyTo !== undefined) command.push(`--reply-to=${options.replyTo}`)
  for (const [key, value] of Object.entries(options.headers ?? {})) {
    command.push("--header", `${key}: ${value}`)
  }
  await run(command, options.body, options.timeoutMs)
}

export interface ConsumeOptions {
  url: string
  queue: string
  count: number
  timeoutMs?: number
}

/** Consumes and acknowledges `count` messages; rejects when they do not come in time. */
export async function amqpConsume(options: ConsumeOptions): Promise<Buffer[]> {
  const { url, queue, count } = options
  const command = [findProgram("amqp-consume", "amqp-tools"), `--url=${url}`, `--queue=${queue}`]
  command.push(`--count=${count}`, "--prefetch-count=1")
  // Base64, because `cat` would join the bodies without separators.
  command.push("--", "sh", "-c", "base64 --wrap=0; echo")
  const output = await run(command, "", options.timeoutMs)
  return outputLines(output).map((line) => Buffer.from(line, "base64"))
}

/** One message as parsed by pika. */
export interface PikaMessage {
  body: Buffer
  headers: Record<string, unknown>
  /** The received header table in hexadecimal digits; empty when there was none. */
  headersHex: string
  /** By pika's names (`message_id`, `delivery_mode`, …), without absent ones. */
  properties: Record<string, unknown>
  exchange: string
  routingKey: string
  redelivered: boolean
}

/** Consumes and acknowledges `count` messages; rejects when they do not come in time. */
export async function pikaConsume(options: ConsumeOptions): Promise<PikaMessage[]> {
  const { url, queue, count } = options
  const command = [pythonWithPika(), PIKA_BACKEND, url, "consume", queue, String(count)]
  const output = await run(command, "", options.timeoutMs)
  return outputLines(output).map((line) => {
    const { body_base64, routing_key, headers_hex, ...rest } = JSON.parse(line)
    const body = Buffer.from(body_base64, "base64")
    return { ...rest, body, routingKey: routing_key, headersHex: headers_hex }
  })
}

export interface PikaPublication {
  exchange?: string
  routingKey: string
  body: string | Uint8Array
  /**
   * Whole numbers become AMQP integers of 32 or 64 bits, depending on their size; other types as in
   * `pika_backend.py`.
   */
  headers?: Record<string, unknown>
  /** By pika's names: `message_id`, `correlation_id`, `reply_to`, `expiration` (a string), … */
  properties?: Record<string, unknown>
}

export type PikaOutcome = "confirmed" | "returned" | "nacked"

/**
 * Publishes in order, as mandatory and with publisher confirms. Returns one outcome for each
 * message.
 */
export async function pikaPublish(options: {
  url: string
  messages: PikaPublication[]
  timeoutMs?: number
}): Promise<PikaOutcome[]> {
  const input = options.messages.map(({ body, routingKey, ...rest }) => {
    const body_base64 = Buffer.from(body).toString("base64")
    return `${JSON.stringify({ ...rest, body_base64, routing_key: routingKey })}\n`
  })
  const command = [pythonWithPika(), PIKA_BACKEND, options.url, "publish"]
  const output = await run(command, input.join(""), options.timeoutMs)
  return outputLines(output).map((line) => JSON.parse(line))
}

export interface ProgramDeviceOptions {
  port: number
  /** Default localhost. It is also the name for SNI and verification. */
  host?: string
  /** Without it the server's certificate is not verified. */
  caFile?: string
  /** For mutual TLS. */
  certFile?: string
  keyFile?: string
  /** Further arguments of the program, such as `["-tls1_2"]`. */
  args?: string[]
}

/**
 * A device in its own process. Lines that are sent before its handshake wait in its standard input.
 */
export interface ProgramDevice {
  /**
   * Sends the line and one LF. Resolves when the pipe has accepted it, rejects when the program has
   * ended.
   */
  send(line: string): Promise<void>
  /** The lines received so far, oldest first, without their LF. */
  lines(): readonly string[]
  /** The first `count` lines. Rejects when the program ends with fewer. */
  waitLines(count: number, timeoutMs?: number): Promise<readonly string[]>
  /** Resolves when the program has ended, for any reason. `diagnostics` is its error output. */
  readonly closed: Promise<{ exitCode: number | null; diagnostics: string }>
  /** Closes the TLS connection cleanly and waits for the program. Kills it after 5 s. */
  close(): Promise<void>
}

/** `openssl s_client`. */
export function opensslDevice(options: ProgramDeviceOptions): ProgramDevice {
  const host = options.host ?? "localhost"
  const command = [findProgram("openssl", "openssl"), "s_client", "-quiet"]
  // `-no_ign_eof` must follow -quiet, which would otherwise keep the program alive at the end of
  // its input. Commands are disabled, because a line that starts with Q or R would be one.
  command.push("-no_ign_eof", "-nocommands", "-connect", `${host}:${options.port}`)
  if (isIP(host) === 0) command.push("-servername", host)
  if (options.caFile !== undefined) {
    command.push("-CAfile", options.caFile, "-verify_return_error")
    command.push(isIP(host) === 0 ? "-verify_hostname" : "-verify_ip", host)
  }
  if (options.certFile !== undefined) command.push("-cert", options.certFile)
  if (options.keyFile !== undefined) command.push("-key", options.keyFile)
  return new DeviceProcess([...command, ...(options.args ?? [])])
}

/** `gnutls-cli`. */
export function gnutlsDevice(options: ProgramDeviceOptions): ProgramDevice {
  const command = [findProgram("gnutls-cli", "gnutls-bin"), `--port=${options.port}`]
  // Otherwise its messages about the connection are mixed with received lines. Its errors go to
  // another file, because /dev/stderr would contain both, and cannot be opened when it is a socket
  // from Bun.
  command.push("--logfile=/dev/null")
  if (options.caFile === undefined) command.push("--insecure", "--no-ca-verification")
  else command.push(`--x509cafile=${options.caFile}`)
  if (options.certFile !== undefined) command.push(`--x509certfile=${options.certFile}`)
  if (options.keyFile !== undefined) command.push(`--x509keyfile=${options.keyFile}`)
  return new DeviceProcess([...command, ...(options.args ?? []), options.host ?? "localhost"])
}

/** A device in Python, such as an example of the documentation. It may use no package. */
export function pythonDevice(script: string, args: readonly string[]): ProgramDevice {
  return new DeviceProcess([findProgram("python3", "python3"), script, ...args])
}

/** A back-end in Python that uses pika, such as an example of the documentation. */
export function pikaBackEnd(script: string, args: readonly string[]) {
  return Bun.spawn([pythonWithPika(), script, ...args], {
    env: { PATH: DEBIAN_PATH, LC_ALL: "C.UTF-8" },
    stdio: ["ignore", "pipe", "inherit"],
  })
}

const CLOSE_TIMEOUT_MS = 5_000

class DeviceProcess implements ProgramDevice {
  readonly closed: Promise<{ exitCode: number | null; diagnostics: string }>
  readonly #command: string
  readonly #process: Bun.Subprocess<"pipe", "pipe", "pipe">
  readonly #lines: string[] = []
  #ended = false

  constructor(command: string[]) {
    this.#command = command[0] ?? ""
    this.#process = Bun.spawn(command, {
      env: { PATH: DEBIAN_PATH, LC_ALL: "C.UTF-8" },
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    })
    this.closed = this.#read()
  }

  async send(line: string): Promise<void> {
    // The pipe accepts bytes even after its reader has ended.
    if (this.#ended) throw new Error(`sending: ${this.#command} has ended`)
    this.#process.stdin.write(`${line}\n`)
    await this.#process.stdin.flush()
  }

  lines(): readonly string[] {
    return this.#lines
  }

  async waitLines(count: number, timeoutMs?: number): Promise<readonly string[]> {
    const what = `line ${count} at ${this.#command}`
    const looked = () => this.#lines.length >= count || this.#ended
    await until(looked, { what, ...(timeoutMs === undefined ? {} : { timeoutMs }) })
    if (this.#lines.length < count) {
      const { diagnostics } = await this.closed
      throw new Error(`${this.#command} ended with ${this.#lines.length} lines\n${diagnostics}`)
    }
    return this.#lines.slice(0, count)
  }

  async close(): Promise<void> {
    await this.#process.stdin.end()
    try {
      await within(this.closed, { what: `${this.#command} to end`, timeoutMs: CLOSE_TIMEOUT_MS })
    } catch {
      this.#process.kill("SIGKILL")
      await this.closed
    }
  }

  async #read(): Promise<{ exitCode: number | null; diagnostics: string }> {
    const diagnostics = this.#process.stderr.text()
    const decoder = new TextDecoder()
    let rest = ""
    for await (const chunk of this.#process.stdout) {
      const parts = (rest + decoder.decode(chunk, { stream: true })).split("\n")
      rest = parts.pop() ?? ""
      this.#lines.push(...parts)
    }
    await this.#process.exited
    this.#ended = true
    return { exitCode: this.#process.exitCode, diagnostics: await diagnostics }
  }
}

/** The full path of a Debian program, or an error that names its package. */
export function findProgram(name: string, debianPackage: string): string {
  const path = Bun.which(name, { PATH: DEBIAN_PATH })
  if (path === null) throw new Error(`This test needs ${name}: apt-get install ${debianPackage}`)
  return path
}

let pikaFound = false

export function pythonWithPika(): string {
  if (!pikaFound) {
    findProgram("python3", "python3")
    pikaFound = Bun.spawnSync([PYTHON, "-c", "import pika"]).success
    if (!pikaFound) throw new Error("This test needs pika: apt-get install python3-pika")
  }
  return PYTHON
}

/** Resolves with the standard output. Rejects with the error output when the program fails. */
async function run(
  command: string[],
  input: string | Uint8Array,
  timeoutMs = DEFAULT_TIMEOUT_MS,
): Promise<string> {
  const program = Bun.spawn(command, {
    env: { PATH: DEBIAN_PATH, LC_ALL: "C.UTF-8" },
    stdin: Buffer.from(input),
    stdout: "pipe",
    stderr: "pipe",
    timeout: timeoutMs,
    killSignal: "SIGKILL",
  })
  const [output, complaint] = await Promise.all([program.stdout.text(), program.stderr.text()])
  if ((await program.exited) === 0) return output
  const how = program.signalCode === null ? `status ${program.exitCode}` : `over ${timeoutMs} ms`
  const said = `${complaint}${outputLines(output).length} lines of output`
  throw new Error(`${command[0]} failed (${how}): ${said}`)
}

function outputLines(output: string): string[] {
  return output.split("\n").slice(0, -1)
}
