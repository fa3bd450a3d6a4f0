// The page: press a button, speak, read.

import { CaptureError, Microphone, readFile, Stream } from "./recognizer.js";
import { Meter } from "./meter.js";
import { Options, themeSwitch, Token } from "./options.js";
import { clock, Transcript } from "./transcript.js";

const NOTICE_MS = 6000;
const SILENT_MS = 4000;
const DELAYS = 5; // the median of so many is shown

const $ = (id) => document.getElementById(id);
const transcript = new Transcript(document);
const meter = new Meter($("meter"), 176);
const token = new Token();
const options = new Options((changes) => job?.stream.config(changes));
let job = null; // what runs: {stream, microphone, delays, file}

// A recording or a file.

async function listen() {
  try {
    const microphone = await Microphone.open({ deviceId: options.device });
    const stream = open(microphone.sampleRate, { microphone });
    microphone.onlost = () => {
      alert("The microphone is gone. Connect it, then start again.");
      stop();
    };
    microphone.start((samples, level) => {
      stream.send(samples);
      hear(level);
    });
    options.listDevices();
    keepAwake();
  } catch (error) {
    failed(error);
  }
}

async function read(file) {
  if (job) return notice("Stop the recording first, then drop the file again.");
  $("record").disabled = true;
  notice(`Reading ${file.name} …`);
  try {
    const { samples, sampleRate } = await readFile(file);
    notice();
    const stream = open(sampleRate, { file });
    const seconds = samples.length / sampleRate;
    $("progress").hidden = false;
    await stream.sendAll(samples, (sent) => ($("progress").value = sent / seconds));
    if (!job?.finishing) await stop();
  } catch (error) {
    failed(error);
  } finally {
    $("record").disabled = false;
  }
}

/** A stream to the server, whose results go to the page. */
function open(sampleRate, source) {
  const stream = new Stream({ token: token.value, sampleRate, ...options.protocol });
  job = { stream, delays: [], began: performance.now(), ...source };
  transcript.begin();
  meter.reset();
  alert();
  stream
    .on("ready", ({ model }) => options.describe(model))
    .on("partial", (partial) => follow(() => transcript.partial(partial), partial.delay_ms))
    .on("final", (final) => follow(() => transcript.final(final)))
    .on("lost", ({ seconds }) => follow(() => transcript.loss(seconds)))
    .on("warning", ({ message }) => notice(message))
    .on("state", ({ state, message }) => (state === "waiting" ? notice(message, Infinity) : state === "open" && notice()))
    .on("error", ({ code, message }) => refused(code, message));
  $("record").disabled = false;
  show();
  return stream;
}

/** No more sound; the last words still come. Pressed again, it does not wait for them. */
async function stop() {
  if (!job) return;
  const ending = job;
  if (ending.finishing) return ending.stream.close();
  ending.finishing = true;
  show();
  await ending.microphone?.stop();
  await ending.stream.end();
  if (job === ending) close();
}

function close() {
  transcript.finish(job.stream.duration);
  job = null;
  if ($("notice").dataset.lasting) notice();
  awake?.release().catch(() => {});
  meter.reset();
  $("progress").hidden = true;
  $("progress").value = 0;
  show();
}

/** The server will not have this stream. */
async function refused(code, message) {
  const { microphone, file } = job;
  await microphone?.stop();
  if (job) close();
  if (code !== "auth") return alert(message);
  const again = file ? () => read(file) : listen;
  if (await token.ask()) again();
  else alert(message);
}

function failed(error) {
  if (!(error instanceof CaptureError)) console.error(error);
  notice();
  alert(error.message);
  if (job) close();
}

// What is seen.

function show() {
  const busy = Boolean(job);
  const label = busy ? (job.finishing ? "Stop waiting" : "Stop listening") : "Start listening";
  document.body.classList.toggle("busy", busy);
  document.body.classList.toggle("finishing", Boolean(job?.finishing));
  document.title = busy ? "● Live transcript" : "Live transcript";
  $("record").setAttribute("aria-label", job?.file ? "Stop reading the file" : label);
  $("record").title = $("record").getAttribute("aria-label");
  $("choose").disabled = busy;
  $("clear").disabled = busy;
  $("empty").hidden = busy || !transcript.empty;
  $("text-tools").hidden = !transcript.segments.length;
  tick();
}

