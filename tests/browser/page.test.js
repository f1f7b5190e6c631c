// The master's page in a browser. Run by tests/page.rs, or by `npm test` with OSTLER_PROGRAM set.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import axe from "axe-core";
import { DEADLINE, Server, launchBrowser } from "./server.js";

let browser;
before(async () => {
  browser = await launchBrowser();
});
after(() => browser?.close());

/** Opens the page of a new server and hands both to a test. */
async function withPage(flags, options, body) {
  const server = await Server.start(...flags);
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  try {
    context.setDefaultTimeout(DEADLINE);
    const page = await context.newPage();
    const faults = [];
    page.on("pageerror", (error) => faults.push(String(error)));
    page.on("request", (request) => {
      if (!request.url().startsWith(server.url) && !request.url().startsWith("data:")) faults.push(`request to ${request.url()}`);
    });
    await page.addInitScript(() => {
      window.violations = [];
      document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
    });
    await page.goto(server.url);
    await body(page, server, context);
    assert.deepEqual(faults, []);
  } finally {
    await context.close();
    await server.stop();
  }
}

const seen = (page, selector, text) => page.locator(selector, { hasText: text }).first().waitFor({ state: "visible" });

test("live page shows workers, work and queues", async () => {
  await withPage(["-k", "mio", "-w", "3"], {}, async (page, server) => {
    await seen(page, ".tile", "Slot 2");
    assert.equal(await page.locator(".tile.ready").count(), 3);
    await seen(page, "li", `127.0.0.1:${server.bind}: queue length 0.`);
    const busy = server.get("/sleep?ms=3000");
    await seen(page, ".tile", "GET /sleep for");
    await seen(page, "section p", "1 in progress");
    assert.equal(await busy, 200);
    await seen(page, "section p", "1 units of work done, 0 in progress");
    await seen(page, "figcaption", / at most\./);
    await seen(page, ".events li", "all workers ready");
    server.signal("SIGUSR1");
    await seen(page, ".events li:first-child", "logs reopened");
    await page.getByText("The workers as a table").click();
    await seen(page, "td.state.ready", "ready");
    assert.equal(await page.locator("tbody tr").count(), 3);
    assert.deepEqual(await page.evaluate(() => window.violations), []);
  });
});

test("hung worker is shown within a second", async () => {
  await withPage(["-k", "mio", "-w", "2", "--timeout", "3s"], {}, async (page, server) => {
    await seen(page, ".tile", "Slot 1");
    // Records when a text is on the page for the first time.
    await page.evaluate(() => {
      window.times = {};
      const look = () => {
        for (const text of ["GET /hang for", "past half of its timeout", ": hung, SIG"]) {
          if (!(text in window.times) && document.body.textContent.includes(text)) window.times[text] = Date.now();
        }
      };
      new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
    });
    const late = [];
    // A machine that is busy may miss the second once or twice.
    for (let attempt = 0; attempt < 3; attempt += 1) {
      server.records = [];
      await page.evaluate(() => (window.times = {}));
      const begin = Date.now();
      const hung = server.get("/hang");
      const exit = await server.record("worker exited");
      await page.waitForFunction(() => Object.keys(window.times).length === 3);
      const times = await page.evaluate(() => window.times);
      const delays = [times["GET /hang for"] - begin, times["past half of its timeout"] - begin - 1500,
        times[": hung, SIG"] - Date.parse(exit.ts)];
      await hung;
      if (delays.every((delay) => delay < 1000)) return;
      late.push(delays);
      await seen(page, ".tile.ready", "idle");
    }
    assert.fail(`milliseconds until shown: ${JSON.stringify(late)}`);
  });
});

test("reload is survived and shown", async () => {
  await withPage(["-k", "mio", "-w", "2"], {}, async (page, server) => {
    await seen(page, "#master", "generation 1.");
    await page.evaluate(() => {
      window.alarms = 0;
      const alarm = document.getElementById("alarm");
      new MutationObserver(() => (window.alarms += alarm.hidden ? 0 : 1)).observe(alarm, { attributes: true });
    });
    server.signal("SIGHUP");
    await server.record("reload complete");
    await seen(page, "#master", "generation 2.");
    await seen(page, ".tile.ready", "Slot 1");
    assert.equal(await page.evaluate(() => window.alarms), 0);
  });
});

