/**
 * Devices with small receive buffers: clients in C with BearSSL, mbedTLS and wolfSSL receive a
 * command of several kilobytes when TLS_MAX_RECORD_BYTES fits into their buffers, and fail when it
 * does not.
 *
 * The programs in `clients/` are compiled with `gcc`; `sh test/install long` installs it and the
 * libraries.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { startGateway, testCaFile } from "../support/gateway.ts"
import { sendToOnlyDevice } from "../support/only-device.ts"
import { measureRecords } from "../support/tls-records.ts"
import { findProgram } from "../support/tools.ts"
import { within } from "../support/wait.ts"

const LIMIT_MS = 60_000
const CLIENTS = join(import.meta.dir, "clients")
const COMMAND = "open the door ".repeat(500)
const RECEIVE_BYTES = 2_048
/** What a cipher adds to a record, at most. */
const ADDED_BYTES = 24
const directory = mkdtempSync(join(tmpdir(), "owsla-small-buffers-"))

afterAll(() => rmSync(directory, { recursive: true, force: true }))

interface Client {
  readonly name: string
  readonly libraries: readonly string[]
  /** What it writes to standard error when a record does not fit into its buffer. */
  readonly tooLong: RegExp
  /** What it writes when the certificate comes in several records; null when it accepts that. */
  readonly split: RegExp | null
}

const clients: Client[] = [
  // BR_ERR_TOO_LARGE
  { name: "bearssl", libraries: ["-lbearssl"], tooLong: /^BearSSL: 6$/m, split: null },
  {
    name: "mbedtls",
    libraries: ["-lmbedtls", "-lmbedx509", "-lmbedcrypto"],
    tooLong: /^a record is longer than the receive buffer/m,
    // MBEDTLS_ERR_SSL_FEATURE_UNAVAILABLE (Mbed-TLS/mbedtls#1840)
    split: /^the mbedTLS handshake: -28800$/m,
  },
  // MEMORY_E
  { name: "wolfssl", libraries: ["-lwolfssl"], tooLong: /^wolfSSL_read: -125$/m, split: null },
]

function compile(name: string, libraries: readonly string[]): string {
  const program = join(directory, name)
  const flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", program]
  const command = [findProgram("gcc", "gcc"), ...flags, join(CLIENTS, `${name}.c`), ...libraries]
  const compiled = Bun.spawnSync(command)
  if (!compiled.success) throw new Error(`${name}.c: ${compiled.stderr}`)
  return program
}

interface Visit {
  readonly output: string
  readonly complaint: string
  readonly status: number
  /** The longest record that the gateway has sent. */
  readonly longest: number
}

/** A client connects to a new gateway, receives the command if it is admitted, and ends. */
async function visit(program: string, settings: Record<string, string>): Promise<Visit> {
  const gateway = await startGateway(settings)
  const records = await measureRecords(gateway.devicePort)
  const client = Bun.spawn([program, String(records.port), testCaFile(), String(RECEIVE_BYTES)], {
    stdio: ["ignore", "pipe", "pipe"],
  })
  try {
    const ended = Promise.all([client.stdout.text(), client.stderr.text(), client.exited])
    const sent = sendToOnlyDevice(gateway, COMMAND)
    // When the client is not admitted, it ends before the command is sent.
    await Promise.race([sent.catch(() => undefined), ended])
    const [output, complaint, status] = await within(ended, { what: `${program} to end` })
    return { output, complaint, status, longest: records.longest }
  } finally {
    client.kill("SIGKILL")
    records.stop()
    await gateway.stop()
  }
}

describe.each(clients)("a client with $name and room for 2 KiB", (client) => {
  const { name, libraries, tooLong, split } = client
  let program: string

  beforeAll(() => {
    program = compile(name, libraries)
  }, LIMIT_MS)

  const receives = (max: number) => async () => {
    const received = await visit(program, { TLS_MAX_RECORD_BYTES: String(max) })
    expect(received).toMatchObject({ complaint: "", status: 0, output: `${COMMAND}\n` })
    expect(received.longest).toBeGreaterThan(max)
    expect(received.longest).toBeLessThanOrEqual(max + ADDED_BYTES)
  }

  test("receives a command of 7,000 bytes in records of 1,024", receives(1_024), LIMIT_MS)

  if (split === null) {
    test("receives the certificate in records of 512 bytes", receives(512), LIMIT_MS)
  } else {
    test(
      "refuses the certificate in records of 512 bytes",
      async () => {
        const { status, complaint } = await visit(program, { TLS_MAX_RECORD_BYTES: "512" })
        expect(complaint).toMatch(split)
        expect(status).toBe(1)
      },
      LIMIT_MS,
    )
  }

  test(
    "fails with full records",
    async () => {
      const { status, output, complaint, longest } = await visit(program, {})
      expect(complaint).toMatch(tooLong)
      expect({ status, output }).toEqual({ status: 1, output: "" })
      expect(longest).toBeGreaterThan(COMMAND.length)
    },
    LIMIT_MS,
  )
})
