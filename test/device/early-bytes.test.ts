/** The bytes behind tokens: their order, and the bound for all connections together. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { EarlyBytes, MAX_EARLY_BYTES } from "../../src/device/early-bytes.ts"
import { check } from "../support/property.ts"

test("keeps the bytes of each connection in order, and counts them", () => {
  const connection = fc.constantFrom("a", "b", "c")
  const act = fc.oneof(
    fc.record({ kind: fc.constant("keep"), connection, bytes: fc.uint8Array({ maxLength: 9 }) }),
    fc.record({
      kind: fc.constantFrom("begin", "take", "drop"),
      connection,
      bytes: fc.constant(new Uint8Array()),
    }),
  )
  check(
    fc.property(fc.array(act, { maxLength: 50 }), (acts) => {
      const early = new EarlyBytes<string>()
      const model = new Map<string, number[]>()
      for (const { kind, connection, bytes } of acts) {
        const kept = model.get(connection)
        if (kind === "keep") {
          expect(early.keep(connection, bytes)).toBe(kept !== undefined)
          kept?.push(...bytes)
        } else if (kind === "begin") {
          if (kept === undefined) {
            early.begin(connection)
            model.set(connection, [])
          }
        } else {
          if (kind === "take") expect([...early.take(connection)]).toEqual(kept ?? [])
          else early.drop(connection)
          model.delete(connection)
        }
        expect(early.has(connection)).toBe(model.has(connection))
        expect(early.bytes).toBe([...model.values()].flat().length)
      }
    }),
  )
})

test("keeps no more than the bound, and has room again when a connection ends", () => {
  const early = new EarlyBytes<string>()
  for (const connection of ["a", "b"]) early.begin(connection)
  expect(early.keep("a", new Uint8Array(MAX_EARLY_BYTES))).toBe(true)
  expect(early.keep("b", new Uint8Array(1))).toBe(false)
  expect(early.bytes).toBe(MAX_EARLY_BYTES)
  early.drop("a")
  expect(early.keep("b", new Uint8Array(1))).toBe(true)
})
