/** Entries of HTTP_TOKENS: a token, with or without a name. */

import { expect, test } from "bun:test"
import { readBearerToken, TOKEN_ENTRY } from "../src/bearer-token.ts"

const TOKEN = "0123456789.abc~+/-_=="

test.each([
  [TOKEN, { name: null, token: TOKEN }],
  [`alice:${TOKEN}`, { name: "alice", token: TOKEN }],
  [`on-call_2.eu:${TOKEN}`, { name: "on-call_2.eu", token: TOKEN }],
])("%s is read", (entry, read) => {
  expect(entry).toMatch(TOKEN_ENTRY)
  expect(readBearerToken(entry)).toEqual(read)
})

test.each([
  ["", "nothing"],
  ["alice:short", "a short token after a name"],
  [`:${TOKEN}`, "an empty name"],
  [`a b:${TOKEN}`, "a space in the name"],
  [`a:b:${TOKEN}`, "two colons"],
  [`${"a".repeat(33)}:${TOKEN}`, "a long name"],
  [`alice:${TOKEN}:`, "a colon after the token"],
])("%j is not valid: %s", (entry) => {
  expect(entry).not.toMatch(TOKEN_ENTRY)
})
