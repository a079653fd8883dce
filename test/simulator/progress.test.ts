/**
 * Progress: written over on a terminal, line by line elsewhere, not at all when silent.
 */

import { expect, test } from "bun:test"
import { progress } from "../../src/simulator/progress.ts"

function stream(isTTY: boolean, columns?: number) {
  const written: string[] = []
  const write = (text: string) => written.push(text)
  return { written, isTTY, write, ...(columns === undefined ? {} : { columns }) }
}

test("on a terminal it is one line, cut to the terminal's width", () => {
  const terminal = stream(true, 21)
  const shown = progress(terminal, false)
  shown.show(() => "first", 1000)
  shown.show(() => "too soon", 1100)
  shown.show(() => "x".repeat(100), 1200)
  shown.clear()
  expect(terminal.written).toEqual(["\r\x1b[2Kfirst", `\r\x1b[2K${"x".repeat(20)}`, "\r\x1b[2K"])
})

test("elsewhere it is a line every five seconds", () => {
  const file = stream(false)
  const shown = progress(file, false)
  for (const nowMs of [1000, 1200, 5999, 6000]) shown.show(() => `at ${nowMs}`, nowMs)
  shown.clear()
  expect(file.written).toEqual(["at 1000\n", "at 6000\n"])
})

test("silent, it says nothing and asks for no line", () => {
  const terminal = stream(true)
  const shown = progress(terminal, true)
  shown.show(() => {
    throw new Error("asked")
  }, 1000)
  shown.clear()
  expect(terminal.written).toEqual([])
})
