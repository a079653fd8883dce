/** The parts of an app's dependencies that know the log and ended connections, for other tests. */

import type { AppDependencies } from "../../src/http/app.ts"

export const NO_LOG: Pick<AppDependencies, "log" | "stopping" | "audited" | "records"> = {
  log: { recent: async () => ({ notices: [], audit: [] }), follow: () => () => undefined },
  stopping: new AbortController().signal,
  audited: () => undefined,
  records: {
    refusals: async () => ({ refusals: [], answered: 1, workers: 1 }),
    connections: async () => ({ connections: [], answered: 1, workers: 1 }),
  },
}
