// The text on the page: finals as paragraphs, the words of the open segment below them.

import { toSrt, toTxt, toVtt } from "./subtitles.js";

const SHADES = [0.85, 0.65, 0.45]; // confidences; below each the ink is one shade lighter
const WRITERS = { txt: toTxt, srt: toSrt, vtt: toVtt };

/** Shows and holds all segments since the last clear(). Recordings follow each other on one clock. */
export class Transcript {
  #log;
  #open;
  #stable;
  #unstable;
  #joins = false; // the next segment goes on in the same paragraph
  #offset = 0; // seconds of the recordings before this one
  segments = [];
  duration = 0;

  constructor(root) {
    this.#log = root.querySelector("#transcript");
    this.#open = root.querySelector("#partial");
    this.#stable = root.querySelector("#stable");
    this.#unstable = root.querySelector("#unstable");
  }

  get empty() {
    return !this.#log.children.length && this.#open.hidden;
  }

  /** A recording begins where the one before ended. */
  begin() {
    this.#offset = this.duration;
    this.#joins = false;
  }

  /** The recording is over; it lasted so many seconds. */
  finish(seconds) {
    this.duration = Math.max(this.duration, this.#offset + seconds);
    this.partial({ stable: "", unstable: "" });
  }

  /** What has been heard of the open segment. */
  partial({ stable, unstable }) {
    this.#stable.textContent = stable;
    this.#unstable.textContent = unstable;
    this.#open.hidden = !stable && !unstable;
  }

  /** A segment is closed. */
  final(message) {
    this.partial({ stable: "", unstable: "" });
    const segment = later(message, this.#offset);
    this.duration = Math.max(this.duration, segment.end);
    if (segment.text) {
      this.segments.push(segment);
      this.#write(segment);
    }
    this.#joins = segment.reason === "max_length" && Boolean(segment.text);
  }

  /** Audio that nobody heard. */
  loss(seconds) {
    this.#joins = false;
    const shown = seconds < 0.95 ? "less than a second" : `${seconds.toFixed(1)} s`;
    this.#log.append(element("p", { className: "loss" }, `${shown} of sound could not be kept`));
  }

  /** As the text of a file: txt, srt or vtt. */
  as(format) {
    return WRITERS[format](this);
  }

  /** Take everything away. Returns a function that brings it back. */
  clear() {
    const before = { nodes: [...this.#log.childNodes], segments: this.segments, duration: this.duration };
    this.#log.replaceChildren();
    [this.segments, this.duration, this.#offset, this.#joins] = [[], 0, 0, false];
    return () => {
      this.#log.prepend(...before.nodes);
      this.segments = [...before.segments, ...this.segments.map((s) => later(s, before.duration))];
      this.duration += before.duration;
      this.#offset += before.duration;
    };
  }

  #write(segment) {
    const last = this.#log.lastElementChild?.querySelector(".text");
    if (this.#joins && last) {
      last.append(" ", ...shaded(segment));
      return;
    }
    const time = element("time", { ariaHidden: "true" }, clock(segment.start));
    const text = element("span", { className: "text" });
    text.append(...shaded(segment));
    const paragraph = element("p");
    paragraph.append(time, text);
    this.#log.append(paragraph);
  }
}

/** Minutes and seconds. */
export function clock(seconds) {
  const total = Math.max(0, Math.floor(seconds));
  const [hours, minutes, rest] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  const tail = String(rest).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${tail}` : `${minutes}:${tail}`;
}

/** The words of a segment as nodes; neighbours of one shade share one. */
function shaded({ text, words = [] }) {
  if (words.map((w) => w.word).join(" ") !== text) return [text];
  const runs = [];
  for (const { word, confidence } of words) {
    const shade = confidence === null ? 0 : SHADES.filter((limit) => confidence < limit).length;
    if (runs.length && runs.at(-1).shade === shade) runs.at(-1).words.push(word);
    else runs.push({ shade, words: [word] });
  }
  return runs.flatMap((run, i) => {
    const span = element("span", {}, run.words.join(" "));
    if (run.shade) span.dataset.shade = run.shade;
    return i ? [" ", span] : [span];
  });
}

function later(item, seconds) {
  const moved = (x) => ({ ...x, start: round(x.start + seconds), end: round(x.end + seconds) });
  return { ...moved(item), words: (item.words ?? []).map(moved) };
}

function element(name, properties = {}, text = "") {
  const node = Object.assign(document.createElement(name), properties);
  if (text) node.textContent = text;
  return node;
}

const round = (seconds) => Math.round(seconds * 1000) / 1000;
