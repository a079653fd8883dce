/**
 * `bun run pictures`: makes the pictures of the operator page in docs/images, with a real broker,
 * real devices and Chromium. Takes about two minutes. Run it after a change of the page that can be
 * seen.
 */

import { mkdirSync } from "node:fs"
import { join } from "node:path"
import type { Page } from "playwright-core"
import { AmqpProxy } from "./amqp-proxy.ts"
import { TestBrowser } from "./browser.ts"
import { ownQueues, startGateway } from "./gateway.ts"
import { ROOT } from "./generate-docs.ts"
import { deviceIdOf, Scene, SECRET } from "./page-scene.ts"
import { startRabbitMq, uniqueNames } from "./rabbitmq.ts"

const IMAGES = join(ROOT, "docs/images")
const DEVICES = 480
const STEPS = 6
const STEP_MS = 10_000
const SHOWN = deviceIdOf(4)
const AWAY_MS = 14_000
const COMMAND_EVERY_MS = 150

const broker = await startRabbitMq()
const proxy = await AmqpProxy.start(broker.port)
const url = new URL(broker.url)
url.port = String(proxy.port)
const gateway = await startGateway({
  ...{ AMQP_URL: url.href, WORKERS: "2", INSTANCE_ID: "gw1", FLAP_LIMIT: "15" },
  ...{ DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET, MAX_CONNECTIONS: "10000" },
  ...ownQueues(uniqueNames("pictures")),
})
const scene = new Scene(gateway.devicePort)
const browser = await TestBrowser.start()
try {
  mkdirSync(IMAGES, { recursive: true })
  await picture()
} finally {
  await browser.stop()
  scene.stop()
  await gateway.stop()
  proxy.stop()
  await broker.dispose()
}
process.exit(0)

async function picture(): Promise<void> {
  await gateway.ready()
  const commanding = setInterval(() => {
    void command(deviceIdOf(Math.floor(Math.random() * DEVICES)))
  }, COMMAND_EVERY_MS)
  const baseUrl = `http://127.0.0.1:${gateway.httpPort}`
  for (let step = 1; step <= STEPS; step += 1) {
    await scene.connect(((step - 1) * DEVICES) / STEPS, (step * DEVICES) / STEPS)
    if (step === 1) {
      scene.answer(SHOWN)
      scene.send(4_000)
    }
    await Bun.sleep(STEP_MS)
  }
  const { page } = await browser.visit(baseUrl, { height: 860 })
  await open(page, "/", '#verdict:has-text("All is well")')
  await page.locator("[data-value=lines_per_s]").filter({ hasNotText: "–" }).waitFor()
  await page.locator("#outcomes tbody tr", { hasText: "written" }).waitFor()
  await save(page, "page-overview")
  clearInterval(commanding)

  await device(page)

  const dark = await browser.visit(baseUrl, { height: 860, colorScheme: "dark" })
  await open(dark.page, "/", '#verdict:has-text("All is well")')
  proxy.meddle = () => []
  proxy.closeConnections()
  await dark.page.locator("#verdict", { hasText: "It is the broker" }).waitFor()
  await Bun.sleep(AWAY_MS)
  await save(dark.page, "page-broker-away")
}

async function device(page: Page): Promise<void> {
  const path = `/page/devices/${encodeURIComponent(SHOWN)}`
  await open(page, path, '#state:has-text("connected")')
  await page.getByLabel("Contents of lines").selectOption("text")
  await page.getByRole("button", { name: "Start tape" }).click()
  await page.locator("#tape tbody tr", { hasText: "confirmed after" }).first().waitFor()
  await page.getByLabel("Line", { exact: true }).fill("get temperature t7")
  await page.getByLabel("Reply").selectOption("reply_token")
  await page.getByLabel("Word or beginning").fill("t7")
  await page.getByRole("button", { name: "Send" }).click()
  await page.locator("#tape tbody tr", { hasText: "answered" }).first().waitFor()
  await save(page, "page-device")
}

async function open(page: Page, path: string, selector: string): Promise<void> {
  await page.goto(path)
  await page.locator(selector).waitFor()
}

async function command(id: string): Promise<void> {
  const headers = { "content-type": "text/plain" }
  await gateway.fetch(`/devices/${id}/send`, { method: "POST", headers, body: "blink" })
}

async function save(page: Page, name: string): Promise<void> {
  await page.screenshot({ path: join(IMAGES, `${name}.png`) })
}
