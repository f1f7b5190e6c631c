// Draws config/grafana/ostler.json to docs/src/images/dashboard.png: `npm ci && npm run dashboard`, after
// `cargo build`. Prometheus scrapes a master under load and evaluates the queries of the panels; this script
// draws the results, and Chromium makes the picture. It is not a picture of Grafana, which draws the same
// panels, units and legends in its own style. It takes as many seconds as its argument says, 150 by default.

import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { freePort, launchBrowser, Server } from "./server.js";

const SECONDS = Number(process.argv[2] ?? 150);
const picture = process.argv[3] ?? new URL("../../docs/src/images/dashboard.png", import.meta.url).pathname;
const PROMETHEUS = process.env.PROMETHEUS ?? "/usr/bin/prometheus";
const root = new URL("../../", import.meta.url).pathname;
const dashboard = JSON.parse(readFileSync(`${root}config/grafana/ostler.json`, "utf8"));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Starts Prometheus, which scrapes a master each second. */
async function startPrometheus(target) {
  if (!existsSync(PROMETHEUS)) throw new Error(`there is no ${PROMETHEUS}; PROMETHEUS names another one`);
  const [dir, port] = [mkdtempSync(`${tmpdir()}/ostler-dashboard-`), await freePort()];
  const job = `  - job_name: ostler\n    static_configs:\n      - targets: ["${target}"]\n`;
  writeFileSync(`${dir}/prometheus.yml`, `global: {scrape_interval: 1s}\nscrape_configs:\n${job}`);
  const args = [`--config.file=${dir}/prometheus.yml`, `--storage.tsdb.path=${dir}/data`, `--web.listen-address=127.0.0.1:${port}`];
  const child = spawn(PROMETHEUS, args, { stdio: "ignore" });
  const exited = new Promise((resolve) => child.once("exit", resolve));
  const stop = async () => {
    child.kill();
    await exited;
    rmSync(dir, { recursive: true });
  };
  return { url: `http://127.0.0.1:${port}`, stop };
}

/** Puts the variables of the dashboard into a query, as Grafana does when all values are chosen. */
function query(expression) {
  return expression.replaceAll("$__rate_interval", "10s").replaceAll(/\$(instance|pool)\b/g, ".*");
}

/** Returns the series of a target: a name, and pairs of a time and a value. */
async function series(prometheus, target, start, end) {
  const parameters = new URLSearchParams({ query: query(target.expr), start, end, step: 1 });
  const answer = await (await fetch(`${prometheus}/api/v1/query_range?${parameters}`)).json();
  if (answer.status !== "success") throw new Error(`${target.expr}: ${answer.error}`);
  return answer.data.result.map(({ metric, values }) => ({
    name: (target.legendFormat ?? "").replaceAll(/\{\{(\w+)\}\}/g, (_, label) => metric[label] ?? ""),
    points: values.map(([time, value]) => [time, Number(value)]).filter(([, value]) => Number.isFinite(value)),
  }));
}

