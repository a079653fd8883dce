/**
 * A real Chromium for the tests of the operator page, from Debian's package, without a window.
 *
 * Each visitor has cookies of its own. Errors of scripts and violations of the Content Security
 * Policy are kept, so that a test can assert that there are none.
 */

import axe, { type AxeResults } from "axe-core"
import { type Browser, chromium, type Page } from "playwright-core"
import { findProgram } from "./tools.ts"

/** Slow machines need some seconds for the first page. */
const TIMEOUT_MS = 20_000

export interface VisitorOptions {
  readonly colorScheme?: "light" | "dark"
  readonly width?: number
  readonly height?: number
}

export interface Visitor {
  readonly page: Page
  /** What went wrong in the page. */
  readonly faults: readonly string[]
  readonly leave: () => Promise<void>
}

/** A violation of a rule of accessibility, and where. */
export interface Violation {
  readonly rule: string
  readonly targets: readonly string[]
}

export class TestBrowser {
  readonly #browser: Browser

  private constructor(browser: Browser) {
    this.#browser = browser
  }

  static async start(): Promise<TestBrowser> {
    const isRoot = process.getuid?.() === 0
    return new TestBrowser(
      await chromium.launch({
        executablePath: findProgram("chromium", "chromium"),
        // Chromium's sandbox refuses to run as root, as in a container.
        args: isRoot ? ["--no-sandbox"] : [],
      }),
    )
  }

  async visit(baseURL: string, options: VisitorOptions = {}): Promise<Visitor> {
    const { colorScheme = "light", width = 1_280, height = 900 } = options
    const context = await this.#browser.newContext({
      ...{ baseURL, colorScheme, viewport: { width, height }, reducedMotion: "reduce" },
    })
    context.setDefaultTimeout(TIMEOUT_MS)
    const page = await context.newPage()
    const faults: string[] = []
    page.on("pageerror", (error) => faults.push(String(error)))
    page.on("console", (message) => {
      // Responses such as 401 and 404 are logged as errors too.
      const isResponse = message.text().startsWith("Failed to load resource")
      if (message.type() === "error" && !isResponse) faults.push(message.text())
    })
    return { page, faults, leave: () => context.close() }
  }

  stop(): Promise<void> {
    return this.#browser.close()
  }
}

/** Checks the page as it is now with axe, by all of its rules. */
export async function violations(page: Page): Promise<Violation[]> {
  // Not as a script of the page, which its policy forbids.
  await page.evaluate(axe.source)
  const { violations } = (await page.evaluate("axe.run()")) as AxeResults
  return violations.map(({ id, nodes }) => ({
    rule: id,
    targets: nodes.map(({ target }) => target.join(" ")),
  }))
}
