/**
 * The files that deploy the gateway, compared with the code: their settings exist and are valid,
 * their ports, paths and routes are the gateway's, and each platform waits longer than a drain takes.
 */

import { describe, expect, test } from "bun:test"
import { existsSync } from "node:fs"
import { join, normalize } from "node:path"
import * as v from "valibot"
import { loadConfig } from "../src/config/config.ts"
import { SETTINGS } from "../src/config/settings.ts"
import { DRAIN_GRACE_MS } from "../src/process/supervisor.ts"
import { parseRequest } from "../src/simulator/options.ts"
import { sidecar } from "./http/app-harness.ts"
import { parseUnit, ROOT, read, seconds, VARIABLES, type Variables } from "./support/deployment.ts"

const BROKER = "amqps://user:password@broker.test/vhost"
const TOKEN = "a-token-of-the-tests"
/** Files with secrets are not read by the tests; the settings get these values instead. */
const SECRETS: Variables = { AMQP_URL: BROKER, HTTP_TOKENS: TOKEN, HTTP_READ_TOKENS: `${TOKEN}-2` }
/** What a platform needs beyond the drain, when its signal comes late. */
const MARGIN_MS = 5_000

/** The configuration of a gateway with these variables. @throws with all faults. */
function configOf(variables: Variables) {
  const values = Object.entries(variables).map(([name, value]): [string, string] => {
    const [, secret] = /^(.+)_FILE$/.exec(name) ?? []
    return secret !== undefined && secret in SECRETS
      ? [secret, SECRETS[secret] ?? ""]
      : [name, value]
  })
  return loadConfig(Object.fromEntries(values), () => null)
}

function expectDrainFits(variables: Variables, stopAfterMs: number): void {
  const { drainTimeoutMs } = configOf(variables)
  expect(stopAfterMs).toBeGreaterThanOrEqual(drainTimeoutMs + DRAIN_GRACE_MS + MARGIN_MS)
}

const unknown = (variables: Variables) =>
  Object.keys(variables).filter((name) => !VARIABLES.has(name))

const defaultOf = (name: string) => Number(SETTINGS.find((s) => s.name === name)?.default)

/** Also when its answer is an error. */
async function expectRoute(path: string): Promise<void> {
  const { status } = await sidecar().get(path)
  expect([path, status]).not.toEqual([path, 404])
}

describe("docs/systemd/owsla.service", () => {
  const service = parseUnit(read("docs/systemd/owsla.service")).get("Service") ?? new Map()
  const one = (name: string): string => {
    expect(service.get(name)).toHaveLength(1)
    return service.get(name)?.[0] ?? ""
  }
  const environment: Variables = Object.fromEntries(
    (service.get("Environment") ?? []).map((line: string) => line.split("=")),
  )

  test("has settings that exist and are valid", () => {
    expect(unknown(environment)).toEqual([])
    expect(configOf(environment).amqp?.urls).toEqual([BROKER])
  })

  test("loads the credentials that its settings name", () => {
    const loaded = (service.get("LoadCredential") ?? []).map((line: string) => line.split(":")[0])
    const named = Object.values(environment).flatMap((value) => /^%d\/(.+)$/.exec(value)?.[1] ?? [])
    expect(named).toEqual(loaded)
  })

  test("starts the gateway itself, with messages from the supervisor only", () => {
    const [bun, ...args] = one("ExecStart").split(" ")
    expect(bun).toStartWith("/")
    expect(args).toEqual(["--no-install", "src/main.ts"])
    expect([one("Type"), one("NotifyAccess")]).toEqual(["notify", "main"])
    expect(one("ExecReload")).toEndWith("kill -HUP $MAINPID")
    expect(one("KillMode")).toBe("mixed")
  })

  test("waits for a drain", () => {
    expectDrainFits(environment, seconds(one("TimeoutStopSec")))
  })

  test("does not forbid the compiler of Bun", () => {
    expect(service.has("MemoryDenyWriteExecute")).toBe(false)
  })
})

