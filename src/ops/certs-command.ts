/**
 * `bun run certs`: makes and lists development certificates, and prints HELLO lines of devices. A
 * command-line tool; the gateway does not run it.
 *
 * Makes missing certificates. `device --force` replaces an existing device certificate. `server`
 * replaces the server certificate if the CA of the directory has signed it; any other one belongs
 * to the operator and needs `--force`. Prints no key and no secret. Reads only `HELLO_SECRETS` from
 * the environment. Exit status: 0 success, 1 failure, 2 usage error.
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
           makes a development CA and a server certificate if missing, and lists all certificates
       bun run certs device <id>... [--force] [--dir <path>]
           makes <path>/devices/<id>.crt and .key; --force replaces existing files
       bun run certs server [--name <dns-or-ip>]... [--force] [--dir <path>]
           replaces the server certificate with one for localhost and the names;
           --force replaces one that the development CA did not sign
       bun run certs hello <id>...
           prints the first line of each device for DEVICE_AUTH=hello, made with the first secret of
           HELLO_SECRETS (or HELLO_SECRETS_FILE)
The default of <path> is "certs". Put -- before ids that begin with a dash.`

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
  // An error without a code is a defect of this program: show its stack.
  if (!(error instanceof Error && "code" in error)) throw error
  console.error(error.message)
  return error.code === "invalid_device_id" || error.code === "invalid_name" ? 2 : 1
}

async function show(directory: string): Promise<void> {
  const server = pairFiles(directory, "server")
  const { state } = await ensureDevelopmentCertificates({ directory, ...server })
  console.log(state === "made" ? "Made the server certificate." : "Nothing was missing.")
  const authority = pairFiles(directory, "ca")
  // The operator's own server certificate needs no CA in the directory.
  if (existsSync(authority.certFile)) await describe(authority)
  await describe(server)
  const devices = join(directory, "devices")
  if (!existsSync(devices)) return
  const certFiles = (await readdir(devices)).filter((name) => name.endsWith(".crt")).sort()
  for (const name of certFiles) await describe(pairFiles(devices, name.slice(0, -".crt".length)))
}

async function makeDevices(directory: string, deviceIds: ReadonlySet<string>, force: boolean) {
  const ca = await ensureCertificateAuthority(directory)
  // All are made before the first is written, so that no id becomes part of a path before it is
  // validated.
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
 * Throws when the file belongs to another device. On a file system that ignores case, two ids that
 * differ in case only have the same file. The certificate of one must not replace that of the
 * other, or be listed as that of the other.
 */
async function refuseOthers({ certFile }: PairFiles, deviceId: string): Promise<void> {
  let certificate: X509Certificate
  try {
    certificate = await readCertificate(certFile)
  } catch {
    // Missing, or not a certificate: the caller handles both.
    return
  }
  // The time is one at which the certificate is valid, because the device of an expired certificate
  // counts too.
  const named = identityOf(certificate, Date.parse(certificate.validFrom))
  if ("fault" in named || named.deviceId === deviceId) return
  const remedy = "the file system ignores case, so both ids have the same file: use another --dir"
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
  const message = `${certFile} or ${keyFile} exists${detail}: --force replaces both`
  return new CertificateError("present", message)
}

/**
 * `ensurePair` creates the files afterwards, so that a pair that two commands replace at the same
 * time still matches.
 */
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
