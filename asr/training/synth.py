"""`asr synth`: a training table of synthetic speech, from texts and the speech engines of :mod:`synth_engines`.

First a plan is made, a function of the options and the seed: sentences (:mod:`synth_texts`), and for each a voice, one
of its *speakers* (a pitch and a length of vocal tract) and a rate. Then recordings of about an hour are spoken, each
whole or absent; the table always lists those that are there, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asr.checkpoint import find_model
from asr.config import require
from asr.errors import ConfigError, ManifestError, UsageError
from asr.features import SAMPLE_RATE
from asr.lexicon import Lexicon
from asr.text import normalize
from asr.training.cache import write_whole
from asr.training.manifest import read_table
from asr.training.synth_audio import OpusWriter, agreement, shape, trimmed
from asr.training.synth_engines import ENGINES, Request, Speech, Voice, choose, find_voice
from asr.training.synth_texts import PHONE_S, SENTENCE_S, Coverage, Limits, Sentence, draw_lines, sentences
from asr.training.synth_texts import choose as choose_sentences

log = logging.getLogger("asr.synth")
COLUMNS = ("id", "audio", "start_s", "duration_s", "speaker", "corpus", "text", "licence")
GAP_S = 0.2  # silence between utterances
_PHONE_S = (0.03, 0.25)  # an utterance of less or more time a phone is broken
_POOL = 20  # sentences to choose from, for each that is wanted
_PER_LINE = 0.4  # share of lines that become sentences, at least
_MEAN_S = 5.0  # length of a sentence, to guess their number from hours

Range = tuple[float, float]


@dataclass(frozen=True)
class SynthConfig:
    """What is spoken, and how.

    ``texts``: components of some files each, as ``asr lm build`` takes them, drawn from alike. ``hours`` of speech or
    number of ``sentences``, or what comes first of both. ``voices``: ``engine`` or ``engine:voice``; none: the usual
    ones that are here. ``rate``, ``pitch``, ``formants``: ranges of factors on a voice's own; formants move the pitch
    along. ``speakers``: settings of pitch and formants that a voice has. ``known``: training tables; ``coverage``:
    share of sentences that are chosen for what these lack. ``agreement``: least share of phones that an engine and the
    lexicon must have alike, where the engine tells its phones. ``lexicon``: a dictionary in the form of CMUdict or a
    ``.lex`` file; none: that of the model ``en``. ``recording_minutes``: planned length of a recording; the real one is
    some per cent off, and a run that is stopped loses no more than what was spoken of one.
    """

    texts: tuple[tuple[str, ...], ...]
    hours: float | None = None
    sentences: int | None = None
    voices: tuple[str, ...] = ()
    seed: int = 1
    rate: Range = (0.85, 1.2)
    pitch: Range = (0.85, 1.2)
    formants: Range = (0.88, 1.08)
    speakers: int = 8
    known: tuple[str, ...] = ()
    coverage: float = 0.5
    agreement: float = 0.9
    lexicon: str = ""
    limits: Limits = field(default_factory=Limits)
    bitrate: int = 24000
    recording_minutes: float = 55.0

    def __post_init__(self) -> None:
        require(bool(self.texts) and all(self.texts), "no text is given to speak")
        require(self.hours is not None or self.sentences is not None, "give --hours or --sentences")
        require(self.hours is None or 0 < self.hours < 10000, f"hours must be over 0, got {self.hours}")
        require(self.sentences is None or self.sentences > 0, f"sentences must be over 0, got {self.sentences}")
        for name in ("rate", "pitch", "formants"):
            low, high = getattr(self, name)
            require(0.5 <= low <= high <= 2, f"{name} must be a range within 0.5 to 2, got {low:g} to {high:g}")
        require(1 <= self.speakers <= 100, f"speakers must be 1 to 100, got {self.speakers}")
        for name in ("coverage", "agreement"):
            require(0 <= getattr(self, name) <= 1, f"{name} must be 0 to 1, got {getattr(self, name)}")
        limits = self.limits
        require(1 <= limits.fewest_words <= limits.most_words, "words must be a range of at least 1")
        require(limits.longest_s > 0, f"longest must be over 0 s, got {limits.longest_s:g}")
        minutes = self.recording_minutes
        require(0 < minutes <= 600, f"recording_minutes must be over 0 and at most 600, got {minutes:g}")
        require(6000 <= self.bitrate <= 256000, f"bitrate must be 6000 to 256000 bit/s, got {self.bitrate}")


@dataclass(frozen=True)
class Item:
    """One utterance of the plan; ``speaker`` is one of the voice's, with its ``pitch`` and ``formants``."""

    id: str
    voice: str
    speaker: str
    text: str
    spoken: str
    phones: int
    rate: float
    pitch: float
    formants: float

    @property
    def request(self) -> Request:
        """What the engine is asked for: the formants are moved afterwards, and the rate with them."""
        return Request(self.spoken, self.rate / self.formants, self.pitch)

    @property
    def seconds(self) -> float:
        """About how long it will be."""
        return (SENTENCE_S + PHONE_S * self.phones) / self.rate


