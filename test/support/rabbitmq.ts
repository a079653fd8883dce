/**
 * A private RabbitMQ node for the tests: own directory, name, ports and epmd, made from the
 * machine's `rabbitmq-server` package or from that of Debian 13 (see `Release`).
 * `rabbitmq-cluster.ts` joins several.
 *
 *     startRabbitMq ──► running ──pause──► paused
 *                        │  ▲ ◄──resume──    │
 *               stop/kill│  │start           │stop/kill
 *                        ▼  │                ▼
 *                       stopped ◄────────────┘        any ──dispose──► disposed
 *
 * The node is not a child of the test process. When a test times out, Bun kills all its children,
 * so all later tests would lose the shared node. And a killed test process does not end its
 * children. So a shell, the guard, waits at a FIFO that the test process holds open. When the FIFO
 * closes, because of `dispose` or because the test process has died, the guard ends all processes
 * that have the node's directory as HOME, and removes the directory.
 *
 * Never touches a system RabbitMQ, its files or its epmd. Never skips a test when the package is
 * missing. Never reads the host's RABBITMQ_ settings.
 */
import {
  closeSync,
  constants,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
} from "node:fs"
import { mkdir, readFile, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { freePorts } from "./free-ports.ts"
import { certificateFiles } from "./gateway.ts"
import { until, within } from "./wait.ts"

/**
 * A broker that tests share or own. The memory alarm is `ctl("set_vm_memory_high_watermark", "0")`.
 */
export interface TestBroker {
  /** AMQP URL of the default virtual host, with credentials. */
  readonly url: string
  readonly port: number
  /** Runs `rabbitmqctl --silent …` and resolves with its output. Rejects with its error output. */
  ctl(...args: string[]): Promise<string>
  /** Sends SIGSTOP: connections stay open, but the node does not answer. */
  pause(): void
  /** Sends SIGCONT. */
  resume(): void
  /** Stops the node cleanly. Durable data stays. */
  stop(): Promise<void>
  /** Starts a stopped or killed node with the same directory and ports, and waits for AMQP. */
  start(): Promise<void>
  /** Sends SIGKILL and waits until the process has ended. */
  kill(): Promise<void>
  closeAllConnections(reason: string): Promise<void>
  /** Messages ready for delivery; rejects when the queue does not exist. */
  queueDepth(name: string): Promise<number>
}

/** A node that the caller owns and must dispose of. */
export interface PrivateBroker extends TestBroker {
  /** Ends all processes of the node and removes its directory. May be called again. */
  dispose(): Promise<void>
  /** The ids of all processes of this node, including epmd and helpers. */
  processIds(): number[]
  /** Like `ctl`, for another program of RabbitMQ, such as `rabbitmq-upgrade`. */
  tool(program: string, ...args: string[]): Promise<string>
  readonly directory: string
  /** Of MQTT over TLS, with the plugin `rabbitmq_mqtt`; nothing listens there without it. */
  readonly mqttPort: number
  /** Of the HTTP API, with the plugin `rabbitmq_management`. */
  readonly managementPort: number
}

/** A plugin that the node can run. */
export type Plugin = "rabbitmq_mqtt" | "rabbitmq_management"

/**
 * `3.10`: the package of the system (Debian 12). `4`: the package of Debian 13 in a folder that `sh
 * test/install long` makes. It runs in a chroot, without root in a user namespace.
 */
export type Release = "3.10" | "4"

export interface NodeOptions {
  /** Default: `3.10`. */
  readonly release?: Release
  /** Default: a single node on loopback. */
  readonly member?: ClusterMember
  /** Default: none. */
  readonly plugins?: readonly Plugin[]
}

/** A node that others can join, with its own address. */
export interface ClusterMember {
  /**
   * A command prefix for the node, such as one that enters a network namespace with its address.
   */
  readonly prefix: readonly string[]
  /** Short host names of all members with their addresses. Node names are `rabbit@<host>`. */
  readonly hosts: ReadonlyMap<string, string>
  readonly host: string
  /** The secret that the members share. */
  readonly cookie: string
}

export const CLUSTER_NODE_PORTS = {
  ...{ amqp: 5672, distribution: 25672, epmd: 4369, mqtt: 8883, management: 15672 },
}
const NODE_PORT_NAMES = ["amqp", "distribution", "epmd", "mqtt", "management"] as const

type NodeState = "running" | "paused" | "stopped" | "disposed"

const PROGRAMS = "/usr/lib/rabbitmq/bin"
const SERVER = join(PROGRAMS, "rabbitmq-server")
const RABBITMQ_4_FOLDER = process.env["OWSLA_RABBITMQ_4"] ?? "/var/cache/owsla-test/rabbitmq-4"
/**
 * Erlang's distribution declares a silent node dead after 75 % to 125 % of this time. The default
 * is 60 s.
 */
export const CLUSTER_NET_TICK_S = 8
const LOOPBACK = "127.0.0.1"
const DEBIAN_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

const START_TIMEOUT_MS = 120_000
const STOP_TIMEOUT_MS = 30_000
const DISPOSE_TIMEOUT_MS = 20_000
const CTL_TIMEOUT_MS = 120_000
const QUERY_TIMEOUT_MS = 10_000
const ATTEMPT_TIMEOUT_MS = 5_000

/** Null for a plugin that the node does not run. */
interface PluginPorts {
  readonly mqtt: number | null
  readonly management: number | null
}

/**
 * Erlang's own configuration format, because rabbitmq.conf is translated to it at each start. The
 * free-disk limit is 1 MB: the default would block publishers on a full development machine.
 */
function advancedConfig(
  address: string,
  member: ClusterMember | undefined,
  { mqtt: mqttPort, management: managementPort }: PluginPorts,
): string {
  const tuple = `{${address.replaceAll(".", ", ")}}`
  const cluster = `
    {cluster_partition_handling, pause_minority},`
  const tick = `, {net_ticktime, ${CLUSTER_NET_TICK_S}}`
  const tls = mqttPort === null ? "" : tlsOptions()
  const mqtt = mqttPort === null ? "" : mqttConfig(address, mqttPort)
  const management = managementPort === null ? "" : managementConfig(address, managementPort)
  return `[
  {rabbit, [
    {loopback_users, []},${member === undefined ? "" : cluster}${tls}
    {disk_free_limit, 1000000},
    {reverse_dns_lookups, false},
    {collect_statistics, ${managementPort === null ? "none" : "coarse"}},
    {log, [{console, [{enabled, false}]}, {file, [{file, "node.log"}, {level, warning}]}]}
  ]},${mqtt}${management}
  {kernel, [{inet_dist_use_interface, ${tuple}}${member === undefined ? "" : tick}]}
].
`
}

/** MQTT over TLS only, for clients without a name, as with `DEVICE_AUTH=none`. */
function mqttConfig(address: string, port: number): string {
  return `
  {rabbitmq_mqtt, [
    {tcp_listeners, []},
    {ssl_listeners, [{"${address}", ${port}}]},
    {allow_anonymous, true},
    {default_user, <<"guest">>},
    {default_pass, <<"guest">>}
  ]},`
}

function managementConfig(address: string, port: number): string {
  return `
  {rabbitmq_management, [{listener, [{ip, "${address}"}, {port, ${port}}]}]},`
}

/** Of all TLS listeners of the node: the certificate of the test gateways. */
function tlsOptions(): string {
  const { TLS_CERT_FILE, TLS_KEY_FILE } = certificateFiles()
  return `
    {ssl_options, [
      {certfile, "${TLS_CERT_FILE}"},
      {keyfile, "${TLS_KEY_FILE}"},
      {verify, verify_none},
      {fail_if_no_peer_cert, false}
    ]},`
}

/**
 * Bind-mounts the files of a node into the folder, in a new mount namespace, and runs a program
 * there.
 */
const IN_FOLDER = `
folder=$1; tmp=$2; shift 2
for at in /dev /proc /sys "$tmp"; do
  mkdir -p "$folder$at" && mount --rbind "$at" "$folder$at" || exit 1
done
exec chroot "$folder" "$@"
`

/** A command that runs a program of this release. The process id is that of the program. */
function releasePrefix(release: Release): readonly string[] {
  if (release === "3.10") return []
  const asRoot = process.getuid?.() === 0 ? [] : ["--user", "--map-root-user"]
  return [
    ...["unshare", "--mount", ...asRoot],
    ...["sh", "-c", IN_FOLDER, "sh", RABBITMQ_4_FOLDER, tmpdir()],
  ]
}

/** Finds processes by HOME, which all processes of the node inherit and no other process has. */
const GUARD = `
exec 3<"$1/alive"
read -r _ <&3
while ids=$(grep -lzxF "HOME=$1" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3) && [ -n "$ids" ]
do
  kill -KILL $ids 2>/dev/null
  sleep 0.05
done
rm -rf "$1"
`

/** The shell exits at once, so that the program becomes a child of init and not of Bun. */
const APART = `output=$1; shift; setsid "$@" </dev/null >>"$output" 2>&1 & echo $!`

/**
 * Starts a node and resolves when it answers AMQP, after about 5 s. Rejects after 120 s with the
 * end of the node's log. When the package is missing, it rejects with the package to install.
 */
export async function startRabbitMq(options: NodeOptions = {}): Promise<PrivateBroker> {
  if (!existsSync(SERVER)) {
    throw new Error("These tests need RabbitMQ: apt-get install rabbitmq-server")
  }
  if (options.release === "4" && !existsSync(RABBITMQ_4_FOLDER)) {
    throw new Error("These tests need RabbitMQ 4: sh test/install long")
  }
  const directory = mkdtempSync(join(tmpdir(), "owsla-rabbitmq-"))
  const node = new RabbitMqNode(directory, options)
  try {
    await node.prepare()
    await node.start()
  } catch (error) {
    await node.dispose()
    throw error
  }
  return node
}

let shared: Promise<TestBroker> | undefined
let sharedNode: Promise<PrivateBroker> | undefined

/**
 * The node that all test files of one `bun test` share. The first call starts it. `TEST_AMQP_URL`
 * sets a broker to use instead. Call this in `beforeAll` with a limit of 60 s, because Bun's
 * default limit is as short as a start. A test that stops or pauses the node must start or resume
 * it.
 */
export function sharedRabbitMq(): Promise<TestBroker> {
  if (shared === undefined) {
    const url = process.env["TEST_AMQP_URL"]
    if (url === undefined || url === "") {
      sharedNode = startRabbitMq()
      shared = sharedNode
    } else {
      shared = Promise.resolve(foreignBroker(url))
    }
  }
  return shared
}

/** Ends the shared node if there is one. Called by the preload. */
export async function disposeSharedRabbitMq(): Promise<void> {
  // A node that failed to start has disposed of itself and has reported the cause.
  const node = await sharedNode?.catch(() => undefined)
  await node?.dispose()
}

/** Makes names that no other test, file or run uses: `uniqueNames("publisher")("from_device")`. */
export function uniqueNames(prefix: string): (noun: string) => string {
  const run = crypto.randomUUID().slice(0, 8)
  return (noun) => `${prefix}.${run}.${noun}`
}

class RabbitMqNode implements PrivateBroker {
  readonly directory: string
  readonly url: string
  readonly port: number
  readonly mqttPort: number
  readonly managementPort: number
  readonly #plugins: readonly Plugin[]
  readonly #environment: Record<string, string>
  readonly #member: ClusterMember | undefined
  readonly #address: string
  readonly #epmdPort: number
  /** The command prefix of epmd, which is the machine's for all releases. */
  readonly #placePrefix: readonly string[]
  /** The command prefix of RabbitMQ's programs. */
  readonly #prefix: readonly string[]
  readonly #aliveFd: number
  #state: NodeState = "stopped"
  #nodeId = 0

  constructor(directory: string, { release = "3.10", member, plugins = [] }: NodeOptions) {
    const ports = member === undefined ? freePorts(NODE_PORT_NAMES) : CLUSTER_NODE_PORTS
    this.directory = directory
    this.port = ports.amqp
    this.mqttPort = ports.mqtt
    this.managementPort = ports.management
    this.#plugins = plugins
    this.#member = member
    this.#address = member?.hosts.get(member.host) ?? LOOPBACK
    this.#epmdPort = ports.epmd
    this.url = `amqp://guest:guest@${this.#address}:${ports.amqp}`
    this.#placePrefix = member?.prefix ?? []
    this.#prefix = [...this.#placePrefix, ...releasePrefix(release)]
    this.#environment = nodeEnvironment(directory, this.#address, ports, member)
    mustRun(["mkfifo", join(directory, "alive")])
    // For reading and writing, because opening for writing only blocks until there is a reader.
    this.#aliveFd = openSync(join(directory, "alive"), constants.O_RDWR | constants.O_NONBLOCK)
  }

  /**
   * Starts the guard, prepares the directory and starts epmd. The guard is first, so that no
   * process runs without it.
   */
  async prepare(): Promise<void> {
    const { directory } = this
    const guard = ["sh", "-c", GUARD, "owsla-rabbitmq-guard", directory]
    await startApart(guard, "/dev/null", { PATH: DEBIAN_PATH })
    await mkdir(join(directory, "log"))
    await writeFile(join(directory, "enabled_plugins"), `[${this.#plugins.join(", ")}].\n`)
    const config = advancedConfig(this.#address, this.#member, this.#pluginPorts)
    await writeFile(join(directory, "advanced.config"), config)
    if (this.#member !== undefined) {
      const { cookie, hosts } = this.#member
      await writeFile(join(directory, ".erlang.cookie"), cookie, { mode: 0o400 })
      await writeFile(join(directory, "inetrc"), inetConfig(hosts))
    }
    const port = String(this.#epmdPort)
    // Start epmd in the foreground, because one that the node starts itself outlives the node.
    const epmd = [...this.#placePrefix, "epmd", "-address", this.#address, "-port", port]
    await startApart(epmd, join(directory, "log", "epmd.out"), this.#environment)
    await until(() => listens(this.#address, this.#epmdPort), { what: "epmd to listen" })
  }

  async start(): Promise<void> {
    this.#mustBe("start", "stopped")
    const output = join(this.directory, "log", "node.out")
    this.#nodeId = await startApart([...this.#prefix, SERVER], output, this.#environment)
    this.#state = "running"
    try {
      await until(async () => hasEnded(this.#nodeId) || (await this.#answers()), {
        what: "RabbitMQ to answer AMQP",
        timeoutMs: START_TIMEOUT_MS,
      })
      if (hasEnded(this.#nodeId)) throw new Error("RabbitMQ ended while it started")
    } catch (cause) {
      await this.kill()
      throw new Error(`${describe(cause)}\n${await this.#logTail()}`, { cause })
    }
  }

  pause(): void {
    this.#mustBe("pause", "running")
    process.kill(this.#nodeId, "SIGSTOP")
    this.#state = "paused"
    // On a busy machine its threads continue to run for a moment.
    const untilMs = performance.now() + STOP_TIMEOUT_MS
    while (!isStopped(this.#nodeId)) {
      if (performance.now() > untilMs) throw new Error(`process ${this.#nodeId} does not stop`)
      Bun.sleepSync(1)
    }
  }

  resume(): void {
    this.#mustBe("resume", "paused")
    process.kill(this.#nodeId, "SIGCONT")
    this.#state = "running"
  }

  async stop(): Promise<void> {
    this.#mustBe("stop", "running", "paused")
    if (this.#state === "paused") this.resume()
    try {
      await this.#end("SIGTERM", STOP_TIMEOUT_MS)
    } catch (cause) {
      throw new Error(`${describe(cause)}\n${await this.#logTail()}`, { cause })
    }
  }

  async kill(): Promise<void> {
    this.#mustBe("kill", "running", "paused")
    await this.#end("SIGKILL", STOP_TIMEOUT_MS)
  }

  async dispose(): Promise<void> {
    if (this.#state === "disposed") return
    this.#state = "disposed"
    closeSync(this.#aliveFd)
    const gone = () => this.processIds().length === 0 && !existsSync(this.directory)
    await until(gone, {
      what: `the processes of ${this.directory} to end and the directory to go`,
      timeoutMs: DISPOSE_TIMEOUT_MS,
    })
  }

  processIds(): number[] {
    return processesWithHome(this.directory)
  }

  ctl(...args: string[]): Promise<string> {
    return this.tool("rabbitmqctl", ...args)
  }

  async tool(program: string, ...args: string[]): Promise<string> {
    this.#mustBe(program, "running", "paused", "stopped")
    const command = [...this.#prefix, join(PROGRAMS, program), "--silent", ...args]
    const tool = Bun.spawn(command, {
      cwd: this.directory,
      env: this.#environment,
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
      timeout: CTL_TIMEOUT_MS,
      killSignal: "SIGKILL",
    })
    const [output, complaint] = await Promise.all([tool.stdout.text(), tool.stderr.text()])
    if ((await tool.exited) === 0) return output
    const what = tool.signalCode === null ? `status ${tool.exitCode}` : `${tool.signalCode}`
    throw new Error(`${program} ${args.join(" ")}: ${what}\n${complaint}${output}`)
  }

  async closeAllConnections(reason: string): Promise<void> {
    await this.ctl("close_all_connections", reason)
  }

  queueDepth(name: string): Promise<number> {
    return queueDepth(this.url, name)
  }

  get #pluginPorts(): PluginPorts {
    return {
      mqtt: this.#plugins.includes("rabbitmq_mqtt") ? this.mqttPort : null,
      management: this.#plugins.includes("rabbitmq_management") ? this.managementPort : null,
    }
  }

  async #answers(): Promise<boolean> {
    if (!(await listens(this.#address, this.port))) return false
    // Plugins start after the AMQP listener.
    for (const port of Object.values(this.#pluginPorts)) {
      if (port !== null && !(await listens(this.#address, port))) return false
    }
    await withClient(this.url, ATTEMPT_TIMEOUT_MS, () => Promise.resolve())
    return true
  }

  async #end(signal: "SIGTERM" | "SIGKILL", timeoutMs: number): Promise<void> {
    if (!hasEnded(this.#nodeId)) process.kill(this.#nodeId, signal)
    const what = `RabbitMQ to end after ${signal}`
    await until(() => hasEnded(this.#nodeId), { what, timeoutMs })
    this.#state = "stopped"
  }

  #mustBe(operation: string, ...allowed: NodeState[]): void {
    if (!allowed.includes(this.#state)) {
      throw new Error(`${operation}: the node is ${this.#state}, not ${allowed.join(" or ")}`)
    }
  }

  async #logTail(): Promise<string> {
    const tails: string[] = []
    for (const name of ["node.out", "node.log"]) {
      const text = await readFile(join(this.directory, "log", name), "utf8").catch(() => "")
      tails.push(`--- ${name}`, ...text.trimEnd().split("\n").slice(-30))
    }
    return tails.join("\n")
  }
}

/** The broker of `TEST_AMQP_URL`. Tests can use it, but cannot stop it. */
function foreignBroker(url: string): TestBroker {
  const { port, protocol } = new URL(url)
  const refusal = () => new Error("This needs the private node: unset TEST_AMQP_URL")
  const refuse = () => Promise.reject(refusal())
  const refuseNow = () => {
    throw refusal()
  }
  return {
    url,
    port: port === "" ? (protocol === "amqps:" ? 5671 : 5672) : Number(port),
    ctl: refuse,
    pause: refuseNow,
    resume: refuseNow,
    stop: refuse,
    start: refuse,
    kill: refuse,
    closeAllConnections: refuse,
    queueDepth: (name) => queueDepth(url, name),
  }
}

/** Uses AMQP, because `rabbitmqctl` takes half a second and a wait calls this often. */
async function queueDepth(url: string, name: string): Promise<number> {
  return await withClient(url, QUERY_TIMEOUT_MS, async (client) => {
    const channel = await client.channel()
    const { messageCount } = await channel.queueDeclare(name, { passive: true })
    return messageCount
  })
}

/** Opens a connection for one request. The connection is closed when the answer takes too long. */
async function withClient<T>(
  url: string,
  timeoutMs: number,
  ask: (client: AMQPClient) => Promise<T>,
): Promise<T> {
  const client = new AMQPClient(url)
  client.onerror = () => {}
  const conversation = async () => {
    await client.connect()
    const answer = await ask(client)
    await client.close()
    return answer
  }
  try {
    return await within(conversation(), { what: "the broker's answer", timeoutMs })
  } finally {
    client.socket?.destroy()
  }
}

interface NodePorts {
  amqp: number
  distribution: number
  epmd: number
  mqtt: number
  management: number
}

function nodeEnvironment(
  directory: string,
  address: string,
  ports: NodePorts,
  member: ClusterMember | undefined,
): Record<string, string> {
  const alone = { RABBITMQ_NODENAME: `owsla${crypto.randomUUID().slice(0, 8)}@localhost` }
  const joined = {
    RABBITMQ_NODENAME: `rabbit@${member?.host}`,
    ERL_INETRC: join(directory, "inetrc"),
    // Without busy waiting, which would take CPU time from the other nodes.
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: "+sbwt none +sbwtdcpu none +sbwtdio none",
  }
  return {
    PATH: DEBIAN_PATH,
    HOME: directory,
    LC_ALL: "C.UTF-8",
    ERL_EPMD_ADDRESS: address,
    ERL_EPMD_PORT: String(ports.epmd),
    ...(member === undefined ? alone : joined),
    RABBITMQ_NODE_IP_ADDRESS: address,
    RABBITMQ_NODE_PORT: String(ports.amqp),
    RABBITMQ_DIST_PORT: String(ports.distribution),
    RABBITMQ_MNESIA_BASE: join(directory, "mnesia"),
    RABBITMQ_LOG_BASE: join(directory, "log"),
    RABBITMQ_ENABLED_PLUGINS_FILE: join(directory, "enabled_plugins"),
    RABBITMQ_ADVANCED_CONFIG_FILE: join(directory, "advanced.config"),
    // These files do not exist. Without these settings the system's files in /etc/rabbitmq would be
    // read.
    RABBITMQ_CONFIG_FILE: join(directory, "none"),
    RABBITMQ_CONF_ENV_FILE: join(directory, "none"),
    // Makes the start script exec the node, so that both have the same process id.
    RUNNING_UNDER_SYSTEMD: "true",
  }
}

/**
 * Names are resolved with this file only: the machine's hosts file and DNS do not contain the
 * members.
 */
function inetConfig(hosts: ReadonlyMap<string, string>): string {
  const host = ([name, address]: [string, string]) =>
    `{host, {${address.replaceAll(".", ",")}}, ["${name}"]}.`
  return [...[...hosts].map(host), "{lookup, [file, native]}.", ""].join("\n")
}

async function listens(hostname: string, port: number): Promise<boolean> {
  try {
    const socket = await Bun.connect({ hostname, port, socket: { data() {} } })
    socket.terminate()
    return true
  } catch {
    return false
  }
}

/** Resolves with the id of a program that is not a child of this process. */
async function startApart(
  command: string[],
  output: string,
  env: Record<string, string>,
): Promise<number> {
  const shell = Bun.spawn(["sh", "-c", APART, "sh", output, ...command], {
    cwd: tmpdir(),
    env,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
  })
  const id = Number(await shell.stdout.text())
  if (!Number.isInteger(id) || id <= 1) throw new Error(`could not start ${command[0]}`)
  return id
}

function mustRun(command: string[]): void {
  const ended = Bun.spawnSync(command, { env: { PATH: DEBIAN_PATH } })
  if (!ended.success) throw new Error(`${command.join(" ")}: ${ended.stderr.toString()}`)
}

/**
 * Whether a process that is not a child has ended. A zombie counts as ended, because its parent may
 * never reap it. Its threads must have ended too, because they hold the ports until then.
 */
function hasEnded(id: number): boolean {
  try {
    const stat = readFileSync(`/proc/${id}/stat`, "utf8")
    const processState = stat.charAt(stat.lastIndexOf(")") + 2)
    return /[ZX]/.test(processState) && readdirSync(`/proc/${id}/task`).length <= 1
  } catch {
    return true
  }
}

function processesWithHome(directory: string): number[] {
  const entry = `HOME=${directory}`
  const ids = readdirSync("/proc").filter((name) => /^\d+$/.test(name))
  return ids.map(Number).filter((id) => {
    try {
      return readFileSync(`/proc/${id}/environ`, "utf8").split("\0").includes(entry)
    } catch {
      return false
    }
  })
}

function describe(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** Whether all threads of a process are stopped by a signal. */
function isStopped(pid: number): boolean {
  const threads = readdirSync(`/proc/${pid}/task`)
  return threads.every((thread) => {
    const stat = readFileSync(`/proc/${pid}/task/${thread}/stat`, "utf8")
    return stat.slice(stat.lastIndexOf(")") + 2).startsWith("T")
  })
}
