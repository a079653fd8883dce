/** The operator page: its views as HTML, who sees them, their headers, and the files of browsers. */

import { describe, expect, test } from "bun:test"
import { VIEWS } from "../../../src/http/page/page.ts"
import { Sessions } from "../../../src/http/session.ts"
import { sidecar } from "../app-harness.ts"

const ACT = "act-token-0123456789"
const READ = "read-token-0123456789"
const TOKENS = { tokens: [ACT], readTokens: [READ] }
const paths = Object.entries(VIEWS).map(([view, path]) => ({
  ...{ view, path: path.replace(":id", "lock:1") },
}))

function get(path: string, token: string | null, changes: Parameters<typeof sidecar>[0] = {}) {
  const cookie = token === null ? null : new Sessions(TOKENS).open(token, 6_999)
  const headers: Record<string, string> =
    cookie === null ? {} : { cookie: `owsla_session=${cookie}` }
  return sidecar({ ...TOKENS, ...changes }).routes.request(path, { headers })
}

describe.each(paths)("$path", ({ view, path }) => {
  test("is the login without a session, and says nothing else", async () => {
    const answer = await get(path, null)
    expect(answer.status).toBe(401)
    expect(answer.headers.get("content-type")).toBe("text/html; charset=UTF-8")
    const text = await answer.text()
    expect(text).toContain('data-view="login"')
    expect(text).toContain("<title>")
    expect(text).not.toContain("<nav")
  })

  test.each([ACT, READ])("is the view with a session", async (token) => {
    const answer = await get(path, token)
    expect(answer.status).toBe(200)
    const text = await answer.text()
    expect(text).toStartWith('<!doctype html><html lang="en">')
    expect(text).toContain(`src="/page/assets/${view}.js"`)
    expect(text.match(/<h1/g)).toHaveLength(1)
    expect(text.match(/aria-current="page"/g)).toHaveLength(1)
  })

  test("is the view without tokens, and has no session to end", async () => {
    const answer = await get(path, null, { tokens: [], readTokens: [] })
    expect(answer.status).toBe(200)
    expect(await answer.text()).not.toContain('id="logout"')
  })

  test("has nothing that acts with a read token", async () => {
    const text = await (await get(path, READ)).text()
    for (const id of ["kick", "send", "cancel-all", "tape-form", "gate", "deny"]) {
      expect(text).not.toContain(`id="${id}"`)
    }
    expect(text).toContain("read only")
  })

  test("sends nothing in a URL before its module is loaded, except a search", async () => {
    for (const token of [ACT, null]) {
      const forms = (await (await get(path, token)).text()).match(/<form[^>]*>/g) ?? []
      for (const form of forms) expect(form).toMatch(/ method="dialog"| id="search"/)
    }
  })

  test("refers to this site only, and to files that exist", async () => {
    const text = await (await get(path, ACT)).text()
    const links = [...text.matchAll(/(?:src|href|action)="([^"]*)"/g)].map(([, link = ""]) => link)
    for (const link of links) {
      expect(link).toMatch(/^[/#]/)
      expect(link).not.toStartWith("//")
      if (link.startsWith("/")) expect((await get(link, ACT)).status).toBe(200)
    }
  })

  test("has ids that occur once", async () => {
    const text = await (await get(path, ACT)).text()
    const ids = [...text.matchAll(/ id="([^"]*)"/g)].map(([, id]) => id)
    expect(ids).toEqual([...new Set(ids)])
  })
})

test("a device id is shown as text", async () => {
  const text = await (await get("/page/devices/%3Cscript%3E%22", ACT)).text()
  expect(text).not.toContain("<script>")
  expect(text).toContain("&lt;script&gt;&quot;")
})

test("lines are shown with the embedded broker only", async () => {
  const shows = async (messages: { tap: () => () => void } | null) =>
    (await (await get("/", ACT, { messages })).text()).includes('id="messages"')
  expect([await shows(null), await shows({ tap: () => () => {} })]).toEqual([false, true])
})

describe("the headers", () => {
  test.each(["/", "/page/assets/page.css"])("of %s allow nothing from elsewhere", async (path) => {
    const { headers } = await get(path, ACT)
    const policy = headers.get("content-security-policy") ?? ""
    expect(policy).toStartWith("default-src 'none'; script-src 'self'; style-src 'self';")
    expect(policy).not.toMatch(/unsafe|https?:|\*|data:/)
    expect(policy).toContain("frame-ancestors 'none'")
    expect(headers.get("x-frame-options")).toBe("DENY")
    expect(headers.get("x-content-type-options")).toBe("nosniff")
    expect(headers.get("referrer-policy")).toBe("no-referrer")
  })

  test("keep views out of caches", async () => {
    expect((await get("/", ACT)).headers.get("cache-control")).toBe("no-store")
  })
})

describe("a file", () => {
  const file = (headers: Record<string, string> = {}, name = "overview.js") =>
    sidecar(TOKENS).routes.request(`/page/assets/${name}`, { headers })

  test("needs no session, and is not sent again while it is the same", async () => {
    const first = await file()
    expect(first.headers.get("content-type")).toBe("text/javascript; charset=utf-8")
    expect(first.headers.get("cache-control")).toBe("no-cache")
    const tag = first.headers.get("etag") ?? ""
    const again = await file({ "if-none-match": tag })
    expect([again.status, await again.text()]).toEqual([304, ""])
    expect((await file({ "if-none-match": '"other"' })).status).toBe(200)
  })

  test("is compressed for browsers that ask for it, under another tag", async () => {
    const [plain, zipped] = [await file(), await file({ "accept-encoding": "gzip, br" })]
    expect(zipped.headers.get("content-encoding")).toBe("gzip")
    expect(zipped.headers.get("etag")).not.toBe(plain.headers.get("etag"))
    const text = Bun.gunzipSync(new Uint8Array(await zipped.arrayBuffer()))
    expect(new TextDecoder().decode(text)).toBe(await plain.text())
  })

  test.each(["nothing.js", "..%2fpage.ts", "__proto__"])("%s does not exist", async (name) => {
    expect((await file({}, name)).status).toBe(404)
  })

  test("imports only files that exist", async () => {
    const names = Object.keys(VIEWS).map((view) => `${view}.js`)
    const seen = new Set<string>()
    for (let name = names.pop(); name !== undefined; name = names.pop()) {
      if (seen.has(name)) continue
      seen.add(name)
      const answer = await file({}, name)
      expect([name, answer.status]).toEqual([name, 200])
      const imports = (await answer.text()).matchAll(/from "(?:\.|\/page\/assets)\/([\w.]+)"/g)
      names.push(...[...imports].map(([, imported = ""]) => imported))
    }
    expect(seen).toContain("uplot.js")
  })
})
