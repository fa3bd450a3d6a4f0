"""What confidences cost, and whether they tell noise from speech.

    OMP_NUM_THREADS=1 python benchmarks/confidence.py cost [--model en]
    OMP_NUM_THREADS=1 python benchmarks/confidence.py noise --noise noise.tsv --dev dev.tsv ... [--model en] \\
        [--limit 60] [--every 3]

`cost`: milliseconds to judge one segment of about 15 s (clips of the tests, repeated), beside the search of its last
100 ms. `noise`: for every threshold, what is lost when whole segments whose confidence lies below it are dropped: words
that the search hears in clips without speech (a table with columns audio, start_s, duration_s, kind; every N-th clip,
ten seconds of it at most, kind "babble" left out), and words of dev speech, right and wrong ones. The confidences of
dev speech are those of weights fitted on the other half of the speakers; those of noise, on all of dev.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from asr.audio import load_audio
from asr.decoding.confidence import FEATURES, HYPOTHESES, Confidence, ConfidenceConfig, Evidence, speller
from asr.decoding.endpoint import Endpointer
from asr.recognizer import Recognizer
from asr.training.calibrate import by_segment, collect, examples, fit, hypotheses, join, label, predict
from asr.training.evaluate import emissions_of, load_utterances
from asr.training.manifest import Utterance, read_table
from asr.training.tune import cut_segments

CLIPS = Path(__file__).resolve().parent.parent / "tests" / "clips"
LONGEST_S = 10.0
THRESHOLDS = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("cost", "noise"))
    parser.add_argument("--model", default="en")
    parser.add_argument("--noise", type=Path)
    parser.add_argument("--dev", nargs="+", default=[])
    parser.add_argument("--limit", type=int, help="utterances of each dev table")
    parser.add_argument("--every", type=int, default=1, help="take every N-th noise clip")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(args.model)
    if args.kind == "cost":
        cost(recognizer)
    else:
        noise(recognizer, args)


def cost(recognizer):
    """Times of judging and of everything that is done for it, best and median of twenty."""
    clips = [load_audio(f) for f in sorted(CLIPS.glob("*.wav"))[:8]]
    audio = np.concatenate([*clips, *clips])[: 15 * recognizer.sample_rate]
    search, config = recognizer.search, recognizer.folder.config.confidence
    (_, emissions), *_ = emissions_of(recognizer, [audio])
    held, state = emissions[recognizer.head], search.begin()
    search.step(held[:-3], state)
    took = {"search of 100 ms": lambda: search.step(held[-3:], state.clone())}
    search.step(held[-3:], state)
    final = search.end_nbest(state, HYPOTHESES)
    config = config or ConfidenceConfig(dict.fromkeys(FEATURES, 0.0))
    confidence = Confidence(search, config, speller(search))
    took["one final hypothesis"] = lambda: search.end_nbest(state, 1)
    took[f"{HYPOTHESES} final hypotheses"] = lambda: search.end_nbest(state, HYPOTHESES)
    took["judge the best"] = lambda: confidence.judge(state, final[:1], final)
    print(f"{len(held)} steps, {len(final[0].words)} words, {len(final)} hypotheses")
    times = {name: [] for name in took}
    for _ in range(20):
        for name, work in took.items():
            began = time.perf_counter()
            work()
            times[name].append(1000 * (time.perf_counter() - began))
    for name, ms in times.items():
        print(f"{name:<24} best {min(ms):>5.1f} ms, median {np.median(ms):>5.1f} ms")


def noise(recognizer, args):
    """The table over thresholds."""
    search = recognizer.search
    evidence = Evidence(search, speller(search))
    dev = list(examples(recognizer, search, args.dev, args.limit))
    halves = [collect(evidence, [e for e in dev if e.half == half]) for half in (0, 1)]
    judged = [judge(fit(halves[1 - k]), halves[k]) for k in (0, 1)]
    speech = tuple(np.concatenate(column) for column in zip(*judged, strict=True))
    clips, heard = noise_words(recognizer, evidence, args.noise, args.every)
    sound = judge(fit(join(halves)), heard)
    report(speech, sound, clips)


def judge(config, words):
    """Per segment with words: its confidence, the share of right words, the number of words."""
    mean, right, count = by_segment(words.segment, predict(config, words), words.right)
    odds = np.log(np.clip(mean, 1e-6, 1 - 1e-6) / np.clip(1 - mean, 1e-6, 1))
    return 1 / (1 + np.exp(-(config.segment_bias + config.segment_slope * odds))), right, count


def noise_words(recognizer, evidence, table, every):
    """Number of clips, and the words that are heard in them, all of them wrong."""
    rows = [r for _, r in read_table(table, ("audio", "start_s", "duration_s", "kind")) if r["kind"] != "babble"]
    clips = [
        Utterance(r["id"], (table.parent / r["audio"]).resolve(), float(r["start_s"]),
                  min(float(r["duration_s"]), LONGEST_S), "")
        for r in rows[::every]
    ]  # fmt: skip
    endpointer, segments = Endpointer(recognizer.folder.config.endpoint), []
    for _, emissions in emissions_of(recognizer, load_utterances(clips)):
        segments += cut_segments(endpointer, emissions[recognizer.head])
    final = hypotheses(recognizer.search, segments)
    found = [e for s, h in zip(segments, final, strict=True) for e in label("noise", 0, [], [(s, h)])]
    return len(clips), collect(evidence, found)


def report(speech, sound, clips):
    """What every threshold leaves."""
    own, right, count = speech
    theirs, _, noise_count = sound
    print(f"noise: {clips} clips, {len(theirs)} segments with words, {noise_count.sum():.0f} words, "
          f"segment confidence: {' '.join(f'{c:.2f}' for c in np.sort(theirs))}")  # fmt: skip
    print(f"speech: {len(own)} segments, {count.sum():.0f} words, {(count * right).sum():.0f} right")
    print("threshold  noise segments  noise words  speech segments lost  right words lost  wrong words lost")
    for threshold in THRESHOLDS:
        low, gone = own < threshold, theirs < threshold
        good = (count * right)[low].sum()
        print(f"{threshold:>9.2f}  {(~gone).sum():>14}  {noise_count[~gone].sum():>11.0f}  {low.sum():>20}  "
              f"{good:>16.0f}  {count[low].sum() - good:>16.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
