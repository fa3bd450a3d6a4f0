// Streaming speech recognition for any web page. No dependencies, no build step; docs/web.md.
//
//   import { Microphone, Stream } from "https://HOST/static/recognizer.js";
//   const microphone = await Microphone.open();
//   const stream = new Stream({ sampleRate: microphone.sampleRate });
//   stream.on("partial", (p) => show(p.stable, p.unstable)).on("final", (f) => add(f.text));
//   microphone.start((samples) => stream.send(samples));
//   ...
//   await microphone.stop();
//   await stream.end();

import { Alignment, Backlog } from "./backlog.js";

export { CaptureError, Microphone, readFile } from "./capture.js";
export { cues, toSrt, toTxt, toVtt } from "./subtitles.js";

const MARK_SECONDS = 2; // of audio: then the server is asked how far it is
const SETTLED_SECONDS = 2; // what is heard now may still become words of this age
const ONSET_SECONDS = 0.3; // a word may begin so much before its time
const MOST_UNANSWERED_SECONDS = 20; // of audio; room() waits beyond it
const MOST_SOCKET_BYTES = 1 << 18; // handed to the socket and not sent yet
const CONNECT_MS = 10000;
const KEEPALIVE_MS = 15000;
const PUMP_MS = 20;
const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 10000;
const FATAL = new Set(["usage", "config", "audio", "encoding", "message", "json", "too_large", "auth", "protocol"]);
const STATEMENTS = new Set(["lagging", "limit", "missed", "message"]); // warnings that answer no config

