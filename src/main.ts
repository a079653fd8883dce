/**
 * The entry: `bun run start`. Checks that the packages are installed, then loads `program.ts`, which is all the rest.
 *
 * Where there is no `node_modules`, Bun downloads packages while it starts. bunfig.toml switches that off, but Bun reads that file only in the
 * working directory. A check in `program.ts` itself would come too late, since all static imports are resolved first. So this
 * file imports no package, and the rest dynamically.
 */

import { existsSync } from "node:fs"
import { join } from "node:path"
import manifest from "../package.json" with { type: "json" }
import { Output } from "./ops/output.ts"

const STANDARD_ERROR = 2
const root = join(import.meta.dir, "..")

/** In a bundle there is neither a package.json nor a `node_modules`. */
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
