/**
 * The documents against the project: what is made from the settings is what the files hold, links
 * lead somewhere, names of variables exist. Never judges what a document says.
 *
 * Documents that are not there yet are not missed; what they hold once they are is.
 */

import { describe, expect, test } from "bun:test"
import { existsSync, readFileSync } from "node:fs"
import { dirname, join, normalize } from "node:path"
import { loadConfig } from "../src/config/config.ts"
import { SETTINGS } from "../src/config/settings.ts"
import { REFUSAL_REASONS } from "../src/device/close-reason.ts"
import { secretFault } from "../src/device/hello-secret.ts"
import { asyncApiText } from "./support/asyncapi.ts"
import { dashboardText } from "./support/dashboard.ts"
import { VARIABLES } from "./support/deployment.ts"
import {
  ASYNCAPI_FILE,
  DASHBOARD_FILE,
  ENVIRONMENT_FILE,
  environmentExample,
  METRICS_FILE,
  ROOT,
  SETTINGS_FILE,
  withSettings,
} from "./support/generate-docs.ts"
import { metricsDocument } from "./support/metrics-table.ts"

const TABLE_BEGINS = "<!-- settings: made by bun run docs -->"
const TABLE_ENDS = "<!-- end of settings -->"

const markdown = [...new Bun.Glob("**/*.md").scanSync({ cwd: ROOT })]
  .filter((path) => !/^(node_modules|tmp)\//.test(path))
  .sort()

const tests = [...new Bun.Glob("test/**/*.test.ts").scanSync({ cwd: ROOT })]

const read = (path: string) => readFileSync(join(ROOT, path), "utf8")
const present = (path: string) => existsSync(join(ROOT, path))

describe("what bun run docs makes", () => {
  // In one word each, since a difference of long texts says less than what to do about it.
  test.each<[string, string, (text: string) => string | Promise<string>]>([
    ["docs/CONFIGURATION.md", SETTINGS_FILE, withSettings],
    [".env.example", ENVIRONMENT_FILE, environmentExample],
    ["docs/asyncapi.yaml", ASYNCAPI_FILE, asyncApiText],
    ["docs/METRICS.md", METRICS_FILE, metricsDocument],
    ["docs/grafana/owsla.json", DASHBOARD_FILE, dashboardText],
  ])("is what %s holds", async (_, path, made) => {
    const text = existsSync(path) ? readFileSync(path, "utf8") : ""
    const state = text === (await made(text)) ? "as made" : "differs: run bun run docs"
    expect(state).toBe("as made")
  })

  test("leaves the text around the tables, and is the same when made again", () => {
    const around = `# A | b\n\n${TABLE_BEGINS}\nold\n${TABLE_ENDS}\nafter\n`
    const made = withSettings(around)
    expect(made).toStartWith(`# A | b\n\n${TABLE_BEGINS}\n\n## Instance and broker\n\n`)
    expect(made).toEndWith(`\n\n${TABLE_ENDS}\nafter\n`)
    expect(made).not.toContain("\nold\n")
    expect(withSettings(made)).toBe(made)
  })

  test.each<[string, string]>([
    ["nothing", ""],
    ["one marker", `a ${TABLE_BEGINS} b`],
    ["the other", `a ${TABLE_ENDS} b`],
    ["the wrong order", `${TABLE_ENDS} ${TABLE_BEGINS}`],
    ["two beginnings", `${TABLE_BEGINS} ${TABLE_BEGINS} ${TABLE_ENDS}`],
    ["two ends", `${TABLE_BEGINS} ${TABLE_ENDS} ${TABLE_ENDS}`],
  ])("refuses a document with %s", (_, readme) => {
    expect(() => withSettings(readme)).toThrow("docs/CONFIGURATION.md must hold once each")
  })

  test("has a row of four cells for each setting, in order", () => {
    const made = withSettings(`${TABLE_BEGINS}${TABLE_ENDS}`)
    const rows = made.split("\n").filter((line) => line.startsWith("| `"))
    const cells = rows.map((row) => row.slice(2, -2).split(/(?<!\\) \| /))
    expect(cells.map((row) => row.length)).toEqual(SETTINGS.map(() => 4))
    expect(cells.map((row) => row[0])).toEqual(SETTINGS.map(({ name }) => `\`${name}\``))
    expect(cells.map((row) => row[0])).toContain("`NODE_ENV`")
  })

  test("says nothing that only this machine would say", () => {
    for (const name of ["INSTANCE_ID", "WORKERS", "MAX_CONNECTIONS"]) {
      expect(environmentExample()).toContain(`\n# ${name}=\n`)
    }
  })

  test("sets nothing as it is", () => {
    for (const line of environmentExample().split("\n")) expect(line).toMatch(/^(#.*)?$/)
  })

  test("sets nothing but the defaults once every line is taken in", () => {
    const lines = environmentExample().matchAll(/^# ([A-Z][A-Z0-9_]*)=(.*)$/gm)
    const environment = Object.fromEntries([...lines].map(([, name, value]) => [name, value]))
    expect(Object.keys(environment)).toEqual(SETTINGS.map(({ name }) => name))
    const { tls, ...others } = loadConfig(environment, () => null)
    const { tls: tlsByDefault, ...othersByDefault } = loadConfig({})
    expect(others).toEqual(othersByDefault)
    // Named, the files are the operator's, and none are made for him.
    expect(tls).toEqual({ ...tlsByDefault, development: false })
  })
})

describe.each(markdown)("%s", (path) => {
  test("knows no path outside the project", () => {
    for (const outside of [/\.\.\/shared/, /\/work\b/]) expect(read(path)).not.toMatch(outside)
  })

  test("names tests that exist", () => {
    const named = [...read(path).matchAll(/`((?:[\w-]+\/)*[\w-]+\.test\.ts)`/g)].map(
      ([, name = ""]) => name,
    )
    const exists = (name: string) => tests.some((file) => `/${file}`.endsWith(`/${name}`))
    expect(named.filter((name) => !exists(name))).toEqual([])
  })

  test("has links that lead to a file, and to a heading of it", () => {
    const dead = [...linksOf(read(path))].filter((link) => !leadsSomewhere(path, link))
    expect(dead).toEqual([])
  })
})

test("docs/OPERATING.md explains each reason of a refusal", () => {
  const explained = [...read("docs/OPERATING.md").matchAll(/^\| `(\w+)` \|/gm)].map(
    ([, name]) => name,
  )
  for (const reason of REFUSAL_REASONS) expect(explained).toContain(reason)
})

/** Whoever copies a command from a document must not run a gateway whose secret everybody knows. */
describe("a secret of devices that a document shows", () => {
  const shownIn = (text: string) =>
    [...text.matchAll(/(?:HELLO_SECRETS=|--secret[ =])["']?([A-Za-z0-9._~+/-]+)/g)].map(
      ([, secret = ""]) => secret,
    )

  test.each([...markdown, ".env.example", "fly.toml", "Dockerfile"].filter(present))(
    "in %s is refused",
    (path) => {
      const accepted = shownIn(read(path)).filter((secret) => secretFault(secret) === null)
      expect(accepted).toEqual([])
    },
  )

  test("is found by these rules", () => {
    const text = 'HELLO_SECRETS=a-b --secret c/d HELLO_SECRETS="e=" HELLO_SECRETS="$(openssl rand)"'
    expect(shownIn(text)).toEqual(["a-b", "c/d", "e"])
  })
})

describe("names of environment variables", () => {
  /** Read by the tests, by Bun, or by the platform; never by the configuration. */
  const others = ["TEST_AMQP_URL", "NODE_TLS_REJECT_UNAUTHORIZED"]
  const known = new Set([...VARIABLES, ...others])
  const sources: Record<string, (text: string) => Iterable<string | undefined>> = {
    "README.md": namesIn,
    "docs/CONFIGURATION.md": namesIn,
    "docs/HTTP.md": namesIn,
    "docs/PROTOCOL.md": namesIn,
    "docs/CLOUDAMQP.md": namesIn,
    "fly.toml": (text) => {
      const { env = {}, files = [] } = Bun.TOML.parse(text) as FlyConfig
      // Fly.io writes these secrets into files; no process reads them as variables.
      const written = new Set(files.map((file) => file.secret_name))
      return [...Object.keys(env), ...namesIn(text)].filter((name) => !written.has(name))
    },
    Dockerfile: (text) => [...text.matchAll(/^\s*ENV\s+(\w+)/gim)].map((match) => match[1]),
  }

  test.each(Object.keys(sources).filter(present))("in %s exist", (path) => {
    const names = [...new Set(sources[path]?.(read(path)))]
    expect(names.filter((name) => !known.has(name ?? ""))).toEqual([])
  })

  test("are found by these rules", () => {
    const text = "`A_B` C_D $E_F G=1 FLY_APP_NAME HMAC-SHA256 a_b TO_D1 _X_"
    expect([...namesIn(text)]).toEqual(["A_B", "C_D", "E_F", "TO_D1", "G"])
  })
})

interface FlyConfig {
  readonly env?: Record<string, string>
  readonly files?: { readonly secret_name?: string }[]
}

/**
 * Words that can only be variables: capitals with an underscore, or set to something. Not Fly's
 * own.
 */
function namesIn(text: string): string[] {
  const withUnderscore = text.match(/\b(?!FLY_)[A-Z][A-Z0-9]*(_[A-Z0-9]+)+\b/g) ?? []
  const set = [...text.matchAll(/(?<![\w&?-])([A-Z][A-Z0-9]+|[A-Z])=(?!=)/g)].map((m) => m[1] ?? "")
  return [...withUnderscore, ...set]
}

/** The targets of links and images, those in code left out. */
function* linksOf(text: string): Iterable<string> {
  const prose = text.replace(/^```[\s\S]*?^```/gm, "").replace(/`[^`\n]*`/g, "")
  for (const [, target = ""] of prose.matchAll(/\]\(\s*<?([^)\s>]+)>?[^)]*\)/g)) yield target
  for (const [, target = ""] of prose.matchAll(/^\[[^\]]+\]:\s*(\S+)/gm)) yield target
}

function leadsSomewhere(from: string, link: string): boolean {
  if (/^[a-z][a-z0-9+.-]*:/i.test(link)) return true
  const [path = "", anchor] = decodeURIComponent(link).split("#")
  const target = path === "" ? from : normalize(join(dirname(from), path))
  if (target.startsWith("..") || !present(target)) return false
  return anchor === undefined || !target.endsWith(".md") || anchorsOf(read(target)).has(anchor)
}

/** What GitHub makes of headings, and anchors as in rows of tables. */
function anchorsOf(text: string): Set<string> {
  const anchors = [...text.matchAll(/<a id="([^"]+)"><\/a>/g)].map(([, id = ""]) => id)
  const headings = [...text.replace(/^```[\s\S]*?^```/gm, "").matchAll(/^#{1,6}\s+(.+?)\s*$/gm)]
  const ofHeadings = headings.map(([, heading = ""]) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\s_-]/gu, "")
      .replace(/\s/g, "-"),
  )
  return new Set([...anchors, ...ofHeadings])
}
