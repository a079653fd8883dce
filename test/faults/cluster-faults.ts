/**
 * Faults of a cluster of three nodes, straight and behind a load balancer: a node killed, the load
 * balancer killed, a node partitioned away, queue leaders moved. Needs what `sh test/install long`
 * installs, and root: nodes have network namespaces of their own.
 */

import { afterAll, afterEach, beforeAll, describe, expect } from "bun:test"
import { HaProxy } from "../support/haproxy.ts"
import type { Release } from "../support/rabbitmq.ts"
import { RabbitMqCluster } from "../support/rabbitmq-cluster.ts"
import type { FaultBed } from "./bed.ts"
import { type Figures, last, sized } from "./fault.ts"
import { type BrokerPlace, KEPT, LIMIT_MS, loadedFault } from "./loaded-fault.ts"

const MOVES = sized(6, 2)
const DOWN_S = sized(10, 5)

export function clusterFaults(release: Release): void {
  const name = `RabbitMQ ${release}, cluster of three`
  describe(name, () => {
    let cluster: RabbitMqCluster
    let balancer: HaProxy
    beforeAll(async () => {
      cluster = await RabbitMqCluster.start(release)
      balancer = await HaProxy.start(cluster.addresses.map((address) => `${address}:5672`))
    }, LIMIT_MS)
    afterEach(async () => {
      for (const at of cluster.nodes.keys()) await cluster.canLose(at)
    }, LIMIT_MS)
    afterAll(async () => {
      await balancer?.dispose()
      await cluster?.dispose()
    }, LIMIT_MS)
    const straight = (): BrokerPlace => ({
      broker: cluster.node(0),
      url: cluster.node(0).url,
      urls: cluster.urls,
    })
    const listed = (): BrokerPlace => ({ ...straight(), url: cluster.urls.join(",") })
    const balanced = (): BrokerPlace => ({ ...straight(), url: balancer.url })

    loadedFault(
      {
        fault: `${name}: each node killed in turn`,
        made: `SIGKILL and started again, one node after the other, each down for ${DOWN_S} s; the gateway has the URLs of all`,
      },
      listed,
      (bed) => killEachInTurn(bed, cluster),
    )

    loadedFault(
      {
        fault: `${name}, behind a load balancer: each node killed in turn`,
        made: `SIGKILL and started again, one node after the other, each down for ${DOWN_S} s; HAProxy with health checks in front`,
      },
      balanced,
      (bed) => killEachInTurn(bed, cluster),
    )

    loadedFault(
      {
        fault: `${name}, behind a load balancer: the load balancer killed`,
        made: `SIGKILL to HAProxy, started again after 5 s, ${sized(4, 2)} times`,
      },
      balanced,
      async (bed) => {
        const times = sized(4, 2)
        let slowestMs = 0
        for (let at = 0; at < times; at += 1) {
          await balancer.stop()
          await bed.notReady()
          await last(5)
          await balancer.start()
          slowestMs = Math.max(slowestMs, await bed.flowsAgain())
        }
        return { killed: times, "slowest return, ms": slowestMs }
      },
    )

    loadedFault(
      {
        fault: `${name}, behind a load balancer: a node partitioned away`,
        made: `every packet of the node that leads from_device dropped by nftables, for ${sized(40, 20)} s after the others miss it; pause_minority`,
        promise: `${KEPT}, the gateway goes on with the majority`,
      },
      balanced,
      async (bed) => {
        const cut = await cluster.leaderOf(bed.queues.FROM_DEVICE_QUEUE)
        cluster.cutOff(cut)
        try {
          await cluster.hasLeft(cut)
          await bed.ready()
          await bed.flowsAgain()
          const before = await bed.confirmed()
          await last(sized(40, 20))
          const meanwhile = (await bed.confirmed()) - before
          expect(meanwhile).toBeGreaterThan(0)
          return { "lines confirmed meanwhile": meanwhile }
        } finally {
          cluster.heal(cut)
        }
      },
    )

    loadedFault(
      {
        fault: `${name}: queue leaders moved`,
        made: `the leaders of from_device and to_device handed to the next node, ${MOVES} times`,
      },
      straight,
      async (bed) => {
        const { FROM_DEVICE_QUEUE, TO_DEVICE_QUEUE } = bed.queues
        for (let at = 0; at < MOVES; at += 1) {
          await cluster.moveLeaders([FROM_DEVICE_QUEUE, TO_DEVICE_QUEUE])
          await bed.flowsAgain()
        }
        return { moved: MOVES * 2 }
      },
    )
  })
}

async function killEachInTurn(bed: FaultBed, cluster: RabbitMqCluster): Promise<Figures> {
  let slowestMs = 0
  for (const [at, node] of cluster.nodes.entries()) {
    await cluster.canLose(at)
    await node.kill()
    await last(DOWN_S)
    await node.start()
    slowestMs = Math.max(slowestMs, await bed.flowsAgain())
  }
  return { killed: cluster.nodes.length, "slowest return after a start, ms": slowestMs }
}