@dataclass(frozen=True)
class Plan:
    """All that will be spoken. ``coverage``: distinct words and phone trigrams in the known tables, and with this."""

    items: tuple[Item, ...]
    coverage: tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class SynthReport:
    """What is there at the end. ``failed``: sentences left out since the engine failed, by voice; ``unlike``: since its
    phones were not those of the lexicon."""

    table: Path
    seconds: dict[str, float]
    utterances: dict[str, int]
    failed: dict[str, int]
    unlike: dict[str, int]
    coverage: tuple[tuple[int, int], tuple[int, int]]

    def lines(self) -> list[str]:
        """The report for people."""
        hours = sum(self.seconds.values()) / 3600
        (words, trigrams), (all_words, all_trigrams) = self.coverage
        lines = [f"{self.table}: {hours:.2f} h, {sum(self.utterances.values()):,} utterances"]
        lines += [f"  {name}: {self.seconds[name] / 3600:.2f} h, {self.utterances[name]:,}" for name in self.seconds]
        lines += [f"  left out, the engine failed: {count} of {voice}" for voice, count in self.failed.items()]
        lines += [f"  left out, other phones than listed: {count} of {voice}" for voice, count in self.unlike.items()]
        return [*lines, f"words heard {words:,} -> {all_words:,}, phone trigrams {trigrams:,} -> {all_trigrams:,}"]


def config_of(
    texts: Sequence[Sequence[str]], words: Range | None = None, longest: float | None = None, **options: Any
) -> SynthConfig:
    """A configuration from what was given on a command line; all else has its default."""
    limits = Limits()
    if words is not None:
        limits = dataclasses.replace(limits, fewest_words=int(words[0]), most_words=int(words[1]))
    if longest is not None:
        limits = dataclasses.replace(limits, longest_s=longest)
    options.update({name: tuple(options[name]) for name in ("voices", "known") if name in options})
    return SynthConfig(tuple(map(tuple, texts)), limits=limits, **options)


def main(config: SynthConfig, out: Path, jobs: int = 1, progress: bool = False) -> SynthReport:
    """Write the table ``out`` (.tsv) and its recordings beside it; goes on with what is there of the same options.

    ``jobs``: engines that run at once; ``progress``: say on standard error what is being done. Raises errors of
    :mod:`asr.errors` for whatever the user gave wrong.
    """
    if progress:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if out.suffix != ".tsv":
        raise UsageError(f"the output {out} must be a table: give a name that ends in .tsv")
    voices = choose(config.voices)
    lexicon = load_lexicon(config.lexicon)
    work = out.with_suffix(".work")
    plan = _plan(config, voices, lexicon, out, work)
    recordings = list(split(plan.items, 60 * config.recording_minutes))
    missing = [n for n in range(len(recordings)) if not _part(work, n).is_file()]
    log.info("%d utterances in %d recordings, %d to be spoken", len(plan.items), len(recordings), len(missing))
    stop = threading.Event()

    def record(n: int) -> int:
        _record(recordings[n], out.with_name(f"{out.stem}-{n:03d}.opus"), _part(work, n), config, lexicon, stop)
        return n

    with ThreadPoolExecutor(jobs) as pool:  # threads: the work is done by the engines
        try:
            for done in as_completed([pool.submit(record, n) for n in missing]):
                _write_table(out, work, len(recordings))
                log.info("recording %d is done", done.result())
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return _write_table(out, work, len(recordings), plan)


def load_lexicon(path: str) -> Lexicon:
    """A dictionary in the form of CMUdict, or a ``.lex`` file; without a path that of the model ``en``."""
    if not path:
        return find_model("en").load_lexicon(with_g2p=False)
    return Lexicon.load(path) if path.endswith(".lex") else Lexicon.from_cmudict(path)


# --- the plan -------------------------------------------------------------------------------------------------------


