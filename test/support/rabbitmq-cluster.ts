/**
 * A cluster of RabbitMQ nodes for the tests. Each is a node of `rabbitmq.ts` in its own network
 * namespace, with `cluster_partition_handling` `pause_minority`.
 *
 * A node that is cut off detects this within 1.25 × `CLUSTER_NET_TICK_S` and pauses itself. End the
 * cluster with `dispose`.
 */

import { NodeNetwork } from "./node-network.ts"
import { type ClusterMember, type PrivateBroker, type Release, startRabbitMq } from "./rabbitmq.ts"
import { until } from "./wait.ts"

const NODE_NUMBERS = [0, 1, 2]
const SETTLE_TIMEOUT_MS = 120_000

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
      await cluster.canLose(0)
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

  /** Drops all packets between this node and the rest of the network. */
  cutOff(at: number): void {
    this.#network.cutOff(at)
  }

  heal(at: number): void {
    this.#network.heal(at)
  }

  /** The node of a quorum queue's leader. */
  async leaderOf(queue: string): Promise<number> {
    const leader = await this.#evaluated(`${leaderIn(queue)}, io:format("~s~n", [Leader]).`)
    return Number(/^rabbit@node(\d+)$/m.exec(leader)?.[1] ?? Number.NaN)
  }

  /** Moves the leader of each quorum queue to the next member. */
  async moveLeaders(queues: readonly string[]): Promise<void> {
    for (const queue of queues) {
      const moved = () =>
        this.#evaluated(
          `${leaderIn(queue)}, Nodes = lists:sort([N || {_, N} <- Members]), ` +
            "[To | _] = [N || N <- Nodes, N > Leader] ++ Nodes, " +
            "{migrated, To} = rabbit_quorum_queue:transfer_leadership(Q, To), moved.",
        )
      await until(moved, { what: `${queue} to move`, timeoutMs: SETTLE_TIMEOUT_MS })
    }
  }

  /**
   * Waits until all queues have a majority without this node, like an operator before an upgrade.
   */
  async canLose(at: number): Promise<void> {
    const expression =
      "{3, true} = {length(rabbit_mnesia:cluster_nodes(running)), " +
      "rabbit_upgrade_preparation:await_online_quorum_plus_one(10000)}, yes."
    const can = async () => (await this.node(at).ctl("eval", expression)).includes("yes")
    try {
      await until(can, { what: `node ${at} to be dispensable`, timeoutMs: SETTLE_TIMEOUT_MS })
    } catch (error) {
      const queues = await this.node(at).ctl("list_queues", "name", "type", "members", "online")
      throw new Error(`${error instanceof Error ? error.message : error}\n${queues}`)
    }
  }

  /** Waits until the other nodes have detected that this node is gone. */
  async hasLeft(at: number): Promise<void> {
    const other = this.node((at + 1) % NODE_NUMBERS.length)
    const left = () => other.ctl("eval", "2 = length(rabbit_mnesia:cluster_nodes(running)).")
    await until(left, { what: `node ${at} to be missed`, timeoutMs: SETTLE_TIMEOUT_MS })
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

  /** The output of the first node that answers. */
  async #evaluated(expression: string): Promise<string> {
    let failure: unknown
    for (const node of this.#nodes) {
      try {
        return (await node.ctl("eval", expression)).trim()
      } catch (error) {
        failure = error
      }
    }
    throw failure
  }
}

/**
 * Erlang code that binds `Q`, `Members` and the node `Leader`. In one call, because each call
 * starts an Erlang VM.
 */
function leaderIn(queue: string): string {
  return (
    `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"${queue}">>)), ` +
    "{ok, Members, {_, Leader}} = ra:members(amqqueue:get_pid(Q), 5000)"
  )
}

function hostOf(at: number): string {
  return `node${at}`
}
