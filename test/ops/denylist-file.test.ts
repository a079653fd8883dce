/**
 * The file of the denylist: each kind of change is detected, the last list stays in force while the
 * file cannot be used, and the warnings. With real files.
 */

import { afterEach, beforeEach, describe, expect, test } from "bun:test"
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { Denylist } from "../../src/device/denylist.ts"
import { followedDenylist } from "../../src/ops/denylist-file.ts"
import { deferred, until } from "../support/wait.ts"

const MAX_FILE_BYTES = 134_217_728
const FINGERPRINT = "ab".repeat(32)

let folder: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "owsla-denylist-"))
})

afterEach(() => {
  rmSync(folder, { recursive: true, force: true })
})

/** A followed file; `text` null: there is none yet. */
class Subject {
  readonly path = join(folder, "denied")
  readonly warnings: string[] = []
  /** For each list that was passed on: which of the devices a, b and c it denies. */
  readonly told: string[] = []
  readonly file = followedDenylist(
    this.path,
    (denylist) => {
      this.told.push(["a", "b", "c"].filter((id) => denylist.denies(id, null)).join(""))
      this.fingerprintDenied = denylist.denies("other", FINGERPRINT)
    },
    (message) => this.warnings.push(message),
  )
  fingerprintDenied = false

  static async of(text: string | null): Promise<Subject> {
    const subject = new Subject()
    if (text !== null) subject.write(text)
    await subject.file.look()
    return subject
  }

  write(text: string): void {
    writeFileSync(this.path, text)
  }
}

describe("the list", () => {
  test("is read at start", async () => {
    const subject = await Subject.of("a\nb\n")
    expect(subject.told).toEqual(["ab"])
    expect(subject.warnings).toEqual([])
  })

  test("may contain fingerprints", async () => {
    expect((await Subject.of(`${FINGERPRINT}\n`)).fingerprintDenied).toBe(true)
  })

  test("may be empty, which denies no device", async () => {
    const subject = await Subject.of("")
    expect(subject.told).toEqual([""])
    expect(subject.warnings).toEqual([])
  })

  test("is passed on once while its file does not change", async () => {
    const subject = await Subject.of("a\n")
    for (let n = 0; n < 3; n += 1) await subject.file.look()
    expect(subject.told).toEqual(["a"])
  })
})

describe("a change is followed", () => {
  test("that is written in place", async () => {
    const subject = await Subject.of("a\n")
    subject.write("a\nb\n")
    await subject.file.look()
    expect(subject.told).toEqual(["a", "ab"])
  })

  test("that is appended", async () => {
    const subject = await Subject.of("a\n")
    appendFileSync(subject.path, "c\n")
    await subject.file.look()
    expect(subject.told).toEqual(["a", "ac"])
  })

  test.each(["# nobody\n", "  #", "\n#\n\n"])(
    "that takes everything away and has a comment: %j",
    async (text) => {
      const subject = await Subject.of("a\n")
      subject.write(text)
      await subject.file.look()
      expect(subject.told).toEqual(["a", ""])
      expect(subject.warnings).toEqual([])
    },
  )

  test("that has the same size at another time", async () => {
    const subject = await Subject.of("a\n")
    subject.write("b\n")
    utimesSync(subject.path, 1_000, 1_000)
    await subject.file.look()
    expect(subject.told).toEqual(["a", "b"])
  })

  test("of a file that was replaced by renaming, also with the same size and time", async () => {
    const subject = await Subject.of("a\n")
    utimesSync(subject.path, 1_000, 1_000)
    await subject.file.look()
    const next = join(folder, "denied.new")
    writeFileSync(next, "b\n")
    utimesSync(next, 1_000, 1_000)
    renameSync(next, subject.path)
    await subject.file.look()
    expect(subject.told.at(-1)).toBe("b")
  })

  test("of a link to another file, as in Kubernetes", async () => {
    const [first, second, link] = ["first", "second", "denied"].map((name) => join(folder, name))
    writeFileSync(first as string, "a\n")
    writeFileSync(second as string, "b\n")
    symlinkSync(first as string, link as string)
    const subject = await Subject.of(null)
    symlinkSync(second as string, join(folder, "next"))
    renameSync(join(folder, "next"), link as string)
    await subject.file.look()
    expect(subject.told).toEqual(["a", "b"])
  })

  test("of a file that did not exist at first", async () => {
    const subject = await Subject.of(null)
    expect(subject.told).toEqual([])
    subject.write("a\n")
    await subject.file.look()
    expect(subject.told).toEqual(["a"])
  })
})

