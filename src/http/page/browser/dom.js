/**
 * Elements, and tables whose rows are updated in place, so that the focus and a selection of text
 * survive an update. Text is always set as text: no HTML is parsed.
 */

/** @typedef {string | Node} Cell */

/**
 * The element with this id; the views have those that their modules use.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const found = find(id)
  if (found === null) throw new Error(`no element #${id}`)
  return found
}

/** @param {string} id */
export function find(id) {
  return document.getElementById(id)
}

/** The input with this id. @param {string} id */
export function input(id) {
  return /** @type {HTMLInputElement} */ (byId(id))
}

/**
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {...Cell} children
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  made.append(...children)
  return made
}

/** @param {string} text @param {() => void} pressed @param {string} [kind] */
export function button(text, pressed, kind = "") {
  const made = element("button", { type: "button", class: kind }, text)
  made.addEventListener("click", pressed)
  return made
}

/** @param {string} id of a device or a connection */
export function deviceLink(id) {
  return element("a", { href: `/page/devices/${encodeURIComponent(id)}`, class: "id" }, id)
}

/** @param {Element} node @param {string} text */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text
}

/** Sets all elements with `data-value` of this name. @param {string} name @param {string} text */
export function setValue(name, text) {
  for (const node of document.querySelectorAll(`[data-value="${name}"]`)) setText(node, text)
}

/**
 * Shows these rows. A row with a known key keeps its elements: only its texts change.
 *
 * @template T
 * @param {string} id of the table
 * @param {readonly T[]} items in order
 * @param {{ key: (item: T) => string, cells: (item: T) => Cell[], empty?: string, kind?: (item: T) => string }} options
 */
export function showRows(id, items, { key, cells, empty = "None.", kind }) {
  const table = /** @type {HTMLTableElement} */ (byId(id))
  const heads = [...table.querySelectorAll("thead th")]
  const body = table.tBodies[0] ?? table.createTBody()
  /** @type {Map<string, HTMLTableRowElement>} */
  const known = new Map()
  for (const row of body.rows)
    if (row.dataset["key"] !== undefined) known.set(row.dataset["key"], row)
  let at = 0
  for (const item of items) {
    const name = key(item)
    const row = known.get(name) ?? document.createElement("tr")
    known.delete(name)
    row.dataset["key"] = name
    if (kind !== undefined) row.className = kind(item)
    for (const [column, cell] of cells(item).entries()) showCell(row, column, cell, heads[column])
    if (body.rows[at] !== row) body.insertBefore(row, body.rows[at] ?? null)
    at += 1
  }
  while (body.rows.length > at) body.deleteRow(at)
  if (items.length > 0) return
  const columns = String(heads.length)
  const note = element("td", { colspan: columns }, empty)
  body.append(element("tr", { class: "empty" }, note))
}

/**
 * @param {HTMLTableRowElement} row @param {number} column @param {Cell} cell
 * @param {Element | undefined} head whose class the cell takes
 */
function showCell(row, column, cell, head) {
  const before = row.cells[column]
  if (before === undefined) {
    const made = row.insertCell()
    if (head !== undefined && head.className !== "") made.className = head.className
    made.append(cell)
  } else if (typeof cell === "string") setText(before, cell)
}