def _plan(config: SynthConfig, voices: Sequence[Voice], lexicon: Lexicon, out: Path, work: Path) -> Plan:
    """The plan on disk, or a new one. Raises UsageError when what is there was made with other options."""
    settings = json.loads(json.dumps({**dataclasses.asdict(config), "voices": [v.id for v in voices]}))
    path = work / "plan.json"
    if path.is_file():
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["settings"] != settings:
                raise UsageError(f"{out} was begun with other options: give the same ones, or another output")
            before, after = saved["coverage"]
            return Plan(tuple(Item(**item) for item in saved["items"]), (tuple(before), tuple(after)))
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path} is damaged: remove the folder {work}") from None
    if out.exists():
        raise UsageError(f"{out} is there already, and not from this command: give another output")
    plan = make_plan(config, voices, lexicon)
    work.mkdir(parents=True, exist_ok=True)
    saved = {"settings": settings, "coverage": plan.coverage, "items": [dataclasses.asdict(i) for i in plan.items]}
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(saved), encoding="utf-8"))
    return plan


def make_plan(config: SynthConfig, voices: Sequence[Voice], lexicon: Lexicon) -> Plan:
    """Choose sentences, and a voice, speaker and rate for each: a pure function of its arguments and the files."""
    coverage = Coverage(lexicon)
    for table in config.known:
        for _, row in read_table(Path(table), ("text",)):
            coverage.add(normalize(row["text"]))
    before = coverage.sizes()
    seconds = math.inf if config.hours is None else config.hours * 3600 * math.sqrt(config.rate[0] * config.rate[1])
    wanted = min(seconds / _MEAN_S, math.inf if config.sentences is None else config.sentences)
    rng = np.random.default_rng([config.seed, 0])
    lines = draw_lines(config.texts, math.ceil(wanted * _POOL / _PER_LINE), rng)
    pool = sentences(lines, lexicon, config.limits)
    log.info("%d sentences to choose from", len(pool))
    chosen = choose_sentences(pool, seconds, config.sentences, config.coverage, coverage, config.seed)
    if not chosen:
        raise ConfigError("no sentence of the texts can be spoken: the lexicon must list their words, see --words")
    spoken = sum(s.seconds for s in chosen)
    if spoken < seconds < math.inf or (seconds == math.inf and len(chosen) < (config.sentences or 0)):
        log.warning("the texts give only %d sentences, %.2f h", len(chosen), spoken / 3600)
    return Plan(tuple(_items(chosen, voices, config)), (before, coverage.sizes()))


