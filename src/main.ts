/**
 * The entry point of `bun run start`. Checks that the packages are installed, then loads
 * `process/program.ts`.
 *
 * Without a `node_modules` folder Bun downloads packages while it starts. bunfig.toml disables
 * that, but Bun reads bunfig.toml from the working directory only. A check in `program.ts` would
 * run too late, because static imports are resolved first. So this file imports no package and
 * loads `program.ts` with a dynamic import.
 */

import { existsSync } from "node:fs"
import { join } from "node:path"
import manifest from "../package.json" with { type: "json" }
import { Output } from "./ops/output.ts"

const STANDARD_ERROR = 2
const root = join(import.meta.dir, "..")

/** A bundle has no package.json and no `node_modules` beside it. */
const isBundle = !existsSync(join(root, "package.json"))
const missing = Object.keys(manifest.dependencies).filter(
  (name) => !existsSync(join(root, "node_modules", name)),
)
if (missing.length > 0 && !isBundle) {
  const output = Output.toDescriptor(STANDARD_ERROR, () => undefined)
  output.write(
    `packages are not installed: ${missing.join(", ")}\nrun: cd ${root} && bun install\n`,
  )
  process.exit(1)
}
await import("./process/program.ts")
