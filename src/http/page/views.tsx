/**
 * The HTML of the operator page: each view without its data, which the view's module fills in.
 *
 *   document ─► header (name, views, session) ─► view ─► /page/assets/<view>.js
 *
 * A view names all of its parts, so that it can be read before its data has come, and by a screen
 * reader. Values that change are in elements with `data-value`; lists and tables are filled by
 * their `id`. Forms that act have the method `dialog`, which sends nothing before the module is
 * loaded: a token or a line must not become a part of the URL. Holds no state.
 */
/** @jsxImportSource hono/jsx */

import type { Child } from "hono/jsx"
import type { Access } from "../authorization.ts"
import type { ViewName } from "./page.ts"

export interface DocumentOptions {
  readonly view: ViewName | "login"
  readonly instance: string
  readonly version: string
  readonly access: Access
  /** Of the view `device`, otherwise null. */
  readonly deviceId: string | null
  /** Whether tokens are set, so that there is a session to end. */
  readonly hasSession: boolean
  /** Whether `/messages` exists. */
  readonly hasMessages: boolean
}

const TITLES: Readonly<Record<ViewName | "login", string>> = {
  overview: "Overview",
  devices: "Devices",
  device: "Device",
  refusals: "Refusals",
  access: "Access",
  tapes: "Tapes",
  fleet: "Fleet",
  audit: "Audit",
  login: "Log in",
}

/** Links of the header; a device is below Devices. */
const NAVIGATION: readonly (readonly [ViewName, string])[] = [
  ["overview", "/"],
  ["devices", "/page/devices"],
  ["refusals", "/page/refusals"],
  ["access", "/page/access"],
  ["tapes", "/page/tapes"],
  ["fleet", "/page/fleet"],
  ["audit", "/page/audit"],
]

export function document(options: DocumentOptions): string {
  const { view, instance, access, deviceId } = options
  const title = deviceId ?? TITLES[view]
  return String(
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <title>{`${title} · ${instance} · Owsla`}</title>
        <link rel="icon" href="/page/assets/icon.svg" type="image/svg+xml" />
        {view === "overview" && <link rel="stylesheet" href="/page/assets/uplot.css" />}
        <link rel="stylesheet" href="/page/assets/page.css" />
        <script type="module" src={`/page/assets/${view}.js`} />
      </head>
      <body data-access={access} data-view={view}>
        <a class="skip" href="#main">
          Skip to the content
        </a>
        <Header {...options} />
        <main id="main" tabindex={-1}>
          <View {...options} />
        </main>
      </body>
    </html>,
  )
}

function Header({ view, instance, version, access, hasSession }: DocumentOptions) {
  if (view === "login") return <header class="top bare">{brand(instance, version)}</header>
  const current = view === "device" ? "devices" : view
  return (
    <header class="top">
      {brand(instance, version)}
      <nav aria-label="Views">
        <ul>
          {NAVIGATION.map(([name, path]) => (
            <li>
              <a href={path} aria-current={name === current ? "page" : undefined}>
                {TITLES[name]}
              </a>
            </li>
          ))}
        </ul>
      </nav>
      <div class="session">
        <span id="connection" class="badge" role="status" />
        {access === "read" && (
          <span class="badge" title="The session was opened with a token of HTTP_READ_TOKENS">
            read only
          </span>
        )}
        {hasSession && (
          <button type="button" id="logout" class="quiet">
            Log out
          </button>
        )}
      </div>
    </header>
  )
}

function brand(instance: string, version: string) {
  return (
    <p class="brand">
      <img src="/page/assets/icon.svg" alt="" width="20" height="20" />
      <span>
        <b>Owsla</b> <span class="muted">{version}</span>
      </span>
      <span class="instance" title="INSTANCE_ID">
        {instance}
      </span>
    </p>
  )
}

function View(options: DocumentOptions) {
  switch (options.view) {
    case "login":
      return <Login />
    case "overview":
      return <Overview hasMessages={options.hasMessages} />
    case "devices":
      return <Devices />
    case "device":
      return <Device id={options.deviceId ?? ""} mayAct={options.access === "act"} />
    case "refusals":
      return <Refusals />
    case "access":
      return <AccessRules mayAct={options.access === "act"} />
    case "tapes":
      return <Tapes />
    case "fleet":
      return <FleetMembers />
    case "audit":
      return <Audit />
  }
}

