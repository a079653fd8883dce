/**
 * The operator page in a real Chromium, with a real broker and real devices: what a person sees and
 * does who must find out what is wrong.
 *
 * `PAGE_DEVICES` sets the number of devices, for a long run by hand.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import type { Page } from "playwright-core"
import { helloLine } from "../../src/device/hello.ts"
import { VIEWS } from "../../src/http/page/page.ts"
import { AmqpProxy } from "../support/amqp-proxy.ts"
import { TestBrowser, type Visitor, type VisitorOptions, violations } from "../support/browser.ts"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { connectNamed, deviceIdOf, Scene, SECRET } from "../support/page-scene.ts"
import { sharedRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const DEVICES = Number(process.env["PAGE_DEVICES"] ?? "300")
const START_LIMIT_MS = LIMIT_MS + 30 * DEVICES
const ACT = "an-act-token-of-the-tests"
const READ = "a-read-token-of-the-tests"
const ANSWERING = deviceIdOf(0)
const KICKED = deviceIdOf(3)
const DENIED = deviceIdOf(5)
const AWAY = "lock:9"

let proxy: AmqpProxy
let gateway: TestGateway
let scene: Scene
let browser: TestBrowser
const visitors: Visitor[] = []

beforeAll(async () => {
  const url = new URL((await sharedRabbitMq()).url)
  proxy = await AmqpProxy.start(Number(url.port || 5_672))
  url.port = String(proxy.port)
  gateway = await startGateway({
    ...{ AMQP_URL: url.href, WORKERS: "2", DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET },
    ...{ HTTP_TOKENS: ACT, HTTP_READ_TOKENS: READ, MAX_CONNECTIONS: String(DEVICES + 1_000) },
    ...ownQueues(uniqueNames("page")),
  })
  browser = await TestBrowser.start()
  scene = new Scene(gateway.devicePort)
  await scene.connect(0, DEVICES)
  scene.answer(ANSWERING)
  scene.send(10_000)
}, START_LIMIT_MS)

afterAll(async () => {
  for (const { leave } of visitors) await leave()
  await browser?.stop()
  scene?.stop()
  await gateway?.stop()
  proxy?.stop()
}, LIMIT_MS)

const baseUrl = () => `http://127.0.0.1:${gateway.httpPort}`

async function visit(options?: VisitorOptions): Promise<Visitor> {
  const visitor = await browser.visit(baseUrl(), options)
  visitors.push(visitor)
  return visitor
}

async function logIn(page: Page, token: string): Promise<void> {
  await page.getByLabel("Token").fill(token)
  await page.getByRole("button", { name: "Log in" }).click()
  await page.locator("nav[aria-label=Views]").waitFor()
}

/** A visitor with a session, at this path. */
async function visitAs(token: string, path: string, options?: VisitorOptions): Promise<Visitor> {
  const visitor = await visit(options)
  const data = { token }
  expect((await visitor.page.request.post("/session", { data })).status()).toBe(204)
  await visitor.page.goto(path)
  return visitor
}

/** The view of a device shows that it is connected. */
const connected = (page: Page) =>
  page.locator("#state").getByText("connected", { exact: true }).waitFor()
const devicePath = (id: string) => `/page/devices/${encodeURIComponent(id)}`
const row = (page: Page, table: string, text: string) =>
  page.locator(`#${table} tbody tr`, { hasText: text })

