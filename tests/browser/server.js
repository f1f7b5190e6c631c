// Starts masters for the tests, and finds the browser.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import { chromium } from "playwright-core";

const PROGRAM = process.env.OSTLER_PROGRAM ?? new URL("../../target/debug/ostler", import.meta.url).pathname;
const BROWSERS = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
/** How long a test waits for what must happen, in milliseconds. */
export const DEADLINE = 60_000;

/** Starts the browser. */
export function launchBrowser() {
  const executablePath = process.env.CHROMIUM ?? BROWSERS.find((path) => existsSync(path));
  if (!executablePath) throw new Error("there is no Chromium");
  // As root, Chromium has no sandbox.
  return chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
}

export async function freePort() {
  const listener = net.createServer();
  await new Promise((resolve) => listener.listen(0, "127.0.0.1", resolve));
  const { port } = listener.address();
  await new Promise((resolve) => listener.close(resolve));
  return port;
}

/** One master, with its log. */
export class Server {
  static async start(...flags) {
    const [bind, metrics] = [await freePort(), await freePort()];
    const server = new Server(bind, metrics, flags);
    await server.run();
    return server;
  }

  constructor(bind, metrics, flags) {
    Object.assign(this, { bind, metrics, flags, records: [], waiting: [] });
  }

  /** Starts a master at these addresses, after the earlier one has exited. */
  async run() {
    const args = ["-b", `127.0.0.1:${this.bind}`, "--metrics-bind", `127.0.0.1:${this.metrics}`, "--log-format", "json"];
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("OSTLER_")));
    this.records = [];
    this.process = spawn(PROGRAM, [...args, ...this.flags], { env, stdio: ["ignore", "ignore", "pipe"] });
    this.exited = new Promise((resolve) => this.process.once("exit", resolve));
    let rest = "";
    this.process.stderr.setEncoding("utf8").on("data", (text) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop();
      for (const line of lines.filter((it) => it.startsWith("{"))) this.records.push(JSON.parse(line));
      this.waiting = this.waiting.filter((check) => !check());
    });
    await this.record("all workers ready");
  }

  get url() {
    return `http://127.0.0.1:${this.metrics}/`;
  }

  /** Waits for a record with this message. */
  record(message) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`no record "${message}": ${JSON.stringify(this.records.slice(-5))}`)), DEADLINE);
      const check = () => {
        const found = this.records.find((it) => it.msg === message);
        if (found) {
          clearTimeout(timer);
          resolve(found);
        }
        return Boolean(found);
      };
      if (!check()) this.waiting.push(check);
    });
  }

  /** Sends a request to a worker. The answer is undefined if there is none. */
  get(path) {
    return new Promise((resolve) => {
      const request = http.get({ port: this.bind, path, host: "127.0.0.1", agent: false }, (answer) => {
        answer.resume();
        answer.on("close", () => resolve(answer.statusCode));
      });
      request.on("error", () => resolve(undefined));
    });
  }

  signal(name) {
    this.process.kill(name);
  }

  async stop() {
    this.signal("SIGCONT");
    this.signal("SIGINT");
    await this.exited;
  }
}
