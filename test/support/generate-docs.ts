/**
 * `bun run docs`: generates `.env.example` and the tables in docs/CONFIGURATION.md from the
 * declarations in `src/config/settings.ts`, so that they cannot differ. Also docs/asyncapi.yaml,
 * docs/METRICS.md (`metrics-table.ts`) and the dashboard in docs/grafana (`dashboard.ts`).
 *
 * The result is the same on each machine: defaults that depend on the machine are described in
 * words. In docs/CONFIGURATION.md only the text between the two markers changes.
 * `test/docs.test.ts` compares the files.
 */

import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { ConfigurationError, loadConfig } from "../../src/config/config.ts"
import { SETTINGS } from "../../src/config/settings.ts"
import { asyncApiText } from "./asyncapi.ts"
import { dashboardText } from "./dashboard.ts"
import { metricsDocument } from "./metrics-table.ts"

export const ROOT = join(import.meta.dir, "../..")
export const SETTINGS_FILE = join(ROOT, "docs/CONFIGURATION.md")
export const ASYNCAPI_FILE = join(ROOT, "docs/asyncapi.yaml")
export const ENVIRONMENT_FILE = join(ROOT, ".env.example")
export const METRICS_FILE = join(ROOT, "docs/METRICS.md")
export const DASHBOARD_FILE = join(ROOT, "docs/grafana/owsla.json")

const TABLE_BEGINS = "<!-- settings: made by bun run docs -->"
const TABLE_ENDS = "<!-- end of settings -->"
const NO_DEFAULT = "not set"
const WIDTH = 100

type Setting = (typeof SETTINGS)[number]

/** The text of `.env.example`: all variables with their defaults, as comments. */
export function environmentExample(): string {
  const heading =
    "All settings with their defaults. Copy this file to .env, which Bun reads automatically. To change a setting, remove the # before it. Made by bun run docs from src/config/settings.ts."
  return `${[comment(heading), ...SETTINGS.map(example)].join("\n\n")}\n`
}

function example(setting: Setting): string {
  const { name, text, range, secret } = setting
  const value = isValue(setting) ? setting.default : ""
  const file = secret ? ` A secret: ${name}_FILE can name a file that contains it instead.` : ""
  const bounds = `Range: ${range}. Default: ${setting.default || NO_DEFAULT}.${file}`
  return `${comment(text)}\n${comment(bounds)}\n# ${name}=${value}`
}

/** The document with new tables. @throws unless each marker occurs exactly once, in order. */
export function withSettings(document: string): string {
  const [before, between, more] = document.split(TABLE_BEGINS)
  const [, after, evenMore] = between?.split(TABLE_ENDS) ?? []
  if (after === undefined || more !== undefined || evenMore !== undefined) {
    throw new Error(
      `docs/CONFIGURATION.md must hold once each, in order: ${TABLE_BEGINS} ${TABLE_ENDS}`,
    )
  }
  return `${before}${TABLE_BEGINS}\n\n${GROUPS.map(section).join("\n\n")}\n\n${TABLE_ENDS}${after}`
}

interface Group {
  readonly title: string
  /** Says when to change these settings. */
  readonly text: string
  /** The group starts with this setting and ends before the first setting of the next group. */
  readonly first: Setting["name"]
}