describe("the last list stays in force, with one warning,", () => {
  type Change = (path: string) => void
  const TROUBLES: [string, Change, RegExp][] = [
    ["there is no file any more", (path) => rmSync(path), /ENOENT/],
    [
      "it has become a directory",
      (path) => {
        rmSync(path)
        mkdirSync(path)
      },
      /EISDIR/,
    ],
    // Sparse: no such size is written.
    ["it is too large", (path) => truncateSync(path, MAX_FILE_BYTES + 1), /134217728 bytes/],
    [
      "it is a link to itself",
      (path) => {
        rmSync(path)
        symlinkSync(path, path)
      },
      /ELOOP/,
    ],
  ]

  test.each(TROUBLES)("when %s", async (_, change, cause) => {
    const subject = await Subject.of("a\n")
    change(subject.path)
    for (let n = 0; n < 3; n += 1) await subject.file.look()
    expect(subject.told).toEqual(["a"])
    expect(subject.warnings).toEqual([expect.stringMatching(cause)])
    expect(subject.warnings[0]).toStartWith("DENYLIST_FILE: the last list stays in force")
  })

  test.each(TROUBLES)("until it can be read again, after %s", async (_, change) => {
    const subject = await Subject.of("a\n")
    change(subject.path)
    await subject.file.look()
    rmSync(subject.path, { recursive: true, force: true })
    subject.write("b\n")
    await subject.file.look()
    expect(subject.told).toEqual(["a", "b"])
    expect(subject.warnings.length).toBe(1)
  })

  test("and again when the same happens again later", async () => {
    const subject = await Subject.of("a\n")
    for (const text of ["b\n", "c\n"]) {
      rmSync(subject.path)
      await subject.file.look()
      subject.write(text)
      await subject.file.look()
    }
    expect(subject.told).toEqual(["a", "b", "c"])
    expect(subject.warnings.length).toBe(2)
  })

  test("and again when something else is wrong then", async () => {
    const subject = await Subject.of("a\n")
    rmSync(subject.path)
    await subject.file.look()
    mkdirSync(subject.path)
    await subject.file.look()
    expect(subject.warnings).toEqual([
      expect.stringContaining("ENOENT"),
      expect.stringContaining("EISDIR"),
    ])
  })

  test("and again when its folder disappears once more after it was back unchanged", async () => {
    const subject = await Subject.of("a\n")
    const aside = `${folder}.aside`
    for (let n = 0; n < 2; n += 1) {
      renameSync(folder, aside)
      await subject.file.look()
      renameSync(aside, folder)
      await subject.file.look()
    }
    expect(subject.told).toEqual(["a", "a", "a"])
    expect(subject.warnings.length).toBe(2)
  })
})

