"""One clip, two contexts, two texts: "recognise speech" and "wreck a nice beach".

    OMP_NUM_THREADS=1 python benchmarks/context.py [--model en] [--boost 5] [--share 0.1] [--data dev-*.tsv]

Synthesised clips (`tests/clips/context`) that lie between the two phrases are transcribed without context, with
one phrase as a hot word of the session, and with a language model that knows its field: a trigram model of a few
sentences, mixed with that of the model by `--share` and given in its place. Prints what came out, the
smallest boost (nats a word, in steps of half) at which each phrase comes out, and how many utterances of `--data`, in
which nobody says either phrase, change their text when both are hot words.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from asr import Recognizer, lm
from asr.audio import load_audio
from asr.training.evaluate import load_utterances
from asr.training.manifest import read_manifest

Audio = NDArray[np.float32]
CLIPS = Path(__file__).resolve().parent.parent / "tests" / "clips" / "context"
PHRASES = ("recognise speech", "wreck a nice beach")
SENTENCES = {  # none of them is what the clips say
    PHRASES[0]: [
        "machines learn to recognise speech",
        "a telephone that can recognise speech",
        "programs recognise speech in many languages",
        "it takes a good microphone to recognise speech",
        "how do people recognise speech in a noisy room",
    ],
    PHRASES[1]: [
        "the storm will wreck a nice beach",
        "oil can wreck a nice beach for years",
        "they want to wreck a nice beach with a hotel",
        "too many visitors wreck a nice beach",
        "why would anyone wreck a nice beach",
    ],
}
BOOSTS = [half / 2 for half in range(1, 25)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--boost", type=float, default=5.0, help="of the hot words, in nats a word")
    parser.add_argument("--share", type=float, default=0.1, help="of the few sentences in the mixed language model")
    parser.add_argument("--data", nargs="*", type=Path, default=[], help="manifests of speech without the phrases")
    parser.add_argument("--limit", type=int, default=50, help="utterances of each manifest")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(args.model)
    clips = {path.name: load_audio(path) for path in sorted(CLIPS.glob("*.wav"))}
    audio = list(clips.values())
    columns = {"no context": [transcribe(recognizer, x) for x in audio]}
    for phrase in PHRASES:
        columns[f"hot word: {phrase}"] = [transcribe(recognizer, x, (phrase, args.boost)) for x in audio]
    for phrase in PHRASES:
        for what, model in language_models(recognizer, phrase, args.share):
            with recognizer_with(args.model, model) as other:
                columns[f"{what}: {phrase}"] = [transcribe(other, x) for x in audio]
    for column, texts in columns.items():
        print(f"\n{column}")
        for name, text in zip(clips, texts, strict=True):
            print(f"  {name:20} {text}")
    print("\nsmallest boost in nats a word at which the phrase comes out, and in all")
    for name, x in clips.items():
        for phrase in PHRASES:
            boost = smallest_boost(recognizer, x, phrase)
            found = f"never up to {BOOSTS[-1]:g}" if boost is None else f"{boost:g}, {boost * len(phrase.split()):g}"
            print(f"  {name:20} {phrase:20} {found}")
    utterances = [u for path in args.data for u in read_manifest(path)[: args.limit]]
    others = [u for u in utterances if not any(phrase in u.text for phrase in PHRASES)]
    if others:
        changed = changed_by(recognizer, load_utterances(others), args.boost)
        print(f"\n{changed} of {len(others)} utterances with neither phrase change with both as hot words")


def transcribe(recognizer: Recognizer, audio: Audio, *hotwords: tuple[str, float]) -> str:
    """The text of ``audio`` (samples at 16 kHz) in a session with these hot words: (phrase, nats a word)."""
    stream = recognizer.stream(partials=False, hotwords=hotwords)
    return " ".join(result.text for result in [*stream.feed(audio), *stream.finish()])


def language_models(recognizer: Recognizer, phrase: str, share: float) -> Iterator[tuple[str, lm.NgramModel]]:
    """Two language models with a phrase's sentences: these alone, and as ``share`` of a mixture with the folder's."""
    alone = lm.estimate(SENTENCES[phrase], order=3)
    yield "sentences alone", alone
    base = recognizer.folder.load_language_model()
    if base is not None:
        yield f"mixed, {share:g}", lm.mix([base, alone], [1 - share, share])


@contextmanager
def recognizer_with(model: str, language_model: lm.NgramModel) -> Iterator[Recognizer]:
    """A recogniser with another language model than its folder's."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "words.lm"
        lm.save(language_model, path)
        yield Recognizer.load(model, language_model=path)


def smallest_boost(recognizer: Recognizer, audio: Audio, phrase: str) -> float | None:
    """The first of :data:`BOOSTS` with which a phrase comes out."""
    return next((boost for boost in BOOSTS if phrase in transcribe(recognizer, audio, (phrase, boost))), None)


def changed_by(recognizer: Recognizer, audio: Sequence[Audio], boost: float) -> int:
    """How many of ``audio``, in which nobody says a phrase, change their text when all phrases are hot words."""
    both = [(phrase, boost) for phrase in PHRASES]
    return sum(transcribe(recognizer, x) != transcribe(recognizer, x, *both) for x in audio)


if __name__ == "__main__":
    main()
