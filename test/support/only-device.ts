/** Commands over HTTP for tests in which one device is connected at a time. */

import type { TestGateway } from "./gateway.ts"
import { until } from "./wait.ts"

/**
 * Waits until exactly one device is connected, and sends it the line. Returns the outcome or the
 * code of the error.
 */
export async function sendToOnlyDevice(gateway: TestGateway, line: string): Promise<string> {
  const only = async () => {
    const response = await gateway.fetch("/devices")
    const { devices } = (await response.json()) as { devices: { device_id: string }[] }
    return devices.length === 1 ? devices[0] : undefined
  }
  const { device_id } = await until(only, { what: "exactly one connected device" })
  const response = await gateway.fetch(`/devices/${device_id}/send`, {
    method: "POST",
    headers: { "content-type": "text/plain" },
    body: line,
  })
  const answer = (await response.json()) as { outcome?: string; error?: { code: string } }
  return answer.outcome ?? answer.error?.code ?? "no outcome"
}
