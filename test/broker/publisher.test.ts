/** A publisher: in order, after failures, after a loss, and its window. */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"

/** No wait between tries is shorter: half of `firstMs`. */
import { MIN_WAIT_MS, Subject } from "./publisher-harness.ts"

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

describe("while the publish channel is open", () => {
  test("messages are sent at once and in order", () => {
    const subject = new Subject()
    subject.publish("a0", "b0", "a1")
    expect(subject.publishChannel.sent()).toEqual(["a0", "b0", "a1"])
  })

  test("no more are in flight than allowed, and each that ends lets one follow", () => {
    const subject = new Subject({ maxInFlight: 2 })
    subject.publish("a0", "a1", "a2", "a3")
    expect(subject.publishChannel.sent()).toEqual(["a0", "a1"])
    subject.publishChannel.settle("a1", "confirmed")
    expect(subject.publishChannel.sent()).toEqual(["a2"])
    subject.publishChannel.settle("a2", "confirmed")
    subject.publishChannel.settle("a0", "confirmed")
    expect(subject.publishChannel.sent()).toEqual(["a3"])
  })

  test("each is done once, in the order of publishing, however the confirms come", () => {
    const subject = new Subject()
    subject.publish("a0", "b0", "a1", "b1")
    subject.publishChannel.settle("b1", "confirmed")
    subject.publishChannel.settle("b0", "confirmed")
    expect(subject.done).toEqual([])
    subject.publishChannel.settle("a0", "confirmed")
    expect(subject.done).toEqual(["a0", "b0"])
    subject.publishChannel.settle("a1", "confirmed")
    expect(subject.done).toEqual(["a0", "b0", "a1", "b1"])
    expect([subject.publisher.count, subject.publisher.bytes]).toEqual([0, 0])
  })

  test("what is published from within done goes to the end", () => {
    const subject = new Subject()
    subject.onDone = ({ id }) => {
      if (id === "a0") subject.publish("a2")
    }
    subject.publish("a0", "a1")
    subject.publishChannel.settle("a1", "confirmed")
    subject.publishChannel.settle("a0", "confirmed")
    subject.publishChannel.settle("a2", "confirmed")
    expect(subject.publishChannel.sent()).toEqual(["a0", "a1", "a2"])
    expect(subject.done).toEqual(["a0", "a1", "a2"])
  })

  test("a broker that confirms slowly is not silent, one that confirms nothing is", () => {
    const subject = new Subject({ maxInFlight: 3 })
    expect(subject.publisher.silentSinceMs()).toBeNull()
    subject.publish("a0", "a1", "a2")
    expect(subject.publisher.silentSinceMs()).toBe(1_000)
    subject.steadyMs = 20_000
    subject.publishChannel.settle("a0", "confirmed")
    expect(subject.publisher.silentSinceMs()).toBe(20_000)
    subject.steadyMs = 40_000
    expect(subject.publisher.silentSinceMs()).toBe(20_000)
  })
})

describe("while the publish channel is not open", () => {
  test("messages are kept, and sent in order when it opens", () => {
    const subject = new Subject()
    subject.publishChannel.state = "closed"
    subject.publish("a0", "a1")
    expect(subject.publishChannel.sent()).toEqual([])
    expect(subject.publisher.count).toBe(2)
    subject.reopen()
    expect(subject.publishChannel.sent()).toEqual(["a0", "a1"])
    expect(subject.repeating).toEqual([])
  })

  test("blocked: nothing is sent, what was sent is still confirmed, the rest follows", () => {
    const subject = new Subject()
    subject.publish("a0")
    subject.publishChannel.state = "blocked"
    subject.publish("a1")
    subject.publishChannel.settle("a0", "confirmed")
    subject.waitOut()
    expect(subject.publishChannel.sent()).toEqual(["a0"])
    expect(subject.done).toEqual(["a0"])
    subject.reopen()
    expect(subject.publishChannel.sent()).toEqual(["a1"])
  })

  test("blocked after a failure: it is repeated when the publish channel is unblocked, and once", () => {
    const subject = new Subject()
    subject.publish("a0", "a1")
    subject.publishChannel.sent()
    subject.publishChannel.settle("a0", "nacked")
    subject.publishChannel.state = "blocked"
    subject.publishChannel.settle("a1", "confirmed")
    subject.waitOut()
    expect(subject.publishChannel.sent()).toEqual([])
    subject.reopen()
    subject.waitOut()
    expect(subject.publishChannel.sent()).toEqual(["a0", "a1"])
  })

  test("that it blocks in the middle of sending stops the sending there", () => {
    const subject = new Subject({ maxInFlight: 2 })
    subject.publish("a0", "a1", "a2", "a3")
    subject.publishChannel.sent()
    subject.publishChannel.state = "blocked"
    subject.publishChannel.settle("a0", "confirmed")
    subject.publishChannel.settle("a1", "confirmed")
    subject.reopen()
    expect(subject.publishChannel.sent()).toEqual(["a2", "a3"])
  })

  test("that it blocks while messages are repeated does not stop those that follow", () => {
    const subject = new Subject({ maxInFlight: 2 })
    subject.publish("a0", "b0", "a1", "c0")
    for (const id of ["b0", "a1", "c0"]) subject.publishChannel.settle(id, "confirmed")
    subject.publishChannel.settle("a0", "nacked")
    subject.waitOut()
    expect(subject.publishChannel.sent()).toEqual(["a0", "b0", "a1", "c0", "a0", "a1"])
    // Both confirms come together with the alarm, and c0 behind them was done before.
    subject.publishChannel.state = "blocked"
    subject.publishChannel.settle("a1", "confirmed")
    subject.publishChannel.settle("a0", "confirmed")
    subject.reopen()
    subject.publish("a2")
    expect(subject.publishChannel.sent()).toEqual(["a2"])
    subject.publishChannel.settleAll("confirmed")
    expect(subject.done).toEqual(["a0", "b0", "a1", "c0", "a2"])
  })
})

