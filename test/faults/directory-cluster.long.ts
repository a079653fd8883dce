/**
 * The directory of a fleet of four instances on a cluster of three nodes of RabbitMQ 3.10, of which
 * one is killed.
 */

import { afterAll, afterEach, beforeAll } from "bun:test"
import { directoryScenarios } from "../support/directory-scenarios.ts"
import { TestFleet } from "../support/fleet.ts"
import { RabbitMqCluster } from "../support/rabbitmq-cluster.ts"
import { LIMIT_MS } from "./loaded-fault.ts"

let cluster: RabbitMqCluster
let fleet: TestFleet

beforeAll(async () => {
  cluster = await RabbitMqCluster.start("3.10")
  const environment = { AMQP_URL: cluster.urls.join(","), SEND_TIMEOUT_MS: "2000" }
  fleet = await TestFleet.start(4, environment, cluster.node(0))
}, LIMIT_MS)

afterEach(() => fleet.releaseDevices())

afterAll(async () => {
  await fleet?.stop()
  await cluster?.dispose()
}, LIMIT_MS)

directoryScenarios({
  fleet: () => fleet,
  disturbBroker: async () => {
    await cluster.node(1).kill()
    await cluster.node(1).start()
    await cluster.canLose(0)
  },
})
