"""Word times against the truth of synthesised speech, and against a forced alignment of real speech.

    OMP_NUM_THREADS=1 python benchmarks/times.py synthetic [--model en] [--voices slt rms awb kal]
    OMP_NUM_THREADS=1 python benchmarks/times.py aligned --data dev.tsv ... [--model en] [--limit 60]

`synthetic` needs flite, which tells when every phone of what it says ends. The distances of our word starts and ends
from the true ones are printed per voice as they come from the spikes (median, 90 %, and the signed median, which is the
model's own delay), then with the shifts that the *other* voices ask for, then with those of the model folder; last the
shifts of all voices as JSON for `times` in config.json. `aligned` compares first and last spikes of the search with
torchaudio's forced alignment of the same phones on the same emissions. Only words that were recognised rightly count.
"""

import argparse
import json
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from asr.audio import load_audio
from asr.decoding.confidence import TimesConfig, align, speller, word_times
from asr.model_config import STEP_MS
from asr.recognizer import Recognizer
from asr.training import metrics
from asr.training.calibrate import examples
from asr.training.evaluate import emissions_of

SENTENCES = """the birch canoe slid on the smooth planks
it is easy to tell the depth of a well
the juice of lemons makes fine punch
the box was thrown beside the parked truck
four hours of steady work faced us
the boy was there when the sun rose
a rod is used to catch pink salmon
the source of the huge river is the clear spring
kick the ball straight and follow through
help the woman get back to her feet
a pot of tea helps to pass the evening
smoky fires lack flame and heat
the soft cushion broke the man's fall
the salt breeze came across from the sea
the girl at the booth sold fifty bonds"""  # of the Harvard sentences (IEEE 1969)
PAUSE = "pau"
SAME = {"AX": "AH", "AXR": "ER", "IX": "IH", "NX": "N", "DX": "T", "EL": "AH L", "EM": "AH M", "EN": "AH N"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("synthetic", "aligned"))
    parser.add_argument("--model", default="en")
    parser.add_argument("--voices", nargs="+", default=["slt", "rms", "awb", "kal"])
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--limit", type=int, help="utterances of each table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(args.model)
    if args.kind == "synthetic":
        synthetic(recognizer, args.voices)
    else:
        aligned(recognizer, args.data, args.limit)


# --- against the truth ----------------------------------------------------------------------------------------------


def synthetic(recognizer, voices):
    lexicon = recognizer.folder.load_lexicon()
    said = {}
    for voice in voices:
        pieces = [speak(voice, sentence, lexicon) for sentence in SENTENCES.splitlines()]
        said[voice] = hear(recognizer, pieces)
        right, words = (sum(len(x) for _, x, _ in said[voice]), sum(len(p[1]) for p in pieces))
        print(f"{voice}: {right} of {words} words recognised rightly")
    show("from the spikes", said, lambda voice: TimesConfig())
    show("with the shifts of the other voices", said, lambda voice: shifts([said[v] for v in voices if v != voice]))
    show(f"with {recognizer.folder.config.times}", said, lambda voice: recognizer.folder.config.times)
    print(json.dumps({"times": asdict(shifts(list(said.values())))}))


def speak(voice, sentence, lexicon):
    """Samples at 16 kHz and (word, start, end) in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "said.wav"
        out = subprocess.run(["flite", "-voice", voice, "-psdur", "-t", sentence, "-o", str(file)],
                             check=True, capture_output=True, text=True).stdout  # fmt: skip
        samples = load_audio(file)
    phones, before = [], 0.0
    for entry in out.split():
        name, end = entry.split(":")
        if name != PAUSE:
            names = SAME.get(name.upper(), name.upper()).split()
            phones += [(n, before, float(end)) for n in names]
        before = float(end)
    return samples, words_of(sentence.split(), phones, lexicon)


def words_of(words, phones, lexicon):
    """The phones of each word: the way to cut them up that is nearest to the lexicon's pronunciations."""
    names = [name for name, _, _ in phones]
    best = {0: (0, ())}  # by phones used: edits, ends of the words
    for word in words:
        following = {}
        for at, (cost, ends) in best.items():
            for variant in lexicon.pronounce(word):
                for stop in range(max(at + 1, at + len(variant) - 2), min(len(names), at + len(variant) + 2) + 1):
                    total = cost + metrics.edit_distance(list(variant), names[at:stop])
                    if stop not in following or total < following[stop][0]:
                        following[stop] = (total, (*ends, stop))
        best = following
    ends = best[len(names)][1]
    return [(w, phones[a][1], phones[b - 1][2]) for w, a, b in zip(words, (0, *ends), ends, strict=False)]


