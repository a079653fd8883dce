/** The order in which a broker's URLs are tried. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { UrlRotation } from "../../src/amqp/url-rotation.ts"
import { check } from "../support/property.ts"

const urls = fc.uniqueArray(fc.string(), { minLength: 1, maxLength: 6 })
const chance = fc.infiniteStream(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }))
const randomOf = (stream: Stream) => () => stream.next().value ?? 0
type Stream = Iterator<number>

describe("the URLs of a broker", () => {
  test("are each taken once before any is taken again", () => {
    check(
      fc.property(urls, chance, (urls, stream) => {
        const rotation = new UrlRotation(urls, randomOf(stream))
        for (let round = 0; round < 3; round += 1) {
          const taken = urls.map(() => rotation.take())
          expect(taken.toSorted()).toEqual(urls.toSorted())
          expect(rotation.exhausted).toBe(true)
        }
      }),
    )
  })

  test("are all but the one that is lost tried next, that one in the round after", () => {
    check(
      fc.property(urls, chance, (urls, stream) => {
        const rotation = new UrlRotation(urls, randomOf(stream))
        const good = rotation.take()
        rotation.avoidTaken()
        expect(rotation.exhausted).toBe(urls.length === 1)
        const others = urls.slice(1).map(() => rotation.take())
        expect([...others, good].toSorted()).toEqual(urls.toSorted())
        expect(rotation.exhausted).toBe(true)
      }),
    )
  })

  test("begin with any of them", () => {
    const first = (random: number) => new UrlRotation(["a", "b", "c"], () => random).take()
    expect(new Set([0, 0.4, 0.9].map(first)).size).toBeGreaterThan(1)
  })
})