const short = (value) => String(Number(value.toPrecision(3)));
const scaled = (value, units) => {
  const found = units.find(([size]) => Math.abs(value) >= size) ?? units.at(-1);
  return short(value / found[0]) + found[1];
};
const BYTES = [[2 ** 30, " GiB"], [2 ** 20, " MiB"], [2 ** 10, " KiB"], [1, " B"]];
const FORMATS = {
  none: (value) => short(value),
  reqps: (value) => `${short(value)} req/s`,
  s: (value) => (value === 0 ? "0 s" : scaled(value, [[1, " s"], [1e-3, " ms"], [1e-6, " µs"]])),
  percentunit: (value) => `${short(value * 100)} %`,
  bytes: (value) => scaled(value, BYTES),
  Bps: (value) => `${scaled(value, BYTES)}/s`,
};
const COLOURS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ffa6b0"];
const escaped = (text) => text.replaceAll(/[&<>"]/g, (it) => `&#${it.codePointAt(0)};`);

/** Returns a round number that is not less; of bytes, one that is round in its unit. */
function roundUp(value, isBytes) {
  const unit = isBytes ? 1024 ** Math.floor(Math.log2(value * 4) / 10) : 1;
  const size = 10 ** Math.floor(Math.log10(value / unit));
  return [1, 2, 2.5, 5, 10].map((it) => it * size * unit).find((it) => it >= value * 0.999);
}

function chart(lines, unit, start, end) {
  const format = FORMATS[unit];
  const [width, height, left, top, bottom] = [440, 170, 62, 8, 20];
  const highest = Math.max(0, ...lines.flatMap((line) => line.points.map(([, value]) => value)));
  const step = roundUp((highest || 1) / 4, /^B/i.test(unit));
  const ticks = [0, 1, 2, 3, 4].map((index) => index * step).filter((tick) => tick < highest + step);
  const max = ticks.at(-1);
  const x = (time) => left + ((time - start) / (end - start)) * (width - left - 6);
  const y = (value) => height - bottom - (value / max) * (height - top - bottom);
  const grid = ticks.map((tick) => `<path class=grid d="M${left} ${y(tick)}H${width - 6}"/><text x=${left - 6} y=${y(tick) + 4} text-anchor=end>${format(tick)}</text>`);
  const times = [0, 30, 60, 90, 120].filter((age) => age < end - start);
  const axis = times.map((age) => `<text x=${x(end - age)} y=${height - 4} text-anchor=${age ? "middle" : "end"}>${age ? `-${age} s` : "now"}</text>`);
  const paths = lines.map(({ points }, index) => {
    // A second without a value is a gap.
    const moves = points.map(([time, value], at) => `${at && time - points[at - 1][0] < 1.5 ? "L" : "M"}${x(time).toFixed(1)} ${y(value).toFixed(1)}`);
    return `<path class=line stroke="${COLOURS[index % COLOURS.length]}" d="${moves.join("")}"/>`;
  });
  const legend = lines.map(({ name, points }, index) => `<li style="--c:${COLOURS[index % COLOURS.length]}">${escaped(name)} <b>${points.length ? format(points.at(-1)[1]) : ""}</b>`);
  return `<svg viewBox="0 0 ${width} ${height}">${grid.join("")}${axis.join("")}${paths.join("")}</svg><ul>${legend.join("")}</ul>`;
}

async function panel(prometheus, it, start, end) {
  const found = await Promise.all((it.targets ?? []).map((target) => series(prometheus, target, start, end)));
  const lines = found.flat();
  const unit = it.fieldConfig?.defaults?.unit ?? "none";
  const format = FORMATS[unit];
  if (!format) throw new Error(`panel ${it.title}: the unit ${unit} is not known here`);
  const value = lines[0]?.points.at(-1)?.[1];
  const mapped = it.fieldConfig?.defaults?.mappings?.[0]?.options?.[value]?.text;
  const body = it.type === "stat" ? `<p>${mapped ?? (value === undefined ? "no data" : format(value))}</p>` : chart(lines, unit, start, end);
  const { x, y, w, h } = it.gridPos;
  const place = `grid-column:${x + 1}/span ${w};grid-row:${y + 1}/span ${h}`;
  return `<section class=${it.type} style="${place}"><h2>${escaped(it.title)}</h2>${body}</section>`;
}

const STYLE = `*{margin:0;box-sizing:border-box}body{background:#111217;color:#ccccdc;font:13px sans-serif;padding:8px}
main{display:grid;grid-template-columns:repeat(24,1fr);grid-auto-rows:30px;gap:0 8px}
section{background:#181b1f;border:1px solid #2a2d33;border-radius:2px;padding:6px;margin-bottom:8px;overflow:hidden}
h2{font-size:13px;font-weight:500}p{font-size:30px;text-align:center;padding-top:16px;color:#73bf69}
ul{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:0 12px;font-size:11px}li::before{content:"";display:inline-block;width:12px;height:3px;background:var(--c);margin:0 4px 3px 0}
svg{width:100%;display:block}text{fill:#9a9ca8;font-size:11px}.grid{stroke:#2a2d33}.line{fill:none;stroke-width:1.4}`;

const server = await Server.start("-k", "threads", "-w", "2-6", "--threads", "2", "--timeout", "12s", "--scale-down-after", "5s", "--name", "shop");
const prometheus = await startPrometheus(`127.0.0.1:${server.metrics}`);
const began = Date.now();
const client = async (number) => {
  while (Date.now() < began + SECONDS * 1000) {
    // A load that rises and falls.
    const load = 1 - Math.cos((Date.now() - began) / 12_000 + number / 16);
    await server.get(`/sleep?ms=${Math.round(4 + 60 * load * Math.random() ** 3)}`);
    await pause(20 + 120 * (2 - load));
  }
};
const clients = Array.from({ length: 12 }, (_, number) => client(number));
const worker = () => server.records.filter((it) => it.msg === "worker started").at(-1).pid;
await pause(SECONDS * 300);
process.kill(worker(), "SIGKILL");
await pause(SECONDS * 200);
server.signal("SIGHUP");
await pause(SECONDS * 200);
server.get("/hang");
await Promise.all(clients);
const end = Date.now() / 1000;
const panels = await Promise.all(dashboard.panels.map((it) => panel(prometheus.url, it, end - Math.min(SECONDS - 15, 130), end)));
const browser = await launchBrowser();
const page = await browser.newPage({ viewport: { width: 1400, height: 1090 } });
await page.setContent(`<!doctype html><meta charset=utf-8><style>${STYLE}</style><main>${panels.join("")}</main>`);
await page.screenshot({ path: picture, fullPage: true });
await browser.close();
await prometheus.stop();
await server.stop();
