/**
 * A network namespace for one test file with two veth pairs: one to the broker's side, on which
 * faults are made, and one to the devices' side, which stays free of faults.
 *
 *   broker's side 10.99.n.1 ── 10.99.n.2 ┐
 *                                        ├ namespace
 *   devices' side 10.99.n.5 ── 10.99.n.6 ┘
 *
 * nftables drops packets and tc slows them down. Both need root, or root in a user namespace:
 * `ownNetwork` is the command prefix that creates one for an ordinary user. A holder process keeps
 * the namespace. It waits on a pipe from the test process. When the pipe closes, because of
 * `remove` or because the test process has died, the holder ends the remaining processes in the
 * namespace and then itself. The kernel removes the namespace and both veth pairs with its last
 * process.
 */

import { existsSync, readFileSync, readlinkSync } from "node:fs"
import { findProgram } from "./tools.ts"
import { until, within } from "./wait.ts"

export type Direction = "to the broker" | "from the broker"

const HOLDER = `
cat >/dev/null
own=$(readlink /proc/self/ns/net)
for process in /proc/[0-9]*; do
  id=\${process#/proc/}
  if [ "$id" != $$ ] && [ "$(readlink "$process/ns/net" 2>/dev/null)" = "$own" ]; then
    kill -KILL "$id" 2>/dev/null
  fi
done
`

/** Debian's folders for programs. The PATH of an ordinary user does not contain all of them. */
const PACKAGES = { ip: "iproute2", tc: "iproute2", nft: "nftables", nsenter: "util-linux" } as const

const NEW_USER_NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]

/**
 * Settings that forbid user namespaces: the file, the value that forbids them, and the command that
 * allows them.
 */
const SYSCTLS: readonly (readonly [file: string, forbidding: string, remedy: string])[] = [
  ["kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"],
  ["user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"],
  ["user/max_net_namespaces", "0", "sysctl user.max_net_namespaces=10000"],
  [
    "kernel/apparmor_restrict_unprivileged_userns",
    "1",
    "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
  ],
]

/**
 * The prefix for a command that must create network namespaces: empty for root. For an ordinary
 * user the command runs as root of a new user namespace, in a new network with the loopback
 * interface only. Also empty when user namespaces are forbidden; then the error of `Namespace.make`
 * gives the reason.
 */
export function ownNetwork(): readonly string[] {
  if (process.getuid?.() === 0) return []
  if (!Bun.spawnSync([...NEW_USER_NAMESPACE, "true"], { stderr: "ignore" }).success) return []
  const upAndRun = `${programOf("ip")} link set lo up && exec "$@"`
  return [...NEW_USER_NAMESPACE, "sh", "-c", upAndRun, "sh"]
}

export class Namespace {
  /** The address of the broker's side, from within the namespace. */
  readonly brokerAddress: string
  /** The address by which devices reach servers in the namespace. */
  readonly deviceAddress: string
  readonly #wire: string
  readonly #holder: Bun.Subprocess<"pipe", "ignore", "pipe">

  private constructor(id: number, holder: Bun.Subprocess<"pipe", "ignore", "pipe">) {
    this.brokerAddress = `10.99.${id}.1`
    this.deviceAddress = `10.99.${id}.6`
    this.#wire = `ow${id}b`
    this.#holder = holder
  }