describe.each(["nacked", "returned", "cut"] as const)("after a message was %s", (result) => {
  test("nothing is sent until all that is in flight is settled and a wait is over", () => {
    const subject = new Subject()
    subject.publish("a0", "a1", "a2")
    subject.publishChannel.sent()
    subject.publishChannel.settle("a1", result)
    expect(subject.failed).toEqual([`a1 ${result}`])
    subject.publish("a3")
    subject.publishChannel.settle("a0", "confirmed")
    subject.waitOut()
    expect(subject.publishChannel.sent()).toEqual([])
    subject.publishChannel.settle("a2", "confirmed")
    jest.advanceTimersByTime(MIN_WAIT_MS - 1)
    expect(subject.publishChannel.sent()).toEqual([])
    subject.waitOut()
    expect(subject.publishChannel.sent()).toEqual(["a1", "a2", "a3"])
    expect(subject.repeating).toEqual([2])
  })

  test("the others of its group follow it again, and those of other groups do not", () => {
    const subject = new Subject()
    subject.publish("a0", "b0", "a1", "b1", "a2", "b2")
    subject.publishChannel.sent()
    subject.publishChannel.settle("a1", result)
    subject.publishChannel.settle("b2", result)
    for (const id of ["a0", "b0", "b1", "a2"]) subject.publishChannel.settle(id, "confirmed")
    subject.waitOut()
    expect(subject.publishChannel.sent()).toEqual(["a1", "a2", "b2"])
    subject.publishChannel.settleAll("confirmed")
    expect(subject.done).toEqual(["a0", "b0", "a1", "b1", "a2", "b2"])
  })

  test("it is tried again and again, and each message is done once", () => {
    const subject = new Subject()
    subject.publish("a0", "a1")
    for (let n = 0; n < 10; n += 1) {
      subject.publishChannel.settleAll(result)
      subject.waitOut()
    }
    expect(subject.publishChannel.sent()).toEqual(Array(11).fill(["a0", "a1"]).flat())
    expect(subject.failed.length).toBe(20)
    expect(subject.done).toEqual([])
    subject.publishChannel.settleAll("confirmed")
    expect(subject.done).toEqual(["a0", "a1"])
    subject.waitOut()
    expect(subject.publishChannel.sent()).toEqual([])
  })

  test("a publish channel that opens meanwhile ends the wait, and the timer repeats nothing", () => {
    const subject = new Subject()
    subject.publish("a0")
    subject.publishChannel.settleAll(result)
    subject.publisher.opened()
    expect(subject.publishChannel.sent()).toEqual(["a0", "a0"])
    subject.waitOut()
    expect(subject.publishChannel.sent()).toEqual([])
    expect(subject.repeating).toEqual([1])
  })

  test("and stop, nothing is sent by itself, and nothing is forgotten", () => {
    const subject = new Subject()
    subject.publish("a0")
    subject.publishChannel.settleAll(result)
    subject.publisher.stop()
    subject.publishChannel.sent()
    subject.waitOut()
    expect(subject.publishChannel.sent()).toEqual([])
    expect(subject.publisher.count).toBe(1)
  })
})

describe("a message that is final", () => {
  test("when it is returned is done, and not sent again", () => {
    const subject = new Subject({ whenReturned: "final" })
    subject.publish("a0", "a1")
    subject.publishChannel.settle("a0", "returned")
    subject.publishChannel.settle("a1", "confirmed")
    subject.waitOut()
    expect(subject.done).toEqual(["a0 returned", "a1"])
    expect(subject.failed).toEqual(["a0 returned"])
    expect(subject.publishChannel.sent()).toEqual(["a0", "a1"])
  })

  test("because it cannot be encoded is done, and holds up no other", () => {
    const subject = new Subject()
    subject.publish("a0", "a1")
    subject.publishChannel.settle("a0", "unencodable")
    subject.publish("a2")
    expect(subject.done).toEqual(["a0 unencodable"])
    expect(subject.failed).toEqual([])
    subject.publishChannel.settle("a1", "confirmed")
    subject.publishChannel.settle("a2", "confirmed")
    expect(subject.publishChannel.sent()).toEqual(["a0", "a1", "a2"])
    expect(subject.done).toEqual(["a0 unencodable", "a1", "a2"])
  })

  test("is done with its own result when it is repeated after a failure before it", () => {
    const subject = new Subject({ whenReturned: "final" })
    subject.publish("a0", "a1")
    subject.publishChannel.settle("a0", "nacked")
    subject.publishChannel.settle("a1", "returned")
    subject.waitOut()
    subject.publishChannel.settle("a0", "confirmed")
    subject.publishChannel.settle("a1", "confirmed")
    expect(subject.done).toEqual(["a0", "a1"])
  })
})