def hear(recognizer, pieces):
    """Per sentence: the words found, those that are right as (number, true start, true end), its duration."""
    found = [()] * len(pieces)
    for i, emissions in emissions_of(recognizer, [samples for samples, _ in pieces]):
        state = recognizer.search.step(emissions[recognizer.head], recognizer.search.begin())
        found[i] = recognizer.search.end(state).words
    result = []
    for (samples, truth), words in zip(pieces, found, strict=True):
        result.append((words, pair(truth, words), len(samples) / recognizer.sample_rate))
    return result


def pair(truth, words):
    """(number among ``words``, true start, true end) of the words that are right."""
    right, i, j = [], 0, 0
    for r, h in metrics.align([w for w, _, _ in truth], [w.text for w in words]):
        if r is not None and r == h:
            right.append((j, *truth[i][1:]))
        i, j = i + (r is not None), j + (h is not None)
    return right


def errors(said, times):
    """(words, 2) seconds by which starts and ends come too late."""
    rows = []
    for words, right, duration in said:
        ours = word_times(words, 0, 0.0, duration, times)
        rows += [(ours[j][0] - start, ours[j][1] - end) for j, start, end in right]
    return np.array(rows)


def shifts(parts):
    """Shifts for the words of several voices: minus the median delay of starts (mean over the voices), then the end
    shift with the least mean distance, ends cut at the next word's start."""
    delays = [np.median(errors(said, TimesConfig())[:, 0]) for said in parts]
    start = float(round(-1000 * np.mean(delays)))
    ends = [float(ms) for ms in range(-40, 125, 5)]
    far = [np.mean([np.abs(errors(said, TimesConfig(start, ms))[:, 1]).mean() for said in parts]) for ms in ends]
    return TimesConfig(start, ends[int(np.argmin(far))])


def show(title, said, times):
    print(f"{title}: distance in ms, median and 90 % (signed median)")
    late = {voice: 1000 * errors(pieces, times(voice)) for voice, pieces in said.items()}
    for voice, e in {**late, "all": np.concatenate(list(late.values()))}.items():
        print(f"  {voice:<5} {len(e):>4} words  " + "  ".join(
            f"{name} {np.median(np.abs(x)):>4.0f} {np.percentile(np.abs(x), 90):>4.0f} ({np.median(x):+.0f})"
            for name, x in (("start", e[:, 0]), ("end", e[:, 1]))
        ))  # fmt: skip


# --- against a forced alignment -------------------------------------------------------------------------------------


def aligned(recognizer, tables, limit):
    from torchaudio.functional import forced_align

    spell = speller(recognizer.search)
    late = {}
    for e in examples(recognizer, recognizer.search, tables, limit):
        words = e.hypotheses[0].words
        if not words:
            continue
        spelled = [best_variant(spell(w.text), w, e.emissions) for w in words]
        targets = torch.tensor([[u for units in spelled for u in units]])
        try:
            path, _ = forced_align(torch.from_numpy(e.emissions)[None], targets)
        except RuntimeError:  # more phones than steps
            continue
        spikes = first_steps(path[0].tolist())
        at = 0
        for w, units, right in zip(words, spelled, e.right, strict=True):
            if right:
                late.setdefault(e.table, []).append((w.first - spikes[at], w.last - spikes[at + len(units) - 1]))
            at += len(units)
    for table, rows in late.items():
        ms = STEP_MS * np.abs(np.array(rows))
        text = "  ".join(f"{name} {np.median(x):.0f} {np.percentile(x, 90):.0f} (same step {np.mean(x == 0):.1%})"
                         for name, x in zip(("start", "end"), ms.T, strict=True))  # fmt: skip
        print(f"{table:<20} {len(rows):>5} words, distance of spikes in ms, median and 90 %: {text}")


def best_variant(variants, word, emissions):
    """The pronunciation that fits the word's steps best."""
    fits = [align([[v]], np.array([word.first]), np.array([word.last]), emissions)[0][0] for v in variants]
    return variants[int(np.argmax(fits))]


def first_steps(path):
    """The first step of every unit of an aligned path."""
    return [i for i, unit in enumerate(path) if unit and (i == 0 or path[i - 1] != unit)]


if __name__ == "__main__":
    main()
