// Transcripts as files: plain text, SubRip and WebVTT. The same rules as asr/writers.py, which says why.
//
// A transcript: {duration, segments: [{text, start, end, words: [{word, start, end}]}]}, times in seconds.

const MAX_LINE = 42; // characters
const MAX_LINES = 2;
const MAX_SECONDS = 6;
const MAX_GAP_SECONDS = 1;
const MIN_MS = 1000;
const PAUSE_SECONDS = 0.5;

/** One line a segment. */
export function toTxt({ segments }) {
  return segments.map((s) => line(s.text)).filter(Boolean).map((text) => text + "\n").join("");
}

/** SubRip subtitles. */
export function toSrt(transcript) {
  const block = (cue, i) =>
    `${i + 1}\n${clock(cue.start, ",")} --> ${clock(cue.end, ",")}\n${cue.lines.join("\n")}\n\n`;
  return cues(transcript).map(block).join("");
}

/** WebVTT subtitles (W3C). */
export function toVtt(transcript) {
  const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const block = (cue) =>
    `\n${clock(cue.start, ".")} --> ${clock(cue.end, ".")}\n${escape(cue.lines.join("\n"))}\n`;
  return "WEBVTT\n" + cues(transcript).map(block).join("");
}

/** Subtitle cues {start, end, lines}: integer milliseconds. They never overlap. */
export function cues({ segments, duration }) {
  const groups = segments.flatMap((s) => splitAtPauses(timedWords(s)).flatMap(cut));
  return groups.map((group, index) => {
    const last = index + 1 === groups.length;
    const start = Math.max(0, ms(group[0].start));
    const spoken = ms(group.at(-1).end);
    const limit = ms(last ? duration : groups[index + 1][0].start);
    const lingering = Math.max(spoken, Math.min(start + MIN_MS, limit));
    const end = Math.max(start + 1, last ? lingering : Math.min(lingering, limit));
    return { start, end, lines: wrap(group.map((w) => w.word)) };
  });
}

function splitAtPauses(words) {
  const stretches = [];
  for (const word of words) {
    if (!stretches.length || word.start - stretches.at(-1).at(-1).end > MAX_GAP_SECONDS) stretches.push([]);
    stretches.at(-1).push(word);
  }
  return stretches;
}

/** One stretch of speech in groups: few, of like size, cut at pauses; by dynamic programming over their ends. */
function cut(words) {
  const best = [0];
  const startOf = [0];
  for (let end = 1; end <= words.length; end++) {
    best[end] = Infinity;
    for (let start = end - 1; start >= 0; start--) {
      const group = words.slice(start, end);
      if (start < end - 1 && !fits(group)) break;
      let cost = best[start] + costOf(group);
      if (start > 0) cost -= Math.min(1, Math.max(0, words[start].start - words[start - 1].end) / PAUSE_SECONDS);
      if (cost < best[end]) [best[end], startOf[end]] = [cost, start];
    }
  }
  const groups = [];
  for (let end = words.length; end > 0; end = startOf[end]) groups.unshift(words.slice(startOf[end], end));
  return groups;
}

function fits(group) {
  if (group.at(-1).end - group[0].start > MAX_SECONDS) return false;
  return fill(group.map((w) => w.word), MAX_LINE).length <= MAX_LINES;
}

function costOf(group) {
  const space = MAX_LINE * MAX_LINES;
  const length = Math.min(space, group.reduce((sum, w) => sum + size(w.word) + 1, -1));
  const seconds = Math.min(MAX_SECONDS, group.at(-1).end - group[0].start);
  return 1 + (1 - Math.max(length / space, seconds / MAX_SECONDS)) ** 2;
}

/** Lines of like length: the narrowest width that needs no more lines than the widest. */
function wrap(words) {
  const count = fill(words, MAX_LINE).length;
  let width = Math.max(1, Math.floor(words.reduce((sum, w) => sum + size(w) + 1, 0) / count) - 1);
  while (fill(words, width).length > count) width++;
  return fill(words, width);
}

function fill(words, width) {
  const lines = [];
  for (const word of words) {
    if (lines.length && size(lines.at(-1)) + 1 + size(word) <= width) lines[lines.length - 1] += " " + word;
    else lines.push(word);
  }
  return lines;
}

function timedWords({ text, start, end, words = [] }) {
  const texts = line(text).split(" ").filter(Boolean);
  if (words.length || !texts.length) {
    return words.map((w) => ({ ...w, word: line(w.word) })).filter((w) => w.word);
  }
  const perCharacter = Math.max(0, end - start) / (size(line(text)) + 1);
  let at = start;
  return texts.map((word) => {
    const timed = { word, start: at, end: at + perCharacter * size(word) };
    at += perCharacter * (size(word) + 1);
    return timed;
  });
}

function clock(total, point) {
  const pad = (value, digits) => String(value).padStart(digits, "0");
  const seconds = Math.floor(total / 1000);
  const minutes = Math.floor(seconds / 60);
  return `${pad(Math.floor(minutes / 60), 2)}:${pad(minutes % 60, 2)}:${pad(seconds % 60, 2)}${point}${pad(total % 1000, 3)}`;
}

const ms = (seconds) => Math.round(seconds * 1000);
const size = (text) => [...text].length;
const line = (text) => text.split(/\s+/).filter(Boolean).join(" ");
