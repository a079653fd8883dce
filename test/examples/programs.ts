/**
 * The examples of docs/examples that the tests run: how each is built and started, and how its
 * versions are found out.
 *
 * The commands are lines for `sh`. `$SOURCE` is docs/examples, `$OUT` a directory for what is
 * built, and `$MODULES` the node_modules of the project. Debian's programs come before others of
 * the same name, because its libraries belong to them.
 */

import { existsSync } from "node:fs"
import { join } from "node:path"

const ROOT = join(import.meta.dir, "../..")
const SOURCE = join(ROOT, "docs/examples")
const DEBIAN_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

export interface Example {
  readonly kind: "device" | "back-end"
  readonly name: string
  /** Below docs/examples. */
  readonly file: string
  /** `short`: it runs in `bun run check`, and needs what `sh test/install` installs. */
  readonly suite: "short" | "long"
  readonly build?: string
  readonly run: string
  /** Print the versions. */
  readonly language: string
  readonly library: string
  /** Needed for the short suite; without it the example is for the long one only. */
  readonly needs?: readonly string[]
}

const debian = (name: string) => `dpkg-query -W -f='\${Version}' ${name}`
const inNode = (name: string) => `node -p 'require("'"$MODULES"'/${name}/package.json").version'`
const NONE = "echo -"
const PYTHON = "python3 --version"
const NODE = "node --version"
const GCC = "gcc -dumpfullversion"
const C_FLAGS = "-std=gnu11 -Wall -Wextra -Werror"
const GO = "GOCACHE=$OUT/cache GO111MODULE=off GOPATH=/usr/share/gocode go build"
const JARS = "/usr/share/java/amqp-client.jar:/usr/share/java/slf4j-api.jar"
/** Debian's crates in the place of crates.io. */
const RUST = [
  "cp -r $SOURCE/devices/rust $OUT/crate && cd $OUT/crate && mkdir .cargo",
  'printf \'[source.crates-io]\\nreplace-with = "debian"\\n[source.debian]\\ndirectory = "/usr/share/cargo/registry"\\n\' > .cargo/config.toml',
  "CARGO_HOME=$OUT/cargo RUSTC=/usr/bin/rustc cargo build --offline --quiet",
].join(" && ")

export const EXAMPLES: readonly Example[] = [
  {
    ...{ kind: "device", name: "C, OpenSSL", file: "devices/c/openssl.c", suite: "short" },
    build: `gcc ${C_FLAGS} -o $OUT/openssl $SOURCE/devices/c/openssl.c -lssl -lcrypto`,
    run: "$OUT/openssl",
    language: GCC,
    library: debian("libssl-dev"),
    needs: ["/usr/bin/gcc", "/usr/include/openssl/ssl.h", "/usr/include/stdio.h"],
  },
  {
    ...{ kind: "device", name: "C, mbedTLS", file: "devices/c/mbedtls.c", suite: "long" },
    build: `gcc ${C_FLAGS} -o $OUT/mbedtls $SOURCE/devices/c/mbedtls.c -lmbedtls -lmbedx509 -lmbedcrypto`,
    run: "$OUT/mbedtls",
    language: GCC,
    library: debian("libmbedtls-dev"),
  },
  {
    ...{ kind: "device", name: "Python", file: "devices/python/device.py", suite: "short" },
    run: "python3 $SOURCE/devices/python/device.py",
    language: PYTHON,
    library: NONE,
  },
  {
    ...{ kind: "device", name: "Node", file: "devices/node/device.mjs", suite: "short" },
    run: "node $SOURCE/devices/node/device.mjs",
    language: NODE,
    library: NONE,
  },
  {
    ...{ kind: "device", name: "Go", file: "devices/go/device.go", suite: "long" },
    build: `${GO} -o $OUT/device $SOURCE/devices/go/device.go`,
    run: "$OUT/device",
    language: "go version",
    library: NONE,
  },
  {
    ...{ kind: "device", name: "Elixir", file: "devices/elixir/device.exs", suite: "long" },
    run: "elixir $SOURCE/devices/elixir/device.exs",
    language: "elixir --version | tail -n 1",
    library: NONE,
  },
  {
    ...{ kind: "device", name: "Ruby", file: "devices/ruby/device.rb", suite: "long" },
    run: "ruby $SOURCE/devices/ruby/device.rb",
    language: "ruby --version",
    library: NONE,
  },
  {
    ...{ kind: "device", name: "Java", file: "devices/java/Device.java", suite: "long" },
    build: "javac -d $OUT $SOURCE/devices/java/Device.java",
    run: "java -cp $OUT Device",
    language: "java --version | head -n 1",
    library: NONE,
  },
  {
    ...{
      kind: "device",
      name: "Rust, native-tls",
      file: "devices/rust/src/main.rs",
      suite: "long",
    },
    build: RUST,
    run: "$OUT/crate/target/debug/device",
    language: "rustc --version",
    library: debian("librust-native-tls-dev"),
  },
  {
    ...{ kind: "back-end", name: "Python, pika", suite: "short" },
    file: "back-ends/python/pika_back_end.py",
    run: "python3 $SOURCE/back-ends/python/pika_back_end.py",
    language: PYTHON,
    library: debian("python3-pika"),
  },
  {
    ...{ kind: "back-end", name: "Python, aio-pika", suite: "short" },
    file: "back-ends/python/aio_pika_back_end.py",
    run: "python3 $SOURCE/back-ends/python/aio_pika_back_end.py",
    language: PYTHON,
    library: debian("python3-aio-pika"),
  },
  {
    ...{ kind: "back-end", name: "Node, amqplib", suite: "short" },
    file: "back-ends/node/amqplib-back-end.mjs",
    run: "node $SOURCE/back-ends/node/amqplib-back-end.mjs",
    language: NODE,
    library: inNode("amqplib"),
  },
  {
    ...{ kind: "back-end", name: "Node, @cloudamqp/amqp-client", suite: "short" },
    file: "back-ends/node/amqp-client-back-end.mjs",
    run: "node $SOURCE/back-ends/node/amqp-client-back-end.mjs",
    language: NODE,
    library: inNode("@cloudamqp/amqp-client"),
  },
  {
    ...{ kind: "back-end", name: "Ruby, bunny", suite: "long" },
    file: "back-ends/ruby/back_end.rb",
    run: "ruby $SOURCE/back-ends/ruby/back_end.rb",
    language: "ruby --version",
    library: debian("ruby-bunny"),
  },
  {
    ...{ kind: "back-end", name: "Go, amqp091-go", suite: "long" },
    file: "back-ends/go/back_end.go",
    build: `${GO} -o $OUT/back-end $SOURCE/back-ends/go/back_end.go`,
    run: "$OUT/back-end",
    language: "go version",
    library: debian("golang-github-rabbitmq-amqp091-go-dev"),
  },
  {
    ...{ kind: "back-end", name: "Java, RabbitMQ client", suite: "long" },
    file: "back-ends/java/BackEnd.java",
    build: `javac -cp ${JARS} -d $OUT $SOURCE/back-ends/java/BackEnd.java`,
    run: `java -cp $OUT:${JARS} BackEnd`,
    language: "java --version | head -n 1",
    library: debian("librabbitmq-client-java"),
  },
  {
    ...{ kind: "back-end", name: "PHP, php-amqplib", suite: "long" },
    file: "back-ends/php/back_end.php",
    run: "php $SOURCE/back-ends/php/back_end.php",
    language: "php --version | head -n 1",
    library: debian("php-amqplib"),
  },
]

