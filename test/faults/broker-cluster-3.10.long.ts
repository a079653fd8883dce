/** Faults of a cluster of RabbitMQ 3.10. */

import { clusterFaults } from "./cluster-faults.ts"

clusterFaults("3.10")
