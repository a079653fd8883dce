/**
 * A load balancer for the tests: Debian's HAProxy in TCP mode, which checks each server and closes
 * the connections of a server that fails its check.
 *
 * `stop` kills it with all its connections. `start` starts it again on the same port.
 */

import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { until } from "./wait.ts"

const HAPROXY = "/usr/sbin/haproxy"
const HOST = "127.0.0.1"
const EACH_HALF_SECOND = "check inter 500 fall 2 rise 2"

export class HaProxy {
  readonly port: number
  readonly #directory = mkdtempSync(join(tmpdir(), "owsla-haproxy-"))
  #process: Bun.Subprocess<"ignore", "pipe", "pipe"> | null = null

  private constructor(port: number) {
    this.port = port
  }

  /**
   * @param servers `address:port` of each.
   * @param options of each server, in HAProxy's words; by default it is checked each half second.
   */
  static async start(servers: readonly string[], options = EACH_HALF_SECOND): Promise<HaProxy> {
    if (!existsSync(HAPROXY)) throw new Error("These tests need HAProxy: sh test/install")
    const free = Bun.listen({ hostname: HOST, port: 0, socket: { data() {} } })
    free.stop(true)
    const proxy = new HaProxy(free.port)
    writeFileSync(proxy.#configuration, configuration(free.port, servers, options))
    await proxy.start()
    return proxy
  }

  /** The URL of the broker through this load balancer. */
  get url(): string {
    return `amqp://guest:guest@${HOST}:${this.port}`
  }

  async start(): Promise<void> {
    // HAProxy ends with the test process, even if that is killed.
    const command = ["setpriv", "--pdeathsig", "KILL", HAPROXY, "-db", "-f", this.#configuration]
    const started = Bun.spawn(command, {
      stdio: ["ignore", "pipe", "pipe"],
    })
    this.#process = started
    const listens = async () => {
      if (started.exitCode !== null) throw new Error(await started.stderr.text())
      const socket = await Bun.connect({ hostname: HOST, port: this.port, socket: { data() {} } })
      socket.terminate()
      return true
    }
    await until(listens, { what: "HAProxy to listen" })
  }

  async stop(): Promise<void> {
    this.#process?.kill("SIGKILL")
    await this.#process?.exited
  }

  async dispose(): Promise<void> {
    await this.stop()
    rmSync(this.#directory, { recursive: true, force: true })
  }

  get #configuration(): string {
    return join(this.#directory, "haproxy.cfg")
  }
}

function configuration(port: number, servers: readonly string[], options: string): string {
  const server = (address: string, at: number) => `  server node${at} ${address}`
  return [
    "defaults",
    "  mode tcp",
    "  timeout connect 1s",
    "  timeout check 1s",
    "  timeout client 1h",
    "  timeout server 1h",
    "  option redispatch",
    "listen all",
    `  bind ${HOST}:${port}`,
    "  balance roundrobin",
    `  default-server ${options} on-marked-down shutdown-sessions`,
    ...servers.map(server),
    "",
  ].join("\n")
}