describe("a file that is probably damaged leaves the last list in force", () => {
  test.each(["", "\n", " \r\n\t\n", "\uFEFF"])("when it is empty: %j", async (text) => {
    const subject = await Subject.of("a\n")
    subject.write(text)
    for (let n = 0; n < 3; n += 1) await subject.file.look()
    expect(subject.told).toEqual(["a"])
    expect(subject.warnings).toEqual([
      "DENYLIST_FILE: the last list stays in force: the file is empty; to deny no device, write a comment line: # none",
    ])
  })

  test("when it has more invalid lines than the file in force, with a warning that names them", async () => {
    const subject = await Subject.of("a\nold fault\n")
    subject.write("b\nold fault\nc\nnew fault\n")
    for (let n = 0; n < 3; n += 1) await subject.file.look()
    expect(subject.told).toEqual(["a"])
    expect(subject.warnings.slice(1)).toEqual([
      "DENYLIST_FILE: the last list stays in force: 2 line(s) are not a device id or fingerprint, first: 2, 4, more than in the last list (1); correct these lines, or write # before them",
    ])
  })

  test("but not when it has as many or fewer", async () => {
    const subject = await Subject.of("a\none fault\nanother fault\n")
    subject.write("b\nother faults\nof one file\n")
    await subject.file.look()
    subject.write("c\none fault\n")
    await subject.file.look()
    expect(subject.told).toEqual(["a", "b", "c"])
    subject.write("a\none fault\nanother fault\n")
    await subject.file.look()
    expect(subject.told).toEqual(["a", "b", "c"])
  })

  test("until it is corrected", async () => {
    const subject = await Subject.of("a\n")
    subject.write("b\na fault\n")
    await subject.file.look()
    subject.write("b\nc\n")
    await subject.file.look()
    expect(subject.told).toEqual(["a", "bc"])
  })

  test("also when it did not exist in between", async () => {
    const subject = await Subject.of("a\n")
    rmSync(subject.path)
    await subject.file.look()
    subject.write("b\na fault\n")
    await subject.file.look()
    expect(subject.told).toEqual(["a"])
  })

  test("but at the start its valid lines are used, because there is no last list", async () => {
    const subject = await Subject.of("a\na fault\n")
    expect(subject.told).toEqual(["a"])
    expect(subject.warnings).toEqual([
      "DENYLIST_FILE: 1 line(s) are not a device id or fingerprint, first: 2",
    ])
  })
})

describe("a file that changes while it is read", () => {
  /** Reading takes hundreds of ticks. */
  const LONG = `a\n${`# ${"x".repeat(1_000)}\n`.repeat(20_000)}`

  /** Changes the file in the middle of one look at it. */
  async function lookDuring(subject: Subject, change: () => void): Promise<void> {
    let isReading = true
    const looking = subject.file.look().finally(() => {
      isReading = false
    })
    // In each tick, because a timer that fires late on a busy machine could miss the whole read.
    while (isReading && !isOpen(subject.path)) {
      await new Promise((resolve) => setImmediate(resolve))
    }
    if (!isReading) throw new Error("the file was never open")
    change()
    await looking
  }

  test("is not used, and read again at the next look", async () => {
    const subject = await Subject.of(null)
    subject.write(LONG)
    await lookDuring(subject, () => appendFileSync(subject.path, "b\n"))
    expect(subject.told).toEqual([])
    await subject.file.look()
    expect(subject.told).toEqual(["ab"])
  })

  test("is not used when it was replaced by renaming", async () => {
    const subject = await Subject.of("a\nb\n")
    subject.write(LONG)
    const next = join(folder, "next")
    writeFileSync(next, "c\n")
    await lookDuring(subject, () => renameSync(next, subject.path))
    expect(subject.told).toEqual(["ab"])
    await subject.file.look()
    expect(subject.told).toEqual(["ab", "c"])
  })

  test("each time leaves the last list in force, with one warning", async () => {
    const subject = await Subject.of("b\n")
    subject.write(LONG)
    for (let n = 0; n < 9; n += 1) {
      await lookDuring(subject, () => appendFileSync(subject.path, "# more\n"))
    }
    expect(subject.told).toEqual(["b"])
    expect(subject.warnings).toEqual([expect.stringContaining("changed each time it was read")])
    await subject.file.look()
    expect(subject.told).toEqual(["b", "a"])
  })

  test("each time is used at the start, because otherwise no device would be denied", async () => {
    const subject = await Subject.of(null)
    subject.write(LONG)
    let following = true
    const followed = subject.file.follow().finally(() => {
      following = false
    })
    while (following) {
      if (isOpen(subject.path)) appendFileSync(subject.path, "# more\n")
      await new Promise((resolve) => setImmediate(resolve))
    }
    await followed
    expect(subject.told[0]).toBe("a")
    subject.file.stop()
  })
})

/** Whether this process has the file open. */
function isOpen(path: string): boolean {
  return readdirSync("/proc/self/fd").some((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === path
    } catch {
      return false
    }
  })
}