export const devices = EXAMPLES.filter(({ kind }) => kind === "device")
export const backEnds = EXAMPLES.filter(({ kind }) => kind === "back-end")

export function isShort({ suite, needs = [] }: Example): boolean {
  return suite === "short" && needs.every((path) => existsSync(path))
}

/** Builds in `directory`. @throws with the output of the compiler. */
export async function build({ name, build }: Example, directory: string): Promise<void> {
  if (build === undefined) return
  const building = Bun.spawn(["sh", "-c", build], {
    env: environment(directory),
    stdio: ["ignore", "pipe", "pipe"],
  })
  const [output, complaint] = await Promise.all([building.stdout.text(), building.stderr.text()])
  if ((await building.exited) !== 0) throw new Error(`${name}: ${output}${complaint}`)
}

export interface Versions {
  readonly language: string
  readonly library: string
}

/** @throws when a program or a package is missing. */
export function versionsOf(example: Example): Versions {
  const shown = (command: string) => {
    const shell = Bun.spawnSync(["sh", "-c", command], { env: environment("") })
    const version = /\d+\.\d[\w.~+-]*|^-$/.exec(shell.stdout.toString().trim())?.[0]
    if (version === undefined) throw new Error(`${example.name}: ${command}: ${shell.stderr}`)
    // Without the revision of the Debian package.
    return version.replace(/(\+dfsg|\+ds|~deb|-\d).*$/, "")
  }
  return { language: shown(example.language), library: shown(example.library) }
}

/** A running example, with the lines that it has printed. */
export class Program {
  readonly lines: string[] = []
  readonly #process: Bun.Subprocess<"ignore", "pipe", "pipe">
  readonly #read: Promise<unknown>

  constructor(example: Example, directory: string, settings: Readonly<Record<string, string>>) {
    this.#process = Bun.spawn(["sh", "-c", `exec ${example.run}`], {
      env: { ...environment(directory), ...settings },
      stdio: ["ignore", "pipe", "pipe"],
    })
    this.#read = Promise.all([
      this.#follow(this.#process.stdout),
      this.#follow(this.#process.stderr),
    ])
  }

  /** What follows the word in the lines that begin with it. */
  after(word: string): string[] {
    const start = `${word} `
    return this.lines
      .filter((line) => line.startsWith(start))
      .map((line) => line.slice(start.length))
  }

  /** SIGKILL; resolves when all that it has printed is in `lines`. */
  async end(): Promise<void> {
    this.#process.kill("SIGKILL")
    await this.#read
  }

  async #follow(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder()
    let rest = ""
    for await (const chunk of stream) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n")
      rest = lines.pop() ?? ""
      this.lines.push(...lines)
    }
  }
}

function environment(directory: string): Record<string, string> {
  return {
    PATH: `${DEBIAN_PATH}:${process.env["PATH"] ?? ""}`,
    HOME: process.env["HOME"] ?? "",
    LC_ALL: "C.UTF-8",
    SOURCE,
    OUT: directory,
    MODULES: join(ROOT, "node_modules"),
  }
}