function Login() {
  return (
    <section class="login" aria-labelledby="login-title">
      <h1 id="login-title">Log in</h1>
      <form id="login" method="dialog">
        <label for="token">Token</label>
        <input
          id="token"
          type="password"
          autocomplete="current-password"
          required
          aria-describedby="login-fault login-hint"
        />
        <p id="login-fault" class="fault" role="alert" />
        <button type="submit" disabled>
          Log in
        </button>
        <p id="login-hint" class="muted">
          A token of <code>HTTP_TOKENS</code> sees and acts, one of <code>HTTP_READ_TOKENS</code>{" "}
          sees. The session ends after 12 hours.
        </p>
      </form>
      <noscript>
        <p class="fault">The page needs JavaScript.</p>
      </noscript>
    </section>
  )
}

/** A table that scrolls within the page when it is too wide. */
function Table(props: {
  readonly id: string
  readonly label: string
  readonly columns: readonly (string | readonly [string, string])[]
  readonly empty?: string
}) {
  const { id, label, columns, empty = "Loading …" } = props
  return (
    // biome-ignore lint/a11y/useSemanticElements: a fieldset is for forms, a section a landmark.
    <div class="scroll" role="group" aria-label={label} tabindex={0}>
      <table id={id}>
        <caption class="hidden">{label}</caption>
        <thead>
          <tr>
            {columns.map((column) => {
              const [text, kind] = typeof column === "string" ? [column, ""] : column
              return (
                <th scope="col" class={kind}>
                  {text}
                </th>
              )
            })}
          </tr>
        </thead>
        <tbody>
          <tr class="empty">
            <td colspan={columns.length}>{empty}</td>
          </tr>
        </tbody>
      </table>
    </div>
  )
}

function Panel(props: {
  readonly id: string
  readonly title: string
  readonly note?: Child
  readonly children?: Child
}) {
  const { id, title, note, children } = props
  return (
    <section class="panel" id={id} aria-labelledby={`${id}-title`}>
      <div class="panel-head">
        <h2 id={`${id}-title`}>{title}</h2>
        {note !== undefined && <div class="muted note">{note}</div>}
      </div>
      {children}
    </section>
  )
}

function Value({ of: name, text = "–" }: { readonly of: string; readonly text?: string }) {
  return <span data-value={name}>{text}</span>
}

const CHARTS: readonly (readonly [string, string, string])[] = [
  ["devices", "Devices", "devices"],
  ["lines", "Lines/s", "lines"],
  ["commands", "Commands/s", "commands"],
  ["confirm", "Confirm latency", "confirm"],
  ["window", "Publish window", "window"],
  ["churn", "Connections/s", "churn"],
]

