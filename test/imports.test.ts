/**
 * The rules of the sources that no compiler keeps: which file may import which, who may touch the
 * environment and the console, how a file begins, and how wide a comment is.
 */

import { describe, expect, test } from "bun:test"
import { readdirSync, readFileSync } from "node:fs"
import { dirname, join, relative } from "node:path"

const ROOT = join(import.meta.dir, "..")
const SOURCES = join(ROOT, "src")

/** Plain functions and objects: data and the time in, decisions out. */
const PURE = [
  "src/backoff.ts",
  "src/counters.ts",
  "src/errors.ts",
  "src/process/drain.ts",
  "src/process/paced-closing.ts",
  "src/ops/doctor/report.ts",
  "src/ops/doctor/capacity.ts",
  "src/structures/pace.ts",
  "src/structures/min-heap.ts",
  "src/structures/fifo.ts",
  "src/structures/histogram.ts",
  "src/structures/bounded-map.ts",
  "src/structures/by-age.ts",
  "src/structures/ring.ts",
  "src/process/restart.ts",
  "src/process/instance-status.ts",
  "src/process/samples.ts",
  "src/http/page/findings.ts",
  "src/structures/spread-map.ts",
  "src/ops/instance-counters.ts",
  "src/ops/histogram-metrics.ts",
  "src/commands/broadcast-message.ts",
  "src/commands/command-message.ts",
  "src/commands/command-options.ts",
  "src/commands/dead-letters.ts",
  "src/commands/deduplicator.ts",
  "src/commands/lost-commands.ts",
  "src/commands/forwarding.ts",
  "src/commands/reply-to.ts",
  "src/commands/hold/held-command.ts",
  "src/commands/hold/held-index.ts",
  "src/broker/republishing.ts",
  "src/broker/publish-window.ts",
  "src/commands/routing.ts",
  "src/broker/topology.ts",
  "src/amqp/unconfirmed.ts",
  "src/device/admission.ts",
  "src/device/backpressure.ts",
  "src/device/certificate-identity.ts",
  "src/device/close-reason.ts",
  "src/device/connection-history.ts",
  "src/device/command.ts",
  "src/device/denylist.ts",
  "src/device/early-bytes.ts",
  "src/device/endpoint.ts",
  "src/device/device-rate.ts",
  "src/device/framer.ts",
  "src/device/framing.ts",
  "src/device/goodbye.ts",
  "src/device/graceful-close.ts",
  "src/device/hello-secret.ts",
  "src/device/ids.ts",
  "src/device/issuers.ts",
  "src/device/length-framer.ts",
  "src/device/line-framer.ts",
  "src/device/outgoing.ts",
  "src/device/refusals.ts",
  "src/device/remembered-ids.ts",
  "src/device/reorder-buffer.ts",
  "src/device/reply-request.ts",
  "src/device/shown-text.ts",
  "src/device/supersede-keys.ts",
  "src/device/tls-failure.ts",
  "src/device/token-line.ts",
  "src/device/waiting-replies.ts",
  "src/device/unfinished-lines.ts",
  "src/http/http-connections.ts",
  "src/http/loopback-requests.ts",
  "src/fleet/bans.ts",
  "src/fleet/broadcast-command.ts",
  "src/fleet/broadcast-coordination.ts",
  "src/fleet/broadcast-pace.ts",
  "src/fleet/broadcast-request.ts",
  "src/fleet/flapping.ts",
  "src/fleet/gate.ts",
  "src/fleet/members.ts",
  "src/fleet/registration.ts",
  "src/fleet/location-cache.ts",
  "src/fleet/tape/tape.ts",
]
/**
 * `main.ts` and `program.ts` only for faults before there is a log; `certs-command.ts`,
 * `health-command.ts`, the doctor and the simulator are tools.
 */
const MAY_WRITE = [
  "src/main.ts",
  "src/process/program.ts",
  "src/ops/certs-command.ts",
  "src/ops/doctor/main.ts",
  "src/ops/health-command.ts",
  "src/ops/log.ts",
  "src/simulator/main.ts",
]