describe("fly.toml", () => {
  const Fly = v.object({
    kill_signal: v.literal("SIGTERM"),
    kill_timeout: v.string(),
    env: v.record(v.string(), v.string()),
    files: v.array(v.object({ guest_path: v.string(), secret_name: v.string() })),
    services: v.tuple([
      v.object({
        internal_port: v.number(),
        protocol: v.literal("tcp"),
        auto_stop_machines: v.literal("off"),
        ports: v.tuple([
          v.object({
            handlers: v.tuple([v.literal("proxy_proto")]),
            proxy_proto_options: v.object({ version: v.literal("v2") }),
          }),
        ]),
        concurrency: v.object({ type: v.literal("connections"), soft_limit: v.number() }),
      }),
    ]),
    checks: v.record(v.string(), v.object({ port: v.number(), path: v.string() })),
    metrics: v.object({ port: v.number(), path: v.literal("/metrics") }),
    vm: v.tuple([v.object({ size: v.string() })]),
  })
  const fly = v.parse(Fly, Bun.TOML.parse(read("fly.toml")))
  const variables = { ...fly.env, ...SECRETS }
  const config = configOf(variables)

  test("has settings that exist and are valid", () => {
    expect(unknown(fly.env)).toEqual([])
    expect(config.device.proxyFrom).not.toBeNull()
  })

  test("waits for a drain, as long as Fly allows at most", () => {
    expectDrainFits(variables, seconds(fly.kill_timeout))
    expect(seconds(fly.kill_timeout)).toBeLessThanOrEqual(300_000)
  })

  test("has the gateway's ports, files and routes", async () => {
    expect(fly.services[0].internal_port).toBe(config.device.port)
    expect(fly.files.map((file) => file.guest_path)).toEqual([
      config.tls.certFile,
      config.tls.keyFile,
    ])
    expect(fly.metrics.port).toBe(config.metrics?.port ?? 0)
    for (const { port, path } of Object.values(fly.checks)) {
      expect(port).toBe(config.http.port)
      await expectRoute(path)
    }
  })

  test("runs a worker for each CPU", () => {
    expect(fly.vm[0].size).toEndWith(`-${config.workers}x`)
  })
})

describe("docs/compose/compose.yaml", () => {
  const FOLDER = "docs/compose"
  const CONDITIONS = ["service_healthy", "service_completed_successfully"] as const
  const Service = v.object({
    image: v.string(),
    environment: v.optional(v.record(v.string(), v.string()), {}),
    command: v.optional(v.array(v.string()), []),
    ports: v.optional(v.array(v.string()), []),
    volumes: v.optional(v.array(v.string()), []),
    secrets: v.optional(v.array(v.string()), []),
    stop_grace_period: v.optional(v.string()),
    depends_on: v.optional(
      v.union([
        v.array(v.string()),
        v.record(v.string(), v.object({ condition: v.picklist(CONDITIONS) })),
      ]),
      [],
    ),
  })
  const Compose = v.object({
    services: v.record(v.string(), Service),
    volumes: v.record(v.string(), v.null()),
    secrets: v.record(v.string(), v.object({ file: v.string() })),
  })
  const text = read(`${FOLDER}/compose.yaml`).replaceAll(/\$\{BROKER_PASSWORD:\?[^}]*\}/g, "secret")
  const { services, volumes, secrets } = v.parse(Compose, Bun.YAML.parse(text))
  const gateways = Object.entries(services).filter(([name]) => name.startsWith("gateway-"))

  test("names services, volumes, secrets and files that exist", () => {
    for (const { depends_on: others, ...service } of Object.values(services)) {
      const names = Array.isArray(others) ? others : Object.keys(others)
      expect(names.filter((name) => !(name in services))).toEqual([])
      expect(service.secrets.filter((name) => !(name in secrets))).toEqual([])
      const sources = service.volumes.map((volume) => volume.split(":")[0] ?? "")
      const missing = sources.filter((source) =>
        source.startsWith(".") ? !existsSync(join(ROOT, FOLDER, source)) : !(source in volumes),
      )
      expect(missing).toEqual([])
    }
  })

  test("keeps its secrets out of the repository", () => {
    const ignored = read(".gitignore").split("\n")
    for (const { file } of Object.values(secrets)) {
      expect(ignored).toContain(`/${normalize(join(FOLDER, file))}`)
    }
  })

  test("publishes each port once", () => {
    const published = Object.values(services).flatMap(({ ports }) =>
      ports.map((port) => port.split(":").at(-2)),
    )
    expect(new Set(published).size).toBe(published.length)
  })

  test.each(gateways)(
    "%s has valid settings, the gateway's ports, and time for a drain",
    (_, gateway) => {
      const { environment, ports, stop_grace_period: grace } = gateway
      expect(unknown(environment)).toEqual([])
      const config = configOf(environment)
      const inside = ports.map((port) => Number(port.split(":").at(-1)))
      expect(inside).toEqual([config.device.port, config.http.port])
      expectDrainFits(environment, seconds(grace))
    },
  )

  test("has two instances with names of their own", () => {
    const ids = gateways.map(([, { environment }]) => environment["INSTANCE_ID"])
    expect(new Set(ids).size).toBe(2)
  })

  test("runs commands that exist, and the simulator with flags that it has", () => {
    for (const { command } of Object.values(services)) {
      const [name = "start"] = command
      const help = Bun.spawnSync([process.execPath, join(ROOT, "src/main.ts"), name, "--help"])
      expect({ name, status: help.exitCode }).toEqual({ name, status: 0 })
    }
    const [, ...flags] = services["simulator"]?.command ?? []
    expect(parseRequest(flags)).toMatchObject({ kind: "run" })
  })

  test("lets Prometheus scrape each instance", async () => {
    const Scraping = v.object({
      scrape_configs: v.tuple([
        v.object({
          job_name: v.literal("owsla"),
          static_configs: v.tuple([v.object({ targets: v.array(v.string()) })]),
        }),
      ]),
    })
    const scraping = v.parse(Scraping, Bun.YAML.parse(read(`${FOLDER}/prometheus.yml`)))
    const [
      {
        static_configs: [{ targets }],
      },
    ] = scraping.scrape_configs
    expect(targets).toEqual(gateways.map(([name]) => `${name}:8080`))
    await expectRoute("/metrics")
  })
})

