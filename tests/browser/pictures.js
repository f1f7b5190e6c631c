// Makes the pictures of the master's page in docs/src/images/: `npm ci && npm run pictures`, after
// `cargo build`. It takes as many seconds as its argument says, 120 by default.

import { launchBrowser, Server } from "./server.js";

const SECONDS = Number(process.argv[2] ?? 120);
const images = new URL("../../docs/src/images/", import.meta.url).pathname;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const browser = await launchBrowser();
const server = await Server.start("-k", "threads", "-w", "4", "--threads", "4", "--timeout", "20s", "--name", "shop");
const open = async (options) => {
  const page = await (await browser.newContext(options)).newPage();
  await page.goto(server.url);
  return page;
};
const wide = await open({ viewport: { width: 1120, height: 760 } });
const phone = await open({ viewport: { width: 360, height: 760 }, colorScheme: "dark" });

const end = Date.now() + SECONDS * 1000;
const client = async (number) => {
  while (Date.now() < end) {
    // A load that rises and falls.
    const load = 1 + Math.sin((end - Date.now()) / 15_000 + number / 8);
    await server.get(`/sleep?ms=${Math.round(2 + 20 * load * Math.random() ** 4)}`);
    await pause(30 + 60 * (2 - load));
  }
};
const clients = Array.from({ length: 12 }, (_, number) => client(number));
await pause(SECONDS * 1000 - 32_000);
server.get("/hang"); // is aborted after 20 s
await pause(18_000);
server.get("/hang"); // is past half of its timeout in the picture
await pause(12_000);
await wide.screenshot({ path: `${images}page.png` });
await phone.screenshot({ path: `${images}page-phone.png` });
await Promise.all(clients);
await browser.close();
await server.stop();