/** Change the text; who reads at the end goes on doing so. */
function follow(change, delay = null) {
  const page = document.scrollingElement;
  const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 120;
  change();
  $("empty").hidden = true;
  $("text-tools").hidden = !transcript.segments.length;
  if (atEnd) page.scrollTop = page.scrollHeight;
  if (delay !== null && job?.microphone) {
    job.delays = [...job.delays, delay].slice(-DELAYS);
    const middle = [...job.delays].sort((a, b) => a - b)[job.delays.length >> 1];
    $("delay").textContent = `${Math.round(middle / 10) * 10} ms`;
  }
}

function tick() {
  const seconds = job ? job.stream.duration : transcript.duration;
  $("time").textContent = clock(seconds);
  if (!job?.microphone && !job?.file) return;
  if (job.file && job.stream.duration) {
    const speed = job.stream.duration / ((performance.now() - job.began) / 1000);
    $("delay").textContent = `${speed.toFixed(0)} × live`;
  }
}

function hear(level) {
  meter.push(level);
  if (meter.silentMs === SILENT_MS) notice("No sound is coming from the microphone. Is it muted?");
}

let hiding = 0;

/** One line that goes away by itself; nothing takes it away at once. */
function notice(text = "", milliseconds = NOTICE_MS, action = null) {
  clearTimeout(hiding);
  $("notice").textContent = sentence(text);
  $("notice").dataset.lasting = milliseconds === Infinity ? "yes" : "";
  if (action) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: action.name });
    button.addEventListener("click", () => (notice(), action.run()));
    $("notice").append(button);
  }
  if (text && milliseconds !== Infinity) hiding = setTimeout(notice, milliseconds);
}

function alert(text = "") {
  $("alert").textContent = sentence(text);
}

/** Servers' messages begin with small letters. */
function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// What is done with the text.

async function copy() {
  try {
    await navigator.clipboard.writeText(transcript.as("txt"));
    notice("Copied.", 2000);
  } catch {
    getSelection().selectAllChildren($("transcript"));
    notice("The text is selected: copy it with Ctrl+C or ⌘C.");
  }
}

function download(format) {
  const now = new Date();
  const stamp = new Date(now - now.getTimezoneOffset() * 60000).toISOString().slice(0, 16).replace(/[T:]/g, "-");
  const types = { txt: "text/plain", srt: "application/x-subrip", vtt: "text/vtt" };
  const href = URL.createObjectURL(new Blob([transcript.as(format)], { type: types[format] }));
  Object.assign(document.createElement("a"), { href, download: `transcript-${stamp}.${format}` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10000);
}

function clear() {
  const undo = transcript.clear();
  alert();
  show();
  notice("Cleared.", NOTICE_MS, { name: "Undo", run: () => (undo(), show()) });
}

// Events.

let awake = null;

/** Phones must not fall asleep over a recording. */
async function keepAwake() {
  awake = (await navigator.wakeLock?.request("screen").catch(() => null)) ?? null;
}

function dropping() {
  let depth = 0;
  const holdsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const over = (change) => (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    depth = Math.max(0, depth + change);
    $("drop").hidden = depth === 0;
  };
  addEventListener("dragenter", over(1));
  addEventListener("dragleave", over(-1));
  addEventListener("dragover", over(0));
  addEventListener("drop", (event) => {
    over(-Infinity)(event);
    const file = event.dataTransfer?.files[0];
    if (file) read(file);
  });
}

async function greet() {
  const headers = token.value ? { Authorization: `Bearer ${token.value}` } : {};
  const answer = await fetch(new URL("../v1/models", import.meta.url), { headers }).catch(() => null);
  if (answer?.ok) options.describe((await answer.json()).models[0]);
}

let starting = false;

$("record").addEventListener("click", async () => {
  if (starting) return;
  starting = true;
  if (job) stop();
  else await listen();
  starting = false;
});
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) read(file);
});
$("copy").addEventListener("click", copy);
$("clear").addEventListener("click", clear);
for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", () => download(button.dataset.download));
}
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && job && !document.querySelector("dialog[open]")) stop();
});
addEventListener("beforeunload", (event) => job && event.preventDefault());
setInterval(tick, 250);
dropping();
themeSwitch(() => requestAnimationFrame(() => meter.draw()));
show();
greet();
