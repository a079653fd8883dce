/**
 * The file of keys: an error at start when it cannot be used, and the last keys in force when that
 * happens later. With real files.
 */

import { afterEach, beforeEach, describe, expect, test } from "bun:test"
import {
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { followedTokenKeys, readTokenKeys } from "../../src/ops/token-keys-file.ts"
import { issuer, jwksOf, pemOf } from "../support/tokens.ts"

const MAX_FILE_BYTES = 262_144
const FIRST = pemOf(issuer("EdDSA"))
const SECOND = jwksOf(issuer("ES256"))
const WEAK = pemOf(issuer("RS256", "weak", 1_024))

let folder: string
let path: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "owsla-token-keys-"))
  path = join(folder, "keys")
})

afterEach(() => rmSync(folder, { recursive: true, force: true }))

/** What makes the file unusable. */
const TROUBLES: [string, () => void, string][] = [
  ["it does not exist", () => rmSync(path, { force: true }), "ENOENT"],
  ["it is empty", () => writeFileSync(path, ""), "the file is empty"],
  [
    "it is half written",
    () => writeFileSync(path, FIRST.slice(0, 60)),
    "other than complete public keys",
  ],
  ["it is half of a JWK Set", () => writeFileSync(path, SECOND.slice(0, -2)), "not valid JSON"],
  ["it has no key", () => writeFileSync(path, `{"keys":[]}`), "contains no key"],
  ["it has a weak key", () => writeFileSync(path, WEAK), "fewer than 2048 bits"],
  ["it is too large", () => writeFileSync(path, "-".repeat(MAX_FILE_BYTES + 1)), "larger than"],
  [
    "it is a directory",
    () => {
      rmSync(path, { force: true })
      mkdirSync(path)
    },
    "directory|Directories",
  ],
]

describe("at start", () => {
  test("the text of a file that can be used is returned", async () => {
    for (const text of [FIRST, SECOND]) {
      writeFileSync(path, text)
      expect(await readTokenKeys(path)).toBe(text)
    }
  })

  test.each(TROUBLES)("it is an error when %s", async (_what, spoil, reason) => {
    spoil()
    const error = await readTokenKeys(path).catch((error: unknown) => error)
    expect(String(error)).toMatch(new RegExp(`^TokenKeysError: TOKEN_KEYS_FILE: .*(${reason})`))
  })
})

describe("later", () => {
  let changed: string[]
  let warnings: string[]
  let file: ReturnType<typeof followedTokenKeys>

  beforeEach(async () => {
    changed = []
    warnings = []
    writeFileSync(path, FIRST)
    const warn = (message: string) => warnings.push(message)
    file = followedTokenKeys(path, FIRST, (text) => changed.push(text), warn)
    await file.look()
  })

  test("the keys of the start are not passed on again", () => {
    expect([changed, warnings]).toEqual([[], []])
  })

  const REPLACEMENTS: [string, () => void][] = [
    ["in place", () => writeFileSync(path, SECOND)],
    [
      "by renaming",
      () => {
        writeFileSync(`${path}.new`, SECOND)
        renameSync(`${path}.new`, path)
      },
    ],
    [
      "by a symbolic link",
      () => {
        writeFileSync(`${path}.new`, SECOND)
        rmSync(path)
        symlinkSync(`${path}.new`, path)
      },
    ],
  ]

  test.each(REPLACEMENTS)("keys that are replaced %s are passed on once", async (_how, replace) => {
    replace()
    for (let n = 0; n < 3; n += 1) await file.look()
    expect([changed, warnings]).toEqual([[SECOND], []])
  })

  test.each(TROUBLES)("the last keys stay in force when %s", async (_what, spoil, reason) => {
    spoil()
    for (let n = 0; n < 3; n += 1) await file.look()
    expect(changed).toEqual([])
    expect(warnings).toEqual([
      expect.stringMatching(
        new RegExp(`^TOKEN_KEYS_FILE: the last keys stay in force: .*(${reason})`),
      ),
    ])
    rmSync(path, { recursive: true, force: true })
    writeFileSync(path, SECOND)
    await file.look()
    expect([changed, warnings.length]).toEqual([[SECOND], 1])
  })

  test("a file that is restored unchanged changes nothing", async () => {
    truncateSync(path)
    await file.look()
    writeFileSync(path, FIRST)
    await file.look()
    expect([changed, warnings.length]).toEqual([[], 1])
  })
})