/** The address of the server that this file came from. */
export function ownServer() {
  const url = new URL("../v1/stream", import.meta.url);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

/**
 * One stream of audio to a server and its results, over as many connections as it takes.
 *
 * Options: `url`, `token`, `sampleRate`, `bufferSeconds` (of audio that can be sent again), `stallSeconds` (without an
 * answer: the connection is dead), `giveUpSeconds` (without a connection), and those of the protocol's start:
 * `hotwords`, `endpointing`, `lm`, `words`, `partials`, `alternatives`.
 *
 * Events (`event.detail`, or the argument of a listener given to `on`):
 *   ready    the server's message: session, config as applied, limits, model
 *   partial  {segment, start, end, stable, unstable, lag_ms, delay_ms}; delay_ms: from the capture of its last word's
 *            end until now, where that word is new
 *   final    {segment, start, end, text, confidence, words, reason}
 *   warning  {code, message}
 *   lost     {seconds, from, to}: audio that no server has heard, in seconds of the stream
 *   state    {state, message}: connecting, open, waiting (for a connection), closed
 *   error    {code, message}: the stream is over
 *   done     {audio_seconds, segments, processing_seconds}
 * Times are seconds from the start of the stream, also when the session is new after a loss.
 */
export class Stream extends EventTarget {
  #options;
  #start;
  #socket = null;
  #backlog;
  #alignment = new Alignment();
  #next = 0; // the sample to be sent next
  #served = 0; // samples that this session of the server has got
  #session = null; // {session, secret}
  #sequence = 0;
  #segments = { base: 0, last: -1 };
  #pending = []; // questions that the server has not answered: {position, changes, time}
  #flushes = new Map();
  #acked = 0; // the server has decoded everything before
  #finalEnd = 0;
  #openFrom = null; // start of the words that no final has yet
  #lastWordEnd = 0;
  #ending = false;
  #eofSent = false;
  #attempt = 0;
  #wasOpen = false;
  #downSince = performance.now();
  #timers = {};
  #done;
  #resolve;

  constructor({
    url = ownServer(),
    token = "",
    sampleRate = 16000,
    bufferSeconds = 60,
    stallSeconds = 20,
    giveUpSeconds = 600,
    ...start
  } = {}) {
    super();
    this.#options = { url, token, sampleRate, stallSeconds, giveUpSeconds };
    this.#start = { words: true, ...start };
    this.#backlog = new Backlog(Math.round(bufferSeconds * sampleRate));
    this.#done = new Promise((resolve) => (this.#resolve = resolve));
    this.state = "";
    queueMicrotask(() => this.#connect()); // so that listeners are there
    this.#timers.pump = setInterval(() => this.#look(), PUMP_MS);
    this.online = () => this.state === "waiting" && this.#connect();
    globalThis.addEventListener?.("online", this.online);
  }

  /** Listen to an event; the listener gets its detail. Returns the stream. */
  on(name, listener) {
    this.addEventListener(name, (event) => listener(event.detail));
    return this;
  }

  /** Seconds of audio given so far. */
  get duration() {
    return this.#backlog.end / this.#options.sampleRate;
  }

  /** Seconds of audio that have not been sent. */
  get waiting() {
    return (this.#backlog.end - this.#next) / this.#options.sampleRate;
  }

  /** Audio: Int16Array, mono. Never blocks; without a connection the latest `bufferSeconds` are kept. */
  send(samples) {
    if (this.#ending || this.state === "closed") return;
    this.#backlog.push(samples, performance.now());
    this.#pump();
  }

  /** Audio of any length, as fast as the server takes it. `progress` is called with seconds sent. */
  async sendAll(samples, progress = () => {}) {
    const size = this.#options.sampleRate >> 1;
    for (let at = 0; at < samples.length && !this.#ending && this.state !== "closed"; at += size) {
      await this.room();
      this.send(samples.subarray(at, at + size));
      progress(Math.min(samples.length, at + size) / this.#options.sampleRate);
    }
  }

  /** Waits until there is room for more audio: what is not sent, or sent and not answered, is bounded. */
  async room() {
    const { sampleRate } = this.#options;
    const full = () => this.waiting > 1 || this.#next - this.#acked > MOST_UNANSWERED_SECONDS * sampleRate;
    while (full() && this.state !== "closed") await sleep(PUMP_MS);
  }

  /** Change hotwords, endpointing, lm or alternatives from the next segment on. */
  config(changes) {
    Object.assign(this.#start, changes);
    if (this.state === "open") this.#ask(changes);
    else if (this.#session) this.#pending.push({ position: this.#next, changes, time: performance.now() });
  }

  /** The words of everything sent so far, at once: a promise of finals. The stream goes on as if nothing had happened. */
  flush() {
    if (this.state === "closed") return Promise.resolve([]);
    const id = `flush ${this.#flushes.size} ${performance.now()}`;
    return new Promise((resolve) => {
      this.#flushes.set(id, { resolve, finals: [], position: this.#backlog.end, sent: false });
      this.#pump();
    });
  }

  /** No more audio. A promise of the `done` message, when the last words have come; null if they cannot come. */
  end() {
    this.#ending = true;
    this.#pump();
    return this.#done;
  }

  /** Leave at once. */
  close() {
    this.#finish(null);
  }

  // Connections.

  #connect() {
    if (this.state === "closed") return;
    clearTimeout(this.#timers.retry);
    this.#drop();
    this.#say(this.#session || this.state === "waiting" ? "waiting" : "connecting");
    const { url, token } = this.#options;
    let socket;
    try {
      socket = new WebSocket(url, token ? ["token", token] : []);
    } catch (error) {
      const message = token ? "This token has characters that a browser cannot send." : error.message;
      return this.#fail(token ? "auth" : "protocol", message);
    }
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    const current = (work) => (event) => this.#socket === socket && work(event);
    socket.onopen = current(() => this.#greet());
    socket.onmessage = current(({ data }) => this.#hear(JSON.parse(data)));
    socket.onclose = current(() => this.#lose());
    this.#timers.connect = setTimeout(current(() => this.#lose()), CONNECT_MS);
  }

  #greet() {
    const { sampleRate } = this.#options;
    const hello = this.#session
      ? { ...this.#session, last_seq: this.#sequence }
      : { ...this.#start, sample_rate: sampleRate, encoding: "pcm_s16le", channels: 1 };
    this.#write({ type: "start", ...hello });
  }

  #write(message) {
    this.#socket.send(JSON.stringify(message));
    this.#timers.wrote = performance.now();
  }

  /** The connection is gone: try again, and later each time. */
  async #lose() {
    const opened = this.state === "open";
    this.#drop();
    const now = performance.now();
    if (opened) this.#downSince = now;
    if (now - this.#downSince > 1000 * this.#options.giveUpSeconds) {
      return this.#fail("connect", "The server cannot be reached.");
    }
    const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.#attempt++) * (0.7 + 0.6 * Math.random());
    this.#timers.retry = setTimeout(() => this.#connect(), wait);
    const what = this.#wasOpen ? "The connection is lost." : "The server does not answer.";
    this.#say("waiting", `${what} Words are kept; trying again.`);
    if (!opened) await this.#askWhy();
  }

  /** A browser does not see why a handshake is refused: plain HTTP tells it, at least on the server's own pages. */
  async #askWhy() {
    const http = this.#options.url.replace(/^ws/, "http");
    if (new URL(http).origin !== globalThis.location?.origin) return;
    const headers = this.#options.token ? { Authorization: `Bearer ${this.#options.token}` } : {};
    try {
      const answer = await fetch(new URL("models", http), { headers, cache: "no-store" });
      if (this.state !== "waiting") return;
      if (answer.status === 401) return this.#fail("auth", "The server asks for a token.");
      const ready = await (await fetch(new URL("../readyz", http), { cache: "no-store" })).json();
      if (this.state !== "waiting") return;
      const full = ready.ready === false || ready.sessions >= ready.max_sessions;
      if (full) this.#say("waiting", "The server has no room now. Words are kept; trying again.");
    } catch {
      // Not reachable at all: the next attempt tells.
    }
  }

  #drop() {
    clearTimeout(this.#timers.connect);
    const socket = this.#socket;
    this.#socket = null;
    if (socket) socket.close();
    this.#eofSent = false;
  }

  #say(state, message = "") {
    if (state === this.state && !message) return;
    this.state = state;
    this.#tell("state", { state, message });
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  #fail(code, message) {
    if (this.state === "closed") return;
    this.#tell("error", { code, message });
    this.#finish(null);
  }

  #finish(done) {
    clearInterval(this.#timers.pump);
    clearTimeout(this.#timers.retry);
    globalThis.removeEventListener?.("online", this.online);
    this.#drop();
    for (const flush of this.#flushes.values()) flush.resolve(flush.finals);
    this.#flushes.clear();
    this.#say("closed");
    if (done) this.#tell("done", done);
    this.#resolve(done);
  }

  // Audio out.

  #look() {
    if (this.state !== "open") return;
    this.#pump();
    const now = performance.now();
    if (this.#pending.length && now - this.#pending[0].time > 1000 * this.#options.stallSeconds) this.#lose();
    else if (now - this.#timers.wrote > KEEPALIVE_MS) this.#ask();
  }

  #pump() {
    if (this.state !== "open" || this.#eofSent || this.#socket.readyState !== WebSocket.OPEN) return;
    const { sampleRate } = this.#options;
    this.#skipLost();
    while (this.#next < this.#backlog.end && this.#socket.bufferedAmount < MOST_SOCKET_BYTES) {
      const samples = this.#backlog.at(this.#next);
      this.#socket.send(samples);
      this.#next += samples.length;
      this.#served += samples.length;
      this.#timers.wrote = performance.now();
      const marked = this.#pending.at(-1)?.position ?? this.#acked;
      if (this.#next - marked >= MARK_SECONDS * sampleRate) this.#ask();
    }
    if (this.#next < this.#backlog.end) return;
    for (const [id, flush] of this.#flushes) {
      if (!flush.sent) this.#write({ type: "flush", id });
      flush.sent = true;
    }
    if (this.#ending) {
      this.#write({ type: "eof" });
      this.#eofSent = true;
    }
  }

  /** A config that changes nothing is answered when all audio before it is decoded: so one knows how far it is. */
  #ask(changes = {}) {
    this.#pending.push({ position: this.#next, changes, time: performance.now() });
    this.#write({ type: "config", ...changes });
  }

  /** Audio that has fallen out of the backlog before it was sent. */
  #skipLost() {
    const { start } = this.#backlog;
    if (this.#next >= start) return;
    this.#report(this.#next, start);
    this.#next = start;
    this.#alignment.join(this.#served, start);
  }

  #report(from, to) {
    const { sampleRate } = this.#options;
    this.#tell("lost", { seconds: (to - from) / sampleRate, from: from / sampleRate, to: to / sampleRate });
  }

  // Messages in.

  #hear(message) {
    const known = {
      ready: () => this.#ready(message),
      partial: () => this.#partial(message),
      final: () => this.#final(message),
      configured: () => this.#answered(),
      flushed: () => this.#flushed(message),
      warning: () => this.#warned(message),
      error: () => this.#refused(message),
      done: () => this.#ended(message),
    };
    known[message.type]?.();
  }

  #ready(message) {
    clearTimeout(this.#timers.connect);
    this.#attempt = 0;
    this.#wasOpen = true;
    if (message.resumed) this.#goOn(message.audio_samples);
    else this.#begin(message);
    const changes = this.#pending.map((question) => question.changes).filter((c) => Object.keys(c).length);
    this.#pending = [];
    for (const flush of this.#flushes.values()) Object.assign(flush, { sent: false, finals: [] });
    this.#say("open");
    this.#tell("ready", message);
    if (message.resumed) for (const change of changes) this.#ask(change);
    this.#pump();
  }

  /** A resumed session: it has taken `samples`; everything after them is sent again. */
  #goOn(samples) {
    this.#next = Math.min(this.#alignment.toClient(samples), this.#backlog.end);
    this.#served = samples;
    this.#acked = Math.max(this.#acked, this.#next);
    this.#alignment.join(samples, this.#next);
  }

  /** A new session: it gets all audio again whose words are not final. */
  #begin({ session, secret }) {
    const from = this.#settled();
    const { start, end } = this.#backlog;
    this.#next = Math.min(end, Math.max(from, start));
    if (this.#next > from) this.#report(from, this.#next);
    this.#session = secret ? { session, secret } : null;
    this.#served = this.#sequence = 0;
    this.#segments.base = this.#segments.last + 1;
    this.#alignment = new Alignment();
    this.#alignment.join(0, this.#next);
    this.#openFrom = null;
    this.#acked = this.#next;
  }

  /** The words of the audio before this sample are final, or there are none. */
  #settled() {
    const { sampleRate } = this.#options;
    const heard = this.#acked - SETTLED_SECONDS * sampleRate;
    const open = this.#openFrom === null ? Infinity : this.#openFrom - ONSET_SECONDS * sampleRate;
    return Math.max(this.#finalEnd, Math.round(Math.min(heard, open)), 0);
  }

  #answered() {
    const question = this.#pending.shift();
    if (!question) return;
    this.#acked = Math.max(this.#acked, question.position);
    this.#backlog.forget(this.#settled());
  }

  #partial(message) {
    this.#sequence = message.seq;
    const { sampleRate } = this.#options;
    const partial = this.#onOurClock(message);
    const empty = !partial.stable && !partial.unstable;
    this.#openFrom = empty ? null : partial.start * sampleRate;
    partial.delay_ms = null;
    if (!empty && partial.end > this.#lastWordEnd) {
      this.#lastWordEnd = partial.end;
      const captured = this.#backlog.timeOf(Math.min(this.#backlog.end, Math.round(partial.end * sampleRate)) - 1);
      if (captured !== undefined) partial.delay_ms = performance.now() - captured;
    }
    this.#tell("partial", partial);
  }

  #final(message) {
    this.#sequence = message.seq;
    const final = this.#onOurClock(message);
    if (final.reason === "flush") {
      this.#flushes.values().next().value?.finals.push(final); // they are answered in order
      return;
    }
    this.#segments.last = final.segment;
    this.#finalEnd = Math.max(this.#finalEnd, Math.round(final.end * this.#options.sampleRate));
    this.#lastWordEnd = Math.max(this.#lastWordEnd, final.end);
    this.#openFrom = null;
    this.#backlog.forget(this.#settled());
    this.#tell("final", final);
  }

  #onOurClock(message) {
    const { sampleRate } = this.#options;
    const time = (seconds) => {
      const sample = this.#alignment.toClient(Math.round(seconds * sampleRate));
      return Math.round((1000 * sample) / sampleRate) / 1000;
    };
    const timed = (item) => ({ ...item, start: time(item.start), end: time(item.end) });
    const result = { ...timed(message), segment: message.segment + this.#segments.base };
    if (message.words) result.words = message.words.map(timed);
    return result;
  }

  #flushed({ id }) {
    const flush = this.#flushes.get(id);
    this.#flushes.delete(id);
    flush?.resolve(flush.finals);
  }

  #warned(message) {
    const changes = this.#pending[0]?.changes ?? {};
    if (!STATEMENTS.has(message.code) && Object.keys(changes).length) this.#answered();
    this.#tell("warning", message);
  }

  #refused({ code, message }) {
    if (FATAL.has(code)) return this.#fail(code, message);
    if (code === "resume") {
      this.#session = null;
      this.#attempt = 0;
    }
    this.#lose();
  }

  #ended(message) {
    this.#session = null;
    this.#finish(message);
  }
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
