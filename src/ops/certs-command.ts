/**
 * `bun run certs`: makes development certificates and says what is there, and makes the first lines of
 * devices that say who they are by HELLO. For a person at a terminal, before devices connect; the gateway
 * itself never runs this.
 *
 * Makes what is missing. What is there is replaced by `device --force`, and by `server` when this
 * directory's CA signed it; any other server certificate is its operator's and takes `--force` too.
 * Never prints a key or a secret; reads of the environment only `HELLO_SECRETS`. Exit status: 0 done, 1 could not, 2 asked wrongly.
 */

import { X509Certificate } from "node:crypto"
import { existsSync } from "node:fs"
import { readdir, rm } from "node:fs/promises"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { ConfigurationError, loadHelloSecrets } from "../config/config.ts"
import { identityOf } from "../device/certificate-identity.ts"
import { helloLine } from "../device/hello.ts"
import { DEVICE_NAME_RULE, isDeviceName } from "../device/ids.ts"
import {
  CertificateError,
  createDeviceCertificate,
  createServerCertificate,
  ensureCertificateAuthority,
  ensureDevelopmentCertificates,
  ensurePair,
  type PairFiles,
  type PemPair,
  readCertificate,
} from "./certificates.ts"

const USAGE = `usage: bun run certs [--dir <path>]
           makes a development CA and a server certificate if missing, and shows what is there
       bun run certs device <id>... [--force] [--dir <path>]
           makes <path>/devices/<id>.crt and .key; --force replaces those that are there
       bun run certs server [--name <dns-or-ip>]... [--force] [--dir <path>]
           replaces the server certificate by one for localhost and the names;
           --force replaces one that the development CA did not sign
       bun run certs hello <id>...
           prints the first line of each device for DEVICE_AUTH=hello, made with the first of
           HELLO_SECRETS (or HELLO_SECRETS_FILE)
<path> is "certs" unless given. Put -- before ids that begin with a dash.`

type Request =
  | { kind: "help" }
  | { kind: "show"; directory: string }
  | { kind: "device"; directory: string; deviceIds: ReadonlySet<string>; force: boolean }
  | { kind: "hello"; deviceIds: readonly string[] }
  | { kind: "server"; directory: string; names: string[]; force: boolean }

class UsageError extends Error {
  override readonly name = "UsageError"
}

if (import.meta.main) process.exitCode = await runCertsCommand(process.argv.slice(2))

/** Runs the command with `args`, writes to stdout and stderr, and returns the exit status. */
export async function runCertsCommand(args: string[]): Promise<0 | 1 | 2> {
  try {
    return await perform(parseRequest(args))
  } catch (error) {
    return report(error)
  }
}

function parseRequest(args: string[]): Request {
  const { values, positionals } = parseOptions(args)
  const { dir: directory, name: names, force, help } = values
  const [kind, ...rest] = positionals
  if (help) return { kind: "help" }
  if (directory === "") throw new UsageError("--dir needs a path")
  if (kind !== "server" && names.length > 0) throw new UsageError("--name goes with server")
  if (kind === undefined) {
    if (force) throw new UsageError("--force goes with device and server")
    return { kind: "show", directory }
  }
  if (kind === "device") {
    if (rest.length === 0) throw new UsageError("device needs at least one device id")
    return { kind, directory, deviceIds: new Set(rest), force }
  }
  if (kind === "hello") {
    if (rest.length === 0) throw new UsageError("hello needs at least one device id")
    if (force) throw new UsageError("--force goes with device and server")
    return { kind, deviceIds: rest }
  }
  if (kind !== "server") throw new UsageError(`unknown argument ${JSON.stringify(kind)}`)
  if (rest.length > 0) throw new UsageError("each of the server's names needs its own --name")
  return { kind, directory, names, force }
}

function parseOptions(args: string[]) {
  try {
    return parseArgs({
      args,
      allowPositionals: true,
      options: {
        dir: { type: "string", default: "certs" },
        name: { type: "string", multiple: true, default: [] },
        force: { type: "boolean", default: false },
        help: { type: "boolean", short: "h", default: false },
      },
    })
  } catch (cause) {
    throw new UsageError((cause as Error).message, { cause })
  }
}

async function perform(request: Request): Promise<0 | 1> {
  switch (request.kind) {
    case "help":
      console.log(USAGE)
      return 0
    case "show":
      await show(request.directory)
      return 0
    case "device":
      return makeDevices(request.directory, request.deviceIds, request.force)
    case "hello":
      printHellos(request.deviceIds)
      return 0
    case "server":
      await replaceServer(request.directory, request.names, request.force)
      return 0
  }
}

function report(error: unknown): 1 | 2 {
  if (error instanceof UsageError) {
    console.error(`${error.message}\n${USAGE}`)
    return 2
  }
  if (error instanceof ConfigurationError) {
    console.error(error.faults.join("\n"))
    return 2
  }
  // What has no code is a mistake in this program, and its stack is wanted.
  if (!(error instanceof Error && "code" in error)) throw error
  console.error(error.message)
  return error.code === "invalid_device_id" || error.code === "invalid_name" ? 2 : 1
}

