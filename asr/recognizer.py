"""The recogniser: :class:`Recognizer` is immutable and shared, :class:`Stream` is one session's whole state.

Offline is the same path: a file is a stream that is fed in long chunks, and many files advance in one network step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from typing import IO, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr import batching
from asr.audio import read_media, resampler
from asr.checkpoint import LEXICON, UNITS, ModelFolder, find_model
from asr.decoding.beam_search import BeamSearch
from asr.decoding.confidence import HYPOTHESES, Confidence, Judged, speller, word_times
from asr.decoding.endpoint import Cut, EndpointConfig, Endpointer, EndpointState
from asr.decoding.greedy import GreedySearch
from asr.decoding.hot_words import HotWords
from asr.decoding.hypothesis import Emissions, Hypothesis, TimedWord
from asr.decoding.prefix_search import PrefixSearch
from asr.decoding.search_config import SearchConfig
from asr.errors import AsrError, AudioError, LexiconError, ModelError, StateError, UsageError
from asr.features import LogMel
from asr.inference import PRECISION, inference_form
from asr.lexicon import Lexicon
from asr.model import AcousticModel, State
from asr.model_config import HOP, SAMPLE_RATE, STEP_MS
from asr.options import HotWordLike, StreamOptions
from asr.readable import Formatter
from asr.results import Alternative, Partial, Result, Segment, Transcript, Word
from asr.stream_state import StreamState
from asr.vocabulary import PhoneVocabulary, Vocabulary

__all__ = ["Recognizer", "Source", "Stream", "StreamState", "as_samples", "feed_many", "finish_many"]

Source = str | PathLike[str] | IO[bytes] | NDArray[Any]
SHOWN = 0.5  # share of the hypotheses' probability that a word needs to stand in a partial result
CHUNK_S = 2.0  # of a file per network step: bounds memory, long enough that the cost of a step is spread


class Recognizer:
    """A model ready to recognise. Immutable after loading; any number of streams share it."""

    def __init__(
        self,
        folder: ModelFolder,
        device: str = "cpu",
        search: SearchConfig | None = None,
        endpoint: EndpointConfig | None = None,
        precision: str = PRECISION,
        greedy: bool = False,
    ) -> None:
        self.folder = folder
        self.device = torch.device(device)
        self.model: AcousticModel = inference_form(folder.load_network(device), precision)
        self.features = LogMel(folder.config.features, device)
        self.vocabularies = folder.load_vocabularies()
        self.head = _spelling_head(self.vocabularies) if greedy else folder.config.head
        self.search = (
            GreedySearch(self.vocabularies[self.head])
            if greedy
            else self._search(search or folder.config.search, precision)
        )
        if not isinstance(self.search, GreedySearch):
            self.search.warm_up()
        self.options = StreamOptions(endpoint=endpoint or folder.config.endpoint)
        """What a stream starts from."""
        self.confidence = self._confidence()
        """What judges words, where the model folder has the coefficients."""

    def _confidence(self) -> Confidence | None:
        config, search = self.folder.config.confidence, self.search
        if config is None or not isinstance(search, BeamSearch):
            return None
        return Confidence(search, config, speller(search, lambda: self._pronouncer))

    def _search(self, config: SearchConfig, precision: str) -> BeamSearch | PrefixSearch | GreedySearch:
        folder, vocabulary = self.folder, self.vocabularies[self.head]
        lexicon = folder.load_lexicon(with_g2p=False)
        priors = folder.load_log_priors(self.head)
        if not len(lexicon):
            if folder.language_model is None or isinstance(vocabulary, PhoneVocabulary):
                return GreedySearch(vocabulary)
            return PrefixSearch(vocabulary, folder.load_language_model(), config, priors)
        try:
            second = folder.load_recurrent() if config.second_share else None
            return BeamSearch(
                vocabulary, lexicon, folder.load_language_model(), config, priors, second=second, precision=precision
            )
        except LexiconError as error:
            raise ModelError(f"{folder.path / LEXICON} does not fit {UNITS}: {error}") from None

    @classmethod
    def load(
        cls,
        model: str | PathLike[str] = "en",
        device: str = "cpu",
        threads: int | None = None,
        search: SearchConfig | None = None,
        endpoint: EndpointConfig | None = None,
        precision: str = PRECISION,
        language_model: str | PathLike[str] | None = None,
        greedy: bool = False,
    ) -> Recognizer:
        """Load a shipped model by name or any model folder by path.

        ``threads``: of this process's torch operations (None leaves torch's default). ``precision``: of the weights
        that the network reads, see :func:`asr.inference.inference_form`. ``language_model``: a file to use in place of
        the folder's own, of any format that :func:`asr.lm.load` reads. ``greedy``: the best letter of every step in
        place of the search: fast, without lexicon, language model and hot words. Raises ModelError when the folder
        lacks a file or a file is corrupt, LanguageModelError for a language model that cannot be read, UsageError for
        an unknown device or precision, or for ``greedy`` where no head spells.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        _check_device(device)
        folder = find_model(model)
        if language_model is not None:
            folder = folder.with_language_model(language_model)
        return cls(folder, device, search, endpoint, precision, greedy)

    @property
    def sample_rate(self) -> int:
        """The rate in Hz that the network hears; streams of other rates are resampled."""
        return SAMPLE_RATE

    @property
    def algorithmic_latency_ms(self) -> int:
        """Longest wait, in ms of audio, from a sample at 16 kHz to the output that contains it. Resampling from other
        rates adds :attr:`asr.audio.Resampler.latency_s`, 9 ms at most."""
        return self.model.config.algorithmic_latency_ms

    def stream(
        self,
        sample_rate: int | None = None,
        partials: bool = True,
        state: StreamState | None = None,
        *,
        hotwords: Iterable[HotWordLike] | None = None,
        endpointing: EndpointConfig | Mapping[str, Any] | bool | None = None,
        lm: bool | None = None,
        alternatives: int | None = None,
    ) -> Stream:
        """A new session at ``sample_rate`` (Hz; 16000 by default), or one that goes on from a copy of ``state`` at its
        own rate. ``partials``: whether :meth:`Stream.feed` gives partial results, too. The other options are those of
        :meth:`Stream.configure`.

        Raises AudioError for a rate outside 8 to 48 kHz, StateError for a state of another model or rate, UsageError
        for unusable hot words, ConfigError for impossible endpointing.
        """
        if state is not None:
            self._check_state(state, sample_rate)
            stream = Stream(self, state.sample_rate, partials, state.to(self.device))
        else:
            stream = Stream(self, SAMPLE_RATE if sample_rate is None else sample_rate, partials)
        stream.configure(hotwords, endpointing, lm, alternatives)
        return stream

    def hot_words(self, options: StreamOptions) -> HotWords | None:
        """A session's hot words, ready for the search. Raises UsageError that names every unusable one."""
        if not options.hotwords:
            return None
        scale = 1.0 if options.lm else 0.0
        if isinstance(self.search, GreedySearch):
            raise UsageError("this model has neither a lexicon nor a language model of its own, and so no hot words")
        if isinstance(self.search, PrefixSearch):
            return self.search.hot_words(options.hotwords, scale) or None
        return self.search.hot_words(options.hotwords, scale, self._pronouncer) or None

    @cached_property
    def _pronouncer(self) -> Lexicon:
        """The lexicon with its grapheme-to-phoneme model, which nothing but hot words needs."""
        return self.folder.load_lexicon()

    @cached_property
    def formatter(self) -> Formatter:
        """What makes final segments readable, one after the other with a state of its own: ``begin`` and ``step``.
        Raises ModelError where the model folder has no such part."""
        return Formatter.load(self.folder)

    @overload
    def readable(self, result: Segment) -> Segment: ...

    @overload
    def readable(self, result: Transcript) -> Transcript: ...

    def readable(self, result: Segment | Transcript) -> Segment | Transcript:
        """A whole transcript, or a segment by itself, in sentence case with punctuation and numbers in digits. Its
        words are the written ones with their times: several may have become one. For the segments of a live stream
        see :attr:`formatter`. Raises ModelError where the model folder has no tagger."""
        if isinstance(result, Transcript):
            return self.formatter.transcript(result)
        return self.formatter.step(result, self.formatter.begin())[0]

    def _check_state(self, state: StreamState, sample_rate: int | None) -> None:
        """States may come from outside: every part is compared with what this recogniser would have made."""
        if sample_rate is not None and sample_rate != state.sample_rate:
            raise StateError(f"the state is of a stream of {state.sample_rate} Hz, not of {sample_rate} Hz")
        if state.model != self.folder.fingerprint:
            raise StateError(f"the state is of another model than '{self.folder.name}' as it is here: use its own")
        network = state.network
        self.model.check_state(network if isinstance(network, State) else network.clone())
        history = self.features.config.history
        samples = state.features.samples
        if len(state.network) != 1 or len(samples) != 1 or not history <= samples.shape[1] < history + HOP:
            raise StateError("the state is broken: it does not hold the audio of one stream")
        self.search.check_state(state.search, self.hot_words(state.segment_options))
        if state.sample_rate != SAMPLE_RATE:
            if state.resampler is None:
                raise StateError("the state is broken: it lacks the resampler's")
            resampler(state.sample_rate).finish(state.resampler)  # raises StateError for one of other rates

    def transcribe(
        self,
        source: Source,
        sample_rate: int | None = None,
        channel: int | None = None,
        *,
        hotwords: Iterable[HotWordLike] | None = None,
        endpointing: EndpointConfig | Mapping[str, Any] | bool | None = None,
        lm: bool | None = None,
        alternatives: int | None = None,
    ) -> Transcript:
        """A file (path or binary file object) or samples (float, mono, in [-1, 1]; or int16) as a transcript.

        ``sample_rate`` is needed for samples only. The other options are those of :meth:`Stream.configure`. Raises
        AudioError when the audio cannot be read, UsageError or ConfigError for unusable options; of a file that is
        damaged, all that is there becomes text, and ``metadata["warning"]`` of the result says what is wrong with it.
        """
        result = self.transcribe_many(
            [source],
            sample_rate=sample_rate,
            channel=channel,
            hotwords=hotwords,
            endpointing=endpointing,
            lm=lm,
            alternatives=alternatives,
        )[0]
        if isinstance(result, AsrError):
            raise result
        return result

    def transcribe_many(
        self,
        sources: Iterable[Source],
        batch_size: int = 16,
        on_done: Callable[[int, Transcript | AsrError], None] | None = None,
        on_progress: Callable[[int, float], None] | None = None,
        channel: int | None = None,
        sample_rate: int | None = None,
        *,
        hotwords: Iterable[HotWordLike] | None = None,
        endpointing: EndpointConfig | Mapping[str, Any] | bool | None = None,
        lm: bool | None = None,
        alternatives: int | None = None,
    ) -> list[Transcript | AsrError]:
        """Transcribe many sources, up to ``batch_size`` together in one network step; each is read in chunks.

        A source that fails gives its error in the result and the others go on. One that turns out to be damaged keeps
        what could be read of it, and ``Transcript.metadata["warning"]`` says so in a line. ``on_done`` gets (number,
        result) as each ends, ``on_progress`` (number, seconds decoded). The options of :meth:`Stream.configure` hold
        for all sources; UsageError or ConfigError for unusable ones is raised before the first is read.
        """
        options = self.options.change(hotwords, endpointing, lm, alternatives, self.options.endpoint)
        self.hot_words(options)  # raises for unusable ones
        waiting = iter(enumerate(sources))
        running: list[_Job] = []
        results: dict[int, Transcript | AsrError] = {}

        def done(number: int, result: Transcript | AsrError) -> None:
            results[number] = result
            if on_done:
                on_done(number, result)

        while True:
            while len(running) < batch_size and (following := next(waiting, None)) is not None:
                number, source = following
                try:
                    running.append(self._job(number, source, sample_rate, channel, options))
                except AsrError as error:
                    done(number, error)
            if not running:
                return [results[i] for i in sorted(results)]
            fed: list[tuple[_Job, NDArray[np.float32]]] = []
            ended: list[_Job] = []
            for job in list(running):
                try:
                    piece = next(job.chunks, None)
                except AsrError as error:
                    running.remove(job)
                    done(job.number, error)
                    continue
                if piece is None:
                    running.remove(job)
                    ended.append(job)
                else:
                    fed.append((job, piece))
            for (job, _), new in zip(fed, feed_many([(j.stream, p) for j, p in fed]), strict=True):
                job.results.extend(new)
                if on_progress:
                    on_progress(job.number, job.stream.duration)
            for job, last in zip(ended, finish_many([j.stream for j in ended]), strict=True):
                job.results.extend(last)
                done(job.number, job.transcript(self.folder.name))

    def _job(
        self, number: int, source: Source, sample_rate: int | None, channel: int | None, options: StreamOptions
    ) -> _Job:
        if not isinstance(source, np.ndarray):
            damage: list[str] = []
            size = int(CHUNK_S * SAMPLE_RATE)
            chunks = read_media(source, channel=channel, chunk_samples=size, on_damage=damage.append)
            return _Job(number, source, self._stream(SAMPLE_RATE, options), chunks, damage)
        if sample_rate is None:
            raise UsageError("samples need their sample_rate: transcribe(samples, sample_rate=...)")
        stream, samples, size = self._stream(sample_rate, options), as_samples(source), int(CHUNK_S * sample_rate)
        return _Job(number, source, stream, (samples[i : i + size] for i in range(0, len(samples), size)))

    def _stream(self, sample_rate: int, options: StreamOptions) -> Stream:
        """One without partial results."""
        return self.stream(
            sample_rate,
            partials=False,
            hotwords=options.hotwords,
            endpointing=options.endpoint,
            lm=options.lm,
            alternatives=options.alternatives,
        )