test("absent master is reported until another answers", async () => {
  await withPage(["-k", "mio", "-w", "2"], {}, async (page, server) => {
    await seen(page, ".tile.ready", "Slot 1");
    server.signal("SIGSTOP");
    await seen(page, "#alarm", /The master does not answer since \d\d:\d\d:\d\d \(/);
    server.signal("SIGCONT");
    await page.locator("#alarm").waitFor({ state: "hidden" });
    await seen(page, "h1", "running");
    server.signal("SIGKILL");
    await server.exited;
    await seen(page, "#alarm", /The master does not answer since/);
    assert.match(await page.title(), /away/);
    await seen(page, ".tile.ready", "Slot 1"); // what was, stays visible
    await server.run();
    await page.locator("#alarm").waitFor({ state: "hidden" });
    await seen(page, "#master", `Master ${server.process.pid} `);
    await seen(page, ".events li", "Records of the former one may be missing here.");
    assert.match(await page.locator("#announcements").textContent(), /Another master answers/);
  });
});

test("page without scripts is a table that refreshes", async () => {
  await withPage(["-k", "mio", "-w", "2"], { javaScriptEnabled: false }, async (page, server) => {
    assert.equal(await page.locator("tbody tr").count(), 2);
    assert.equal(await page.locator("td.state.ready").count(), 2);
    await seen(page, ".events li", "all workers ready");
    const busy = server.get("/sleep?ms=10000");
    await seen(page, "td", "GET /sleep for");
    assert.equal(await busy, 200);
  });
});

test("page with a thousand workers stays live", async () => {
  await withPage(["-k", "mio"], {}, async (page, server) => {
    const status = await (await fetch(`${server.url}v1/status`)).json();
    const [pool] = status.pools;
    const [worker] = pool.workers;
    await page.route("**/v1/status", (route) => {
      status.uptime_ms += 500;
      pool.workers = Array.from({ length: 1000 }, (_, slot) => ({
        ...worker, slot, pid: 10_000 + slot, units: status.uptime_ms * 7 + slot, uptime_ms: status.uptime_ms,
        memory_bytes: 3e6 + slot, heartbeat_age_ms: slot,
      }));
      return route.fulfill({ json: status });
    });
    await seen(page, ".tile", "10000");
    await page.waitForFunction(() => document.querySelectorAll(".tile").length === 1000);
    // The last tile shows what is new as well, and so does the table.
    const last = page.locator(".tile").last();
    await last.scrollIntoViewIfNeeded();
    const before = await last.textContent();
    await page.waitForFunction((text) => [...document.querySelectorAll(".tile")].at(-1).textContent !== text, before);
    await page.getByText("The workers as a table").click();
    await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 1000);
    // Most of the time is left for a person: the texts of 1,000 tiles are made in a part of half a second.
    const session = await page.context().newCDPSession(page);
    await session.send("Performance.enable");
    const busy = async () => (await session.send("Performance.getMetrics")).metrics.find((it) => it.name === "TaskDuration").value;
    const begin = await busy();
    await page.waitForTimeout(5000);
    const share = ((await busy()) - begin) / 5;
    console.log(`busy share with 1,000 tiles and the table: ${share.toFixed(2)}`);
    assert.ok(share < 0.9, `the page is busy for ${share} of the time`);
  });
});

test("texts from clients are never markup", async () => {
  const hostile = "<img src=x onerror=window.hit=1><script>window.hit=1</script>&lt;\"'\u202e";
  await withPage(["-k", "mio", "--name", "<script>window.hit=1</script>"], {}, async (page, server) => {
    const status = await (await fetch(`${server.url}v1/status`)).json();
    const [pool] = status.pools;
    Object.assign(pool, { name: hostile, class: hostile, app: hostile });
    pool.workers[0].in_flight = [{ thread: 0, label: hostile, age_ms: 10 }];
    pool.listeners[0].address = hostile;
    pool.last_exits = [{ pid: 1, slot: 0, reason: hostile, exit: hostile, note: hostile, uptime_ms: 1, age_ms: 1 }];
    status.unready_reason = hostile;
    status.ready = false;
    status.last_event += 1;
    const event = { seq: status.last_event, time: hostile, level: hostile, message: hostile, [hostile]: hostile };
    const body = `id: ${event.seq}\nevent: record\ndata: ${JSON.stringify(event)}\n\n`;
    await page.route("**/v1/events*", (route) => route.fulfill({ body, contentType: "text/event-stream" }));
    await page.route("**/v1/status", (route) => route.fulfill({ json: status }));
    await seen(page, ".tile", "onerror=window.hit=1>");
    await seen(page, "h2", "<img src=x");
    await seen(page, ".events b", "<img src=x");
    assert.equal(await page.locator("img").count(), 0);
    assert.equal(await page.locator("script").count(), 1);
    assert.ok(!(await page.locator("body").textContent()).includes("\u202e"));
    // What an error of the page let in would not run.
    const refused = await page.evaluate(() => {
      const made = (tag, properties) => Object.assign(document.createElement(tag), properties);
      const attempts = [
        () => document.body.append(made("img", { src: "/x.png" })),
        () => document.body.append(made("style", { textContent: "body { display: none }" })),
        () => document.body.append(made("script", { textContent: "window.hit = 1" })),
        () => document.body.setAttribute("onclick", "window.hit = 1"),
        () => (document.getElementById("unready").innerHTML = "<b>x</b>"),
      ];
      const throws = (attempt) => {
        try {
          attempt();
          return false;
        } catch {
          return true;
        }
      };
      return attempts.map(throws);
    });
    assert.deepEqual(refused, [false, false, true, true, true]);
    await page.waitForFunction(() => ["img-src", "style-src"].every((kind) => window.violations.join().includes(kind)));
    await page.locator("body").click();
    assert.equal(await page.evaluate(() => window.hit), undefined);
  });
});

test("page is readable on a phone, in light and dark, by axe", async () => {
  const flags = ["-k", "threads", "-w", "3", "--timeout", "4s", "--name", "a-name-of-a-service-without-spaces-".repeat(4)];
  await withPage(flags, { viewport: { width: 360, height: 740 } }, async (page, server) => {
    const busy = server.get("/sleep?ms=3500");
    await seen(page, ".tile.overdue", "GET /sleep");
    await page.getByText("The workers as a table").click();
    await seen(page, "tbody td", "ready");
    const grounds = new Set();
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      grounds.add(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
      const width = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(width <= 360, `${width} px`);
      await assertAccessible(page);
    }
    assert.equal(grounds.size, 2);
    await busy;
  });
  await withPage(["-k", "mio"], { viewport: { width: 360, height: 740 }, javaScriptEnabled: false }, async (page) => {
    assert.ok((await page.locator("main").boundingBox()).width <= 360);
  });
});

async function assertAccessible(page) {
  await page.evaluate(`${axe.source}; undefined`);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const told = violations.map((it) => `${it.impact} ${it.id}: ${it.nodes.map((node) => `${node.html} ${node.failureSummary}`).join("; ")}`);
  assert.deepEqual(told, []);
}