function Overview({ hasMessages }: { readonly hasMessages: boolean }) {
  return (
    <>
      <div role="status">
        <h1 id="verdict" class="verdict">
          Looking …
        </h1>
      </div>
      <ol class="chain" aria-label="From the devices to the broker">
        <Part name="devices" title="Devices">
          <p class="big">
            <Value of="devices" />
          </p>
          <p class="muted">
            <Value of="devices_note" text=" " />
          </p>
        </Part>
        <Flow lines="lines_per_s" linesText="lines" commands="written_per_s" />
        <Part name="gateway" title="Gateway">
          <p class="big">
            <Value of="workers" />
          </p>
          <p class="muted">
            <Value of="gateway_note" text=" " />
          </p>
        </Part>
        <Flow lines="confirmed_per_s" linesText="confirmed" commands="commands_per_s" />
        <Part name="broker" title="Broker">
          <p class="big">
            <Value of="broker" />
          </p>
          <p class="muted">
            <Value of="broker_note" text=" " />
          </p>
        </Part>
      </ol>
      <section class="charts" aria-label="The last 15 minutes">
        {CHARTS.map(([name, title, key]) => (
          <figure data-chart={name}>
            <figcaption>
              <span>{title}</span> <Value of={`chart_${key}`} />
            </figcaption>
            <div class="plot" aria-hidden="true" />
          </figure>
        ))}
      </section>
      <Panel id="workers-panel" title="Workers">
        <Table
          id="workers"
          label="Workers"
          columns={[
            "Worker",
            "State",
            "Broker",
            ["Devices", "number"],
            ["Waiting", "number"],
            ["Lines/s", "number"],
            ["CPU", "number"],
            ["Memory", "number"],
            ["Lag", "number"],
            ["Up", "number"],
            ["Restarts", "number"],
            ["Process", "number wide"],
          ]}
        />
      </Panel>
      <div class="columns">
        <Panel id="outcomes-panel" title="Commands by outcome">
          <Table
            id="outcomes"
            label="Commands by outcome"
            columns={["Outcome", ["/s now", "number"], ["Since the start", "number"]]}
          />
        </Panel>
        <Panel id="ends-panel" title="Why connections end">
          <Table
            id="ends"
            label="Why connections end"
            columns={["Reason", ["/s now", "number"], ["Since the start", "number"]]}
          />
        </Panel>
      </div>
      <Panel id="events-panel" title="Warnings and errors" note="the last 50, newest first">
        <Table
          id="events"
          label="Warnings and errors"
          columns={["Time", "Level", "Message", ["From", "wide"]]}
          empty="None."
        />
      </Panel>
      {hasMessages && (
        <Panel
          id="messages-panel"
          title="Lines as they come"
          note="the embedded broker keeps them in memory"
        >
          <Table
            id="messages"
            label="Lines as they come"
            columns={["Time", "Device", ["Number", "number"], "Line"]}
            empty="No line yet. Connect a device: openssl s_client -quiet -nocommands -connect localhost:8443 -CAfile certs/ca.crt"
          />
        </Panel>
      )}
    </>
  )
}

function Part(props: { readonly name: string; readonly title: string; readonly children: Child }) {
  const { name, title, children } = props
  return (
    <li class="part" data-part={name} data-level="unknown">
      <h2>
        <span class="dot" aria-hidden="true" />
        {title} <span class="level" />
      </h2>
      {children}
      <ul class="findings" />
    </li>
  )
}

function Flow(props: {
  readonly lines: string
  readonly linesText: string
  readonly commands: string
}) {
  return (
    <li class="flow">
      <span class="there">
        <b>
          <Value of={props.lines} />
        </b>{" "}
        {props.linesText}/s
      </span>
      <span class="back">
        <b>
          <Value of={props.commands} />
        </b>{" "}
        commands/s
      </span>
    </li>
  )
}

function Devices() {
  return (
    <>
      <h1>Devices</h1>
      <form id="search" class="search" method="get" action="/page/devices">
        <Field name="prefix" label="Id begins with">
          <input id="prefix" name="prefix" type="search" maxlength={128} autocomplete="off" />
        </Field>
        <Field name="address" label="Address begins with">
          <input id="address" name="address" type="search" maxlength={64} autocomplete="off" />
        </Field>
        <Field name="silent_ms" label="Silent for">
          <select id="silent_ms" name="silent_ms">
            <option value="">any time</option>
            <option value="60000">1 minute or more</option>
            <option value="300000">5 minutes or more</option>
            <option value="3600000">1 hour or more</option>
          </select>
        </Field>
        <Field name="paused_by" label="Not read because of">
          <select id="paused_by" name="paused_by">
            <option value="">– (all devices)</option>
            <option value="any">any cause</option>
            <option value="window">window: the broker is slow</option>
            <option value="memory">memory: MAX_HELD_BYTES</option>
            <option value="rate">rate: its limit</option>
            <option value="drain">drain: it is being closed</option>
          </select>
        </Field>
        <button type="submit">Search</button>
      </form>
      <p id="found" class="muted" role="status">
        Searching …
      </p>
      {/* biome-ignore lint/a11y/useSemanticElements: as in Table. */}
      <div class="scroll" role="group" aria-label="Devices" tabindex={0}>
        <table id="devices">
          <caption class="hidden">Devices</caption>
          <thead>
            <tr>
              <Sortable by="device_id">Device</Sortable>
              <Sortable by="epoch">Connected</Sortable>
              <Sortable by="last_activity">Last bytes</Sortable>
              <Sortable by="lines_in" kind="number">
                Lines in
              </Sortable>
              <Sortable by="lines_out" kind="number">
                Lines out
              </Sortable>
              <Sortable by="outgoing_bytes" kind="number wide">
                Waiting
              </Sortable>
              <th scope="col">Not read</th>
              <Sortable by="remote_address" kind="wide">
                Address
              </Sortable>
              <Sortable by="worker" kind="wide">
                Worker
              </Sortable>
            </tr>
          </thead>
          <tbody />
        </table>
      </div>
      <nav class="pages" aria-label="Pages">
        <a id="first" href="/page/devices" hidden>
          First page
        </a>
        <a id="next" href="/page/devices" hidden>
          Next page
        </a>
      </nav>
    </>
  )
}

