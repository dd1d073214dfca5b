// The chat page in headless Chromium: page.mjs ADDRESS FOLDER. Asks, sees an answer, stops another, and leaves screenshots.
import { createRequire } from "node:module";
import { strict as assert } from "node:assert";

const { chromium } = createRequire(process.env.TERNLM_CLIENTS + "/")("playwright-core");
const [address, folder] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });

async function open(options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  const wrong = [];
  page.on("pageerror", error => wrong.push(String(error)));
  page.on("console", message => message.type() === "error" && wrong.push(message.text()));
  page.on("request", request => assert(request.url().startsWith(address) || request.url().startsWith("data:"), request.url()));
  await page.goto(address);
  return { page, wrong, context };
}

async function ask(page, text) {
  await page.fill("#text", text);
  await page.keyboard.press("Enter");
}

for (const [name, options] of [
  ["light", { viewport: { width: 1100, height: 760 }, colorScheme: "light" }],
  ["dark", { viewport: { width: 1100, height: 760 }, colorScheme: "dark" }],
  ["phone", { viewport: { width: 375, height: 720 }, colorScheme: "light", hasTouch: true, isMobile: true, deviceScaleFactor: 2 }],
]) {
  const { page, wrong, context } = await open(options);
  await page.waitForFunction(() => document.title !== "ternlm");
  await page.click("#show");
  await page.fill("#max_tokens", "60");
  await page.fill("#seed", "1");
  await page.locator("#seed").blur();
  if (name === "phone") await page.screenshot({ path: `${folder}/page-settings.png` });
  await page.click("#show");
  await ask(page, "What is a trit?");
  await page.waitForSelector(".figures");
  assert.match(await page.textContent(".figures"), /^\d+ tokens, \d+\.\d tokens\/s$/);
  assert((await page.textContent(".turn.assistant")).length > 5);
  // A second turn is stopped: what came stays, and the place is free again.
  await page.click("#show");
  await page.fill("#max_tokens", "7000");
  await page.locator("#max_tokens").blur();
  await page.click("#show");
  await ask(page, "Go on, please.");
  await page.waitForFunction(() => document.querySelectorAll(".turn.assistant")[1]?.textContent.length > 10);
  await page.click("#stop");
  await page.waitForFunction(() => document.querySelectorAll(".figures").length === 2);
  assert.match(await page.locator(".figures").nth(1).textContent(), /stopped$/);
  const running = /^ternlm_running (\d+)$/m;
  for (const end = Date.now() + 60_000; ; ) {
    const text = await (await fetch(address + "/metrics")).text();
    if (running.exec(text)[1] === "0") break;
    assert(Date.now() < end, "what was stopped still runs after 60 s");
  }
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);
  assert(!wide, "the page is wider than its window");
  await page.screenshot({ path: `${folder}/page-${name}.png` });
  await page.click("#fresh");
  assert.equal(await page.locator(".turn").count(), 0);
  assert.deepEqual(wrong, []);
  await context.close();
  console.log(`page ${name}: asked, answered, stopped`);
}
await browser.close();
