/**
 * The file of the denylist: that each change of it is followed however it is made, that a list stays in
 * force while there is nothing to read, and what is said of it. On real files; the timer is held.
 */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { DenylistFile } from "../../src/ops/denylist-file.ts"

const LOOK_EVERY_MS = 500
const MAX_FILE_BYTES = 134_217_728
const FINGERPRINT = "ab".repeat(32)

let folder: string

beforeEach(() => {
  jest.useFakeTimers()
  folder = mkdtempSync(join(tmpdir(), "owsla-denylist-"))
})

afterEach(() => {
  jest.useRealTimers()
  rmSync(folder, { recursive: true, force: true })
})

/** A followed file; `text` null: there is none yet. */
class Subject {
  readonly path = join(folder, "denied")
  readonly warnings: string[] = []
  /** Which of the devices a, b and c each list denies that was told of. */
  readonly told: string[] = []
  readonly file = new DenylistFile(
    this.path,
    null,
    (denylist) => {
      this.told.push(["a", "b", "c"].filter((id) => denylist.denies(id, null)).join(""))
      this.fingerprintDenied = denylist.denies("other", FINGERPRINT)
    },
    (message) => this.warnings.push(message),
  )
  fingerprintDenied = false

  constructor(text: string | null) {
    if (text !== null) this.write(text)
    this.file.look()
  }

  write(text: string): void {
    writeFileSync(this.path, text)
  }
}

describe("the list", () => {
  test("is read at start", () => {
    const subject = new Subject("a\nb\n")
    expect(subject.told).toEqual(["ab"])
    expect(subject.warnings).toEqual([])
  })

  test("holds fingerprints too", () => {
    expect(new Subject(`${FINGERPRINT}\n`).fingerprintDenied).toBe(true)
  })

  test("may be empty, which denies nobody", () => {
    const subject = new Subject("")
    expect(subject.told).toEqual([""])
    expect(subject.warnings).toEqual([])
  })

  test("is told of once while its file stays as it is", () => {
    const subject = new Subject("a\n")
    for (let n = 0; n < 3; n += 1) subject.file.look()
    expect(subject.told).toEqual(["a"])
  })
})

describe("a change is followed", () => {
  test("that is written in place", () => {
    const subject = new Subject("a\n")
    subject.write("a\nb\n")
    subject.file.look()
    expect(subject.told).toEqual(["a", "ab"])
  })

  test("that is appended", () => {
    const subject = new Subject("a\n")
    appendFileSync(subject.path, "c\n")
    subject.file.look()
    expect(subject.told).toEqual(["a", "ac"])
  })

  test("that takes everything away", () => {
    const subject = new Subject("a\n")
    truncateSync(subject.path)
    subject.file.look()
    expect(subject.told).toEqual(["a", ""])
  })

  test("that has the same size at another time", () => {
    const subject = new Subject("a\n")
    subject.write("b\n")
    utimesSync(subject.path, 1_000, 1_000)
    subject.file.look()
    expect(subject.told).toEqual(["a", "b"])
  })

  test("that is renamed into its place, also with the same size and time", () => {
    const subject = new Subject("a\n")
    utimesSync(subject.path, 1_000, 1_000)
    subject.file.look()
    const next = join(folder, "denied.new")
    writeFileSync(next, "b\n")
    utimesSync(next, 1_000, 1_000)
    renameSync(next, subject.path)
    subject.file.look()
    expect(subject.told.at(-1)).toBe("b")
  })

  test("that is a link to another file, as Kubernetes makes it", () => {
    const [first, second, link] = ["first", "second", "denied"].map((name) => join(folder, name))
    writeFileSync(first as string, "a\n")
    writeFileSync(second as string, "b\n")
    symlinkSync(first as string, link as string)
    const subject = new Subject(null)
    symlinkSync(second as string, join(folder, "next"))
    renameSync(join(folder, "next"), link as string)
    subject.file.look()
    expect(subject.told).toEqual(["a", "b"])
  })

  test("when there was no file at first", () => {
    const subject = new Subject(null)
    expect(subject.told).toEqual([])
    subject.write("a\n")
    subject.file.look()
    expect(subject.told).toEqual(["a"])
  })
})

