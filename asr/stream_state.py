"""The whole state of a stream as one value that can be copied, measured, turned into bytes and checked."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asr.audio import ResamplerState
from asr.batching import AnyState
from asr.decoding.endpoint import EndpointState
from asr.decoding.search_state import SearchState
from asr.errors import AsrError, StateError
from asr.features import FeatureState
from asr.model import State
from asr.options import StreamOptions

_MAGIC = b"asr-stream-4\n"
_LENGTH = struct.Struct("<I")
_COUNTERS = ("sample_rate", "samples_in", "steps", "segment", "segment_start", "spoken_ms", "muted")


@dataclass
class StreamState:
    """Everything a session remembers; :meth:`to_bytes` moves it to another process or machine.

    ``model``: fingerprint of the weights it belongs to. ``sample_rate``, ``samples_in``: of the client's audio.
    ``options``: the session's, from the next segment on; ``segment_options``: those of the open one. ``steps``:
    emissions so far. ``segment_start``: step at which the open segment began. ``spoken_ms``: where the last word of
    the segments before it ends. ``muted``: steps before this one belong to a segment that was cut.
    """

    model: str
    sample_rate: int
    resampler: ResamplerState | None
    features: FeatureState
    network: AnyState
    endpoint: EndpointState
    search: SearchState
    options: StreamOptions
    segment_options: StreamOptions
    samples_in: int = 0
    steps: int = 0
    segment: int = 0
    segment_start: int = 0
    spoken_ms: int = 0
    muted: int = 0
    finished: bool = False

    def clone(self) -> StreamState:
        """A copy that shares nothing that changes."""
        return StreamState(
            self.model,
            self.sample_rate,
            self.resampler,
            self.features.clone(),
            self.network.clone(),
            self.endpoint,
            self.search.clone(),
            self.options,
            self.segment_options,
            self.samples_in,
            self.steps,
            self.segment,
            self.segment_start,
            self.spoken_ms,
            self.muted,
            self.finished,
        )

    def to(self, device: str | torch.device) -> StreamState:
        """The state with its tensors on another device."""
        copy = self.clone()
        copy.features, copy.network = FeatureState(self.features.samples.to(device)), self.network.to(device)
        return copy

    @property
    def nbytes(self) -> int:
        """Size in bytes of what is held."""
        resampling = self.resampler.nbytes if self.resampler else 0
        return resampling + self.features.nbytes + self.network.nbytes + self.search.nbytes

    def to_bytes(self) -> bytes:
        """Serialise; :meth:`from_bytes` is the inverse."""
        meta: dict[str, Any] = {name: int(getattr(self, name)) for name in _COUNTERS}
        meta |= {
            "model": self.model,
            "finished": self.finished,
            "endpoint": [self.endpoint.age, self.endpoint.quiet],
            "options": self.options.to_dict(),
            "segment_options": self.segment_options.to_dict(),
        }
        parts = [
            json.dumps(meta).encode(),
            self.resampler.to_bytes() if self.resampler else b"",
            self.features.samples.cpu().numpy().astype("<f4").tobytes(),
            self.network.to_bytes(),
            self.search.to_bytes(),
        ]
        return _MAGIC + b"".join(_LENGTH.pack(len(p)) + p for p in parts)

    @staticmethod
    def from_bytes(data: bytes) -> StreamState:
        """Read what :meth:`to_bytes` wrote. Raises StateError for anything else.

        Whether the state fits a recogniser is for :meth:`asr.recognizer.Recognizer.stream` to say.
        """
        try:
            head, resampler, features, network, search = _split(data)
            meta = json.loads(head)
            age, quiet = (_count(n) for n in meta["endpoint"])
            return StreamState(
                str(meta["model"]),
                _count(meta["sample_rate"]),
                ResamplerState.from_bytes(resampler) if resampler else None,
                FeatureState(torch.from_numpy(_floats(features))[None]),
                State.from_bytes(network),
                EndpointState(age, quiet),
                SearchState.from_bytes(search),
                StreamOptions.from_dict(meta["options"]),
                StreamOptions.from_dict(meta["segment_options"]),
                _count(meta["samples_in"]),
                _count(meta["steps"]),
                _count(meta["segment"]),
                _count(meta["segment_start"]),
                _count(meta["spoken_ms"]),
                _count(meta["muted"]),
                meta["finished"] is True,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, AsrError) as error:
            raise StateError(f"not a serialised stream ({' '.join(str(error).split())})") from None


def _split(data: bytes) -> list[bytes]:
    if not data.startswith(_MAGIC):
        raise ValueError("it begins with something else")
    parts, at = [], len(_MAGIC)
    while at < len(data):
        body = at + _LENGTH.size
        if body > len(data):
            raise ValueError("it is cut short")
        at = body + _LENGTH.unpack_from(data, at)[0]
        if at > len(data):
            raise ValueError("it is cut short")
        parts.append(data[body:at])
    return parts


def _floats(data: bytes) -> NDArray[np.float32]:
    values = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    return values


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value