describe("the session", () => {
  test(
    "is opened with a token, shows the view that was asked for, and ends",
    async () => {
      const { page, faults } = await visit()
      await page.goto(devicePath(ANSWERING))
      await page.getByLabel("Token").fill("wrong-token-0123456789")
      await page.getByRole("button", { name: "Log in" }).click()
      await page.getByText("not one of HTTP_TOKENS").waitFor()
      await logIn(page, ACT)
      await page.getByRole("heading", { name: ANSWERING }).waitFor()
      await connected(page)
      expect(await page.evaluate("document.cookie")).toBe("")
      await page.getByRole("button", { name: "Log out" }).click()
      await page.getByLabel("Token").waitFor()
      expect(faults).toEqual([])
    },
    LIMIT_MS,
  )

  test(
    "that has expired is opened again above the view, and nothing that was typed is lost",
    async () => {
      const { page, faults } = await visitAs(ACT, devicePath(ANSWERING))
      await page.getByLabel("Line", { exact: true }).fill("half of a comma")
      await page.context().clearCookies()
      // As when somebody comes back to the tab.
      await page.evaluate('document.dispatchEvent(new Event("visibilitychange"))')
      const dialog = page.getByRole("dialog", { name: "The session has expired" })
      await dialog.waitFor()
      await dialog.getByLabel("Token").fill(ACT)
      await dialog.getByRole("button", { name: "Log in" }).click()
      await dialog.waitFor({ state: "detached" })
      expect(await page.getByLabel("Line", { exact: true }).inputValue()).toBe("half of a comma")
      await connected(page)
      expect(faults).toEqual([])
    },
    LIMIT_MS,
  )

  test(
    "is found again by somebody who follows a link on another site",
    async () => {
      const { page } = await visitAs(ACT, "/")
      const other = Bun.serve({
        port: 0,
        hostname: "127.0.0.1",
        fetch: () =>
          new Response(`<a href="${baseUrl()}/page/devices">look</a>`, {
            headers: { "content-type": "text/html" },
          }),
      })
      try {
        await page.goto(`http://localhost:${other.port}/`)
        await page.getByText("look").click()
        await page.getByRole("heading", { name: "Devices" }).waitFor()
      } finally {
        await other.stop(true)
      }
    },
    LIMIT_MS,
  )

  test(
    "of a read token sees, and has nothing that acts",
    async () => {
      const { page } = await visitAs(READ, devicePath(ANSWERING))
      await connected(page)
      await page.getByText("sees and does not act").first().waitFor()
      expect(await page.getByRole("button", { name: /send|close|cancel|tape/i }).count()).toBe(0)
      await page.goto("/page/access")
      await page.getByText("The gate is open").waitFor()
      expect(await page.getByRole("button", { name: /gate/i }).count()).toBe(0)
    },
    LIMIT_MS,
  )
})

describe("a device", () => {
  test(
    "is found by the beginning of its id, and its lines are counted as they come",
    async () => {
      const { page, faults } = await visitAs(ACT, "/page/devices")
      await page.getByText(`${DEVICES.toLocaleString("en")} connected`).waitFor()
      await page.getByLabel("Id begins with").fill(ANSWERING)
      await page.keyboard.press("Enter")
      await page.locator("#devices").getByRole("link", { name: ANSWERING, exact: true }).click()
      await page.getByRole("heading", { name: ANSWERING }).waitFor()
      const linesIn = async () =>
        Number(await page.locator("dt", { hasText: "Lines in" }).locator("+ dd").textContent())
      await page.locator("dt", { hasText: "Lines in" }).waitFor()
      const before = await linesIn()
      await scene.device(ANSWERING).send("here I am")
      await until(async () => (await linesIn()) > before, { what: "the line to be counted" })
      expect(faults).toEqual([])
    },
    LIMIT_MS,
  )

  test(
    "is searched for by silence, and the page says when none matches",
    async () => {
      const { page } = await visitAs(ACT, "/page/devices?silent_ms=3600000")
      expect(await page.getByLabel("Silent for").inputValue()).toBe("3600000")
      await page.getByText("0 found").waitFor()
      await page.getByText("No connected device matches").waitFor()
    },
    LIMIT_MS,
  )

  test(
    "gets a command, and its outcome and its reply are shown",
    async () => {
      const { page, faults } = await visitAs(ACT, devicePath(ANSWERING))
      const line = page.getByLabel("Line", { exact: true })
      const send = page.getByRole("button", { name: "Send" })
      await line.fill("blink")
      await send.click()
      await page.getByText(/^written after/).waitFor()
      expect(scene.device(ANSWERING).lines).toContain("blink")
      await line.fill("get temperature t7")
      await page.getByLabel("Reply").selectOption("reply_token")
      await page.getByLabel("Word or beginning").fill("t7")
      await send.click()
      await page.locator("#outcome", { hasText: /^answered after .* Reply: t7 21\.5$/ }).waitFor()
      expect(faults).toEqual([])
    },
    LIMIT_MS,
  )

  test(
    "is recorded on a tape, with what happened to its lines and commands",
    async () => {
      const { page, faults } = await visitAs(ACT, devicePath(ANSWERING))
      await page.getByLabel("Contents of lines").selectOption("text")
      await page.getByRole("button", { name: "Start tape" }).click()
      await row(page, "tape", "connected").waitFor()
      await scene.device(ANSWERING).send("on the tape")
      await row(page, "tape", "on the tape").getByText("confirmed after").waitFor()
      await page.getByLabel("Line", { exact: true }).fill("blink twice")
      await page.getByRole("button", { name: "Send" }).click()
      await row(page, "tape", "blink twice").getByText("written").waitFor()
      await page.goto("/page/tapes")
      await row(page, "tapes", ANSWERING).getByRole("link").click()
      await row(page, "tape", "on the tape").waitFor()
      await page.getByRole("button", { name: "End tape" }).click()
      await page.getByRole("button", { name: "Start tape" }).waitFor()
      expect(faults).toEqual([])
    },
    LIMIT_MS,
  )

  test(
    "that is away has its commands held, listed and cancelled",
    async () => {
      const { page, faults } = await visitAs(ACT, devicePath(AWAY))
      await page.locator("#state", { hasText: "not connected" }).waitFor()
      const line = page.getByLabel("Line", { exact: true })
      const send = page.getByRole("button", { name: "Send" })
      await line.fill("open")
      await send.click()
      await page.locator("#outcome", { hasText: /^offline: / }).waitFor()
      await page.getByLabel("When it is away").selectOption("3600000")
      await send.click()
      await page.getByText(/^held until/).waitFor()
      await row(page, "held", "open").getByRole("button", { name: "Cancel" }).click()
      await page.getByText("No command waits").waitFor()
      expect(faults).toEqual([])
    },
    LIMIT_MS,
  )

  test(
    "is closed after a question",
    async () => {
      const { page } = await visitAs(ACT, devicePath(KICKED))
      const close = page.getByRole("button", { name: "Close connection" })
      page.once("dialog", (dialog) => void dialog.dismiss())
      await close.click()
      expect(scene.device(KICKED).lines).toEqual([])
      page.once("dialog", (dialog) => void dialog.accept())
      await close.click()
      await scene.device(KICKED).closed
      await page.locator("#state", { hasText: "not connected" }).waitFor()
      await row(page, "connections", "kicked").waitFor()
      await page.goto("/page/audit")
      await row(page, "audit", KICKED).waitFor()
    },
    LIMIT_MS,
  )
})

