/**
 * `bun run docs`: writes what the documentation says of the settings, `.env.example` and the tables in
 * docs/CONFIGURATION.md, from the declarations in `src/config/settings.ts`, so that neither can say anything else.
 *
 * The same on every machine: what a default depends on is told in words. Changes nothing of docs/CONFIGURATION.md
 * but the text between its two markers. `test/docs.test.ts` compares the files with this.
 */

import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { ConfigurationError, loadConfig } from "../../src/config/config.ts"
import { SETTINGS } from "../../src/config/settings.ts"

export const ROOT = join(import.meta.dir, "../..")
export const SETTINGS_FILE = join(ROOT, "docs/CONFIGURATION.md")
export const ENVIRONMENT_FILE = join(ROOT, ".env.example")

const TABLE_BEGINS = "<!-- settings: made by bun run docs -->"
const TABLE_ENDS = "<!-- end of settings -->"
const NO_DEFAULT = "not set"
const WIDTH = 100

type Setting = (typeof SETTINGS)[number]

/** `.env.example`: nothing set, and what each variable would be if it were. */
export function environmentExample(): string {
  const heading =
    "Every setting with its default. Copy this file to .env, which Bun reads by itself, and take the # away from what is to differ. Made by bun run docs from src/config/settings.ts."
  return `${[comment(heading), ...SETTINGS.map(example)].join("\n\n")}\n`
}

function example(setting: Setting): string {
  const { name, text, range, secret } = setting
  const value = isValue(setting) ? setting.default : ""
  const file = secret ? ` A secret: ${name}_FILE may name a file that holds it instead.` : ""
  const bounds = `Range: ${range}. Default: ${setting.default || NO_DEFAULT}.${file}`
  return `${comment(text)}\n${comment(bounds)}\n# ${name}=${value}`
}

/** The document with new tables. @throws when its two markers are not there, once, in order. */
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
  /** When to change these settings. */
  readonly text: string
  /** The group begins with this setting and ends before the first of the next group. */
  readonly first: Setting["name"]
}

const GROUPS: readonly Group[] = [
  {
    title: "Instance and broker",
    text: "Every instance with a broker sets `AMQP_URL`. Several instances on one broker also need an `INSTANCE_ID` each, and the same `FLEET_SECRET` when their URLs have different passwords.",
    first: "AMQP_URL",
  },
  {
    title: "Port and certificate",
    text: "Set the certificate before real devices connect. The port and the address are changed when a load balancer or another program asks for it.",
    first: "DEVICE_HOST",
  },
  {
    title: "Identity of devices",
    text: "Choose one way of `DEVICE_AUTH` before devices are in the field. Without it every connection is a device of its own and loses its name when it reconnects.",
    first: "DEVICE_AUTH",
  },
  {
    title: "Lines",
    text: "The defaults suit lines of some kilobytes. Change them when the firmware sends longer lines, sends them slowly, or keeps a line until it is acknowledged.",
    first: "DEVICE_ACK",
  },
  {
    title: "Admission",
    text: "The rate of handshakes adapts by itself. Change these bounds when the machine has less memory or fewer open files than the defaults assume, or when a storm must be slowed down further.",
    first: "MAX_CONNECTIONS",
  },
  {
    title: "Idle devices and commands",
    text: "Change the idle time-out to about twice the interval of the firmware's sign of life. The other bounds say how long a command waits for its device and for missing numbers.",
    first: "IDLE_TIMEOUT_MS",
  },
  {
    title: "Queues",
    text: "Change the names when several fleets share a virtual host or when queues exist already. All instances of a fleet have the same ones.",
    first: "FROM_DEVICE_QUEUE",
  },
  {
    title: "Flow between devices and broker",
    text: "These bound the memory of a worker and the messages in flight. Raise the window when the broker is far away, and `PREFETCH` on a broker of your own; lower the bytes on a small machine.",
    first: "PUBLISH_WINDOW_LINES",
  },
  {
    title: "HTTP",
    text: "Without tokens only programs on the machine are served. Set tokens and `HTTP_HOST` when Prometheus, a dashboard or a back-end asks from elsewhere.",
    first: "HTTP_HOST",
  },
  {
    title: "Process and log",
    text: "Fit the drain to the grace period of the platform that stops the process. `LOG_FORMAT=text` is for a terminal; leave `json` for a log collector.",
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

/** A pipe would end the cell, even within code. */
function cell(text: string): string {
  return text.replaceAll("|", "\\|")
}

/** Whether the default can be written into the environment, or tells what it depends on. */
function isValue({ name, default: value }: Setting): boolean {
  if (value === "") return false
  try {
    // With a broker, since only then is the number of workers free.
    loadConfig({ AMQP_URL: "amqp://localhost", [name]: value }, () => null)
    return true
  } catch (error) {
    if (!(error instanceof ConfigurationError)) throw error
    return !error.faults.some((fault) => fault.startsWith(`${name}:`))
  }
}

/** The text as comment lines no longer than the files of this project are wide. */
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
}
