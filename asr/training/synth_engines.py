"""Speech engines that Debian packages, behind one interface: text in, samples out.

Each engine is a program that is run for a sentence, or for some at once where its start is slow. None is needed by
anything but ``asr synth``; a missing one is an error of one line that names the package to install.
"""

from __future__ import annotations

import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asr.audio import load_audio
from asr.errors import AsrError, AudioError, UsageError
from asr.lexicon import PHONES, Pronunciation
from asr.training.perturb import Samples

_TIMEOUT_S = 60.0  # for one sentence; engines take a tenth of a second


@dataclass(frozen=True)
class Voice:
    """A voice of an engine. ``package``: Debian's, that has it; ``licence``: what its speech comes under.

    ``pitch_hz``: its usual pitch where the engine can set another one, else 0. ``default``: taken when no voices are
    named, as it is understood well enough (docs/synthetic.md has the measurement).
    """

    engine: str
    name: str
    package: str
    licence: str
    pitch_hz: float = 0.0
    default: bool = True

    @property
    def id(self) -> str:
        """``engine:name``, as the command line has it."""
        return f"{self.engine}:{self.name}"

    @property
    def corpus(self) -> str:
        """Its name in tables."""
        return f"synth-{self.engine}-{self.name}"


@dataclass(frozen=True)
class Request:
    """A sentence to speak: ``rate`` and ``pitch`` are factors on the voice's own (1.0)."""

    text: str
    rate: float = 1.0
    pitch: float = 1.0


@dataclass(frozen=True)
class Speech:
    """What an engine said: (n,) float32 mono at 16 kHz, and the phones where the engine tells them."""

    samples: Samples
    phones: Pronunciation | None = None


class Engine(ABC):
    """A program that speaks. ``batch``: sentences that are given to it at once."""

    name: str
    program: str
    voices: tuple[Voice, ...]
    batch = 1

    @property
    def installed(self) -> bool:
        """Whether the program is on this machine."""
        return shutil.which(self.program) is not None

    def has(self, voice: Voice) -> bool:
        """Whether ``voice`` can be used on this machine."""
        return self.installed

    def speak(self, voice: Voice, requests: Sequence[Request], folder: Path) -> list[Speech | None]:
        """What ``voice`` makes of each request, None where it failed; ``folder`` is for files in between."""
        files = [folder / f"{i}.wav" for i in range(len(requests))]
        for file in files:
            file.unlink(missing_ok=True)
        said = self._speak(voice, requests, files)
        return [_read(file, text) for file, text in zip(files, said, strict=True)]

    @abstractmethod
    def _speak(self, voice: Voice, requests: Sequence[Request], files: Sequence[Path]) -> list[str]:
        """Write a sound file for every request that can be spoken; gives the phones said, or ``""``, for each."""


class _OneByOne(Engine):
    """An engine that is started for every sentence."""

    def _speak(self, voice: Voice, requests: Sequence[Request], files: Sequence[Path]) -> list[str]:
        return [
            _run(self.command(voice, r, f), self.given(voice, r)) for r, f in zip(requests, files, strict=True)
        ]  # fmt: skip

    @abstractmethod
    def command(self, voice: Voice, request: Request, file: Path) -> list[str]:
        """The command line that speaks ``request`` to ``file``."""

    def given(self, voice: Voice, request: Request) -> str:
        """What the program reads from its standard input."""
        return ""


_CMU = "CMU, BSD-like, free for any use"


class Flite(_OneByOne):
    """CMU Flite 2 (Black and Lenzo 2001, "Flite: a small fast run-time synthesis engine"); says its phones."""

    name = program = "flite"
    voices = (
        Voice("flite", "awb", "flite", f"voice cmu_us_awb of Flite ({_CMU})", 126.0),
        Voice("flite", "rms", "flite", f"voice cmu_us_rms of Flite ({_CMU})"),
        Voice("flite", "slt", "flite", f"voice cmu_us_slt of Flite ({_CMU})", 167.0),
        Voice("flite", "kal16", "flite", f"voice cmu_us_kal16 of Flite ({_CMU})", 95.0, default=False),
    )

    def command(self, voice: Voice, request: Request, file: Path) -> list[str]:
        pitch = ["--setf", f"int_f0_target_mean={voice.pitch_hz * request.pitch:.1f}"] if voice.pitch_hz else []
        stretch = ["--setf", f"duration_stretch={1 / request.rate:.4f}"]
        return ["flite", "-voice", voice.name, *stretch, *pitch, "-ps", "-t", request.text, "-o", str(file)]


