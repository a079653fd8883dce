/**
 * The rules for requests without tokens: programs on this machine are served, web pages of other
 * sites are refused. Pure.
 *
 * Without tokens the HTTP API listens on loopback only, but a browser on the machine reaches it
 * too. A page of any site can make that browser send a request here, and with DNS rebinding the
 * page can also read the response. So `Host` must name loopback, which a rebound name does not, and
 * `Origin` and `Sec-Fetch-Site` must not name another site. Programs other than browsers do not
 * send the latter two headers.
 *
 * The values of a repeated header are joined by a comma. Such a value matches no rule and is
 * refused. No message repeats the value of a header. With tokens these rules do not apply, because
 * a page of another site does not know a token.
 */

const HOST = /^(?:localhost|\[::1\]|127(?:\.[0-9]{1,3}){3})(?::[0-9]{1,5})?$/i
/**
 * Values of `Sec-Fetch-Site` (W3C Fetch Metadata). `none` is a request by the user, such as a typed
 * address.
 */
const OWN_SITES: readonly string[] = ["same-origin", "none"]
const ADVICE =
  "or set HTTP_TOKENS and send one of these tokens in the header Authorization: Bearer <token>"

export interface RequestSource {
  /** The value of `Host`. */
  readonly host: string | undefined
  /** The value of `Origin`. */
  readonly origin: string | undefined
  /** The value of `Sec-Fetch-Site`. */
  readonly site: string | undefined
}

/** Why this request is refused when no tokens are set, or null. */
export function sourceFault({ host = "", origin, site }: RequestSource): string | null {
  if (!isLoopbackHost(host)) {
    const rule = "must be one Host header with localhost, 127.0.0.1 or [::1]"
    return `the Host header is refused: without HTTP_TOKENS there ${rule}; use such a URL, ${ADVICE}`
  }
  // The HTTP API has no TLS, so the scheme of a request is always http.
  if (origin !== undefined && origin.toLowerCase() !== `http://${host.toLowerCase()}`) {
    return `the Origin header names another site: without HTTP_TOKENS web pages of other sites are refused; use a program that sends no Origin, ${ADVICE}`
  }
  if (site !== undefined && !OWN_SITES.includes(site)) {
    return `the Sec-Fetch-Site header names another site: without HTTP_TOKENS web pages of other sites are refused; open the URL directly, ${ADVICE}`
  }
  return null
}

function isLoopbackHost(host: string): boolean {
  if (!HOST.test(host)) return false
  const port = Number(/:([0-9]+)$/.exec(host)?.[1] ?? 0)
  const octets = /^[0-9.]+/.exec(host)?.[0].split(".") ?? []
  return port <= 65_535 && octets.every((octet) => Number(octet) <= 255)
}
