import { join } from "node:path"
import { ConfigurationError, type Environment, loadConfig } from "../../src/config/config.ts"

/** As if every file that is named could be read. */
export const load = (environment: Environment) => loadConfig(environment, () => null)

export const MAIN_FILE = join(import.meta.dir, "../../src/main.ts")
export const TOKEN = "token-0123456789abcdef"
export const OTHER_TOKEN = "other.token~ABC+/-_==="
/** As `openssl rand -hex 16` and `-base64 32` print them. */
export const SECRET = "5f0c3a9be1d24768a1b0c2d3e4f56789"
export const OTHER_SECRET = "nJ6m2cV0bq+R9sKxT1yUe/4LwZ8hGdPf3aQoXiCvB7E="
export const AMQP_URL = "amqp://user:s3cret-pass@broker.test:5672/vhost"

/** Every fault of an environment; none when it loads. */
export function faultsOf(environment: Environment): readonly string[] {
  try {
    load(environment)
    return []
  } catch (error) {
    if (error instanceof ConfigurationError) return error.faults
    throw error
  }
}

/** The faults of one setting's own rule. */
export const faultsNaming = (name: string, environment: Environment) =>
  faultsOf(environment).filter((fault) => fault.startsWith(`${name}:`))

export const urlsOf = (environment: Environment) => load(environment).amqp?.urls

export const ALL_WRONG: Record<string, string> = {
  AMQP_URL: "http://user:s3cret-pass@host",
  HTTP_TOKENS: "s3cret-token",
  HELLO_SECRETS: "s3cret-of-devices",
  INSTANCE_ID: "a b",
  DEVICE_PORT: "65536",
  HTTP_PORT: "abc",
  WORKERS: "0",
  LOG_LEVEL: "loud",
  QUEUE_TYPE: "stream",
  IDLE_TIMEOUT_MS: "5.0",
  TLS_CERT_FILE: "only-one.crt",
  NODE_TLS_REJECT_UNAUTHORIZED: "0",
}