@dataclass
class _Job:
    number: int
    source: Source
    stream: Stream
    chunks: Iterator[NDArray[np.float32]]
    damage: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def transcript(self, model: str) -> Transcript:
        segments = tuple(r for r in self.results if isinstance(r, Segment))
        named = isinstance(self.source, (str, PathLike))
        name = str(self.source if named else getattr(self.source, "name", ""))
        warning = {"warning": self.damage[0]} if self.damage else {}
        return Transcript(segments, self.stream.duration, model, name, warning)


class Stream:
    """One session: feed it samples, get results. Made by :meth:`Recognizer.stream`; not for several threads at once."""

    def __init__(self, recognizer: Recognizer, sample_rate: int, partials: bool, state: StreamState | None = None):
        self.recognizer = recognizer
        self.sample_rate = sample_rate
        self.partials = partials
        self._resampler = None if sample_rate == SAMPLE_RATE else resampler(sample_rate)
        self._last_partial = "", ""
        self._seen = -1, -1, -1  # what the last partial was made from: segment, its start, frames of its search
        options = recognizer.options
        self.state = state or StreamState(
            recognizer.folder.fingerprint,
            sample_rate,
            self._resampler.begin() if self._resampler else None,
            recognizer.features.begin(),
            recognizer.model.begin(),
            EndpointState(),
            recognizer.search.begin(),
            options,
            options,
        )
        self._hot = self._segment_hot = recognizer.hot_words(self.state.options)
        if state:
            self._segment_hot = recognizer.hot_words(state.segment_options)
            state.search.hot = self._segment_hot
        self._endpointer = Endpointer(self.state.segment_options.endpoint)

    @property
    def options(self) -> StreamOptions:
        """What holds from the next segment on."""
        return self.state.options

    def configure(
        self,
        hotwords: Iterable[HotWordLike] | None = None,
        endpointing: EndpointConfig | Mapping[str, Any] | bool | None = None,
        lm: bool | None = None,
        alternatives: int | None = None,
    ) -> StreamOptions:
        """Change this session's options from the next segment on (at once, where none is open); those not given stay.

        ``hotwords``: texts, (text, boost) pairs or :class:`HotWord`; they replace the ones before. ``endpointing``: a
        configuration, some of its keys, False for none, or True for the model's own. ``lm``: False leaves the language
        model out. ``alternatives``: other texts that segments come with at most. Returns what now holds. Raises
        UsageError or ConfigError that names everything unusable; then nothing is changed.
        """
        s = self.state
        options = s.options.change(hotwords, endpointing, lm, alternatives, self.recognizer.options.endpoint)
        if options != s.options:
            self._hot, s.options = self.recognizer.hot_words(options), options
            if s.search.steps == 0:
                self._begin_segment()
        return options

    @property
    def duration(self) -> float:
        """Seconds of audio taken in."""
        return self.state.samples_in / self.sample_rate

    def feed(self, samples: NDArray[Any]) -> list[Result]:
        """Take in ``samples`` ((n,) float in [-1, 1] or int16, any n) and return what is new: closed segments, and at
        most one partial. Raises AudioError for NaN or wrong shapes, StateError after :meth:`finish`."""
        return feed_many([(self, samples)])[0]

    def finish(self) -> list[Result]:
        """End of audio: flush the network's look-ahead and close the open segment. No feeding after this."""
        return finish_many([self])[0]

    def flush(self) -> list[Result]:
        """What :meth:`finish` would give now, while the stream goes on as if nothing had happened."""
        return self._ended_copy()[0]

    def cut(self) -> list[Result]:
        """Close the open segment where the audio stands now, with all that was said up to here; the stream goes on.

        What the network still says about the audio before the cut belongs to the segment that was closed.
        """
        s = self.state
        found, copy = self._ended_copy()
        s.muted, s.spoken_ms, s.segment = copy.steps, copy.spoken_ms, copy.segment
        self._last_partial = "", ""
        self._begin_segment()
        return found

    def checkpoint(self) -> StreamState:
        """What :meth:`roll_back` needs to bring the stream back to how it is now. Cheap: what steps replace is shared.
        A network state in a slot stands where it is; taking that back is for :meth:`asr.batching.Slots.undo`."""
        return replace(self.state, search=self.state.search.clone())

    def roll_back(self, before: StreamState) -> None:
        """Undo what happened since a :meth:`checkpoint`, which can be used once."""
        self.state = before
        self._segment_hot = before.search.hot
        self._hot = self.recognizer.hot_words(before.options)
        self._endpointer = Endpointer(before.segment_options.endpoint)
        self._last_partial, self._seen = ("", ""), (-1, -1, -1)

    def _ended_copy(self) -> tuple[list[Result], StreamState]:
        self._check_open()
        copy = Stream(self.recognizer, self.sample_rate, False, self.state.clone())
        return finish_many([copy], "flush")[0], copy.state

    # The parts of a step, so that many streams can share the network's.

    def _check_open(self) -> None:
        if self.state.finished:
            raise StateError("the stream is finished: open a new one")

    def _resampled(self, samples: NDArray[np.float32]) -> Tensor:
        """Take in ``samples``: what they give at the rate that the network hears."""
        s = self.state
        s.samples_in += len(samples)
        if self._resampler and s.resampler:
            samples, s.resampler = self._resampler.step(samples, s.resampler)
        return torch.from_numpy(samples)

    def _take_end(self) -> Tensor:
        """The last log-mel frames of a stream that ends."""
        s = self.state
        rest = self._resampler.finish(s.resampler) if self._resampler and s.resampler else np.zeros(0, np.float32)
        frames = self._features(rest)
        tail, s.features = self.recognizer.features.end(s.features)
        return torch.cat([frames, tail[0]])

    def _features(self, samples: NDArray[np.float32]) -> Tensor:
        s, r = self.state, self.recognizer
        frames, s.features = r.features.step(torch.from_numpy(samples)[None].to(r.device), s.features)
        return frames[0]

    def _begin_segment(self, words: Sequence[str] = ()) -> None:
        """A new search with the options that hold now, after a segment with these ``words``."""
        s, search = self.state, self.recognizer.search
        s.segment_options, self._segment_hot = s.options, self._hot
        self._endpointer = Endpointer(s.options.endpoint)
        options = self._hot, 1.0 if s.options.lm else 0.0, s.options.alternatives > 0
        if isinstance(search, BeamSearch):
            s.search = search.begin(*options, search.said(s.search, words))
        else:
            s.search = search.begin(*options)
        s.endpoint = EndpointState()

    def _next_piece(self, emissions: Emissions) -> tuple[Cut, Emissions]:
        """Where the open segment may end in ``emissions``, and what of them goes to the search before that."""
        s = self.state
        if s.steps < s.muted:
            passed = min(s.muted - s.steps, len(emissions))
            s.steps += passed
            return Cut(passed, passed, None), emissions[:0]
        cut, s.endpoint = self._endpointer.step(emissions, s.endpoint)
        piece = emissions[cut.start : cut.stop]
        if len(piece) and s.search.steps == 0:
            s.segment_start = s.steps + cut.start
        s.steps += cut.stop
        return cut, piece

    def _holds(self, cut: Cut) -> bool:
        """Whether a cut's condition is fulfilled, after the search has heard what lies before it."""
        if cut.when == "always":
            return True
        search, state = self.recognizer.search, self.state.search
        if cut.when == "final":
            return search.looks_final(state)
        return bool(search.end(state).words) == (cut.when == "words")

    def _close(self, reason: str) -> list[Result]:
        s, r = self.state, self.recognizer
        if s.search.steps == 0:
            return []
        options, search, steps = s.segment_options, s.search, s.search.steps
        final = r.search.end_nbest(search, HYPOTHESES if r.confidence else 1)
        best, others = final[0], []
        if options.alternatives:
            others = r.search.alternatives(search, 1 + options.alternatives)[1:]
        rest = steps
        if reason == "max_length":
            best, rest = _without_last_word(best, steps, r.search.stable(search))
            others = []
        given = [best, *(o for o in others if o.text)]
        judged = [Judged()] * len(given)
        if r.confidence:
            judged = r.confidence.judge(search, given[:1], final) + r.confidence.judge(search, given[1:], given)
        words, *more = (self._words(h.words, j) for h, j in zip(given, judged, strict=True))
        alternatives = tuple(
            Alternative(o.text, w, j.whole) for o, w, j in zip(given[1:], more, judged[1:], strict=True)
        )
        start, held = s.segment_start, search.array(len(r.search.vocabulary))
        self._begin_segment([word.text for word in best.words])
        if rest < steps:  # the word under the cut, for the next segment
            s.segment_start = start + rest
            s.search = r.search.step(held[rest - steps :], s.search)
            s.endpoint = EndpointState(steps - rest)
        if not words:
            return []
        segment = Segment(
            best.text, words[0].start, words[-1].end, words, s.segment, judged[0].whole, reason, alternatives
        )
        s.segment += 1
        s.spoken_ms = round(1000 * segment.end)
        self._last_partial = "", ""
        return [segment]

    def _partial(self) -> list[Result]:
        """The open segment so far, if that is news: its stable words, and those after them that are likely enough."""
        s, search = self.state, self.recognizer.search
        seen = s.segment, s.segment_start, s.search.frames
        if seen == self._seen:  # nothing but blanks since
            return []
        self._seen = seen
        found = search.so_far(s.search, SHOWN)
        words = self._words(found.words)[: found.likely]
        texts = [w.text for w in words]
        stable_text, unstable = " ".join(texts[: found.stable]), " ".join(texts[found.stable :])
        if (stable_text, unstable) == self._last_partial:
            return []
        self._last_partial = stable_text, unstable
        if not words:  # what a partial said before is taken back
            now = min(s.steps * STEP_MS / 1000, self.duration)
            return [Partial(s.segment, now, now, "", "")]
        return [Partial(s.segment, words[0].start, words[-1].end, stable_text, unstable)]

    def _words(self, words: Sequence[TimedWord], judged: Judged | None = None) -> tuple[Word, ...]:
        """Words of the open segment on the stream's clock, after those of the segments before it and inside the audio
        that the search has heard."""
        s = self.state
        limit = min((s.segment_start + s.search.steps) * STEP_MS / 1000, self.duration)
        shifts = self.recognizer.folder.config.times
        times = word_times(words, s.segment_start, s.spoken_ms / 1000, limit, shifts)
        confidences = judged.words if judged and judged.words else (None,) * len(words)
        return tuple(Word(w.text, *t, c) for w, t, c in zip(words, times, confidences, strict=True))


