/**
 * A network for the nodes of a cluster. Each node has its own network namespace. All are connected
 * to one bridge, and so is the machine itself.
 *
 *   machine 10.98.n.1 ── bridge ┬── 10.98.n.11 node 0
 *                               ├── 10.98.n.12 node 1
 *                               └── 10.98.n.13 node 2
 *
 * To cut a node off, nftables drops all packets that enter or leave its namespace. Needs root, or
 * root in a user namespace. `remove` deletes everything. The next run deletes the remains of a
 * killed run.
 */

import { existsSync } from "node:fs"

const PREFIX = "owsla-cluster"

export class NodeNetwork {
  readonly addresses: readonly string[]
  readonly #names: readonly string[]
  readonly #bridge: string

  private constructor(id: number, count: number) {
    const each = Array.from({ length: count }, (_, at) => at)
    this.#bridge = `owc${id}`
    this.#names = each.map((at) => `${PREFIX}${process.pid}-${id}-${at}`)
    this.addresses = each.map((at) => `10.98.${id}.${11 + at}`)
  }

  static make(count: number): NodeNetwork {
    removeLeftovers()
    const id = 1 + Math.floor(Math.random() * 250)
    const network = new NodeNetwork(id, count)
    const bridge = network.#bridge
    run("ip", "link", "add", bridge, "type", "bridge")
    try {
      run("ip", "addr", "add", `10.98.${id}.1/24`, "dev", bridge)
      run("ip", "link", "set", bridge, "up")
      for (const [at, name] of network.#names.entries()) {
        const wire = `${bridge}n${at}`
        run("ip", "netns", "add", name)
        run("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", wire, "master", bridge, "up")
        const within = network.prefix(at)
        run(...within, "ip", "addr", "add", `${network.addresses[at]}/24`, "dev", "eth0")
        run(...within, "ip", "link", "set", "eth0", "up")
        run(...within, "ip", "link", "set", "lo", "up")
        run(...within, "nft", "add", "table", "inet", "faults")
        for (const hook of ["input", "output"]) {
          const chain = `{ type filter hook ${hook} priority 0 ; }`
          run(...within, "nft", "add", "chain", "inet", "faults", hook, chain)
        }
      }
    } catch (error) {
      network.remove()
      throw error
    }
    return network
  }

  /** The prefix for a command that must run in this node's namespace. */
  prefix(node: number): readonly string[] {
    return ["ip", "netns", "exec", this.#names[node] ?? ""]
  }

  /**
   * Drops all packets between this node and the rest of the network. Its own loopback still works.
   */
  cutOff(node: number): void {
    const rules = [
      ["input", "iifname"],
      ["output", "oifname"],
    ] as const
    for (const [hook, side] of rules) {
      run(
        ...this.prefix(node),
        ...["nft", "add", "rule", "inet", "faults", hook, side],
        "eth0",
        "drop",
      )
    }
  }

  heal(node: number): void {
    for (const hook of ["input", "output"]) {
      run(...this.prefix(node), "nft", "flush", "chain", "inet", "faults", hook)
    }
  }

  /** Deleting a namespace deletes its end of the wire, and so the other end. */
  remove(): void {
    for (const name of this.#names) removeNamespace(name)
    Bun.spawnSync(["ip", "link", "del", this.#bridge])
  }
}

function run(...command: readonly string[]): void {
  const needs = "clusters need root, a kernel with namespaces and bridges, iproute2 and nftables"
  const result = Bun.spawnSync([...command], { stdin: "ignore", stderr: "pipe" })
  if (result.exitCode === 0) return
  throw new Error(`${needs}: ${command.join(" ")}: ${result.stderr.toString().trim()}`)
}

function removeLeftovers(): void {
  const listed = Bun.spawnSync(["ip", "netns", "list"]).stdout.toString()
  for (const [name, pid, id] of listed.matchAll(new RegExp(`^${PREFIX}(\\d+)-(\\d+)-\\d+`, "gm"))) {
    if (existsSync(`/proc/${pid}`)) continue
    removeNamespace(name)
    Bun.spawnSync(["ip", "link", "del", `owc${id}`])
  }
}

/** Ends the processes in the namespace first, because they would keep it alive. */
function removeNamespace(name: string): void {
  const within = Bun.spawnSync(["ip", "netns", "pids", name]).stdout.toString()
  for (const [id] of within.matchAll(/\d+/g)) {
    try {
      process.kill(Number(id), "SIGKILL")
    } catch {
      // The process has ended already.
    }
  }
  Bun.spawnSync(["ip", "netns", "del", name])
}