describe("when the publish channel is lost", () => {
  test("what was cut is sent when it opens again, and no timer sends it before", () => {
    const subject = new Subject()
    subject.publish("a0", "a1", "b0")
    subject.publishChannel.settle("a0", "confirmed")
    subject.publishChannel.settle("b0", "confirmed")
    subject.publishChannel.sent()
    subject.publishChannel.lose()
    subject.publish("a2")
    subject.waitOut()
    expect(subject.publishChannel.sent()).toEqual([])
    subject.reopen()
    expect(subject.publishChannel.sent()).toEqual(["a1", "a2"])
    subject.publishChannel.settleAll("confirmed")
    expect(subject.done).toEqual(["a0", "a1", "b0", "a2"])
  })

  test("during the wait after another failure, all goes on when it opens again", () => {
    const subject = new Subject()
    subject.publish("a0")
    subject.publishChannel.settleAll("nacked")
    subject.publishChannel.lose()
    subject.waitOut()
    subject.publishChannel.sent()
    subject.reopen()
    expect(subject.publishChannel.sent()).toEqual(["a0"])
  })

  test("and opens again before all cuts were told, they are still repeated", () => {
    const subject = new Subject()
    subject.publish("a0", "a1")
    subject.publishChannel.state = "closed"
    subject.publishChannel.settle("a1", "cut")
    subject.reopen()
    expect(subject.publishChannel.sent()).toEqual(["a0", "a1"])
    subject.publishChannel.settle("a0", "cut")
    subject.waitOut()
    expect(subject.publishChannel.sent()).toEqual(["a0", "a1"])
  })

  test("with nothing in flight, nothing is repeated", () => {
    const subject = new Subject()
    subject.publish("a0")
    subject.publishChannel.settleAll("confirmed")
    subject.publishChannel.lose()
    subject.reopen()
    subject.publish("a1")
    expect(subject.publishChannel.sent()).toEqual(["a0", "a1"])
    expect(subject.repeating).toEqual([])
  })
})

describe("the window", () => {
  test("has room until it is full, and is relieved once when it is half empty", () => {
    const subject = new Subject({ maxCount: 4 })
    subject.publish("a0", "a1", "a2")
    expect(subject.publisher.window.hasRoom).toBe(true)
    subject.publish("a3")
    expect(subject.publisher.window.hasRoom).toBe(false)
    subject.publishChannel.settle("a0", "confirmed")
    expect([subject.publisher.window.hasRoom, subject.relieved]).toEqual([true, 0])
    subject.publishChannel.settle("a1", "confirmed")
    expect(subject.relieved).toBe(1)
    subject.publishChannel.settle("a2", "confirmed")
    subject.publishChannel.settle("a3", "confirmed")
    expect(subject.relieved).toBe(1)
  })

  test("is full and relieved by bytes too", () => {
    const subject = new Subject({ maxBytes: 40 })
    subject.publish("a0", "a1", "a2", "a3")
    expect(subject.publisher.window.hasRoom).toBe(false)
    subject.publishChannel.settleAll("confirmed")
    expect(subject.relieved).toBe(1)
    expect(subject.publisher.bytes).toBe(0)
  })

  test("that was never full is never relieved", () => {
    const subject = new Subject({ maxCount: 4 })
    subject.publish("a0", "a1", "a2")
    subject.publishChannel.settleAll("confirmed")
    expect(subject.relieved).toBe(0)
  })

  test("is relieved once for each time it was full", () => {
    const subject = new Subject({ maxCount: 2 })
    for (const ids of [
      ["a0", "a1"],
      ["a2", "a3"],
    ]) {
      subject.publish(...ids)
      subject.publishChannel.settleAll("confirmed")
    }
    expect(subject.relieved).toBe(2)
  })

  test("may be filled again from within relieved", () => {
    const subject = new Subject({ maxCount: 2 })
    let next = 2
    subject.onRelieved = () => {
      while (next < 10 && subject.publisher.window.hasRoom) {
        subject.publish(`a${next}`)
        next += 1
      }
    }
    subject.publish("a0", "a1")
    while (subject.publishChannel.inFlight.length > 0)
      subject.publishChannel.inFlight[0]?.settle("confirmed")
    expect(subject.done).toEqual(Array.from({ length: 10 }, (_, n) => `a${n}`))
  })

  test("does not get smaller by what is confirmed behind one that is not", () => {
    const subject = new Subject({ maxCount: 3 })
    subject.publish("a0", "a1", "a2")
    subject.publishChannel.settle("a1", "confirmed")
    subject.publishChannel.settle("a2", "confirmed")
    expect([subject.publisher.window.hasRoom, subject.publisher.count]).toEqual([false, 3])
  })
})
