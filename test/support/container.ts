/**
 * Builds and runs the project's image without a registry. The base image is made of Debian's
 * packages (mmdebstrap) and the Bun that runs the test, under the name that the Dockerfile uses.
 *
 * podman has a storage of its own in a temporary directory, so the images of the machine are neither
 * used nor changed. Containers use the network of the machine. Needs root.
 */

import { copyFileSync, mkdirSync, mkdtempSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { findProgram } from "./tools.ts"

const ROOT = join(import.meta.dir, "../..")
export const IMAGE = "localhost/owsla:test"
const DEBIAN = "localhost/owsla-debian:test"
/** Behind a proxy with its own CA, npm packages are reached with the CAs of the machine only. */
const CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
const MAX_OPEN_FILES = 10_000
/** runc must not raise limits without CAP_SYS_RESOURCE, as in a container; podman's defaults would. */
const LIMITS = [`nofile=${MAX_OPEN_FILES}:${MAX_OPEN_FILES}`, "nproc=4096:4096"]

const BASE_FILE = `FROM ${DEBIAN}
COPY bun /usr/local/bin/bun
COPY ca.crt ${CA_FILE}
RUN groupadd --gid 1000 bun && useradd --uid 1000 --gid bun --create-home bun
RUN echo cafile=${CA_FILE} > /root/.npmrc
`

export interface Container {
  /** Log lines so far, standard output and standard error. */
  readonly logs: () => Promise<string>
  /** Runs a command in it. Resolves with its exit status. */
  readonly exec: (command: readonly string[]) => Promise<number>
  readonly signal: (signal: string) => Promise<void>
  /** Resolves with the exit status. */
  readonly exited: () => Promise<number>
}

export class Podman {
  readonly #directory = mkdtempSync(join(tmpdir(), "owsla-podman-"))
  readonly #program = findProgram("podman", "podman")

  /** Takes about two minutes. */
  async build(): Promise<void> {
    findProgram("runc", "runc")
    const tar = join(this.#directory, "debian.tar")
    const debootstrap = [findProgram("mmdebstrap", "mmdebstrap"), "--variant=minbase"]
    await run([...debootstrap, "--include=ca-certificates", "bookworm", tar])
    await this.podman("import", tar, DEBIAN)
    const context = join(this.#directory, "base")
    mkdirSync(context)
    writeFileSync(join(context, "Containerfile"), BASE_FILE)
    copyFileSync(process.execPath, join(context, "bun"))
    copyFileSync(CA_FILE, join(context, "ca.crt"))
    await this.#build(["--tag", "docker.io/oven/bun:1.4.5-slim", context])
    await this.#build(["--format", "docker", "--tag", IMAGE, ROOT])
  }

  /** The image's configuration, as `docker inspect` shows it. */
  async config(): Promise<Record<string, unknown>> {
    const [image] = JSON.parse(await this.podman("image", "inspect", IMAGE))
    return { ...image.Config, Healthcheck: image.Healthcheck }
  }

  /** With a read-only root. @param mounts `source:target:options`. */
  async run(
    environment: Readonly<Record<string, string>>,
    mounts: readonly string[],
    args: readonly string[] = [],
  ): Promise<Container> {
    const settings = Object.entries(environment).map(([name, value]) => `--env=${name}=${value}`)
    const name = `owsla-${crypto.randomUUID().slice(0, 8)}`
    await this.podman(
      ...["run", "--detach", "--name", name, "--read-only", "--network=host", "--pull=never"],
      ...["--cap-drop=ALL", "--security-opt=no-new-privileges"],
      ...LIMITS.map((limit) => `--ulimit=${limit}`),
      ...[...settings, ...mounts.map((mount) => `--volume=${mount}`), IMAGE],
      ...args,
    )
    return {
      logs: () => this.podman("logs", name),
      exec: (command) => this.#status("exec", name, ...command),
      signal: async (signal) => void (await this.podman("kill", `--signal=${signal}`, name)),
      exited: async () => Number(await this.podman("wait", name)),
    }
  }

  /** Removes all containers and images of this storage. */
  async dispose(): Promise<void> {
    await this.podman("rm", "--all", "--force", "--time=0")
    await this.podman("rmi", "--all", "--force")
    await run(["rm", "--recursive", "--force", this.#directory])
  }

  /** Resolves with standard output and standard error. */
  podman(...args: string[]): Promise<string> {
    return run([...this.#command, ...args])
  }

  #build(args: readonly string[]): Promise<string> {
    return this.podman("build", "--pull=never", "--isolation=chroot", ...args)
  }

  async #status(...args: string[]): Promise<number> {
    const child = Bun.spawn([...this.#command, ...args], { stdio: ["ignore", "ignore", "ignore"] })
    return await child.exited
  }

  get #command(): string[] {
    const storage = ["--root", join(this.#directory, "storage")]
    const state = ["--runroot", join(this.#directory, "run")]
    const runtime = ["--runtime", "runc", "--cgroup-manager", "cgroupfs"]
    return [this.#program, ...storage, ...state, ...runtime]
  }
}

async function run(command: readonly string[]): Promise<string> {
  const child = Bun.spawn([...command], { stdio: ["ignore", "pipe", "pipe"] })
  const [output, complaint] = await Promise.all([child.stdout.text(), child.stderr.text()])
  if ((await child.exited) !== 0) throw new Error(`${command.join(" ")}: ${complaint}`)
  return output.trim() === "" ? complaint : output
}