function Field(props: { readonly name: string; readonly label: string; readonly children: Child }) {
  return (
    <div class="field">
      <label for={props.name}>{props.label}</label>
      {props.children}
    </div>
  )
}

function Sortable(props: {
  readonly by: string
  readonly kind?: string
  readonly children: Child
}) {
  return (
    <th scope="col" class={props.kind}>
      <button type="button" class="sort" data-sort={props.by}>
        {props.children}
      </button>
    </th>
  )
}

const NO_ACTS = "A session of HTTP_READ_TOKENS sees and does not act."

function Device({ id, mayAct }: { readonly id: string; readonly mayAct: boolean }) {
  return (
    <>
      <div class="title">
        <h1 class="id">{id}</h1>
        <span id="state" class="badge" role="status">
          Looking …
        </span>
        <span id="ban" class="badge" data-state="away" role="status" />
        {mayAct && (
          <div class="acts">
            <button type="button" id="kick" class="danger" disabled>
              Close connection
            </button>
          </div>
        )}
      </div>
      <p id="why" class="finding-line" role="status" />
      <div class="columns wide-left">
        <Panel id="facts-panel" title="Now">
          <dl id="facts" class="facts" />
        </Panel>
        <Panel id="send-panel" title="Send a command">
          {mayAct ? <SendForm /> : <p class="muted">{NO_ACTS}</p>}
        </Panel>
      </div>
      <Panel id="tape-panel" title="Tape" note={<span id="tape-note" />}>
        {mayAct && (
          <form id="tape-form" method="dialog" class="row">
            <Field name="tape-minutes" label="Minutes">
              <input id="tape-minutes" type="number" min={1} max={60} value="10" required />
            </Field>
            <Field name="tape-payload" label="Contents of lines">
              <select id="tape-payload">
                <option value="hidden">hidden</option>
                <option value="text">as text</option>
                <option value="hex">as hex</option>
              </select>
            </Field>
            <button type="submit" id="tape-start">
              Start tape
            </button>
            <button type="button" id="tape-stop" hidden>
              End tape
            </button>
            <a id="tape-file" href="#tape-panel" hidden>
              Download
            </a>
          </form>
        )}
        <Table
          id="tape"
          label="Tape"
          columns={[
            "Time",
            "Direction",
            ["Number", "number"],
            ["Bytes", "number"],
            "Line",
            "Result",
          ]}
          empty="No tape. It records the lines of this device in both directions, across its connections."
        />
      </Panel>
      <Panel id="held-panel" title="Held commands" note={<span id="held-note" />}>
        <Table
          id="held"
          label="Held commands"
          columns={["Message id", "Line", "Held", "Expires", ["Bytes", "number"], "Key", "Action"]}
        />
        {mayAct && (
          <p>
            <button type="button" id="cancel-all" class="danger" hidden>
              Cancel all
            </button>
          </p>
        )}
      </Panel>
      <Panel id="connections-panel" title="Connections" note="the last 20, newest first">
        <Table
          id="connections"
          label="Connections"
          columns={["Connected", "Ended", "Lasted", "Reason", "Address", ["Worker", "wide"]]}
        />
      </Panel>
      <Panel id="deny-panel" title="Deny" note={<span id="deny-note" role="status" />}>
        {mayAct && (
          <form id="deny" method="dialog" class="row">
            <Field name="deny-ms" label="For">
              <select id="deny-ms">
                <option value="600000">10 minutes</option>
                <option value="3600000">1 hour</option>
                <option value="86400000">1 day</option>
              </select>
            </Field>
            <button type="submit" class="danger">
              Deny device
            </button>
          </form>
        )}
        <p class="muted">
          The fleet disconnects the device and refuses it (<code>denied</code>) until the time is
          over or the ban is lifted under <a href="/page/access">Access</a>. To refuse it for good,
          add the line <code>{id}</code> to the file of <code>DENYLIST_FILE</code>.
        </p>
      </Panel>
    </>
  )
}