/** The files that `main.ts` loads once it has found the packages. */
const COMMANDS = [
  "src/ops/health-command.ts",
  "src/process/program.ts",
  "src/ops/doctor/main.ts",
  "src/ops/certs-command.ts",
  "src/simulator/main.ts",
]

interface Import {
  readonly from: string
  /** Erased when compiled. */
  readonly isType: boolean
}

interface Source {
  readonly path: string
  readonly text: string
  /** Without comments. */
  readonly code: string
  readonly imports: readonly Import[]
}

function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/(^|\s)\/\/.*$/gm, "$1")
}

function importsOf(path: string, code: string): Import[] {
  const statement =
    /^(?:import|export)\s+(type\s)?(?:[^"';]*?\sfrom\s+)?["']([^"']+)["']|(\btypeof\s+)?\b(?:import|require)\(\s*["']([^"']+)["']/gm
  return [...code.matchAll(statement)].map(([, type, target, typeOf, dynamic]) => {
    const from = target ?? dynamic ?? ""
    const isType = (type ?? typeOf) !== undefined
    if (!from.startsWith(".")) return { from, isType }
    return { from: relative(ROOT, join(ROOT, dirname(path), from)), isType }
  })
}

const sources: readonly Source[] = readdirSync(SOURCES, { recursive: true, encoding: "utf8" })
  .filter((name) => /\.tsx?$/.test(name))
  .sort()
  .map((name) => {
    const path = join("src", name)
    const text = readFileSync(join(ROOT, path), "utf8")
    const code = withoutComments(text)
    return { path, text, code, imports: importsOf(path, code) }
  })

/** The paths whose code matches, for an assertion that names them. */
function matching(pattern: RegExp, among: readonly Source[] = sources): string[] {
  return among.filter(({ code }) => pattern.test(code)).map(({ path }) => path)
}

describe("the reader of imports", () => {
  test("finds every kind", () => {
    const code = [
      'import { a, type B } from "./a.ts"',
      'import type { C } from "../c.ts"',
      'import * as d from "node:fs"',
      'import {\n  e,\n} from "./e.ts"',
      'import "./f.ts"',
      'export { g } from "./g.ts"',
      'const h = await import("./h.ts")',
      'type I = typeof import("i")',
      'const text = "import nothing from here"',
    ].join("\n")
    expect(importsOf("src/device/x.ts", code)).toEqual([
      { from: "src/device/a.ts", isType: false },
      { from: "src/c.ts", isType: true },
      { from: "node:fs", isType: false },
      { from: "src/device/e.ts", isType: false },
      { from: "src/device/f.ts", isType: false },
      { from: "src/device/g.ts", isType: false },
      { from: "src/device/h.ts", isType: false },
      { from: "i", isType: true },
    ])
  })

  test("finds as many as Bun does in each source", () => {
    const transpilers = {
      ts: new Bun.Transpiler({ loader: "ts" }),
      tsx: new Bun.Transpiler({ loader: "tsx" }),
    }
    for (const { path, text, imports } of sources) {
      const found = imports.filter(({ isType }) => !isType).length
      const scanned = transpilers[path.endsWith(".tsx") ? "tsx" : "ts"].scanImports(text)
      // The transpiler does not know that JSX is Hono's.
      const used = scanned.filter(({ path }) => !/^react(\/|$)/.test(path)).length
      expect([path, found]).toEqual([path, used])
    }
  })
})

