/**
 * A fault of a broker under load: a herd of devices that send, and commands to others
 * (`command-load.ts`). Devices stay connected, no line that was read is lost, each connection's
 * lines are in order, and each command has one outcome.
 */

import type { PrivateBroker } from "../support/rabbitmq.ts"
import { expectKept, FaultBed } from "./bed.ts"
import { COMMAND_LOAD, CommandLoad } from "./command-load.ts"
import { type Fault, type Figures, fault, last, sized } from "./fault.ts"

export const LIMIT_MS = sized(600_000, 300_000)
/** Three nodes, a gateway and its devices share one machine. */
const HERD = { devices: sized(50, 30), rate: 5 }
/** Load before the fault. */
const BEFORE_S = sized(5, 3)
const COMMANDED = { devices: 10, perS: 20 }
export const KEPT = "devices stay, lost 0, in order, each command has one outcome"

interface LoadedFault extends Omit<Fault, "promise"> {
  readonly promise?: string
}

/** The broker and its addresses. */
export interface BrokerPlace {
  readonly broker: PrivateBroker
  /** For the gateway and the herd's back-end. */
  readonly url: string
  /** For the back-end that sends commands: the URLs of all nodes. */
  readonly urls: readonly string[]
}

/** A fault that `act` makes and undoes under load; then everything must have arrived and ended. */
export function loadedFault(
  { promise = KEPT, ...described }: LoadedFault,
  where: () => BrokerPlace,
  act: (bed: FaultBed) => Promise<Figures>,
): void {
  fault(
    { ...described, promise },
    async () => {
      const { broker, url, urls } = where()
      const bed = await FaultBed.start(COMMAND_LOAD.environment, "straight", { broker, url })
      try {
        const commands = await CommandLoad.prepare({ bed, urls, ...COMMANDED })
        const herd = await bed.herd({ ...HERD, flags: COMMAND_LOAD.herdFlags })
        await commands.start()
        await last(BEFORE_S)
        const figures = await act(bed)
        await bed.ready()
        const kept = expectKept(await herd.end(), HERD.devices)
        return { ...kept, ...(await commands.end()), ...figures }
      } finally {
        await bed.stop()
      }
    },
    LIMIT_MS,
  )
}