const GROUPS: readonly Group[] = [
  {
    title: "Instance and broker",
    text: "Set `AMQP_URL` on each instance that uses a broker. When several instances use one broker, each also needs its own `INSTANCE_ID`, and all need the same `FLEET_SECRET` if their URLs have different passwords.",
    first: "AMQP_URL",
  },
  {
    title: "Port and certificate",
    text: "Set the certificate before real devices connect. Change the port and the address when a load balancer or another program needs it.",
    first: "DEVICE_HOST",
  },
  {
    title: "Identity of devices",
    text: "Set `DEVICE_AUTH` before devices are in the field. With `none` each connection is a separate device and gets a new id when it reconnects.",
    first: "DEVICE_AUTH",
  },
  {
    title: "Lines",
    text: "The defaults suit lines of a few kilobytes. Change them when the firmware sends longer lines, sends them slowly, or keeps each line until it is acknowledged. Set `DEVICE_FRAMING` when its messages may contain LF.",
    first: "DEVICE_ACK",
  },
  {
    title: "Admission",
    text: "The rate of handshakes adapts by itself. Change these bounds when the machine has less memory or fewer open files than the defaults assume, or when a storm must be slowed down further.",
    first: "MAX_CONNECTIONS",
  },
  {
    title: "Proxies and limits by address",
    text: "Set the first two when a load balancer stands in front and speaks the PROXY protocol; without it all devices have the balancer's address. The limits keep single addresses from taking all connections; leave them off where many devices share one.",
    first: "PROXY_PROTOCOL",
  },
  {
    title: "Devices that connect too often",
    text: "Set `FLAP_LIMIT` when devices are named and some of them connect again and again, because of bad firmware or a bad network. Choose it well above what a healthy device does.",
    first: "FLAP_LIMIT",
  },
  {
    title: "Idle devices and commands",
    text: "Set the idle time-out to about twice the interval of the firmware's sign of life. The other settings bound how long commands wait for their device and for missing numbers.",
    first: "IDLE_TIMEOUT_MS",
  },
  {
    title: "Queues",
    text: "Change the names when several fleets share a virtual host or when queues exist already. All instances of a fleet must have the same names.",
    first: "FROM_DEVICE_QUEUE",
  },
  {
    title: "Flow between devices and broker",
    text: "These settings bound the memory of a worker and the messages in flight. Raise the window when the latency to the broker is high, and `PREFETCH` on your own broker. Lower the bytes on a small machine.",
    first: "PUBLISH_WINDOW_LINES",
  },
  {
    title: "HTTP",
    text: "Without tokens only programs on the same machine are served. Set tokens and `HTTP_HOST` when Prometheus, a dashboard or a back-end runs on another machine, and `METRICS_PORT` when a scraper cannot send a token.",
    first: "HTTP_HOST",
  },
  {
    title: "Process and log",
    text: "Set the drain time-out below the grace period of the platform that stops the process. `LOG_FORMAT` follows the terminal; set it to `json` when a log collector reads a terminal.",
    first: "DRAIN_TIMEOUT_MS",
  },
]

function section({ title, text, first }: Group, at: number): string {
  const begin = SETTINGS.findIndex(({ name }) => name === first)
  const next = GROUPS[at + 1]?.first
  const end = next === undefined ? SETTINGS.length : SETTINGS.findIndex(({ name }) => name === next)
  return `## ${title}\n\n${text}\n\n${table(SETTINGS.slice(begin, end))}`
}

function table(settings: readonly Setting[]): string {
  const rows = settings.map((setting) => {
    const { name, text, range, secret } = setting
    const byDefault = isValue(setting) ? `\`${setting.default}\`` : setting.default || NO_DEFAULT
    const file = secret ? ` Secret: also as \`${name}_FILE\`.` : ""
    return [`\`${name}\``, byDefault, range, `${text}${file}`]
  })
  return [["Variable", "Default", "Range", "Meaning"], ["---", "---", "---", "---"], ...rows]
    .map((cells) => `| ${cells.map(cell).join(" | ")} |`)
    .join("\n")
}

/** Escapes pipes, which would end the cell even within code. */
function cell(text: string): string {
  return text.replaceAll("|", "\\|")
}

/** Whether the default is a valid value. Otherwise it describes what the default depends on. */
function isValue({ name, default: value }: Setting): boolean {
  if (value === "") return false
  try {
    // With a broker, because WORKERS may be set only then.
    loadConfig({ AMQP_URL: "amqp://localhost", [name]: value }, () => null)
    return true
  } catch (error) {
    if (!(error instanceof ConfigurationError)) throw error
    return !error.faults.some((fault) => fault.startsWith(`${name}:`))
  }
}

/** The text as comment lines, wrapped at the width of this project's files. */
function comment(text: string): string {
  const lines: string[] = []
  let line = "#"
  for (const word of text.split(" ")) {
    if (line.length + 1 + word.length > WIDTH) {
      lines.push(line)
      line = "#"
    }
    line += ` ${word}`
  }
  return [...lines, line].join("\n")
}

if (import.meta.main) {
  writeFileSync(SETTINGS_FILE, withSettings(readFileSync(SETTINGS_FILE, "utf8")))
  writeFileSync(ENVIRONMENT_FILE, environmentExample())
  writeFileSync(ASYNCAPI_FILE, asyncApiText())
  writeFileSync(METRICS_FILE, await metricsDocument())
  writeFileSync(DASHBOARD_FILE, dashboardText())
}
