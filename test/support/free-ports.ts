/**
 * Free ports for programs that cannot bind port 0, below the kernel's range for outgoing
 * connections, which could use a port before the program binds it.
 */

const LOOPBACK = "127.0.0.1"
const PORTS = { first: 10_000, count: 20_000 }
const MAX_TRIES = 100

/** All ports are held open until the last one is known, so that they differ. */
export function freePorts<const Name extends string>(names: readonly Name[]): Record<Name, number> {
  const held = names.map((name) => [name, listen()] as const)
  for (const [, listener] of held) listener.stop(true)
  return Object.fromEntries(held.map(([name, { port }]) => [name, port])) as Record<Name, number>
}

function listen(tries = MAX_TRIES): Bun.TCPSocketListener {
  const port = PORTS.first + Math.floor(Math.random() * PORTS.count)
  try {
    return Bun.listen({ hostname: LOOPBACK, port, exclusive: true, socket: { data() {} } })
  } catch (error) {
    if (tries === 0) throw error
    return listen(tries - 1)
  }
}