test(
  "a device that is denied is disconnected and refused, and admitted once its ban is lifted",
  async () => {
    const { page, faults } = await visitAs(ACT, devicePath(DENIED))
    await connected(page)
    page.on("dialog", (dialog) => void dialog.accept())
    await page.getByRole("button", { name: "Deny device" }).click()
    await page.getByText(/^denied until/).waitFor()
    await scene.device(DENIED).closed
    const refused = await connectNamed(gateway.devicePort, DENIED)
    await refused.closed
    const { page: other } = await visitAs(READ, devicePath(DENIED))
    for (const view of [page, other]) {
      await view.locator("#ban", { hasText: /^banned until .+ \(denied\)$/ }).waitFor()
    }
    await page.goto("/page/access")
    await row(page, "bans", DENIED).getByRole("button", { name: "Lift" }).click()
    await page.getByText("No device is banned").waitFor()
    await other.locator("#ban:empty").waitFor({ state: "attached" })
    const again = await connectNamed(gateway.devicePort, DENIED)
    await page.goto(devicePath(DENIED))
    await connected(page)
    again.terminate()
    expect(faults).toEqual([])
  },
  LIMIT_MS,
)

describe("the overview", () => {
  test(
    "says that it is the broker, while it is away, and that all is well again",
    async () => {
      const { page, faults } = await visitAs(ACT, "/")
      const verdict = page.locator("#verdict")
      await verdict.getByText("All is well").waitFor()
      expect(await page.locator("[data-value=devices]").textContent()).toMatch(/^[0-9,]+$/)
      expect(await page.locator("#workers tbody tr").count()).toBe(2)
      proxy.meddle = () => []
      proxy.closeConnections()
      await verdict.getByText(/^It is the broker: No connection to the broker/).waitFor()
      await page.locator("[data-part=broker] .findings").getByText("no accepted line").waitFor()
      proxy.meddle = (frame) => [frame]
      proxy.closeConnections()
      await verdict.getByText("All is well").waitFor()
      await page.locator("#events tbody tr.level-warn").first().waitFor()
      // The reconnection was logged at level info.
      expect(await page.locator("#events tbody tr.level-info").count()).toBe(0)
      expect(faults).toEqual([])
    },
    LIMIT_MS,
  )

  test(
    "shows the gate of the fleet, which is closed and opened under Access",
    async () => {
      const { page } = await visitAs(ACT, "/page/access")
      page.once("dialog", (dialog) => void dialog.accept())
      await page.getByLabel("Ids that begin with").fill("meter:")
      await page.getByRole("button", { name: "Close the gate" }).click()
      await page.getByText("closed for devices whose ids begin with meter:").waitFor()
      await page.goto("/")
      await page.locator("#verdict").getByText("The gate is closed").waitFor()
      await page.goto("/page/access")
      await page.getByRole("button", { name: "Open the gate" }).click()
      await page.getByText("The gate is open").waitFor()
    },
    LIMIT_MS,
  )

  test(
    "shows which worker was replaced, and how often",
    async () => {
      const own = await startGateway({
        ...{ AMQP_URL: (await sharedRabbitMq()).url, WORKERS: "2" },
        ...ownQueues(uniqueNames("replaced")),
      })
      const visitor = await browser.visit(`http://127.0.0.1:${own.httpPort}`)
      try {
        const { page } = visitor
        await page.goto("/")
        const restarts = (slot: number) =>
          page.locator("#workers tbody tr").nth(slot).locator("td").nth(10)
        expect(await page.locator("#workers thead th").nth(10).textContent()).toBe("Restarts")
        await restarts(1).getByText("0", { exact: true }).waitFor()
        process.kill(Number(own.workers().get(1)), "SIGKILL")
        await restarts(1).getByText("1", { exact: true }).waitFor()
        expect(await restarts(0).textContent()).toBe("0")
      } finally {
        await visitor.leave()
        await own.stop()
      }
    },
    LIMIT_MS,
  )

  test(
    "shows how the queue of a stampede shrinks, and the lines of the embedded broker",
    async () => {
      const small = await startGateway({
        ...{ DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET, MAX_HANDSHAKES_PER_S: "10" },
      })
      const crowd = Array.from({ length: 80 }, (_, n) =>
        connectNamed(small.devicePort, `crowd:${n}`),
      )
      const visitor = await browser.visit(`http://127.0.0.1:${small.httpPort}`)
      try {
        const { page, faults } = visitor
        await page.goto("/")
        const waiting = page.getByText(/^[0-9]+ devices wait for their handshake/)
        await waiting.waitFor()
        const [first] = await Promise.all(crowd)
        await waiting.waitFor({ state: "detached" })
        await page.locator("[data-value=devices]").getByText("80", { exact: true }).waitFor()
        await first?.send("hello there")
        await row(page, "messages", "hello there").waitFor()
        expect(faults).toEqual([])
      } finally {
        await visitor.leave()
        for (const device of await Promise.allSettled(crowd)) {
          if (device.status === "fulfilled") device.value.terminate()
        }
        await small.stop()
      }
    },
    LIMIT_MS,
  )
})