describe("invalid lines", () => {
  test("are reported by their numbers, and the others are used", async () => {
    const subject = await Subject.of("a\n# a remark\ns3cret and more\n\nb\n\ttwo words\n")
    expect(subject.told).toEqual(["ab"])
    expect(subject.warnings).toEqual([
      "DENYLIST_FILE: 2 line(s) are not a device id or fingerprint, first: 3, 6",
    ])
  })

  test("are never repeated in messages", async () => {
    const subject = await Subject.of("s3cret password\n")
    rmSync(subject.path)
    await subject.file.look()
    expect(subject.warnings.length).toBe(2)
    expect(subject.warnings.join()).not.toContain("s3cret")
  })

  test("are reported once for each version of the file", async () => {
    const subject = await Subject.of("a\na b\n")
    await subject.file.look()
    expect(subject.warnings.length).toBe(1)
    subject.write("a\na b\nb c\n")
    await subject.file.look()
    expect(subject.warnings.length).toBe(2)
  })

  test("are all counted, and the first five are named", async () => {
    const subject = await Subject.of(`${"a b\n".repeat(1_000)}a\n`)
    expect(subject.warnings).toEqual([
      "DENYLIST_FILE: 1000 line(s) are not a device id or fingerprint, first: 1, 2, 3, 4, 5",
    ])
  })

  test("without valid ones leave the last list in force, with one warning", async () => {
    const subject = await Subject.of("a\n")
    subject.write("a b\n")
    await subject.file.look()
    await subject.file.look()
    expect(subject.told).toEqual(["a"])
    expect(subject.warnings).toEqual([
      "DENYLIST_FILE: the last list stays in force: no line is a device id or fingerprint: 1 line(s) are not a device id or fingerprint, first: 1; correct these lines, or write # before them",
    ])
  })

  test("may be any bytes", async () => {
    const subject = await Subject.of(null)
    writeFileSync(subject.path, Buffer.from([0x61, 0x0a, 0xff, 0x00, 0xfe, 0x0a, 0x62]))
    await subject.file.look()
    expect(subject.told).toEqual(["ab"])
    expect(subject.warnings.at(-1)).toEndWith("first: 2")
  })
})

describe("a file that", () => {
  test("is a pipe does not block", async () => {
    const subject = await Subject.of(null)
    expect(Bun.spawnSync(["mkfifo", subject.path]).success).toBe(true)
    await subject.file.look()
    expect(subject.warnings.at(-1)).toContain("the file is a pipe")
  })

  test("has an endless line is read, and that line is invalid", async () => {
    const subject = await Subject.of(null)
    subject.write(`a\n${"x".repeat(1_000_000)}\nb`)
    await subject.file.look()
    expect(subject.told).toEqual(["ab"])
    expect(subject.warnings.at(-1)).toEndWith("first: 2")
  })

  test("is split into any pieces has the same result", async () => {
    const ids = Array.from({ length: 20_000 }, (_, n) => `device-${n}`)
    const lists: Denylist[] = []
    const path = join(folder, "denied")
    writeFileSync(path, `\uFEFF# é ü 漢\n${ids.join("\r\n")}\n# 漢字`)
    const warnings: string[] = []
    const file = followedDenylist(
      path,
      (list) => void lists.push(list),
      (message) => warnings.push(message),
    )
    await file.look()
    expect([...(lists[0]?.lines() ?? [])].sort()).toEqual(ids.sort())
    expect(warnings).toEqual([])
  })
})

describe("following", () => {
  test("reads at once, then whenever it has changed", async () => {
    const subject = await Subject.of(null)
    subject.write("a\n")
    await subject.file.follow()
    expect(subject.told).toEqual(["a"])
    subject.write("a\nb\n")
    await until(() => subject.told.length === 2, { what: "the change" })
    expect(subject.told).toEqual(["a", "ab"])
    subject.file.stop()
  })

  test("reads one version at a time, and the next one after the list was used", async () => {
    const taken = deferred<void>()
    const told: number[] = []
    const path = join(folder, "denied")
    writeFileSync(path, "a\n")
    const file = followedDenylist(
      path,
      (list) => {
        told.push(list.size)
        return taken.promise
      },
      () => undefined,
    )
    const first = file.look()
    await until(() => told.length === 1, { what: "the first list" })
    writeFileSync(path, "a\nb\n")
    expect(file.look()).toBe(first)
    taken.resolve()
    await first
    await file.look()
    expect(told).toEqual([1, 2])
  })

  test("can be stopped before it has started", async () => {
    const subject = await Subject.of("a\n")
    expect(() => subject.file.stop()).not.toThrow()
  })
})
