// Captions of what the microphone hears, for a browser source of OBS or any overlay; docs/web.md has the options.

import { Microphone, ownServer, Stream } from "./recognizer.js";

const KEPT_CHARACTERS = 400;
const AGAIN_MS = 3000;

const $ = (id) => document.getElementById(id);
const css = (property) => (value) => (CSS.supports(property, value) ? value : fail(`is no CSS ${property}`));
const number = (low, high) => (text) =>
  text !== "" && Number(text) >= low && Number(text) <= high ? Number(text) : fail(`must be ${low} to ${high}`);
const among = (...values) => (text) => (values.includes(text) ? text : fail(`must be one of ${values.join(", ")}`));

/** Options of the address: [default, check]. */
const OPTIONS = {
  size: [42, number(8, 400)], // pixels
  lines: [2, number(1, 10)],
  color: ["", css("color")],
  background: ["", css("background-color")],
  font: ["", css("font-family")],
  align: ["center", among("left", "center", "right")],
  position: ["bottom", among("bottom", "top")],
  case: ["as-is", among("as-is", "upper")],
  hide: [6, number(0, 3600)], // seconds after the last word; 0: never
  partials: ["yes", among("yes", "no")],
  device: ["", (text) => text], // part of the microphone's name
  hotwords: ["", (text) => text], // with commas
  server: [ownServer(), (text) => (/^wss?:\/\//.test(text) ? text : fail("must begin with ws:// or wss://"))],
};

function fail(reason) {
  throw new Error(reason);
}

/** The options of a query string; what is wrong with it goes into `problems`. */
function readOptions(query, problems = []) {
  const found = Object.fromEntries(Object.entries(OPTIONS).map(([name, [value]]) => [name, value]));
  for (const [name, text] of new URLSearchParams(query)) {
    if (!(name in OPTIONS)) {
      problems.push(`There is no option “${name}”: use ${Object.keys(OPTIONS).join(", ")}.`);
      continue;
    }
    try {
      found[name] = OPTIONS[name][1](text);
    } catch (error) {
      problems.push(`“${name}” ${error.message}.`);
    }
  }
  return found;
}

/** The last finals and what is being heard, as rolling text. */
class Captions {
  #finals = "";
  #hide;
  #timer = 0;

  constructor(hideSeconds) {
    this.#hide = 1000 * hideSeconds;
  }

  partial({ stable, unstable }) {
    this.#show(stable, unstable);
  }

  final({ text }) {
    this.#finals = `${this.#finals} ${text}`.trim().slice(-KEPT_CHARACTERS);
    this.#show("", "");
  }

  #show(stable, unstable) {
    $("said").textContent = `${this.#finals} ${stable}`.trim();
    $("unstable").textContent = unstable && $("said").textContent ? ` ${unstable.trim()}` : unstable.trim();
    clearTimeout(this.#timer);
    if (this.#hide) this.#timer = setTimeout(() => this.#away(), this.#hide);
  }

  #away() {
    this.#finals = $("said").textContent = $("unstable").textContent = "";
  }
}

function dress({ size, lines, color, background, font, align, position, case: letters }) {
  const set = (name, value) => value && document.documentElement.style.setProperty(`--${name}`, value);
  set("size", `${size}px`);
  set("lines", String(lines));
  set("color", color);
  set("background", background);
  set("font", font);
  set("align", align);
  Object.assign(document.body.dataset, { align, position, case: letters });
}

function say(text) {
  $("message").textContent = text;
}

async function deviceNamed(part) {
  if (!part) return "";
  const devices = await navigator.mediaDevices.enumerateDevices();
  const found = devices.find((d) => d.kind === "audioinput" && d.label.toLowerCase().includes(part.toLowerCase()));
  return found?.deviceId ?? "";
}

/** From the microphone to the screen, until one of them fails. */
async function caption(options, captions) {
  const microphone = await Microphone.open({ deviceId: await deviceNamed(options.device) });
  say("");
  const stream = open(options, microphone.sampleRate, captions);
  const failed = new Promise((resolve) => stream.on("error", resolve));
  microphone.onlost = () => stream.end();
  microphone.start((samples) => stream.send(samples));
  const closed = new Promise((resolve) => stream.on("state", ({ state }) => state === "closed" && resolve(null)));
  const error = await Promise.race([failed, closed]);
  await microphone.stop();
  if (error) throw Object.assign(new Error(error.message), { code: error.code });
}

function open({ server, hotwords, partials }, sampleRate, captions) {
  const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
  const texts = hotwords.split(",").map((text) => text.trim()).filter(Boolean);
  const more = { partials: partials === "yes", giveUpSeconds: Infinity };
  return new Stream({ url: server, token, sampleRate, hotwords: texts, ...more })
    .on("partial", (partial) => captions.partial(partial))
    .on("final", (final) => captions.final(final))
    .on("state", ({ state, message }) => (state === "waiting" ? say(message) : state === "open" && say("")));
}

/** For ever: nobody stands beside it to press a button. */
async function main() {
  const problems = [];
  const options = readOptions(location.search, problems);
  dress(options);
  if (problems.length) return say(problems.join("\n"));
  const captions = new Captions(options.hide);
  for (;;) {
    try {
      await caption(options, captions);
    } catch (error) {
      say(error.code === "auth" ? "The server asks for a token: add #token=... to the address." : error.message);
      if (error.code === "gesture") await new Promise((resolve) => addEventListener("click", resolve, { once: true }));
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

main();
