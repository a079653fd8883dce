/**
 * A load balancer of TCP in front of one gateway at a time, so that devices find the next one at the same address.
 * Connections stay with the gateway with which they began. For tests only.
 */

import net from "node:net"

export class LoadBalancer {
  readonly port: number
  /** The port of the gateway for new connections. */
  target = 0
  readonly #server: net.Server
  readonly #sockets = new Set<net.Socket>()

  private constructor(server: net.Server) {
    this.#server = server
    this.port = (server.address() as net.AddressInfo).port
    server.on("connection", (device: net.Socket) => this.#forward(device))
  }

  static async start(): Promise<LoadBalancer> {
    const server = net.createServer()
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    return new LoadBalancer(server)
  }

  stop(): void {
    this.#server.close()
    for (const socket of this.#sockets) socket.destroy()
  }

  #forward(device: net.Socket): void {
    const gateway = net.connect(this.target, "127.0.0.1")
    device.pipe(gateway).pipe(device)
    for (const [socket, other] of [
      [device, gateway],
      [gateway, device],
    ] as const) {
      this.#sockets.add(socket)
      socket.on("error", () => other.destroy())
      socket.on("close", () => {
        this.#sockets.delete(socket)
        other.end()
      })
    }
  }
}
