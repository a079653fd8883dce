// A device: sends numbered lines, keeps each until it is acknowledged, answers commands. Needs no package.
//
// usage: GATEWAY=localhost:8443 CA_FILE=certs/ca.crt [HELLO_LINE="HELLO lock:17 …"] node device.mjs

import { once } from "node:events"
import { readFileSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"
import { connect } from "node:tls"

const { GATEWAY, CA_FILE, HELLO_LINE = "" } = process.env
const { INTERVAL_MS = 1_000, SIGN_OF_LIFE_MS = 60_000, BACKOFF_MS = 1_000 } = process.env
const MAX_BACKOFF_MS = 60_000
const TIMEOUT_MS = 30_000
const MAX_KEPT = 100
const ca = readFileSync(CA_FILE)
const [host, port] = GATEWAY.split(":")

/** The lines that are not acknowledged, by their number on the current connection. */
let kept = new Map()
let number = 0
let readings = 0
let attempt = 0
let connection = null

const signOfLife = setInterval(() => send(""), Number(SIGN_OF_LIFE_MS))
setInterval(() => {
  // While too many lines are not acknowledged, and while there is no connection, readings are skipped.
  if (connection !== null && kept.size < MAX_KEPT) sendKept(`reading ${readings++}`)
}, Number(INTERVAL_MS))

function send(line) {
  connection?.write(`${line}\n`)
  signOfLife.refresh()
}

function sendKept(line) {
  kept.set(number, line)
  number += 1
  send(line)
}

/** Resolves with the wait of the goodbye line; with null when the connection ends without one. */
async function serve() {
  send(HELLO_LINE)
  // The gateway numbers the lines of each connection from 0, without the HELLO line and empty lines.
  const again = kept.values()
  kept = new Map()
  number = 0
  for (const line of again) sendKept(line)
  let received = ""
  for await (const chunk of connection.setEncoding("utf8")) {
    const lines = (received + chunk).split("\n")
    received = lines.pop()
    for (const line of lines) {
      attempt = 0
      if (line.startsWith("ACK ")) {
        kept.delete(Number(line.slice(4)))
      } else if (line.startsWith("BYE ")) {
        console.log(`goodbye ${line.slice(4)}`)
        return Number(line.split(" ").at(-1))
      } else {
        console.log(`command ${line}`)
        sendKept(`done: ${line}`)
      }
    }
  }
  return null
}

while (true) {
  let waitMs = null
  // The name of the gateway and its CA are checked before `secureConnect`.
  const tls = connect({ host, port, servername: host, ca })
  try {
    await once(tls, "secureConnect", { signal: AbortSignal.timeout(TIMEOUT_MS) })
    console.log("connected")
    connection = tls
    waitMs = await serve()
  } catch (error) {
    console.log(`disconnected: ${error.message}`)
  }
  connection = null
  tls.destroy()
  // Full jitter: devices that lost the gateway together do not return together.
  waitMs ??= Math.random() * Math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** attempt++)
  await sleep(waitMs)
}