def feed_many(pieces: Sequence[tuple[Stream, NDArray[Any]]]) -> list[list[Result]]:
    """Feed several streams of one recogniser in one network step; the results of each, in order.

    Raises as :meth:`Stream.feed` does; then no stream has taken in anything.
    """
    recognizer = _recognizer_of([stream for stream, _ in pieces])
    if recognizer is None:
        return []
    checked = [as_samples(samples) for _, samples in pieces]
    frames = take_many([(s, x) for (s, _), x in zip(pieces, checked, strict=True)])
    rows = [(f, s.state.network) for (s, _), f in zip(pieces, frames, strict=True)]
    advanced = batching.advance(recognizer.model, rows, recognizer.head)
    for (stream, _), (_, network) in zip(pieces, advanced, strict=True):
        stream.state.network = network
    streams = [stream for stream, _ in pieces]
    results = _decode_many(recognizer, streams, [emissions for emissions, _ in advanced])
    for stream, (emissions, _), found in zip(streams, advanced, results, strict=True):
        if stream.partials and len(emissions):
            found.extend(stream._partial())
    return results


def take_many(pieces: Sequence[tuple[Stream, NDArray[np.float32]]]) -> list[Tensor]:
    """Of each stream the log-mel frames that are complete with its samples, (frames, mels)."""
    if not pieces:
        return []
    features = pieces[0][0].recognizer.features
    states = [stream.state.features for stream, _ in pieces]
    frames, states = features.step_many([stream._resampled(x) for stream, x in pieces], states)
    for (stream, _), state in zip(pieces, states, strict=True):
        stream.state.features = state
    return frames


