/** Items to another process: one batch at a time, and what the bound drops is counted. */

import { expect, test } from "bun:test"
import { AcknowledgedFeed, MAX_WAITING } from "../../src/process/acknowledged-feed.ts"

function subject() {
  const sent: { items: readonly number[]; missed: number }[] = []
  const feed = new AcknowledgedFeed<number>((items, missed) => sent.push({ items, missed }))
  return { sent, feed }
}

test("sends the first at once, and the next ones together after it was acknowledged", () => {
  const { sent, feed } = subject()
  for (const item of [1, 2, 3]) feed.push(item)
  expect(sent).toEqual([{ items: [1], missed: 0 }])
  feed.acknowledged()
  expect(sent[1]).toEqual({ items: [2, 3], missed: 0 })
  feed.acknowledged()
  feed.push(4)
  expect(sent[2]).toEqual({ items: [4], missed: 0 })
})

test("drops what a stopped reader does not take, and says how many", () => {
  const { sent, feed } = subject()
  const count = MAX_WAITING + 8
  for (let item = 0; item < count; item += 1) feed.push(item)
  feed.missed(5)
  expect(sent.length).toBe(1)
  feed.acknowledged()
  expect(sent[1]?.items.length).toBe(MAX_WAITING)
  expect(sent[1]?.missed).toBe(count - 1 - MAX_WAITING + 5)
})