class Festival(Engine):
    """Festival 2 (Taylor, Black and Caley 1998); it takes half a second to start, so it speaks many sentences a run."""

    name = program = "festival"
    batch = 20
    voices = (
        Voice("festival", "cmu_us_slt_arctic_hts", "festvox-us-slt-hts", f"voice cmu_us_slt_arctic_hts ({_CMU})"),
        Voice(
            "festival", "kal_diphone", "festvox-kallpc16k", f"voice kal_diphone ({_CMU})", 105.0, default=False
        ),
        Voice(
            "festival", "ked_diphone", "festvox-kdlpc16k", "voice ked_diphone (CSTR, free for any use)", 105.0, False
        ),
    )  # fmt: skip
    _VOICES = Path("/usr/share/festival/voices")

    def has(self, voice: Voice) -> bool:
        return self.installed and any(self._VOICES.glob(f"*/{voice.name}"))

    def _speak(self, voice: Voice, requests: Sequence[Request], files: Sequence[Path]) -> list[str]:
        self._run(voice, requests, files)
        if len(requests) > 1:  # one sentence that it cannot speak ends the whole run
            for request, file in zip(requests, files, strict=True):
                if not file.exists():
                    self._run(voice, [request], [file])
        return [""] * len(requests)

    def _run(self, voice: Voice, requests: Sequence[Request], files: Sequence[Path]) -> None:
        script = files[0].with_suffix(".scm")
        script.write_text(self.script(voice, requests, files), encoding="ascii", errors="replace")
        _run(["festival", "-b", str(script)], "", _TIMEOUT_S * len(requests))

    def script(self, voice: Voice, requests: Sequence[Request], files: Sequence[Path]) -> str:
        """The program in Festival's Scheme."""
        lines = [
            f"(voice_{voice.name})",
            *([] if voice.pitch_hz else ["(set! base_params hts_engine_params)"]),
            "(define (say text file) (utt.save.wave (utt.synth (eval (list 'Utterance 'Text text))) file 'riff))",
        ]
        for request, file in zip(requests, files, strict=True):
            if voice.pitch_hz:
                mean = voice.pitch_hz * request.pitch
                lines += [
                    f"(Parameter.set 'Duration_Stretch {1 / request.rate:.4f})",
                    f"(set! int_lr_params '((target_f0_mean {mean:.1f}) (target_f0_std {mean / 7:.1f})"
                    " (model_f0_mean 170) (model_f0_std 34)))",
                ]
            else:
                lines.append(f'(set! hts_engine_params (append base_params (list (list "-r" {request.rate:.4f}))))')
            lines.append(f"(say {_quoted(request.text)} {_quoted(str(file))})")
        return "\n".join(lines) + "\n"


class RHVoice(_OneByOne):
    """RHVoice: statistical voices. In Debian's sections contrib or non-free, or built from its source."""

    name = "rhvoice"
    program = "RHVoice-test"
    voices = tuple(
        Voice("rhvoice", name, "rhvoice rhvoice-english", f"voice {name} of RHVoice (see its package)", 1.0)
        for name in ("alan", "bdl", "clb", "slt")
    )

    def command(self, voice: Voice, request: Request, file: Path) -> list[str]:
        rate, pitch = (f"{100 * value:.0f}" for value in (request.rate, request.pitch))
        return ["RHVoice-test", "-p", voice.name, "-r", rate, "-t", pitch, "-o", str(file)]

    def given(self, voice: Voice, request: Request) -> str:
        return request.text


class Pico(_OneByOne):
    """SVOX Pico. In Debian's section non-free."""

    name = "pico"
    program = "pico2wave"
    voices = tuple(
        Voice("pico", name, "libttspico-utils", f"voice {name} of SVOX Pico (Apache 2.0)", 1.0)
        for name in ("en-US", "en-GB")
    )

    def command(self, voice: Voice, request: Request, file: Path) -> list[str]:
        speed, pitch = (f"level='{100 * value:.0f}'" for value in (request.rate, request.pitch))
        text = f"<speed {speed}><pitch {pitch}>{request.text}</pitch></speed>"
        return ["pico2wave", "-l", voice.name, "-w", str(file), text]