test(
  "a connection that did not become a device is found by its id",
  async () => {
    const { page, faults } = await visitAs(ACT, "/page/refusals")
    const device = await connectDevice({ port: gateway.devicePort })
    await device.send(helloLine("lock:stranger", "another-secret-of-nobody-012345678"))
    await row(page, "refusals", "lock:stranger").waitFor()
    await page.getByLabel("Show only").fill("lock:str")
    await page.getByText("1 of").waitFor()
    await row(page, "refusals", "127.0.0.1").getByText("refused").first().waitFor()
    await device.closed
    expect(faults).toEqual([])
  },
  LIMIT_MS,
)

test(
  "the keyboard is enough: skip the header, search, sort, open a device",
  async () => {
    const { page } = await visitAs(ACT, "/page/devices")
    await page.reload()
    const focused = () => page.evaluate("document.activeElement.textContent.trim()")
    const tabTo = async (text: string) => {
      for (let n = 0; n < 40; n += 1) {
        await page.keyboard.press("Tab")
        if ((await focused()) === text) return
      }
      throw new Error(`Tab does not reach ${text}`)
    }
    await page.keyboard.press("Tab")
    expect(await focused()).toBe("Skip to the content")
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    expect(await page.evaluate("document.activeElement.id")).toBe("prefix")
    await page.keyboard.type("lock:")
    await page.keyboard.press("Enter")
    await page.getByText(/^[0-9,]+ found/).waitFor()
    await page.locator("#devices tbody tr").first().waitFor()
    await tabTo("Lines in")
    await page.keyboard.press("Enter")
    await page.locator("th[aria-sort=ascending]", { hasText: "Lines in" }).waitFor()
    await page.keyboard.press("Enter")
    await page.locator("th[aria-sort=descending]", { hasText: "Lines in" }).waitFor()
    await tabTo((await page.locator("#devices tbody a").first().textContent()) ?? "")
    await page.keyboard.press("Enter")
    await page.getByRole("heading", { name: /^lock:/ }).waitFor()
  },
  LIMIT_MS,
)

describe.each([
  { colorScheme: "light", width: 1_280 },
  { colorScheme: "dark", width: 360 },
] as const)("in $colorScheme colours, $width pixels wide", ({ colorScheme, width }) => {
  test(
    "no view breaks a rule of accessibility, or is wider than the window",
    async () => {
      const { page, faults } = await visitAs(ACT, "/", { colorScheme, width, height: 740 })
      for (const path of Object.values(VIEWS)) {
        await page.goto(path.replace(":id", ANSWERING))
        await page.locator("#connection", { hasText: "live" }).waitFor()
        expect([path, await violations(page)]).toEqual([path, []])
        const needed = await page.evaluate("document.documentElement.scrollWidth")
        expect([path, needed]).toEqual([path, width])
      }
      await page.context().clearCookies()
      await page.goto("/")
      await page.getByLabel("Token").waitFor()
      expect(await violations(page)).toEqual([])
      expect(faults).toEqual([])
    },
    LIMIT_MS,
  )
})