def _items(chosen: Sequence[Sentence], voices: Sequence[Voice], config: SynthConfig) -> Iterator[Item]:
    rng = np.random.default_rng([config.seed, 1])
    speakers = [list(_speakers(voice, config, rng)) for voice in voices]
    for n, sentence in enumerate(chosen):
        voice = n % len(voices)
        name, pitch, formants = speakers[voice][n // len(voices) % config.speakers]
        yield Item(
            id=f"{voices[voice].corpus}-{n:06d}",
            voice=voices[voice].id,
            speaker=name,
            text=sentence.text,
            spoken=sentence.spoken,
            phones=sentence.phones,
            rate=_draw(rng, config.rate),
            pitch=pitch,
            formants=formants,
        )


def _speakers(voice: Voice, config: SynthConfig, rng: np.random.Generator) -> Iterator[tuple[str, float, float]]:
    """(name, pitch, formants) of every speaker: formants spread evenly over their range, pitches drawn."""
    low, high = config.formants
    for n in range(config.speakers):
        formants = low * (high / low) ** ((n + float(rng.random())) / config.speakers)
        pitch = _draw(rng, config.pitch) if voice.pitch_hz else 1.0
        yield f"{voice.corpus}-{n:02d}", pitch, round(formants, 4)


def _draw(rng: np.random.Generator, limits: Range) -> float:
    """A factor from a range, even on the scale of ratios."""
    low, high = limits
    return round(low * (high / low) ** float(rng.random()), 4)


def split(items: Sequence[Item], seconds: float) -> Iterator[tuple[Item, ...]]:
    """Items of recordings of about ``seconds``, in each sorted by voice so that engines may speak some at once."""
    taken: list[Item] = []
    length = 0.0
    for item in items:
        if taken and length + item.seconds + GAP_S > seconds:
            yield tuple(sorted(taken, key=lambda i: i.voice))
            taken, length = [], 0.0
        taken.append(item)
        length += item.seconds + GAP_S
    yield tuple(sorted(taken, key=lambda i: i.voice))


# --- a recording ----------------------------------------------------------------------------------------------------


def _record(
    items: Sequence[Item], audio: Path, part: Path, config: SynthConfig, lexicon: Lexicon, stop: threading.Event
) -> None:
    """Speak ``items`` into ``audio`` and list them in ``part``, the file that says that the recording is whole."""
    rows: list[dict[str, str]] = []
    dropped: Counter[tuple[str, str]] = Counter()
    temporary = audio.with_name(f"{audio.stem}.tmp.opus")  # what a killed run left is written over
    try:
        with tempfile.TemporaryDirectory() as folder, OpusWriter(temporary, config.bitrate) as writer:
            for item, speech in _spoken(items, Path(folder)):
                if stop.is_set():
                    return
                reason = _fault(item, speech, config, lexicon)
                if speech is None or reason:
                    dropped[item.voice, reason] += 1
                    continue
                rows.append(_row(item, audio.name, writer.seconds, writer.write(shape(speech.samples, item.formants))))
                writer.write(np.zeros(round(GAP_S * SAMPLE_RATE), dtype=np.float32))
        _check_voices(items, dropped)
        temporary.replace(audio)
    finally:
        temporary.unlink(missing_ok=True)
    saved = {"rows": rows, "dropped": [[*key, count] for key, count in sorted(dropped.items())]}
    write_whole(part, lambda path: path.write_text(json.dumps(saved), encoding="utf-8"))


def _check_voices(items: Sequence[Item], dropped: Counter[tuple[str, str]]) -> None:
    """Raises UsageError when a voice failed with most of its sentences."""
    for voice, count in Counter(item.voice for item in items).items():
        if dropped[voice, "failed"] > count / 2:
            raise UsageError(
                f"the voice {voice} failed with most sentences: try it by hand, or leave it out by --voices"
            )


def _spoken(items: Sequence[Item], folder: Path) -> Iterator[tuple[Item, Speech | None]]:
    for voice_id, group in itertools.groupby(items, key=lambda i: i.voice):
        voice = find_voice(voice_id)
        engine = ENGINES[voice.engine]
        while batch := list(itertools.islice(group, engine.batch)):
            yield from zip(batch, engine.speak(voice, [i.request for i in batch], folder), strict=True)


def _fault(item: Item, speech: Speech | None, config: SynthConfig, lexicon: Lexicon) -> str:
    """Why an utterance cannot be used: ``failed``, ``unlike`` (other phones than the lexicon's), or nothing."""
    if speech is None:
        return "failed"
    heard = trimmed(speech.samples)
    a_phone = len(heard) / SAMPLE_RATE / item.phones * item.request.rate
    if not _PHONE_S[0] <= a_phone <= _PHONE_S[1] or not np.isfinite(heard).all():
        return "failed"
    if speech.phones is not None and agreement(item.text, speech.phones, lexicon) < config.agreement:
        return "unlike"
    return ""


def _row(item: Item, audio: str, start_s: float, duration_s: float) -> dict[str, str]:
    voice = find_voice(item.voice)
    values = (item.id, audio, f"{start_s:.4f}", f"{duration_s:.4f}", item.speaker, voice.corpus, item.text)
    return dict(zip(COLUMNS, (*values, f"synthetic: {voice.licence}"), strict=True))


# --- files ----------------------------------------------------------------------------------------------------------


def _part(work: Path, n: int) -> Path:
    return work / f"{n:03d}.json"


def _write_table(out: Path, work: Path, recordings: int, plan: Plan | None = None) -> SynthReport:
    """Write the rows of all recordings that are whole; gives what they hold."""
    seconds: Counter[str] = Counter()
    utterances: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {"failed": Counter(), "unlike": Counter()}
    lines = ["\t".join(COLUMNS)]
    for path in (_part(work, n) for n in range(recordings)):
        if not path.is_file():
            continue
        try:
            part = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ManifestError(f"{path} is damaged: remove it, so that its recording is made anew") from None
        for row in part["rows"]:
            lines.append("\t".join(row[name] for name in COLUMNS))
            seconds[row["corpus"]] += float(row["duration_s"])  # type: ignore[assignment]
            utterances[row["corpus"]] += 1
        for voice, reason, count in part["dropped"]:
            dropped[reason][voice] += count
    write_whole(out, lambda temporary: temporary.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    coverage = plan.coverage if plan else ((0, 0), (0, 0))
    return SynthReport(out, dict(seconds), dict(utterances), dict(dropped["failed"]), dict(dropped["unlike"]), coverage)


__all__ = ["Item", "Plan", "SynthConfig", "SynthReport", "load_lexicon", "main", "make_plan", "split"]
