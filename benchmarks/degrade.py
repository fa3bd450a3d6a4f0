"""Changes of recorded speech for `benchmarks/robustness.py`: noise, voices, rooms, narrow bands, codecs, level, tempo.

Pure functions. ``samples``: (n,) float32 mono at 16 kHz in [-1, 1], n > 0; the result is the same, as long where not
said otherwise. What is random takes a generator.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.audio import decode, encode, load_audio, resampler
from asr.audio.resample import Resampler
from asr.errors import ManifestError, UsageError
from asr.model_config import SAMPLE_RATE
from asr.training.manifest import read_table
from asr.training.perturb import Samples
from asr.training.run import read_sounds

NARROW_RATE = 8000  # Hz
FRAME = SAMPLE_RATE // 100  # of the speech detector: 10 ms
RANGE_DB = 35.0  # speech is at most so far below the loud frames
FLOOR_SHARE = 0.4  # and lies at least so far from the quiet frames towards the loud ones
JOINED_S = 0.3  # shorter gaps are part of the speech
SILENT = 1e-4  # a level below -80 dB of full scale is no sound to mix
WINDOW, REACH = SAMPLE_RATE // 25, SAMPLE_RATE // 100  # of the change of tempo: 40 ms, and 10 ms to each side


# --- where speech is ------------------------------------------------------------------------------------------------


def speech_frames(samples: Samples) -> NDArray[np.bool_]:
    """Which frames of 10 ms hold speech, by level: (n // 160,).

    Loud is the 95th percentile of the levels in dB, quiet the 10th. A frame is speech when it is within ``RANGE_DB`` of
    loud and above quiet by ``FLOOR_SHARE`` of the way. Made for recordings that are mostly speech.
    """
    count = len(samples) // FRAME
    power = np.square(samples[: count * FRAME], dtype=np.float64).reshape(count, FRAME).mean(axis=1)
    if not count or power.max() < SILENT**2:
        return np.zeros(count, np.bool_)
    level = 10 * np.log10(np.maximum(power, 1e-10))
    quiet, loud = np.percentile(level, [10, 95])
    return np.asarray(level >= max(quiet + FLOOR_SHARE * (loud - quiet), loud - RANGE_DB))


def speech_level(samples: Samples) -> float:
    """Root mean square over the speech frames; 0 where there are none."""
    there = speech_frames(samples)
    frames = samples[: len(there) * FRAME].reshape(-1, FRAME)[there]
    return level(frames)


def speech_seconds(samples: Samples) -> float:
    """How long is spoken: the speech frames and the gaps of less than ``JOINED_S`` between them."""
    at = np.flatnonzero(speech_frames(samples))
    gaps = np.diff(at)
    longest = round(JOINED_S * SAMPLE_RATE / FRAME)
    return float((len(at) > 0) + gaps[gaps <= longest].sum() + (gaps > longest).sum()) * FRAME / SAMPLE_RATE


def level(samples: Samples) -> float:
    """Root mean square; 0 of nothing."""
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean())) if samples.size else 0.0


# --- sounds beside it -----------------------------------------------------------------------------------------------


def held_out_sounds(table: Path) -> list[Samples]:
    """The sounds of a noise table that training leaves out: those :func:`asr.training.run.read_sounds` does not give.

    Raises ManifestError for a broken table.
    """
    trained = {(s.audio, s.start_s) for s in read_sounds(table)}
    rows = [row for _, row in read_table(table, ("audio", "start_s", "duration_s"))]
    places = [(table.parent / row["audio"], float(row["start_s"]), float(row["duration_s"])) for row in rows]
    sounds = [load_audio(a, start_s=s, duration_s=d) for a, s, d in places if (a, s) not in trained]
    sounds = [s for s in sounds if level(s) > SILENT]
    if not sounds:
        raise ManifestError(f"{table}: no held-out sounds: the table needs more than one row")
    return sounds


def piece(sound: Samples, length: int, rng: np.random.Generator) -> Samples:
    """(length,) of ``sound``, from anywhere in it, again from its beginning after its end."""
    return np.roll(np.resize(sound, max(length, len(sound))), -int(rng.integers(len(sound))))[:length]


def any_piece(sounds: Sequence[Samples], length: int, rng: np.random.Generator) -> Samples:
    """(length,) of one of ``sounds`` that is not silent there. Each holds sound somewhere."""
    while True:
        found = piece(sounds[int(rng.integers(len(sounds)))], length, rng)
        if level(found) > SILENT:
            return found


def babble(voices: Sequence[Sequence[Samples]], length: int, rng: np.random.Generator) -> Samples:
    """(length,) of several people, all equally loud. ``voices``: the recordings of each, in any order."""
    mixed = np.zeros(length, np.float64)
    for recordings in voices:
        order = rng.permutation(len(recordings))
        said, parts = 0, []
        for i in order:  # as many as it takes
            one = recordings[int(i)]
            parts.append(one / max(speech_level(one), SILENT))
            said += len(one)
            if said >= length:
                break
        mixed += piece(np.concatenate(parts), length, rng)
    return mixed.astype(np.float32)


def mix(samples: Samples, sound: Samples, snr_db: float) -> Samples:
    """``samples`` with ``sound`` beside them: the level of the speech frames is ``snr_db`` above that of the sound,
    over its whole length. Where the sum would exceed full scale all of it is softer."""
    loudness = speech_level(samples)
    if loudness == 0 or level(sound) == 0:
        return samples
    gain = loudness / level(sound) * 10 ** (-snr_db / 20)
    both = samples + np.float32(gain) * sound
    return (both / max(1.0, float(np.abs(both).max()))).astype(np.float32)


# --- the way it was recorded ----------------------------------------------------------------------------------------


def narrow(samples: Samples) -> Samples:
    """At 8 kHz and back to 16 kHz by the resampler of the streams, as a stream of 8 kHz is heard."""
    return _resample(_resample(samples, SAMPLE_RATE, NARROW_RATE), NARROW_RATE, SAMPLE_RATE)[: len(samples)]


def telephone(samples: Samples) -> Samples:
    """At 8 kHz in 8 bits of mu-law (ITU-T G.711), and back to 16 kHz."""
    wire = encode(np.clip(_resample(samples, SAMPLE_RATE, NARROW_RATE), -1, 1), "mulaw")
    return _resample(decode(wire, "mulaw"), NARROW_RATE, SAMPLE_RATE)[: len(samples)]


def _resample(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    one: Resampler = resampler(from_hz, to_hz)
    out, state = one.step(samples, one.begin())
    return np.concatenate([out, one.finish(state)]).astype(np.float32)


def opus(samples: Samples, bits_per_second: int) -> Samples:
    """Through Opus (RFC 6716), its mode for speech, at this bit rate. Raises UsageError where PyAV cannot encode it."""
    import av

    file = io.BytesIO()
    try:
        with av.open(file, "w", format="ogg") as out:
            stream = out.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options={"application": "voip"})
            stream.bit_rate = bits_per_second
            frame = av.AudioFrame.from_ndarray(quantise(samples)[None], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            for packet in (*stream.encode(frame), *stream.encode(None)):
                out.mux(packet)
    except (av.error.FFmpegError, ValueError) as error:
        raise UsageError(f"PyAV cannot encode Opus here ({error}): leave that condition out") from None
    file.seek(0)
    heard = load_audio(file)[: len(samples)]
    return np.pad(heard, (0, len(samples) - len(heard)))


def quantise(samples: Samples) -> NDArray[np.int16]:
    """16-bit samples; what is louder than full scale is cut off."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def gain(samples: Samples, decibels: float) -> Samples:
    """Louder or softer, then 16 bits: soft speech loses bits, loud speech is clipped at full scale."""
    return (quantise(samples * np.float32(10 ** (decibels / 20))) / np.float32(32768)).astype(np.float32)


def clip(samples: Samples, share: float) -> Samples:
    """As recorded with a gain at which this share of the samples of the speech frames is cut off at full scale."""
    there = speech_frames(samples)
    loudness = np.abs(samples[: len(there) * FRAME].reshape(-1, FRAME)[there])
    limit = float(np.quantile(loudness, 1 - share)) if loudness.size else 0.0
    return gain(samples, -20 * np.log10(limit)) if limit else samples


# --- tempo ----------------------------------------------------------------------------------------------------------


def change_tempo(samples: Samples, factor: float) -> Samples:
    """Speak ``factor`` times as fast at the same pitch: (round(n / factor),).

    WSOLA (Verhelst & Roelands, "An overlap-add technique based on waveform similarity", ICASSP 1993): Hann windows of
    40 ms that overlap by half; each is taken from up to 10 ms around its place, where it goes on best (by normalised
    cross-correlation) from what the window before would have been followed by.
    """
    hop, length = WINDOW // 2, round(len(samples) / factor)
    count = -(-length // hop) + 1
    x = np.pad(samples.astype(np.float64), (hop + REACH, 3 * WINDOW + REACH + round(hop * factor)))
    energy = np.concatenate([[0.0], np.cumsum(x * x)])
    shape = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    out = np.zeros((count + 1) * hop)
    at = REACH  # in x; the first window begins half a window before the samples
    for k in range(count):
        if k:
            at = _continuation(x, energy, at + hop, min(REACH + round(k * hop * factor), len(x) - WINDOW - REACH))
        out[k * hop : k * hop + WINDOW] += shape * x[at : at + WINDOW]
    return out[hop : hop + length].astype(np.float32)


def _continuation(x: NDArray[np.float64], energy: NDArray[np.float64], after: int, place: int) -> int:
    """Where, around ``place``, a window is most like the one at ``after``."""
    first, last = max(0, place - REACH), place + REACH
    likeness = np.correlate(x[first : last + WINDOW], x[after : after + WINDOW], "valid")
    power = energy[first + WINDOW : last + WINDOW + 1] - energy[first : last + 1]
    return first + int(np.argmax(likeness / np.sqrt(np.maximum(power, 1e-9))))
