/**
 * The files that browsers load for the operator page: plain ES modules, styles, and uPlot for the
 * charts. They are served as they are in the repository: there is no build step, and a compiled
 * binary contains them.
 *
 * Loaded with the first request for the page, so that a worker without an operator does not hold
 * them in memory. Each has an entity tag, and browsers ask each time whether it has changed: after
 * an upgrade no page runs with the modules of the version before.
 */

import uplot from "uplot/dist/uPlot.esm.js" with { type: "text" }
import uplotStyle from "uplot/dist/uPlot.min.css" with { type: "text" }
import accessView from "./browser/access.js" with { type: "text" }
import api from "./browser/api.js" with { type: "text" }
import audit from "./browser/audit.js" with { type: "text" }
import charts from "./browser/charts.js" with { type: "text" }
import device from "./browser/device.js" with { type: "text" }
import devices from "./browser/devices.js" with { type: "text" }
import dom from "./browser/dom.js" with { type: "text" }
import fleet from "./browser/fleet.js" with { type: "text" }
import format from "./browser/format.js" with { type: "text" }
import icon from "./browser/icon.svg" with { type: "text" }
import login from "./browser/login.js" with { type: "text" }
import overview from "./browser/overview.js" with { type: "text" }
import page from "./browser/page.css" with { type: "text" }
import refusals from "./browser/refusals.js" with { type: "text" }
import shell from "./browser/shell.js" with { type: "text" }
import streams from "./browser/streams.js" with { type: "text" }
import tapes from "./browser/tapes.js" with { type: "text" }

export interface Asset {
  readonly text: string
  readonly zipped: Uint8Array<ArrayBuffer>
  readonly type: string
  /** A strong entity tag, without quotation marks. */
  readonly tag: string
}

const SCRIPT = "text/javascript; charset=utf-8"
const STYLE = "text/css; charset=utf-8"

const scripts = {
  ...{ api, audit, charts, device, devices, dom, fleet, format, login, overview, refusals, shell },
  ...{ streams, tapes, uplot, access: accessView },
}

export const ASSETS: ReadonlyMap<string, Asset> = new Map([
  ...Object.entries(scripts).map(([name, text]) => [`${name}.js`, asset(text, SCRIPT)] as const),
  ["page.css", asset(page, STYLE)],
  ["uplot.css", asset(uplotStyle, STYLE)],
  ["icon.svg", asset(icon, "image/svg+xml")],
])

function asset(text: string, type: string): Asset {
  const tag = new Bun.CryptoHasher("sha256").update(text).digest("base64url").slice(0, 22)
  return { text, type, tag, zipped: Bun.gzipSync(text) }
}
