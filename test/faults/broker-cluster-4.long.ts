/** Faults of a cluster of RabbitMQ 4. */

import { clusterFaults } from "./cluster-faults.ts"

clusterFaults("4")