def finish_many(streams: Sequence[Stream], reason: str = "eof") -> list[list[Result]]:
    """Finish several streams of one recogniser together; the last results of each, in order. ``reason``: of the last
    segments' end."""
    recognizer = _recognizer_of(streams)
    if recognizer is None:
        return []
    model, head = recognizer.model, recognizer.head
    advanced = batching.advance(model, [(s._take_end(), s.state.network) for s in streams], head)
    tails = batching.end(model, [network for _, network in advanced], head)
    for stream, (_, network) in zip(streams, advanced, strict=True):
        stream.state.network = network
    last = [torch.cat([emissions, tail]) for (emissions, _), tail in zip(advanced, tails, strict=True)]
    results = _decode_many(recognizer, streams, last)
    for stream, found in zip(streams, results, strict=True):
        found.extend(stream._close(reason))
        stream.state.finished = True
    return results


def _decode_many(recognizer: Recognizer, streams: Sequence[Stream], emissions: Sequence[Tensor]) -> list[list[Result]]:
    """Search on in all streams together, up to the next place where one of them may be cut, and so on."""
    results: list[list[Result]] = [[] for _ in streams]
    waiting = [(i, e.cpu().numpy()) for i, e in enumerate(emissions) if len(e)]
    while waiting:
        cuts = [streams[i]._next_piece(rest) for i, rest in waiting]
        recognizer.search.step_many(
            [(piece, streams[i].state.search) for (i, _), (_, piece) in zip(waiting, cuts, strict=True)]
        )
        for (i, _), (cut, _) in zip(waiting, cuts, strict=True):
            if cut.closes and streams[i]._holds(cut):
                results[i].extend(streams[i]._close(cut.closes))
        following = [(i, rest[cut.stop :]) for (i, rest), (cut, _) in zip(waiting, cuts, strict=True)]
        waiting = [(i, rest) for i, rest in following if len(rest)]
    return results