  /** @throws when a namespace cannot be created. The message names the cause and the remedy. */
  static async make(): Promise<Namespace> {
    const id = 1 + Math.floor(Math.random() * 250)
    const namespace = new Namespace(id, await startHolder())
    const holder = String(namespace.#holder.pid)
    try {
      for (const [wire, outside, inside] of [
        [`ow${id}b`, `10.99.${id}.1/30`, `10.99.${id}.2/30`],
        [`ow${id}d`, `10.99.${id}.5/30`, `10.99.${id}.6/30`],
      ] as const) {
        const peer = ["peer", "name", `${wire}i`, "netns", holder]
        run("ip", "link", "add", "name", wire, "type", "veth", ...peer)
        run("ip", "addr", "add", outside, "dev", wire)
        run("ip", "link", "set", wire, "up")
        namespace.#within("ip", "addr", "add", inside, "dev", `${wire}i`)
        namespace.#within("ip", "link", "set", `${wire}i`, "up")
      }
      namespace.#within("ip", "link", "set", "lo", "up")
      namespace.#within("nft", "add", "table", "inet", "faults")
      for (const hook of ["input", "output"]) {
        const chain = `{ type filter hook ${hook} priority 0 ; }`
        namespace.#within("nft", "add", "chain", "inet", "faults", hook, chain)
      }
    } catch (error) {
      await namespace.remove()
      throw error
    }
    return namespace
  }

  /** The prefix for a command that must run in the namespace. */
  get prefix(): readonly string[] {
    return ["nsenter", `--net=/proc/${this.#holder.pid}/ns/net`]
  }

  /** Drops all packets to or from the broker's side in these directions. */
  drop(...directions: readonly Direction[]): void {
    for (const direction of directions) this.#rule(direction, "drop")
  }

  /** Drops this percentage of packets in both directions. */
  lose(percent: number): void {
    const chance = ["numgen", "random", "mod", "100", "<", String(percent), "drop"]
    this.#rule("to the broker", ...chance)
    this.#rule("from the broker", ...chance)
  }

  /** Limits the rate in each direction to this many bits per second. */
  limit(rate: string): void {
    const shaping = ["root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms"]
    run("tc", "qdisc", "add", "dev", this.#wire, ...shaping)
    this.#within("tc", "qdisc", "add", "dev", `${this.#wire}i`, ...shaping)
  }

  heal(): void {
    for (const hook of ["input", "output"]) {
      this.#within("nft", "flush", "chain", "inet", "faults", hook)
    }
    // Fails when there is no limit to delete.
    const unlimit = (wire: string) => [programOf("tc"), "qdisc", "del", "dev", wire, "root"]
    Bun.spawnSync(unlimit(this.#wire))
    Bun.spawnSync([...this.prefix, ...unlimit(`${this.#wire}i`)])
  }

  /** Ends the processes in the namespace. Then the kernel removes it and its veth pairs. */
  async remove(): Promise<void> {
    await this.#holder.stdin.end()
    await within(this.#holder.exited, { what: "the namespace's holder to end" })
    await until(() => !existsSync(`/sys/class/net/${this.#wire}`), { what: "its wires to go" })
  }

  #rule(direction: Direction, ...what: readonly string[]): void {
    const [hook, side] =
      direction === "to the broker" ? ["output", "oifname"] : ["input", "iifname"]
    this.#within("nft", "add", "rule", "inet", "faults", hook, side, `${this.#wire}i`, ...what)
  }

  #within(program: Program, ...args: readonly string[]): void {
    run("nsenter", ...this.prefix.slice(1), programOf(program), ...args)
  }
}

/** Resolves when the process has its own network namespace. */
async function startHolder(): Promise<Bun.Subprocess<"pipe", "ignore", "pipe">> {
  const holder = Bun.spawn(["unshare", "--net", "sh", "-c", HOLDER], {
    stdio: ["pipe", "ignore", "pipe"],
    // Ignore signals from the terminal: they are for the tests, and the holder ends after them.
    detached: true,
  })
  const network = (id: number | "self") => readlinkSync(`/proc/${id}/ns/net`)
  const apart = () => holder.exitCode !== null || network(holder.pid) !== network("self")
  await until(apart, { what: "a network namespace" })
  if (holder.exitCode === null) return holder
  throw new Error(`${needs()}: ${(await new Response(holder.stderr).text()).trim()}`)
}

/** Why a namespace cannot be created here, and how to allow it. */
function needs(): string {
  const isOrdinary = process.getuid?.() !== 0
  return namespaceAdvice(isOrdinary && ownNetwork().length > 0, (file) => {
    const path = `/proc/sys/${file}`
    return existsSync(path) ? readFileSync(path, "utf8").trim() : null
  })
}

/**
 * @param couldEnter whether the user may create a user namespace but has not.
 * @param sysctl returns the value of a file below /proc/sys; null when the file does not exist.
 */
export function namespaceAdvice(
  couldEnter: boolean,
  sysctl: (file: string) => string | null,
): string {
  const need = "network faults need a network namespace, made by root or in a user namespace"
  if (couldEnter) return `${need}; bun run check and bun run faults make one`
  const remedies = SYSCTLS.filter(([file, forbidding]) => sysctl(file) === forbidding).map(
    ([, , remedy]) => remedy,
  )
  if (remedies.length > 0) {
    return `${need}; this machine forbids user namespaces, allow them by: ${remedies.join("; ")}`
  }
  return `${need}; this container allows neither, it needs CAP_SYS_ADMIN and CAP_NET_ADMIN or a seccomp profile that allows unshare`
}

type Program = keyof typeof PACKAGES

function programOf(name: Program): string {
  return findProgram(name, PACKAGES[name])
}

function run(program: Program, ...args: readonly string[]): void {
  const result = Bun.spawnSync([programOf(program), ...args], {
    stdio: ["ignore", "ignore", "pipe"],
  })
  if (result.exitCode === 0) return
  const command = [program, ...args].join(" ")
  throw new Error(`${needs()}: ${command}: ${result.stderr.toString().trim()}`)
}