describe("docs/kubernetes.yaml", () => {
  const Probe = v.object({
    httpGet: v.object({ path: v.string(), port: v.string() }),
    periodSeconds: v.number(),
    failureThreshold: v.number(),
  })
  const Container = v.object({
    image: v.string(),
    envFrom: v.array(v.object({ configMapRef: v.object({ name: v.string() }) })),
    ports: v.array(v.object({ name: v.string(), containerPort: v.number() })),
    resources: v.object({ limits: v.object({ cpu: v.string() }) }),
    securityContext: v.object({
      allowPrivilegeEscalation: v.literal(false),
      readOnlyRootFilesystem: v.literal(true),
      capabilities: v.object({ drop: v.tuple([v.literal("ALL")]) }),
    }),
    startupProbe: Probe,
    livenessProbe: Probe,
    readinessProbe: Probe,
    volumeMounts: v.array(v.object({ name: v.string(), mountPath: v.string() })),
  })
  const Labels = v.record(v.string(), v.string())
  const StatefulSet = v.object({
    kind: v.literal("StatefulSet"),
    spec: v.object({
      serviceName: v.string(),
      selector: v.object({ matchLabels: Labels }),
      template: v.object({
        metadata: v.object({ labels: Labels }),
        spec: v.object({
          terminationGracePeriodSeconds: v.number(),
          securityContext: v.object({ runAsNonRoot: v.literal(true), runAsUser: v.number() }),
          containers: v.tuple([Container]),
          volumes: v.array(v.object({ name: v.string() })),
        }),
      }),
    }),
  })
  const ConfigMap = v.object({
    kind: v.literal("ConfigMap"),
    data: v.record(v.string(), v.string()),
  })
  const Service = v.object({
    kind: v.literal("Service"),
    metadata: v.object({ name: v.string() }),
    spec: v.object({
      selector: Labels,
      ports: v.array(v.object({ targetPort: v.string(), port: v.number(), protocol: v.string() })),
    }),
  })
  const Any = v.object({
    apiVersion: v.string(),
    kind: v.string(),
    metadata: v.object({ name: v.string(), namespace: v.literal("owsla") }),
  })
  const documents = Bun.YAML.parse(read("docs/kubernetes.yaml")) as unknown[]
  const objects = documents.map((document) => v.parse(Any, document))
  const ofKind = (kind: string) => documents.filter((_, at) => objects[at]?.kind === kind)
  const [set] = ofKind("StatefulSet").map((document) => v.parse(StatefulSet, document).spec)
  const [settings = {}] = ofKind("ConfigMap").map((document) => v.parse(ConfigMap, document).data)
  const services = ofKind("Service").map((document) => v.parse(Service, document))
  const pod = set?.template.spec
  const [container] = pod?.containers ?? []
  const config = configOf(settings)

  test("has one of each object", () => {
    const kinds = objects.map(({ kind }) => kind)
    const wanted = ["ConfigMap", "StatefulSet", "Service", "Service", "PodDisruptionBudget"]
    expect(kinds).toEqual(wanted)
    expect(services.map(({ metadata }) => metadata.name)).toContain(set?.serviceName ?? "")
  })

  test("has settings that exist and are valid", () => {
    expect(unknown(settings)).toEqual([])
    expect(config.amqp?.urls).toEqual([BROKER])
    expect(container?.envFrom.map(({ configMapRef }) => configMapRef.name)).toEqual(["owsla"])
  })

  test("mounts the folders of the files that the settings name", () => {
    const folders = container?.volumeMounts.map(({ mountPath }) => mountPath) ?? []
    const files = Object.entries(settings).filter(([name]) => name.endsWith("_FILE"))
    for (const [, path] of files) expect(folders).toContain(join(path, ".."))
    const volumes = pod?.volumes.map(({ name }) => name)
    expect(container?.volumeMounts.map(({ name }) => name)).toEqual(volumes)
  })

  test("waits for a drain", () => {
    expectDrainFits(settings, (pod?.terminationGracePeriodSeconds ?? 0) * 1_000)
  })

  test("selects its pods, by ports that the gateway has", () => {
    const labels = set?.template.metadata.labels
    const ports = new Map(container?.ports.map((port) => [port.name, port.containerPort]))
    expect(ports).toEqual(
      new Map([
        ["devices", config.device.port],
        ["http", config.http.port],
      ]),
    )
    expect(set?.selector.matchLabels ?? {}).toEqual(labels ?? {})
    for (const { spec } of services) {
      expect(spec.selector).toEqual(labels ?? {})
      for (const port of spec.ports) expect(ports.get(port.targetPort)).toBe(port.port)
    }
  })

  test("probes routes that exist, and leaves a stalled worker to the supervisor", async () => {
    const { startupProbe, livenessProbe, readinessProbe } = container ?? {}
    for (const probe of [startupProbe, livenessProbe, readinessProbe]) {
      expect(probe?.httpGet.port).toBe("http")
      await expectRoute(probe?.httpGet.path ?? "")
    }
    const killsAfterMs =
      (livenessProbe?.periodSeconds ?? 0) * (livenessProbe?.failureThreshold ?? 0) * 1_000
    expect(killsAfterMs).toBeGreaterThan(defaultOf("WORKER_STALL_TIMEOUT_MS"))
  })

  test("runs as the user of the image, with a worker for each CPU", () => {
    const [, user] = /^USER (\d+):/m.exec(read("Dockerfile")) ?? []
    expect(String(pod?.securityContext.runAsUser)).toBe(user ?? "")
    expect(container?.resources.limits.cpu).toBe(String(config.workers))
  })
})

describe("Dockerfile", () => {
  test("copies what .dockerignore lets through", () => {
    const copied = [...read("Dockerfile").matchAll(/^COPY (?!--from)(.+) \S+$/gm)]
    const sources = new Set(copied.flatMap(([, names = ""]) => names.split(" ")))
    const allowed = read(".dockerignore")
      .split("\n")
      .filter((line) => line.startsWith("!"))
    expect(new Set(allowed.map((line) => line.slice(1)))).toEqual(sources)
    for (const source of sources) expect(existsSync(join(ROOT, source))).toBe(true)
  })
})
