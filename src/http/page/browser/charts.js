/**
 * The charts of the overview: uPlot, with the colours of the page and a common cursor. The values
 * at the cursor, or the newest, are text in the caption, so that a chart is not needed to read them.
 */

import uPlot from "/page/assets/uplot.js"
import { setText } from "./dom.js"
import { time } from "./format.js"

const HEIGHT = 120
const SPAN_S = 900
/** Of the time axis, while there are few samples. */
const MIN_SPAN_S = 120
/** Right of the plot there is room for half of the last time. */
const PADDING = /** @type {uPlot.Padding} */ ([8, 26, 0, 0])
/** Steps of the axis of a number of things. */
const WHOLE_STEPS = Array.from({ length: 10 }, (_, at) => [1, 2, 5].map((n) => n * 10 ** at)).flat()

/**
 * @typedef {object} Series
 * @property {string} field of a sample
 * @property {string} label
 * @property {string} color the name of a custom property
 * @property {boolean} [fill]
 */

/**
 * @typedef {object} ChartOptions
 * @property {readonly Series[]} series
 * @property {(value: number | null | undefined) => string} format
 * @property {boolean} [isWhole] whether the values are numbers of things
 */

/** @typedef {{ at: number[] } & Record<string, (number | null)[]>} Columns */

export class Chart {
  /** @type {uPlot | null} */
  #plot = null
  #figure
  #options
  /** @type {Columns} */
  #columns = { at: [] }

  /** @param {HTMLElement} figure @param {ChartOptions} options */
  constructor(figure, options) {
    this.#figure = figure
    this.#options = options
    new ResizeObserver(() => this.#resize()).observe(this.#box)
    // Colours are drawn into the canvas.
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw())
  }

  /** @param {Columns} columns */
  show(columns) {
    this.#columns = columns
    if (this.#plot === null) this.#draw()
    else this.#plot.setData(this.#data())
    this.#caption(null)
  }

  get #box() {
    return /** @type {HTMLElement} */ (this.#figure.querySelector(".plot"))
  }

  /** @returns {uPlot.AlignedData} */
  #data() {
    const { at } = this.#columns
    const seconds = at.map((ms) => ms / 1_000)
    return [seconds, ...this.#options.series.map(({ field }) => this.#columns[field] ?? [])]
  }

  #resize() {
    const width = Math.floor(this.#box.clientWidth)
    if (this.#plot !== null && width > 0) this.#plot.setSize({ width, height: HEIGHT })
  }

  #draw() {
    if (this.#columns.at.length === 0) return
    this.#plot?.destroy()
    const style = getComputedStyle(this.#box)
    // A custom property would be the text `light-dark(…)`.
    const color = (/** @type {string} */ name) => {
      this.#box.style.color = `var(${name})`
      return style.color
    }
    const { format, isWhole = false, series } = this.#options
    const axis = {
      stroke: color("--muted"),
      font: `11px ${style.fontFamily}`,
      grid: { stroke: color("--line"), width: 1 },
      ticks: { show: false },
    }
    this.#plot = new uPlot(
      {
        width: Math.max(120, Math.floor(this.#box.clientWidth)),
        height: HEIGHT,
        padding: PADDING,
        legend: { show: false },
        cursor: { y: false, sync: { key: "overview" }, drag: { x: false, y: false } },
        scales: {
          x: {
            range: (_, min, max) => [Math.max(max - SPAN_S, Math.min(min, max - MIN_SPAN_S)), max],
          },
          y: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] },
        },
        axes: [
          { ...axis, size: 22, space: 70, values: (_, ticks) => ticks.map(clock) },
          {
            ...axis,
            ...{ size: 52, space: 30, values: (_, ticks) => ticks.map((tick) => format(tick)) },
            ...(isWhole ? { incrs: WHOLE_STEPS } : {}),
          },
        ],
        series: [
          {},
          ...series.map(({ label, color: name, fill = false }) => ({
            label,
            stroke: color(name),
            width: 1.5,
            points: { show: false },
            ...(fill ? { fill: color(name).replace(/^rgb\((.*)\)$/, "rgba($1, 0.12)") } : {}),
          })),
        ],
        hooks: { setCursor: [(plot) => this.#caption(plot.cursor.idx ?? null)] },
      },
      this.#data(),
      this.#box,
    )
  }

  /** @param {number | null} index of the sample at the cursor; null for the newest */
  #caption(index) {
    const { at } = this.#columns
    const { format, series } = this.#options
    const last = at.length - 1
    const shown = index ?? last
    const values = series.map(({ field, label }) => {
      const text = format(this.#columns[field]?.[shown])
      return series.length === 1 ? text : `${label} ${text}`
    })
    const when = index === null || index === last ? "" : `${time(at[index] ?? 0, Date.now())} · `
    const value = this.#figure.querySelector("[data-value]")
    if (value !== null) setText(value, when + values.join(" · "))
  }
}

/** The time of day, with seconds between whole minutes. @param {number} seconds since 1970 */
function clock(seconds) {
  const text = new Date(seconds * 1_000).toTimeString().slice(0, 8)
  return seconds % 60 === 0 ? text.slice(0, 5) : text
}
