"""The recogniser: :class:`Recognizer` is immutable and shared, :class:`Stream` is one session's whole state.

Offline is the same path: a file is a stream that is fed in long chunks, and many files advance in one network step.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr import batching
from asr.audio import ResamplerState, read_media, resampler
from asr.checkpoint import ModelFolder, find_model
from asr.decoding.endpoint import EndpointConfig, Endpointer, EndpointState
from asr.decoding.lexicon_search import Hypothesis, LexiconSearch, SearchState
from asr.decoding.search_config import SearchConfig
from asr.errors import AsrError, AudioError, StateError, UsageError
from asr.features import SAMPLE_RATE, FeatureState, LogMel
from asr.model import STEP_MS, AcousticModel, State
from asr.results import Partial, Result, Segment, Transcript, Word

Source = str | PathLike[str] | IO[bytes] | NDArray[Any]
CHUNK_S = 2.0  # of a file per network step: bounds memory, long enough that the cost of a step is spread
_LENGTH = struct.Struct("<I")


@dataclass
class StreamState:
    """Everything a session remembers; :meth:`to_bytes` moves it to another process or machine."""

    resampler: ResamplerState | None
    features: FeatureState
    network: State
    endpoint: EndpointState
    search: SearchState
    samples_in: int = 0  # of the client's own rate
    steps: int = 0  # emissions so far
    segment: int = 0
    segment_start: int = 0  # step at which the open segment began
    finished: bool = False

    def clone(self) -> StreamState:
        """A copy that shares nothing that changes."""
        return StreamState(
            self.resampler,
            FeatureState(self.features.samples.clone()),
            self.network.clone(),
            EndpointState(self.endpoint.age, self.endpoint.quiet),
            self.search.clone(),
            self.samples_in,
            self.steps,
            self.segment,
            self.segment_start,
            self.finished,
        )

    @property
    def nbytes(self) -> int:
        """Size in bytes (of what is serialised)."""
        held = sum(e.nbytes for e in self.search.emissions)
        resampling = self.resampler.nbytes if self.resampler else 0
        return resampling + self.features.nbytes + self.network.nbytes + held

    def to_bytes(self) -> bytes:
        """Serialise; :meth:`from_bytes` is the inverse."""
        held = np.concatenate(self.search.emissions) if self.search.emissions else np.zeros((0, 1), np.float32)
        meta = {
            "endpoint": [self.endpoint.age, self.endpoint.quiet],
            "samples_in": self.samples_in,
            "steps": self.steps,
            "segment": self.segment,
            "segment_start": self.segment_start,
            "finished": self.finished,
            "emissions": held.shape,
            "resampler": self.resampler is not None,
        }
        parts = [
            json.dumps(meta).encode(),
            self.resampler.to_bytes() if self.resampler else b"",
            self.features.samples.numpy().tobytes(),
            self.network.to_bytes(),
            held.tobytes(),
        ]
        return b"".join(_LENGTH.pack(len(p)) + p for p in parts)

    @staticmethod
    def from_bytes(data: bytes) -> StreamState:
        """Read what :meth:`to_bytes` wrote. Raises StateError for anything else."""
        try:
            file = io.BytesIO(data)
            parts = [file.read(_LENGTH.unpack(file.read(_LENGTH.size))[0]) for _ in range(5)]
            meta = json.loads(parts[0])
            held = np.frombuffer(parts[4], np.float32).reshape(meta["emissions"])
            features = torch.frombuffer(bytearray(parts[2]), dtype=torch.float32)[None]
            return StreamState(
                ResamplerState.from_bytes(parts[1]) if meta["resampler"] else None,
                FeatureState(features),
                State.from_bytes(parts[3]),
                EndpointState(*meta["endpoint"]),
                SearchState([held] if len(held) else [], len(held)),
                meta["samples_in"],
                meta["steps"],
                meta["segment"],
                meta["segment_start"],
                meta["finished"],
            )
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise StateError(f"not a serialised stream ({error})") from None


class Recognizer:
    """A model ready to recognise. Immutable after loading; any number of streams share it."""

    def __init__(
        self,
        folder: ModelFolder,
        device: str = "cpu",
        search: SearchConfig | None = None,
        endpoint: EndpointConfig | None = None,
    ) -> None:
        self.folder = folder
        self.device = torch.device(device)
        self.model: AcousticModel = folder.load_network(device)
        self.features = LogMel(folder.config.features, device)
        self.head = folder.config.head
        self.vocabularies = folder.load_vocabularies()
        config = search or folder.config.search
        self.search = LexiconSearch(
            self.vocabularies[self.head],
            folder.load_lexicon(),
            folder.language_model,
            config,
            folder.load_log_priors(self.head),
        )
        self.endpointer = Endpointer(endpoint or folder.config.endpoint)

    @classmethod
    def load(
        cls,
        model: str | PathLike[str] = "en",
        device: str = "cpu",
        threads: int | None = None,
        search: SearchConfig | None = None,
        endpoint: EndpointConfig | None = None,
    ) -> Recognizer:
        """Load a shipped model by name or any model folder by path.

        ``threads``: of this process's torch operations (None leaves torch's default). Raises ModelError when the
        folder lacks a file or a file is corrupt, UsageError for an unknown device.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            torch.device(device)
            if device.startswith("cuda") and not torch.cuda.is_available():
                raise UsageError(f"device '{device}' is not available here: use --device cpu")
        except RuntimeError:
            raise UsageError(f"unknown device '{device}': use cpu or cuda") from None
        return cls(find_model(model), device, search, endpoint)

    @property
    def sample_rate(self) -> int:
        """The rate in Hz that the network hears; streams of other rates are resampled."""
        return SAMPLE_RATE

    @property
    def algorithmic_latency_ms(self) -> int:
        """Longest wait, in ms of audio, from a sample to the output that contains it."""
        return self.model.config.algorithmic_latency_ms

    def stream(self, sample_rate: int = SAMPLE_RATE, partials: bool = True, state: StreamState | None = None) -> Stream:
        """A new session, or one that goes on from ``state``. Raises AudioError for a rate outside 8 to 48 kHz."""
        return Stream(self, sample_rate, partials, state)

    def transcribe(self, source: Source, sample_rate: int | None = None, channel: int | None = None) -> Transcript:
        """A file (path or binary file object) or samples (float, mono, in [-1, 1]; or int16) as a transcript.

        ``sample_rate`` is needed for samples only. Raises AudioError when the audio cannot be read.
        """
        result = self.transcribe_many([source], sample_rate=sample_rate, channel=channel)[0]
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
    ) -> list[Transcript | AsrError]:
        """Transcribe many sources, up to ``batch_size`` together in one network step; each is read in chunks.

        A source that fails gives its error in the result and the others go on. ``on_done`` gets (number, result) as
        each ends, ``on_progress`` (number, seconds decoded).
        """
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
                stream = self.stream(partials=False)
                running.append(_Job(number, source, stream, self._chunks(source, sample_rate, channel)))
            if not running:
                return [results[i] for i in sorted(results)]
            pieces = []
            for job in list(running):
                try:
                    piece = next(job.chunks, None)
                    if piece is None:
                        job.results.extend(job.stream.finish())
                        done(job.number, job.transcript(str(self.folder.name)))
                        running.remove(job)
                    else:
                        pieces.append((job, piece))
                except AsrError as error:
                    done(job.number, error)
                    running.remove(job)
            for (job, _), new in zip(pieces, feed_many([(j.stream, p) for j, p in pieces]), strict=True):
                job.results.extend(new)
                if on_progress:
                    on_progress(job.number, job.stream.duration)

    def _chunks(self, source: Source, sample_rate: int | None, channel: int | None) -> Iterator[NDArray[np.float32]]:
        size = int(CHUNK_S * SAMPLE_RATE)
        if isinstance(source, np.ndarray):
            if sample_rate is None:
                raise UsageError("samples need their sample_rate: transcribe(samples, sample_rate=...)")
            samples = as_samples(source)
            if sample_rate != SAMPLE_RATE:
                converter = resampler(sample_rate)
                head, state = converter.step(samples, converter.begin())
                samples = np.concatenate([head, converter.finish(state)])
            yield from (samples[i : i + size] for i in range(0, len(samples), size))
        else:
            damage: list[str] = []
            yield from read_media(source, channel=channel, chunk_samples=size, on_damage=damage.append)
            if damage:
                raise AudioError(damage[0])