describe("imports", () => {
  /**
   * Which folders a folder may import from, types included; files at the top of `src` may be
   * imported by all.
   */
  const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
    structures: [],
    device: ["structures"],
    broker: ["device", "structures"],
    lines: ["broker", "device"],
    amqp: ["broker", "structures"],
    fleet: ["broker", "commands", "device", "structures"],
    commands: ["broker", "device", "fleet", "structures"],
    config: ["amqp", "broker", "device", "fleet"],
    http: ["broker", "commands", "device", "fleet", "process"],
  }

  test.each(Object.entries(MAY_IMPORT))("src/%s imports from %j alone", (folder, others) => {
    const wrong = sources
      .filter(({ path }) => path.startsWith(`src/${folder}/`))
      .flatMap(({ path, imports }) =>
        imports
          .map(({ from }) => [from, /^src\/([^/]+)\//.exec(from)?.[1] ?? folder] as const)
          .filter(([, to]) => to !== folder && !others.includes(to))
          .map(([from]) => `${path} imports ${from}`),
      )
    expect(wrong).toEqual([])
  })

  test("the entry imports no package, so that it can say that one is missing", () => {
    const reached = new Set<string>()
    const reach = (path: string) => {
      if (reached.has(path)) return
      reached.add(path)
      const source = sources.find((source) => source.path === path)
      for (const { from, isType } of source?.imports ?? []) if (!isType) reach(from)
    }
    for (const command of COMMANDS) reached.add(command)
    reach("src/main.ts")
    const packages = [...reached].filter((from) => !/^(src\/|node:|bun:|package\.json$)/.test(from))
    expect(packages).toEqual([])
  })

  test("the list of pure files names files that exist", () => {
    const paths = sources.map(({ path }) => path)
    expect(PURE.filter((path) => !paths.includes(path))).toEqual([])
  })

  test("pure files import pure files only; types may come from anywhere", () => {
    const wrong = sources
      .filter(({ path }) => PURE.includes(path))
      .flatMap(({ path, imports }) =>
        imports
          .filter(({ from, isType }) => !isType && !PURE.includes(from))
          .map(({ from }) => `${path} imports ${from}`),
      )
    expect(wrong).toEqual([])
  })

  test("pure files import no types of Bun or Node either", () => {
    const wrong = sources
      .filter(({ path }) => PURE.includes(path))
      .filter(({ imports }) => imports.some(({ from }) => !from.startsWith("src/")))
    expect(wrong.map(({ path }) => path)).toEqual([])
  })
})

describe("pure files", () => {
  const pure = sources.filter(({ path }) => PURE.includes(path))

  test.each([
    ["timers", /\b(setTimeout|setInterval|setImmediate|queueMicrotask|requestIdleCallback)\b/],
    ["a clock", /\bDate\.now\b|\bnew Date\(\)|\bperformance\b|\bhrtime\b/],
    ["chance", /\bMath\.random\b|\bcrypto\b/],
    ["Bun or the process", /\bBun\b|\bprocess\b|\bglobalThis\b|\bBuffer\b/],
    ["the network or files", /\bfetch\b|\bWebSocket\b|\breadFile/],
  ])("use no %s", (_name, pattern) => {
    expect(matching(pattern, pure)).toEqual([])
  })
})

describe("everywhere", () => {
  test("only the configuration reads the environment", () => {
    expect(matching(/\bprocess\.env\b|\bBun\.env\b|\bimport\.meta\.env\b/)).toEqual([
      "src/config/config.ts",
    ])
  })

  test("only the log writes to the console, and what must speak without one", () => {
    const writes =
      /\bconsole\b|\bprocess\.std(out|err)\b|\bBun\.std(out|err)\b|\bwriteSync\(\s*[12]\b|\bfd: [12]\b/
    const writing = matching(writes)
    expect(writing.filter((path) => !MAY_WRITE.includes(path))).toEqual([])
    const mains = sources.filter(({ path }) => /^src\/(main|program)\.ts$/.test(path))
    expect(matching(/\bconsole\b|\bprocess\.stdout\b|\bBun\.stdout\b/, mains)).toEqual([])
  })

  test("comments are no wider than code, except drawings and tables", () => {
    const wide = sources.flatMap(({ path, text }) =>
      text
        .split("\n")
        .filter((line) => line.length > 100 && /^\s*(\/\*\*|\*|\/\/)/.test(line))
        .filter((line) => !/[─│┌└├┬►▲]|^\s*\* {2,}\S/.test(line))
        .map((line) => `${path}: ${line.trim()}`),
    )
    expect(wide).toEqual([])
  })

  test.each(sources.map(({ path, text }) => ({ path, text })))(
    "$path says first what it is",
    ({ text }) => {
      expect(text).toMatch(/^\/\*\*\s+(\* )?\S/)
    },
  )
})