class Espeak(_OneByOne):
    """eSpeak NG: formant synthesis, hardly understood; no voice of it is a default."""

    name = "espeak"
    program = "espeak-ng"
    voices = tuple(
        Voice("espeak", name, "espeak-ng", f"voice {name} of eSpeak NG (GPL v3)", 1.0, default=False)
        for name in ("en-us", "en-gb", "en-us+f2", "en-gb-scotland")
    )

    def command(self, voice: Voice, request: Request, file: Path) -> list[str]:
        rate, pitch = f"{170 * request.rate:.0f}", f"{min(99.0, max(0.0, 50 * request.pitch)):.0f}"
        return ["espeak-ng", "-v", voice.name, "-s", rate, "-p", pitch, "-w", str(file), request.text]


ENGINES: dict[str, Engine] = {engine.name: engine for engine in (Flite(), Festival(), RHVoice(), Pico(), Espeak())}


def find_voice(voice_id: str) -> Voice:
    """The voice of an :attr:`Voice.id`, here or not. Raises :class:`UsageError` when there is no such voice."""
    engine_name, _, name = voice_id.partition(":")
    engine = ENGINES.get(engine_name)
    if engine is None:
        raise UsageError(f"there is no speech engine '{engine_name}': choose from {', '.join(ENGINES)}")
    for voice in engine.voices:
        if voice.name == name:
            return voice
    raise UsageError(f"{engine_name} has no voice '{name}': choose from {', '.join(v.id for v in engine.voices)}")


def choose(names: Sequence[str] = ()) -> list[Voice]:
    """The voices that ``names`` mean: ``engine`` (its usual voices) or ``engine:voice``; none: all usual ones here.

    Raises :class:`UsageError` for an unknown name, and for an engine or voice that is not on this machine.
    """
    if not names:
        found = [v for e in ENGINES.values() for v in e.voices if v.default and e.has(v)]
        if not found:
            raise UsageError("no speech engine is on this machine: install one (apt install flite)")
        return found
    return list(dict.fromkeys(voice for name in names for voice in _named(name)))


def _named(name: str) -> list[Voice]:
    if ":" in name:
        wanted = [find_voice(name)]
    elif name not in ENGINES:
        raise UsageError(f"there is no speech engine '{name}': choose from {', '.join(ENGINES)}")
    else:
        engine = ENGINES[name]
        usual = [v for v in engine.voices if v.default] or list(engine.voices)
        wanted = [v for v in usual if engine.has(v)] or usual
    for voice in wanted:
        engine = ENGINES[voice.engine]
        if not engine.has(voice):
            package = voice.package if engine.installed else " ".join(dict.fromkeys((_program(engine), voice.package)))
            raise UsageError(f"the voice {voice.id} is not on this machine: install it (apt install {package})")
    return wanted


def _program(engine: Engine) -> str:
    """The package of the engine's program."""
    return "festival" if engine.name == "festival" else engine.voices[0].package


def _run(command: Sequence[str], given: str, timeout_s: float = _TIMEOUT_S) -> str:
    """What ``command`` writes to its standard output; a failure shows in the file that it does not write."""
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, errors="replace", timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return ""
    except OSError as error:
        raise AsrError(f"cannot run {command[0]}: {error.strerror}: install it anew") from None
    return done.stdout if done.returncode == 0 else ""


def _read(file: Path, said: str) -> Speech | None:
    try:
        samples = load_audio(file)
    except AudioError:
        return None
    finally:
        file.unlink(missing_ok=True)
    return Speech(samples, _phones(said)) if len(samples) else None


_KNOWN = frozenset(PHONES)
_SAME = {"AX": "AH", "AXR": "ER"}


def _phones(said: str) -> Pronunciation | None:
    """The engine's phones as those of the lexicon, pauses left out; None when it told none."""
    phones = (_SAME.get(name, name) for name in said.upper().split())
    return tuple(phone for phone in phones if phone in _KNOWN) or None


def _quoted(text: str) -> str:
    """``text`` as a string of Festival's Scheme."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


__all__ = ["ENGINES", "Engine", "Request", "Speech", "Voice", "choose", "find_voice"]