def _recognizer_of(streams: Sequence[Stream]) -> Recognizer | None:
    """The recogniser that ``streams`` share, after a check that they can take a step together."""
    for stream in streams:
        stream._check_open()
    if len({id(stream.recognizer) for stream in streams}) > 1:
        raise UsageError("streams of different recognisers cannot share a step")
    if len({id(stream) for stream in streams}) < len(streams):
        raise UsageError("a stream can stand in a step once only: join its samples")
    return streams[0].recognizer if streams else None


def _without_last_word(hypothesis: Hypothesis, steps: int, stable: int) -> tuple[Hypothesis, int]:
    """A segment of ``steps`` that is cut in speech: its words but the last, which the cut may have hit, and the step
    at which that one begins. Where the last word is most of the segment, or one of the ``stable`` ones, the cut stays
    where it is: a word is never that long, and a segment must become shorter by being cut."""
    count = len(hypothesis.words)
    if count < 2 or count <= stable or hypothesis.words[-1].first < steps / 2:
        return hypothesis, steps
    return Hypothesis(hypothesis.words[:-1], hypothesis.score), hypothesis.words[-1].first


def _spelling_head(vocabularies: Mapping[str, Vocabulary]) -> str:
    """The head that spells words. Raises UsageError where there is none."""
    for head, vocabulary in vocabularies.items():
        if not isinstance(vocabulary, PhoneVocabulary):
            return head
    raise UsageError("this model has no head of letters: greedy decoding would give phones")


def _check_device(device: str) -> None:
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise UsageError(f"unknown device '{device}': use cpu or cuda")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device '{device}' is not available here: use cpu")


def as_samples(samples: NDArray[Any]) -> NDArray[np.float32]:
    """(n,) float32 in [-1, 1] from floats or int16. Raises AudioError for other shapes or types, NaN and infinity."""
    x = np.asarray(samples)
    if x.ndim != 1:
        raise AudioError(f"samples must be one row of mono audio, got shape {x.shape}: mix the channels down first")
    if x.dtype == np.int16:
        return np.asarray(x, dtype=np.float32) / np.float32(32768)
    if not np.issubdtype(x.dtype, np.floating):
        raise AudioError(f"samples must be float in [-1, 1] or int16, got {x.dtype}")
    floats = x.astype(np.float32)
    if not np.isfinite(floats).all():
        raise AudioError("the samples hold NaN or infinity: check what produced them")
    return floats
