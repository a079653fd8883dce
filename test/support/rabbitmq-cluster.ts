/**
 * A cluster of RabbitMQ nodes for the tests: each a node of `rabbitmq.ts` in a network namespace of its own, with
 * `cluster_partition_handling` `pause_minority`.
 *
 * A node that is cut off notices it within `CLUSTER_NET_TICK_S` and a quarter of that, and pauses itself. Ends with
 * `dispose`.
 */

import * as v from "valibot"
import { NodeNetwork } from "./node-network.ts"
import { type ClusterMember, type PrivateBroker, type Release, startRabbitMq } from "./rabbitmq.ts"
import { until } from "./wait.ts"

const NODE_NUMBERS = [0, 1, 2]
const SETTLE_TIMEOUT_MS = 60_000
const STATUS = v.object({ running_nodes: v.array(v.string()) })

export class RabbitMqCluster {
  readonly #nodes: PrivateBroker[] = []
  readonly #network: NodeNetwork
  readonly #cookie = crypto.randomUUID()
  readonly #release: Release

  private constructor(release: Release) {
    this.#release = release
    this.#network = NodeNetwork.make(NODE_NUMBERS.length)
  }

  /** Resolves when all nodes are members and answer AMQP. */
  static async start(release: Release): Promise<RabbitMqCluster> {
    const cluster = new RabbitMqCluster(release)
    try {
      await Promise.all(NODE_NUMBERS.map((at) => cluster.#start(at)))
      for (const at of NODE_NUMBERS.slice(1)) await cluster.#join(at)
      const joined = async () => (await cluster.#running()) === NODE_NUMBERS.length
      await until(joined, { what: "all nodes to run", timeoutMs: SETTLE_TIMEOUT_MS })
    } catch (error) {
      await cluster.dispose()
      throw error
    }
    return cluster
  }

  get nodes(): readonly PrivateBroker[] {
    return this.#nodes
  }

  /** One AMQP URL for each node. */
  get urls(): readonly string[] {
    return this.#nodes.map(({ url }) => url)
  }

  get addresses(): readonly string[] {
    return this.#network.addresses
  }

  node(at: number): PrivateBroker {
    const node = this.#nodes[at]
    if (node === undefined) throw new Error(`the cluster has no node ${at}`)
    return node
  }

  /** Drops every packet between this node and everything else. */
  cutOff(at: number): void {
    this.#network.cutOff(at)
  }

  heal(at: number): void {
    this.#network.heal(at)
  }

  /** Which node leads a quorum queue. */
  async leaderOf(queue: string): Promise<number> {
    const rows = await this.#asked("list_queues", "--no-table-headers", "name", "leader")
    const row = rows.map((line) => line.split("\t")).find(([name]) => name === queue)
    return Number(/^rabbit@node(\d+)$/.exec(row?.[1] ?? "")?.[1] ?? Number.NaN)
  }

  /** Asks the leader of a quorum queue to hand over to this node, and waits until it has. */
  async moveLeader(queue: string, at: number): Promise<void> {
    const expression =
      `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"${queue}">>)), ` +
      `rabbit_quorum_queue:transfer_leadership(Q, 'rabbit@${hostOf(at)}').`
    const moved = async () => {
      if ((await this.leaderOf(queue)) === at) return true
      await this.node(0).ctl("eval", expression)
      return (await this.leaderOf(queue)) === at
    }
    await until(moved, { what: `node ${at} to lead ${queue}`, timeoutMs: SETTLE_TIMEOUT_MS })
  }

  /** Waits until every queue keeps its majority without this node, as an operator would before an upgrade. */
  async canLose(at: number): Promise<void> {
    const node = this.node(at)
    const can = async () => {
      if ((await this.#running()) < NODE_NUMBERS.length) return false
      await node.tool("rabbitmq-upgrade", "await_online_quorum_plus_one", "--timeout", "20")
      return true
    }
    await until(can, { what: `node ${at} to be dispensable`, timeoutMs: SETTLE_TIMEOUT_MS })
  }

  async dispose(): Promise<void> {
    await Promise.all(this.#nodes.map((node) => node.dispose()))
    this.#network.remove()
  }

  async #start(at: number): Promise<void> {
    const member: ClusterMember = {
      prefix: this.#network.prefix(at),
      hosts: new Map(this.#network.addresses.map((address, of) => [hostOf(of), address])),
      host: hostOf(at),
      cookie: this.#cookie,
    }
    this.#nodes[at] = await startRabbitMq({ release: this.#release, member })
  }

  async #join(at: number): Promise<void> {
    const node = this.node(at)
    await node.ctl("stop_app")
    await node.ctl("join_cluster", `rabbit@${hostOf(0)}`)
    await node.ctl("start_app")
  }

  /** How many members run, as the first node that answers says. */
  async #running(): Promise<number> {
    const status = JSON.parse((await this.#asked("cluster_status", "--formatter", "json")).join(""))
    return v.parse(STATUS, status).running_nodes.length
  }

  /** The lines of the first node's answer that has one. */
  async #asked(...args: string[]): Promise<string[]> {
    let failure: unknown
    for (const node of this.#nodes) {
      try {
        return (await node.ctl(...args)).trim().split("\n")
      } catch (error) {
        failure = error
      }
    }
    throw failure
  }
}

function hostOf(at: number): string {
  return `node${at}`
}
