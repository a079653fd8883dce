/**
 * The entry point of all commands. Checks that the packages are installed, then loads the file of
 * one command.
 *
 *   main.ts ─┬─ start     process/program.ts         also without a command, and for workers
 *            ├─ doctor    ops/doctor/main.ts
 *            ├─ certs     ops/certs-command.ts
 *            ├─ simulate  simulator/main.ts
 *            ├─ health    ops/health-command.ts
 *            └─ --help, --version                    answered here
 *
 * Without a `node_modules` folder Bun downloads packages while it starts. bunfig.toml disables
 * that, but Bun reads bunfig.toml from the working directory only. A check in a command's file
 * would run too late, because static imports are resolved first. So this file imports no package
 * and loads the commands with dynamic imports.
 *
 * Exit status: that of the command; 2 for a command that does not exist, 1 when packages are
 * missing.
 */

import { existsSync } from "node:fs"
import { join } from "node:path"
import manifest from "../package.json" with { type: "json" }
import { Output } from "./ops/output.ts"

const STANDARD_OUTPUT = 1
const STANDARD_ERROR = 2

const USAGE = `usage: bun run start                       run the gateway
       bun run doctor [--json] [--cost]    check settings, machine, certificate, broker and fleet
       bun run certs                       make and list development certificates
       bun run simulate                    run simulated devices, and a back-end
       bun run health                      ask the gateway of this environment whether it is alive
       bun run start --version             print the version
Each command has --help. A binary of bun run build has the same commands: owsla start, ...

The settings are environment variables, and all have defaults: docs/CONFIGURATION.md, .env.example.
Without AMQP_URL the gateway runs with an embedded broker, which keeps nothing.
`

const HINT = "--help lists the commands; docs/CONFIGURATION.md has the settings\n"

/** A bundle has no package.json and no `node_modules` beside it. */
function missingPackages(): readonly string[] {
  const root = join(import.meta.dir, "..")
  if (!existsSync(join(root, "package.json"))) return []
  const missing = Object.keys(manifest.dependencies).filter(
    (name) => !existsSync(join(root, "node_modules", name)),
  )
  if (missing.length === 0) return []
  return [`packages are not installed: ${missing.join(", ")}`, `run: cd ${root} && bun install`]
}

function print(descriptor: number, text: string): void {
  Output.toDescriptor(descriptor, () => undefined).write(text)
}

async function run(args: readonly string[]): Promise<void> {
  const [command = "start", ...rest] = args
  // As in `bun run start --help`, and `owsla start --help` of a binary.
  const option = command === "start" ? rest[0] : command
  if (option === "--help" || option === "-h" || command === "help") {
    print(STANDARD_OUTPUT, USAGE)
    return
  }
  if (option === "--version" || option === "-v") {
    print(STANDARD_OUTPUT, `owsla ${manifest.version}\n`)
    return
  }
  const faults = missingPackages()
  if (faults.length > 0) {
    print(STANDARD_ERROR, `${faults.join("\n")}\n`)
    process.exit(1)
  }
  switch (command) {
    case "start":
      await (await import("./process/program.ts")).start(rest)
      break
    case "doctor":
      process.exit(await (await import("./ops/doctor/main.ts")).runDoctor(rest))
      break
    case "certs":
      process.exit(await (await import("./ops/certs-command.ts")).runCertsCommand(rest))
      break
    case "simulate":
      process.exit(await (await import("./simulator/main.ts")).main(rest))
      break
    case "health":
      process.exit(await (await import("./ops/health-command.ts")).runHealthCommand(rest))
      break
    default:
      // Options without a command, such as those of a worker.
      if (command.startsWith("-")) await (await import("./process/program.ts")).start(args)
      else {
        print(STANDARD_ERROR, `${JSON.stringify(command)} is not a command\n${HINT}`)
        process.exit(2)
      }
  }
}

await run(process.argv.slice(2))
