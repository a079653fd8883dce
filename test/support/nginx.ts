/**
 * A load balancer for the tests: Debian's nginx with its stream module, which passes TLS through
 * and sends a PROXY header (version 1) first.
 */

import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { until } from "./wait.ts"

const NGINX = "/usr/sbin/nginx"
const MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"
const HOST = "127.0.0.1"

export interface Nginx {
  readonly port: number
  readonly stop: () => Promise<void>
}

/**
 * @param server `address:port`.
 * @param from the address from which nginx connects to the server.
 */
export async function startNginx(server: string, from: string): Promise<Nginx> {
  const free = Bun.listen({ hostname: HOST, port: 0, socket: { data() {} } })
  const { port } = free
  free.stop(true)
  const directory = mkdtempSync(join(tmpdir(), "owsla-nginx-"))
  const file = join(directory, "nginx.conf")
  const configuration = [
    `load_module ${MODULE};`,
    "daemon off;",
    "master_process off;",
    "error_log stderr warn;",
    `pid ${join(directory, "nginx.pid")};`,
    "events {}",
    "stream {",
    "  server {",
    `    listen ${HOST}:${port};`,
    `    proxy_pass ${server};`,
    `    proxy_bind ${from};`,
    "    proxy_protocol on;",
    "  }",
    "}",
  ]
  writeFileSync(file, `${configuration.join("\n")}\n`)
  // nginx ends with the test process, even if that is killed.
  const command = ["setpriv", "--pdeathsig", "KILL", NGINX, "-e", "stderr", "-c", file]
  const started = Bun.spawn(command, { stdio: ["ignore", "ignore", "pipe"] })
  const listens = async () => {
    if (started.exitCode !== null) throw new Error(await started.stderr.text())
    const socket = await Bun.connect({ hostname: HOST, port, socket: { data() {} } })
    socket.terminate()
    return true
  }
  await until(listens, { what: "nginx to listen" })
  return {
    port,
    stop: async () => {
      started.kill("SIGKILL")
      await started.exited
      rmSync(directory, { recursive: true, force: true })
    },
  }
}