async function show(directory: string): Promise<void> {
  const server = pairFiles(directory, "server")
  const { state } = await ensureDevelopmentCertificates({ directory, ...server })
  console.log(state === "made" ? "Made the server certificate." : "Nothing was missing.")
  const authority = pairFiles(directory, "ca")
  // A server certificate of the operator's own needs no CA beside it.
  if (existsSync(authority.certFile)) await describe(authority)
  await describe(server)
  const devices = join(directory, "devices")
  if (!existsSync(devices)) return
  const certFiles = (await readdir(devices)).filter((name) => name.endsWith(".crt")).sort()
  for (const name of certFiles) await describe(pairFiles(devices, name.slice(0, -".crt".length)))
}

async function makeDevices(directory: string, deviceIds: ReadonlySet<string>, force: boolean) {
  const ca = await ensureCertificateAuthority(directory)
  // All are made before the first is written: no id becomes a path before it was accepted.
  const pairs: [deviceId: string, PemPair][] = []
  for (const id of deviceIds) pairs.push([id, await createDeviceCertificate(ca, id)])
  let status: 0 | 1 = 0
  for (const [id, pair] of pairs) {
    const files = pairFiles(join(directory, "devices"), id)
    try {
      await refuseOthers(files, id)
      if (force) await remove(files)
      const state = await ensurePair(files, async () => pair)
      if (state === "present") throw alreadyThere(files)
      await describe(files)
    } catch (error) {
      report(error)
      status = 1
    }
  }
  return status
}

/**
 * A file system may ignore case, so that two ids that differ in case only have one file: the certificate of one id must
 * not replace, or be shown as, that of the other.
 */
async function refuseOthers({ certFile }: PairFiles, deviceId: string): Promise<void> {
  let certificate: X509Certificate
  try {
    certificate = await readCertificate(certFile)
  } catch {
    // Missing, or not a certificate: the caller handles both.
    return
  }
  // The owner of an expired certificate counts too.
  const named = identityOf(certificate, Date.parse(certificate.validFrom))
  if ("fault" in named || named.deviceId === deviceId) return
  const remedy = "the file system ignores case, so both ids have one file: use another --dir"
  const message = `${certFile} is the certificate of the device ${named.deviceId}: ${remedy}`
  throw new CertificateError("present", message)
}

async function replaceServer(directory: string, names: string[], force: boolean): Promise<void> {
  const files = pairFiles(directory, "server")
  const ca = await ensureCertificateAuthority(directory)
  const pair = await createServerCertificate(ca, names)
  const there = existsSync(files.certFile) || existsSync(files.keyFile)
  if (there && !force) {
    const authorityKey = new X509Certificate(ca.certPem).publicKey
    const ours = (await readCertificate(files.certFile)).verify(authorityKey)
    if (!ours) throw alreadyThere(files, " and was not signed by the development CA")
  }
  await remove(files)
  if ((await ensurePair(files, async () => pair)) === "present") throw alreadyThere(files, " again")
  await describe(files)
}

function printHellos(deviceIds: readonly string[]): void {
  const [secret = ""] = loadHelloSecrets()
  const faulty = deviceIds.find((id) => !isDeviceName(id))
  if (faulty !== undefined) {
    throw new UsageError(`${JSON.stringify(faulty)}: ${DEVICE_NAME_RULE}`)
  }
  for (const id of deviceIds) console.log(helloLine(id, secret))
}

function pairFiles(directory: string, name: string): PairFiles {
  return { certFile: join(directory, `${name}.crt`), keyFile: join(directory, `${name}.key`) }
}

function alreadyThere({ certFile, keyFile }: PairFiles, detail = ""): CertificateError {
  const message = `${certFile} with ${keyFile} is there already${detail}: --force replaces it`
  return new CertificateError("present", message)
}

/** Then `ensurePair` can claim the names: a pair that two commands replace at once still matches. */
async function remove({ certFile, keyFile }: PairFiles): Promise<void> {
  await rm(keyFile, { force: true })
  await rm(certFile, { force: true })
}

async function describe({ certFile, keyFile }: PairFiles): Promise<void> {
  const certificate = await readCertificate(certFile)
  const expires = certificate.validToDate
  const expired = expires.getTime() <= Date.now() ? " (has expired)" : ""
  console.log(certFile)
  console.log(`  key          ${existsSync(keyFile) ? keyFile : "missing"}`)
  console.log(`  subject      ${certificate.subject.replaceAll("\n", ", ")}`)
  if (certificate.subjectAltName) console.log(`  names        ${certificate.subjectAltName}`)
  console.log(`  expires      ${expires.toISOString()}${expired}`)
  console.log(`  fingerprint  SHA-256 ${certificate.fingerprint256}`)
}
