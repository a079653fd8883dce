/**
 * A Prometheus for the tests: Debian's program, in its own process and directory, on a free port.
 * `sh test/install long` installs it.
 */

import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as v from "valibot"
import { freePorts } from "./free-ports.ts"
import { findProgram } from "./tools.ts"
import { until } from "./wait.ts"

const LOOPBACK = "127.0.0.1"

export interface ScrapeTarget {
  readonly port: number
  /** Read by Prometheus from a file; null for none. */
  readonly token: string | null
}

const sampleSchema = v.object({
  metric: v.record(v.string(), v.string()),
  value: v.tuple([v.number(), v.string()]),
})
const answerSchema = v.object({
  status: v.literal("success"),
  data: v.object({ resultType: v.literal("vector"), result: v.array(sampleSchema) }),
})
const rulesSchema = v.object({
  data: v.object({
    groups: v.array(
      v.object({
        rules: v.array(
          v.object({
            name: v.string(),
            health: v.string(),
            state: v.string(),
            lastError: v.optional(v.string(), ""),
          }),
        ),
      }),
    ),
  }),
})

export type Sample = v.InferOutput<typeof sampleSchema>
type Rule = v.InferOutput<typeof rulesSchema>["data"]["groups"][number]["rules"][number]

export class Prometheus {
  readonly #process: Bun.Subprocess
  readonly #url: string
  readonly #directory: string

  private constructor(process_: Bun.Subprocess, url: string, directory: string) {
    this.#process = process_
    this.#url = url
    this.#directory = directory
  }

  /** Scrapes each target every second as job `owsla`, and evaluates the rules as often. */
  static async start(targets: readonly ScrapeTarget[], rulesFile: string): Promise<Prometheus> {
    const directory = mkdtempSync(join(tmpdir(), "owsla-prometheus-"))
    const { web } = freePorts(["web"])
    const jobs = targets.map(({ port, token }, at) => {
      const tokenFile = join(directory, `token-${at}`)
      if (token !== null) writeFileSync(tokenFile, `${token}\n`, { mode: 0o600 })
      return {
        job_name: `owsla-${at}`,
        ...(token === null ? {} : { authorization: { credentials_file: tokenFile } }),
        static_configs: [{ targets: [`${LOOPBACK}:${port}`], labels: { job: "owsla" } }],
      }
    })
    const configuration = {
      global: { scrape_interval: "1s", evaluation_interval: "1s" },
      rule_files: [rulesFile],
      scrape_configs: jobs,
    }
    const configurationFile = join(directory, "prometheus.yml")
    // JSON is YAML.
    writeFileSync(configurationFile, JSON.stringify(configuration))
    const process_ = Bun.spawn(
      [
        findProgram("prometheus", "prometheus"),
        `--config.file=${configurationFile}`,
        `--storage.tsdb.path=${join(directory, "data")}`,
        `--web.listen-address=${LOOPBACK}:${web}`,
        "--log.level=warn",
      ],
      { stdio: ["ignore", "inherit", "inherit"] },
    )
    const prometheus = new Prometheus(process_, `http://${LOOPBACK}:${web}`, directory)
    const ready = async () => (await fetch(`${prometheus.#url}/-/ready`)).ok
    await until(ready, { what: "Prometheus", timeoutMs: 60_000 })
    return prometheus
  }

  /** Rejects with Prometheus's message when the expression has a fault. */
  async query(expr: string): Promise<readonly Sample[]> {
    const body = new URLSearchParams({ query: expr })
    const response = await fetch(`${this.#url}/api/v1/query`, { method: "POST", body })
    const answer: unknown = await response.json()
    if (!response.ok) throw new Error(`${expr}: ${JSON.stringify(answer)}`)
    return v.parse(answerSchema, answer).data.result
  }

  async rules(): Promise<readonly Rule[]> {
    const response = await fetch(`${this.#url}/api/v1/rules`)
    return v.parse(rulesSchema, await response.json()).data.groups.flatMap(({ rules }) => rules)
  }

  async stop(): Promise<void> {
    this.#process.kill("SIGTERM")
    await this.#process.exited
    rmSync(this.#directory, { recursive: true, force: true })
  }
}
