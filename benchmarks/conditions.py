"""The conditions of `robustness.py`: how the audio of an utterance is changed, and what is heard beside it."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import degrade
import numpy as np

from asr.errors import UsageError
from asr.training.evaluate import load_utterances
from asr.training.manifest import Utterance
from asr.training.perturb import Samples, reverberate, simulate_room

VOICES = 6  # of a babble
Rng = np.random.Generator


@dataclass(frozen=True)
class Condition:
    """A change of the audio. ``draw``: conditions with the same one use the same random numbers for an utterance."""

    name: str
    what: str
    change: Callable[[Samples, Utterance, Rng, Surroundings], Samples]
    draw: str = ""


class Surroundings:
    """The audio of the tables, and what may be heard beside an utterance. Read when it is first needed, and kept."""

    def __init__(self, tables: dict[str, list[Utterance]], noise: Path | None) -> None:
        """``tables``: all utterances, of which those of other speakers babble. ``noise``: a table of sounds."""
        self.tables, self.noise = tables, noise
        self._audio: dict[Utterance, Samples] = {}

    def audio(self, utterances: Sequence[Utterance]) -> list[Samples]:
        """The samples of some utterances."""
        missing = [u for u in utterances if u not in self._audio]
        self._audio.update(zip(missing, load_utterances(missing), strict=True))
        return [self._audio[u] for u in utterances]

    @cached_property
    def sounds(self) -> list[Samples]:
        """The held-out tenth of the sounds."""
        if self.noise is None:
            raise UsageError("conditions with noise need --noise, a table of sounds: give it, or name others")
        return degrade.held_out_sounds(self.noise)

    @cached_property
    def voices(self) -> dict[str, list[Samples]]:
        """The utterances of every speaker; one whose speaker is not known stands for a speaker of its own."""
        found: dict[str, list[Samples]] = defaultdict(list)
        for utterances in self.tables.values():
            for utterance, samples in zip(utterances, self.audio(utterances), strict=True):
                found[voice_of(utterance)].append(samples)
        return found

    def others(self, utterance: Utterance, rng: Rng) -> list[list[Samples]]:
        """The utterances of some other speakers."""
        names = sorted(set(self.voices) - {voice_of(utterance)})
        if len(names) < VOICES:
            raise UsageError(f"babble needs {VOICES} other speakers, the tables have {len(names)}: give more --data")
        return [self.voices[names[i]] for i in rng.choice(len(names), VOICES, replace=False)]


def voice_of(utterance: Utterance) -> str:
    """Who speaks, or the utterance's own name where that is not known."""
    return speaker_of(utterance) or f"of {utterance.corpus}: {utterance.id}"


def speaker_of(utterance: Utterance) -> str:
    """The speaker, "" where not known."""
    return "" if utterance.speaker == "unknown" else utterance.speaker


def _noise(decibels: float) -> Condition:
    def change(samples: Samples, utterance: Utterance, rng: Rng, around: Surroundings) -> Samples:
        return degrade.mix(samples, degrade.any_piece(around.sounds, len(samples), rng), decibels)

    return Condition(f"noise-{decibels:g}", f"a held-out sound, speech {decibels:g} dB above it", change, "noise")


def _babble(decibels: float) -> Condition:
    def change(samples: Samples, utterance: Utterance, rng: Rng, around: Surroundings) -> Samples:
        return degrade.mix(samples, degrade.babble(around.others(utterance, rng), len(samples), rng), decibels)

    return Condition(
        f"babble-{decibels:g}", f"{VOICES} other speakers, speech {decibels:g} dB above them", change, "babble"
    )


def _plain(name: str, what: str, change: Callable[[Samples], Samples]) -> Condition:
    return Condition(name, what, lambda samples, utterance, rng, around: change(samples))


CLEAN = _plain("clean", "as recorded", lambda samples: samples)
SNR_DB = (20, 10, 5)
CONDITIONS = {
    c.name: c
    for c in (
        CLEAN,
        *(_noise(db) for db in SNR_DB),
        *(_babble(db) for db in SNR_DB),
        Condition("room", "a simulated room", lambda x, u, rng, a: reverberate(x, simulate_room(rng)), "room"),
        _plain("8khz", "8 kHz", degrade.narrow),
        _plain("mulaw", "8 kHz in mu-law", degrade.telephone),
        _plain("opus-8", "Opus at 8 kbit/s", lambda x: degrade.opus(x, 8000)),
        _plain("soft", "30 dB softer, then 16 bits", lambda x: degrade.gain(x, -30)),
        _plain("clipped", "a tenth of the samples of speech cut off", lambda x: degrade.clip(x, 0.1)),
        _plain("slow", "tempo 0.8 at the same pitch", lambda x: degrade.change_tempo(x, 0.8)),
        _plain("fast", "tempo 1.2 at the same pitch", lambda x: degrade.change_tempo(x, 1.2)),
    )
}


def changed(
    condition: Condition, utterances: Sequence[Utterance], audio: Sequence[Samples], around: Surroundings, seed: int
) -> list[Samples]:
    """The audio under a condition."""
    rngs = [np.random.default_rng([seed, zlib.crc32(f"{condition.draw}/{u.id}".encode())]) for u in utterances]
    return [condition.change(x, u, rng, around) for x, u, rng in zip(audio, utterances, rngs, strict=True)]