function SendForm() {
  return (
    <form id="send" method="dialog">
      <Field name="line" label="Line">
        <textarea id="line" rows={2} required spellcheck={false} />
      </Field>
      <div class="row">
        <Field name="hold_ms" label="When it is away">
          <select id="hold_ms">
            <option value="">do not hold</option>
            <option value="300000">hold 5 minutes</option>
            <option value="3600000">hold 1 hour</option>
            <option value="86400000">hold 1 day</option>
          </select>
        </Field>
        <Field name="reply" label="Reply">
          <select id="reply">
            <option value="">do not wait</option>
            <option value="reply_next">the next line</option>
            <option value="reply_token">first word equals</option>
            <option value="reply_prefix">begins with</option>
          </select>
        </Field>
        <Field name="reply-text" label="Word or beginning">
          <input id="reply-text" autocomplete="off" maxlength={128} disabled />
        </Field>
        <button type="submit">Send</button>
      </div>
      <div id="outcome" class="outcome" role="status" />
    </form>
  )
}

function Refusals() {
  return (
    <>
      <h1>Refusals</h1>
      <p class="muted">
        The last connections that did not become a device, in the whole fleet, newest first.{" "}
        <span id="refusals-note" role="status" />
      </p>
      <div class="row">
        <Field name="refusal-filter" label="Show only">
          <input
            id="refusal-filter"
            type="search"
            autocomplete="off"
            placeholder="reason, address or id"
          />
        </Field>
      </div>
      <p id="reasons" class="chips" />
      <Table
        id="refusals"
        label="Refusals"
        columns={["Time", "Reason", "Address", "Detail", "Device", ["Worker", "wide"]]}
      />
    </>
  )
}

function AccessRules({ mayAct }: { readonly mayAct: boolean }) {
  return (
    <>
      <h1>Access</h1>
      <Panel id="gate-panel" title="Gate" note="whether the fleet admits new devices">
        <p id="gate-state" class="finding-line" role="status">
          Loading …
        </p>
        {mayAct ? (
          <form id="gate" method="dialog" class="row">
            <Field name="gate-prefix" label="Ids that begin with (empty: all)">
              <input
                id="gate-prefix"
                autocomplete="off"
                maxlength={128}
                pattern="[A-Za-z0-9._:\-]*"
              />
            </Field>
            <button type="submit" class="danger">
              Close the gate
            </button>
            <button type="button" id="gate-open">
              Open the gate
            </button>
          </form>
        ) : (
          <p class="muted">{NO_ACTS}</p>
        )}
      </Panel>
      <Panel
        id="bans-panel"
        title="Bans"
        note="denied by an operator, or connected too often (FLAP_LIMIT)"
      >
        <Table id="bans" label="Bans" columns={["Device", "Until", "Why", "Action"]} />
      </Panel>
    </>
  )
}

function Tapes() {
  return (
    <>
      <h1>Tapes</h1>
      <p class="muted">
        Recordings of the whole fleet. Start one in the view of a device. One that is over can be
        read for ten minutes.
      </p>
      <Table
        id="tapes"
        label="Tapes"
        columns={["Device", "Records until", "Contents", ["Worker", "wide"]]}
      />
    </>
  )
}

function FleetMembers() {
  return (
    <>
      <h1>Fleet</h1>
      <p id="fleet-note" class="finding-line" role="status">
        Loading …
      </p>
      <Table
        id="members"
        label="Members"
        columns={[
          "Worker",
          "Instance",
          "State",
          "Keeps shards",
          ["Held commands", "number"],
          ["Admits/s", "number"],
        ]}
      />
      <p class="muted">
        As the worker that answers sees it. <b>heard of</b>: it sends its messages. <b>silent</b>:
        it has missed an answer or its messages, it may be slow or dead. <b>left</b>: it has drained
        and is ending.
      </p>
    </>
  )
}

function Audit() {
  return (
    <>
      <h1>Audit</h1>
      <p class="muted">What operators have done on this instance, newest first.</p>
      <Table
        id="audit"
        label="Audit"
        columns={["Time", "Act", "Target", "Detail", "Token", "From address"]}
      />
    </>
  )
}
