/**
 * A network namespace of the test's own, with a gateway in it, and two wires out of it: one to the broker's side,
 * on which faults are made, and one to the devices' side, which they do not touch.
 *
 *   broker's side 10.99.n.1 ── 10.99.n.2 ┐
 *                                        ├ namespace
 *   devices' side 10.99.n.5 ── 10.99.n.6 ┘
 *
 * Packets are dropped by nftables and slowed down by tc, as root. What cannot be set up is an error that says what
 * is missing. `remove` takes everything away; what a killed run left is taken away by the next.
 */

import { existsSync } from "node:fs"

const PREFIX = "owsla"

export type Direction = "to the broker" | "from the broker"

export class Namespace {
  readonly name: string
  /** Where the broker's side is reached from within. */
  readonly brokerAddress: string
  /** Where what listens within is reached by devices. */
  readonly deviceAddress: string
  readonly #wire: string

  private constructor(id: number) {
    this.name = `${PREFIX}${process.pid}-${id}`
    this.brokerAddress = `10.99.${id}.1`
    this.deviceAddress = `10.99.${id}.6`
    this.#wire = `ow${id}b`
  }

  static make(): Namespace {
    removeLeftovers()
    const id = 1 + Math.floor(Math.random() * 250)
    const namespace = new Namespace(id)
    const { name } = namespace
    run("ip", "netns", "add", name)
    try {
      for (const [wire, outside, inside] of [
        [`ow${id}b`, `10.99.${id}.1/30`, `10.99.${id}.2/30`],
        [`ow${id}d`, `10.99.${id}.5/30`, `10.99.${id}.6/30`],
      ] as const) {
        run("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", name)
        namespace.#within("ip", "link", "set", "eth0", "name", `${wire}i`)
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
      namespace.remove()
      throw error
    }
    return namespace
  }

  /** What to put before a command so that it runs within. */
  get prefix(): readonly string[] {
    return ["ip", "netns", "exec", this.name]
  }

  /** Drops every packet of the broker's wire in these directions. */
  drop(...directions: readonly Direction[]): void {
    for (const direction of directions) this.#rule(direction, "drop")
  }

  /** Drops that many packets of a hundred, both ways. */
  lose(percent: number): void {
    const chance = ["numgen", "random", "mod", "100", "<", String(percent), "drop"]
    this.#rule("to the broker", ...chance)
    this.#rule("from the broker", ...chance)
  }

  /** Lets so many bits a second pass, each way. */
  limit(rate: string): void {
    const shaping = ["root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms"]
    run("tc", "qdisc", "add", "dev", this.#wire, ...shaping)
    this.#within("tc", "qdisc", "add", "dev", `${this.#wire}i`, ...shaping)
  }

  heal(): void {
    for (const hook of ["input", "output"]) {
      this.#within("nft", "flush", "chain", "inet", "faults", hook)
    }
    // Nothing to delete where nothing was limited.
    Bun.spawnSync(["tc", "qdisc", "del", "dev", this.#wire, "root"])
    Bun.spawnSync([...this.prefix, "tc", "qdisc", "del", "dev", `${this.#wire}i`, "root"])
  }

  /** With the namespace go its ends of the wires, and with them the others. */
  remove(): void {
    removeNamespace(this.name)
  }

  #rule(direction: Direction, ...what: readonly string[]): void {
    const [hook, side] =
      direction === "to the broker" ? ["output", "oifname"] : ["input", "iifname"]
    this.#within("nft", "add", "rule", "inet", "faults", hook, side, `${this.#wire}i`, ...what)
  }

  #within(...command: readonly string[]): void {
    run(...this.prefix, ...command)
  }
}

function run(...command: readonly string[]): void {
  const needs = "network faults need root, a kernel with namespaces, and iproute2 and nftables"
  let result: Bun.SyncSubprocess<"ignore", "pipe">
  try {
    result = Bun.spawnSync([...command], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    }) as never
  } catch (error) {
    throw new Error(`${needs}: ${error instanceof Error ? error.message : error}`)
  }
  if (result.exitCode === 0) return
  throw new Error(`${needs}: ${command.join(" ")}: ${result.stderr.toString().trim()}`)
}

function removeLeftovers(): void {
  const listed = Bun.spawnSync(["ip", "netns", "list"]).stdout.toString()
  for (const [name, pid] of listed.matchAll(new RegExp(`^${PREFIX}(\\d+)-\\d+`, "gm"))) {
    if (!existsSync(`/proc/${pid}`)) removeNamespace(name)
  }
}

/** What still runs within is ended first: it would keep the namespace, and with it the wires and their addresses. */
function removeNamespace(name: string): void {
  const within = Bun.spawnSync(["ip", "netns", "pids", name]).stdout.toString()
  for (const [id] of within.matchAll(/\d+/g)) {
    try {
      process.kill(Number(id), "SIGKILL")
    } catch {
      // It ended by itself.
    }
  }
  for (const end of ["b", "d"]) {
    Bun.spawnSync(["ip", "link", "del", `ow${name.split("-")[1]}${end}`])
  }
  Bun.spawnSync(["ip", "netns", "del", name])
}
