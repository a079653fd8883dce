/**
 * A fleet for the tests: several instances of the real program on one private RabbitMQ, named
 * devices, and a back-end. Each instance has its own ports, as if it were a machine.
 */

import { helloLine } from "../../src/device/hello.ts"
import type { DeviceView } from "../../src/fleet/device-view.ts"
import { BackEnd, type ReceivedReceipt } from "./back-end.ts"
import { ownQueues, startGateway, type TestGateway } from "./gateway.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "./rabbitmq.ts"
import { connectDevice, type TestDevice } from "./tls-device.ts"
import { until } from "./wait.ts"

export const SECRET = "a-secret-of-the-tests-0123456789"
const WORKERS = 2

export interface FleetList {
  readonly devices: readonly DeviceView[]
  readonly total: number
  readonly answered: number
  readonly workers: number
}

export class TestFleet {
  readonly broker: PrivateBroker
  readonly queues = ownQueues(uniqueNames("fleet"))
  readonly #environment: Record<string, string>
  readonly #gateways = new Map<number, TestGateway>()
  #devices: TestDevice[] = []
  #backEnd: BackEnd | null = null
  #names = 0

  private constructor(broker: PrivateBroker, environment: Record<string, string>) {
    this.broker = broker
    this.#environment = environment
  }

  /**
   * Starts `instances` of two workers each, and waits until all workers know each other.
   * @param broker ended with the fleet; default a node of its own.
   */
  static async start(
    instances: number,
    environment: Record<string, string> = {},
    broker?: PrivateBroker,
  ): Promise<TestFleet> {
    const fleet = new TestFleet(broker ?? (await startRabbitMq()), environment)
    await Promise.all(Array.from({ length: instances }, (_, at) => fleet.startInstance(at)))
    await fleet.acquainted()
    await fleet.connectBackEnd()
    return fleet
  }

  get workers(): number {
    return this.#gateways.size * WORKERS
  }

  get gateways(): TestGateway[] {
    return [...this.#gateways.values()]
  }

  get backEnd(): BackEnd {
    if (this.#backEnd === null) throw new Error("the fleet has not started")
    return this.#backEnd
  }

  async startInstance(at: number): Promise<TestGateway> {
    const gateway = await startGateway({
      AMQP_URL: this.broker.url,
      ...this.queues,
      INSTANCE_ID: `gw${at}`,
      WORKERS: String(WORKERS),
      DEVICE_AUTH: "hello",
      HELLO_SECRETS: SECRET,
      ...this.#environment,
    })
    this.#gateways.set(at, gateway)
    return gateway
  }

  instance(at: number): TestGateway {
    const gateway = this.#gateways.get(at)
    if (gateway === undefined) throw new Error(`no instance ${at}`)
    return gateway
  }

  /** Waits until all workers have their broker connections and know each other. */
  async acquainted(): Promise<void> {
    for (const at of this.#gateways.keys()) await this.ready(at)
    const heard = this.workers * (this.workers - 1)
    await until(async () => (await this.counted("owsla_fleet_members")) === heard, {
      what: "all workers to know each other",
      timeoutMs: 30_000,
    })
  }

  /** Sends SIGKILL to the supervisor and all its workers at once, as if the machine had failed. */
  async kill(at: number): Promise<void> {
    this.signal(at, "SIGKILL")
    await this.instance(at).exited
    this.#gateways.delete(at)
  }

  /** Sends a signal to the supervisor and all its workers at once. */
  signal(at: number, signal: NodeJS.Signals): void {
    const gateway = this.instance(at)
    for (const pid of [gateway.pid, ...gateway.workers().values()]) process.kill(pid, signal)
  }

  /** Drains an instance and waits for its end. */
  async stopInstance(at: number): Promise<void> {
    await this.instance(at).stop()
    this.#gateways.delete(at)
  }

  newName(): string {
    this.#names += 1
    return `lock:${this.#names}`
  }

  /** Waits until all workers of an instance have their broker connections. */
  ready(at: number): Promise<void> {
    return this.instance(at).ready()
  }

  /** A device that has sent its HELLO. The kernel selects the worker of the instance. */
  async connect(at: number, name: string): Promise<TestDevice> {
    // Retry like a device: it may have reached the listener of a worker that was just killed.
    const device = await until(() => connectDevice({ port: this.instance(at).devicePort }), {
      what: `instance ${at} to take a connection`,
    })
    this.#devices.push(device)
    await device.send(helloLine(name, SECRET))
    return device
  }

  /** A device that the instance has admitted. */
  async admit(at: number, name: string): Promise<{ device: TestDevice; view: DeviceView }> {
    const device = await this.connect(at, name)
    let view: DeviceView | undefined
    await until(
      async () => {
        const response = await this.instance(at).fetch(`/devices/${name}`)
        if (response.ok) view = (await response.json()) as DeviceView
        return view?.instance === `gw${at}`
      },
      { what: `${name} to be admitted by instance ${at}` },
    )
    if (view === undefined) throw new Error(`${name} was not admitted`)
    return { device, view }
  }

  async list(gateway: TestGateway, query = ""): Promise<FleetList> {
    return (await (await gateway.fetch(`/devices${query}`)).json()) as FleetList
  }

  send(at: number, id: string, line: string): Promise<Response> {
    const headers = { "content-type": "text/plain" }
    return this.instance(at).fetch(`/devices/${id}/send`, { method: "POST", headers, body: line })
  }

  /** Waits for the receipt of the command with this number. */
  async receiptOf(command: number, timeoutMs = 20_000): Promise<ReceivedReceipt> {
    await until(() => this.backEnd.receiptOf(command) !== undefined, {
      what: `the receipt of command ${command}`,
      timeoutMs,
    })
    return this.backEnd.receiptOf(command) as ReceivedReceipt
  }

  /** The sum of a metric over all instances. */
  async counted(name: string, label?: string): Promise<number> {
    const counts = await Promise.all(this.gateways.map((gateway) => gateway.metric(name, label)))
    return counts.reduce((sum, count) => sum + count, 0)
  }

  /** Makes the broker close the gateways' connections, one after the other, half a second apart. */
  async cutConnections(): Promise<void> {
    const listed = await this.broker.ctl("list_connections", "pid", "client_properties")
    const ours = listed.split("\n").filter((line) => line.includes('"owsla gw'))
    if (ours.length !== this.workers * 2) throw new Error(`two a worker expected: ${listed}`)
    // In one command, because each start of rabbitmqctl takes a second of CPU time.
    const pids = ours.map((line) => JSON.stringify(line.split("\t")[0])).join(", ")
    const close = `rabbit_networking:close_connection(rabbit_misc:string_to_pid(Pid), "a test")`
    await this.broker.ctl("eval", `[begin ${close}, timer:sleep(500) end || Pid <- [${pids}]].`)
  }

  /** Connects again after the broker was not available. */
  async connectBackEnd(): Promise<void> {
    this.#backEnd = await BackEnd.connect(this.broker.url, this.queues)
  }

  releaseDevices(): void {
    for (const device of this.#devices) device.terminate()
    this.#devices = []
  }

  async stop(): Promise<void> {
    this.releaseDevices()
    await this.#backEnd?.close().catch(() => undefined)
    await Promise.all(this.gateways.map((gateway) => gateway.stop()))
    await this.broker.dispose()
  }
}