describe("the last list stays in force, and that is warned of once,", () => {
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

  test.each(TROUBLES)("when %s", (_, change, cause) => {
    const subject = new Subject("a\n")
    change(subject.path)
    for (let n = 0; n < 3; n += 1) subject.file.look()
    expect(subject.told).toEqual(["a"])
    expect(subject.warnings).toEqual([expect.stringMatching(cause)])
    expect(subject.warnings[0]).toStartWith("DENYLIST_FILE: the last list stays in force")
  })

  test.each(TROUBLES)("until it can be read again, after %s", (_, change) => {
    const subject = new Subject("a\n")
    change(subject.path)
    subject.file.look()
    rmSync(subject.path, { recursive: true, force: true })
    subject.write("b\n")
    subject.file.look()
    expect(subject.told).toEqual(["a", "b"])
    expect(subject.warnings.length).toBe(1)
  })

  test("and again when the same happens again later", () => {
    const subject = new Subject("a\n")
    for (const text of ["b\n", "c\n"]) {
      rmSync(subject.path)
      subject.file.look()
      subject.write(text)
      subject.file.look()
    }
    expect(subject.told).toEqual(["a", "b", "c"])
    expect(subject.warnings.length).toBe(2)
  })

  test("and again when something else is wrong then", () => {
    const subject = new Subject("a\n")
    rmSync(subject.path)
    subject.file.look()
    mkdirSync(subject.path)
    subject.file.look()
    expect(subject.warnings).toEqual([
      expect.stringContaining("ENOENT"),
      expect.stringContaining("EISDIR"),
    ])
  })

  test("and again when its whole folder, which was back unchanged, is gone once more", () => {
    const subject = new Subject("a\n")
    const aside = `${folder}.aside`
    for (let n = 0; n < 2; n += 1) {
      renameSync(folder, aside)
      subject.file.look()
      renameSync(aside, folder)
      subject.file.look()
    }
    expect(subject.told).toEqual(["a", "a", "a"])
    expect(subject.warnings.length).toBe(2)
  })
})

describe("lines that say nothing it understands", () => {
  test("are warned of by their numbers, and the others count", () => {
    const subject = new Subject("a\n# a remark\ns3cret and more\n\nb\n\ttwo words\n")
    expect(subject.told).toEqual(["ab"])
    expect(subject.warnings).toEqual([
      "DENYLIST_FILE: 2 line(s) are no id or fingerprint, first: 3, 6",
    ])
  })

  test("are never repeated in what is said", () => {
    const subject = new Subject("s3cret password\n")
    rmSync(subject.path)
    subject.file.look()
    expect(subject.warnings.length).toBe(2)
    expect(subject.warnings.join()).not.toContain("s3cret")
  })

  test("are warned of once for each version of the file", () => {
    const subject = new Subject("a\na b\n")
    subject.file.look()
    expect(subject.warnings.length).toBe(1)
    subject.write("a\na b\nb c\n")
    subject.file.look()
    expect(subject.warnings.length).toBe(2)
  })

  test("are all counted, the first five of them named", () => {
    const subject = new Subject(`${"a b\n".repeat(1_000)}a\n`)
    expect(subject.warnings).toEqual([
      "DENYLIST_FILE: 1000 line(s) are no id or fingerprint, first: 1, 2, 3, 4, 5",
    ])
  })

  test("and nothing else, leave the last list in force, and are warned of once", () => {
    const subject = new Subject("a\n")
    subject.write("a b\n")
    subject.file.look()
    subject.file.look()
    expect(subject.told).toEqual(["a"])
    expect(subject.warnings).toEqual([
      "DENYLIST_FILE: the last list stays in force: no line of it means anything",
    ])
  })

  test("may be any bytes", () => {
    const subject = new Subject(null)
    writeFileSync(subject.path, Buffer.from([0x61, 0x0a, 0xff, 0x00, 0xfe, 0x0a, 0x62]))
    subject.file.look()
    expect(subject.told).toEqual(["ab"])
    expect(subject.warnings.at(-1)).toEndWith("first: 2")
  })
})

describe("following", () => {
  test("reads at once, then every half second", () => {
    const subject = new Subject(null)
    subject.write("a\n")
    subject.file.follow()
    expect(subject.told).toEqual(["a"])
    subject.write("a\nb\n")
    jest.advanceTimersByTime(LOOK_EVERY_MS - 1)
    expect(subject.told).toEqual(["a"])
    jest.advanceTimersByTime(1)
    expect(subject.told).toEqual(["a", "ab"])
    subject.file.stop()
  })

  test("ends when it is stopped", () => {
    const subject = new Subject("a\n")
    subject.file.follow()
    subject.file.stop()
    subject.write("a\nb\n")
    jest.advanceTimersByTime(LOOK_EVERY_MS * 4)
    expect(subject.told).toEqual(["a"])
  })

  test("need not have begun to be stopped", () => {
    const subject = new Subject("a\n")
    expect(() => subject.file.stop()).not.toThrow()
  })
})