@dataclass
class _Job:
    number: int
    source: Source
    stream: Stream
    chunks: Iterator[NDArray[np.float32]]
    results: list[Result] = field(default_factory=list)

    def transcript(self, model: str) -> Transcript:
        segments = tuple(r for r in self.results if isinstance(r, Segment))
        name = "" if isinstance(self.source, np.ndarray) else str(getattr(self.source, "name", self.source))
        return Transcript(segments, self.stream.duration, model, name)


class Stream:
    """One session: feed it samples, get results. Not for use by several threads at once."""

    def __init__(
        self,
        recognizer: Recognizer,
        sample_rate: int = SAMPLE_RATE,
        partials: bool = True,
        state: StreamState | None = None,
    ) -> None:
        self.recognizer = recognizer
        self.sample_rate = sample_rate
        self.partials = partials
        self._resampler = None if sample_rate == SAMPLE_RATE else resampler(sample_rate)
        self._last_partial = ""
        self.state = state or StreamState(
            self._resampler.begin() if self._resampler else None,
            recognizer.features.begin(),
            recognizer.model.begin(),
            recognizer.endpointer.begin(),
            recognizer.search.begin(),
        )

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
        s = self.state
        if s.finished:
            raise StateError("the stream is finished: open a new one")
        r = self.recognizer
        if self._resampler and s.resampler:
            frames = self._features(self._resampler.finish(s.resampler))
        else:
            frames = self._features(np.zeros(0, np.float32))
        tail, s.features = r.features.end(s.features)
        ((emissions, s.network),) = batching.advance(r.model, [(torch.cat([frames, tail[0]]), s.network)], r.head)
        results = self._decode(torch.cat([emissions, batching.end(r.model, s.network, r.head)]))
        results.extend(self._close("eof"))
        s.finished = True
        return [result for result in results if isinstance(result, Segment)]

    def flush(self) -> list[Result]:
        """What :meth:`finish` would give now, while the stream goes on as if nothing had happened."""
        copy = Stream(self.recognizer, self.sample_rate, False, self.state.clone())
        return copy.finish()

    # The parts of a step, so that many streams can share the network's.

    def _prepare(self, samples: NDArray[Any]) -> Tensor:
        s = self.state
        if s.finished:
            raise StateError("the stream is finished: open a new one")
        x = as_samples(samples)
        s.samples_in += len(x)
        if self._resampler and s.resampler:
            x, s.resampler = self._resampler.step(x, s.resampler)
        return self._features(x)

    def _features(self, samples: NDArray[np.float32]) -> Tensor:
        frames, self.state.features = self.recognizer.features.step(
            torch.from_numpy(np.ascontiguousarray(samples))[None].to(self.recognizer.device), self.state.features
        )
        return frames[0]

    def _accept(self, emissions: Tensor) -> list[Result]:
        results = self._decode(emissions)
        if self.partials and self.state.search.steps:
            partial = self._partial()
            if partial.text and partial.text != self._last_partial:
                self._last_partial = partial.text
                results.append(partial)
        return results

    def _decode(self, emissions: Tensor) -> list[Result]:
        s, r = self.state, self.recognizer
        results: list[Result] = []
        array = emissions.cpu().numpy()
        cuts, s.endpoint = r.endpointer.step(array, s.endpoint)
        for cut in cuts:
            if s.search.steps == 0:
                s.segment_start = s.steps + cut.start
            s.search = r.search.step(array[cut.start : cut.stop], s.search)
            if cut.closes:
                results.extend(self._close(cut.closes))
        s.steps += len(array)
        return results

    def _close(self, reason: str) -> list[Result]:
        s, r = self.state, self.recognizer
        if s.search.steps == 0:
            return []
        hypothesis = r.search.end(s.search)
        s.search = r.search.begin()
        self._last_partial = ""
        if not hypothesis.words:
            return []
        words = self._words(hypothesis)
        segment = Segment(hypothesis.text, words[0].start, words[-1].end, words, s.segment, reason=reason)
        s.segment += 1
        return [segment]

    def _partial(self) -> Partial:
        s = self.state
        words = self._words(self.recognizer.search.best(s.search))
        if not words:
            return Partial(s.segment, 0.0, 0.0, "", "")
        return Partial(s.segment, words[0].start, words[-1].end, "", " ".join(w.text for w in words))

    def _words(self, hypothesis: Hypothesis) -> tuple[Word, ...]:
        """Words on the stream's clock, in order and inside the audio; a step stands for its 40 ms."""
        first, limit = self.state.segment_start, self.duration
        words: list[Word] = []
        earliest = 0.0
        for w in hypothesis.words:
            start = min(max((first + w.first) * STEP_MS / 1000, earliest), limit)
            end = min(max((first + w.last + 1) * STEP_MS / 1000, start), limit)
            words.append(Word(w.text, round(start, 3), round(end, 3)))
            earliest = end
        return tuple(words)


def feed_many(pieces: list[tuple[Stream, NDArray[Any]]]) -> list[list[Result]]:
    """Feed several streams of one recogniser in one network step; the results of each, in order."""
    if not pieces:
        return []
    recognizer = pieces[0][0].recognizer
    if any(stream.recognizer is not recognizer for stream, _ in pieces):
        raise UsageError("streams of different recognisers cannot share a step")
    rows = [(stream._prepare(samples), stream.state.network) for stream, samples in pieces]
    advanced = batching.advance(recognizer.model, rows, recognizer.head)
    results = []
    for (stream, _), (emissions, state) in zip(pieces, advanced, strict=True):
        stream.state.network = state
        results.append(stream._accept(emissions))
    return results


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
