"""benchmarks/robustness.py: each change of the audio does what it says, results are kept and counted rightly, and the
place in a long stream does not matter."""

from __future__ import annotations

import itertools
import json
import sys
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tiny_model import babble as tiny_speech

from asr import Recognizer, Transcript
from asr.audio import load_audio
from asr.checkpoint import models_folder
from asr.errors import UsageError
from asr.results import Word
from asr.training import metrics
from asr.training.manifest import Utterance, read_corpora, read_table
from asr.training.run import read_sounds

RATE = 16_000
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
Audio = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def bench() -> Callable[[str], ModuleType]:
    """Imports a module of benchmarks/."""
    import importlib

    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture(scope="module")
def degrade(bench: Callable[[str], ModuleType]) -> ModuleType:
    return bench("degrade")


@pytest.fixture(scope="module")
def robustness(bench: Callable[[str], ModuleType]) -> ModuleType:
    return bench("robustness")


@pytest.fixture(scope="module")
def clip(clips: dict[Path, str]) -> Audio:
    return load_audio(next(iter(clips)))


def tone(hertz: float, seconds: float, amplitude: float = 0.5) -> Audio:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def pitch(samples: Audio) -> float:
    """Hz of the strongest tone."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * RATE / len(samples)


def rms(samples: Audio) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def write(path: Path, samples: Audio) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


# --- changes of the audio -------------------------------------------------------------------------------------------


def test_speech_is_found_between_pauses(degrade: ModuleType) -> None:
    quiet = np.random.default_rng(1).normal(0, 1e-3, 6 * RATE).astype(np.float32)
    quiet[RATE : 2 * RATE] += tone(300, 1.0)
    quiet[round(2.2 * RATE) : 3 * RATE] += tone(300, 0.8)  # after a gap that belongs to the speech
    quiet[4 * RATE : 5 * RATE] += tone(300, 1.0)  # after one that does not
    assert degrade.speech_seconds(quiet) == pytest.approx(3.0, abs=0.05)
    assert degrade.speech_level(quiet) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
    silence = np.zeros(RATE, np.float32)
    assert degrade.speech_seconds(silence) == 0 and degrade.speech_level(silence) == 0
    assert degrade.speech_seconds(silence[:10]) == 0


@pytest.mark.parametrize("snr_db", [20, 5, -5])
def test_a_mix_has_the_ratio_that_it_says(degrade: ModuleType, snr_db: float) -> None:
    speech = np.concatenate([np.zeros(RATE, np.float32), tone(300, 1.0, 0.1), np.zeros(RATE, np.float32)])
    noise = np.random.default_rng(2).normal(0, 0.3, len(speech)).astype(np.float32)
    mixed = degrade.mix(speech, noise, snr_db)
    assert mixed.dtype == np.float32
    added = rms(mixed - speech)
    assert 20 * np.log10(0.1 / np.sqrt(2) / added) == pytest.approx(snr_db, abs=0.2)
    assert np.array_equal(degrade.mix(speech, np.zeros_like(noise), snr_db), speech)
    assert np.array_equal(degrade.mix(np.zeros_like(noise), noise, snr_db), np.zeros_like(noise))


def test_a_mix_beyond_full_scale_is_softer_as_a_whole(degrade: ModuleType) -> None:
    speech, noise = tone(300, 1.0, 0.9), tone(1000, 1.0, 0.1)
    mixed = degrade.mix(speech, noise, 0)
    assert np.abs(mixed).max() == pytest.approx(1.0)
    assert rms(mixed) == pytest.approx(np.sqrt(2) * 0.9 / np.sqrt(2) * np.abs(mixed).max() / 1.8, rel=0.05)


def test_pieces_of_a_sound_go_round(degrade: ModuleType) -> None:
    sound, rng = np.arange(1, 101, dtype=np.float32), np.random.default_rng(3)
    short, long = degrade.piece(sound, 30, rng), degrade.piece(sound, 250, rng)
    assert len(short) == 30 and len(long) == 250
    assert set(np.diff(short)) <= {1.0, -99.0} and set(np.diff(long)) <= {1.0, -99.0, -49.0}
    half = np.concatenate([np.zeros(1000, np.float32), np.ones(100, np.float32)])
    assert all(degrade.any_piece([half], 50, rng).any() for _ in range(50))


def test_babble_is_of_all_voices_equally_loud(degrade: ModuleType) -> None:
    voices = [[tone(200.0 * (i + 1), 0.5 + 0.1 * i, 0.02 * (i + 1))] for i in range(6)]
    mixed = degrade.babble(voices, 2 * RATE, np.random.default_rng(4))
    spectrum = np.abs(np.fft.rfft(mixed))
    heights = [spectrum[2 * hz - 20 : 2 * hz + 21].max() for hz in range(200, 1400, 200)]
    assert len(mixed) == 2 * RATE and max(heights) < 3 * min(heights)
    again = degrade.babble(voices, 2 * RATE, np.random.default_rng(4))
    assert np.array_equal(mixed, again)


@pytest.mark.parametrize("name", ["narrow", "telephone"])
def test_a_narrow_band_keeps_low_tones_and_drops_high_ones(degrade: ModuleType, name: str) -> None:
    change = getattr(degrade, name)
    low, high = change(tone(1000, 1.0)), change(tone(6000, 1.0))
    assert len(low) == len(high) == RATE
    assert rms(low - tone(1000, 1.0)) < 0.05 * rms(low)
    assert rms(high) < 0.01


def test_opus_is_heard_at_the_same_place(degrade: ModuleType, clip: Audio) -> None:
    coded = degrade.opus(clip, 8000)
    assert len(coded) == len(clip) and coded.dtype == np.float32
    middle = slice(RATE, 2 * RATE)
    shifts = range(-200, 201)
    fits = [np.corrcoef(clip[middle], np.roll(coded, -s)[middle])[0, 1] for s in shifts]
    assert abs(shifts[int(np.argmax(fits))]) <= 8 and 0.6 < max(fits) < 0.999


def test_gain_and_clipping(degrade: ModuleType, clip: Audio) -> None:
    soft = degrade.gain(clip, -30)
    assert rms(soft) == pytest.approx(rms(clip) * 10**-1.5, rel=0.01)
    assert np.array_equal(np.rint(soft * 32768), soft * 32768)
    cut = degrade.clip(clip, 0.1)
    frames = degrade.speech_frames(clip)
    share = np.mean(np.abs(cut[: len(frames) * 160].reshape(-1, 160)[frames]) > 0.9999)
    assert np.abs(cut).max() <= 1 and share == pytest.approx(0.1, abs=0.005)
    assert not degrade.clip(np.zeros(RATE, np.float32), 0.1).any()


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_tempo_changes_length_and_not_pitch(degrade: ModuleType, clip: Audio, factor: float) -> None:
    for hertz in (90, 200, 1234):
        changed = degrade.change_tempo(tone(hertz, 2.0), factor)
        assert len(changed) == round(2 * RATE / factor)
        assert pitch(changed) == pytest.approx(hertz, abs=1.0)
        assert rms(changed[RATE // 10 : -RATE // 10]) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    clicks = np.zeros(2 * RATE, np.float32)
    clicks[[RATE // 2, RATE, 3 * RATE // 2]] = 1
    at = np.flatnonzero(np.abs(degrade.change_tempo(clicks, factor)) > 0.3) * factor / RATE
    assert all(np.abs(at - t).min() < 0.03 for t in (0.5, 1.0, 1.5))
    assert degrade.speech_level(degrade.change_tempo(clip, factor)) == pytest.approx(
        degrade.speech_level(clip), rel=0.1
    )
    assert len(degrade.change_tempo(clip[:100], factor)) == round(100 / factor)


def test_the_same_tempo_is_the_same_audio(degrade: ModuleType, clip: Audio) -> None:
    assert np.allclose(degrade.change_tempo(clip, 1.0), clip, atol=1e-6)


@pytest.fixture
def noise_table(tmp_path: Path) -> Path:
    """Twelve sounds, each a tone of its own, of which training hears ten."""
    write(tmp_path / "noise.wav", np.concatenate([tone(500 + 100 * i, 1.0) for i in range(12)]))
    rows = [f"sound-{i}\tnoise.wav\t{i}.0\t1.0" for i in range(12)]
    path = tmp_path / "noise.tsv"
    path.write_text("\n".join(["id\taudio\tstart_s\tduration_s", *rows]) + "\n")
    return path


def test_the_sounds_are_those_that_training_leaves_out(degrade: ModuleType, noise_table: Path) -> None:
    names = [row["id"] for _, row in read_table(noise_table, ("id",))]
    left_out = [n for n in names if n not in {s.id for s in read_sounds(noise_table)}]
    found = [pitch(s) for s in degrade.held_out_sounds(noise_table)]
    assert left_out == ["sound-0", "sound-10"]
    assert found == pytest.approx([500, 1500], abs=1)


# --- groups and counting --------------------------------------------------------------------------------------------


def test_groups(bench: Callable[[str], ModuleType]) -> None:
    tables = bench("robustness_tables")
    found = tables.thirds([5.0, None, 1.0, 3.0, 2.0, 4.0, 6.0])
    assert [members for _, members in found] == [[2, 4], [3, 5], [0, 6]]
    assert found[0][0] == "slow: 1.0 to 2.0 phones/s"
    assert tables.thirds([None]) == []
    edits = [metrics.Edits(n, 0, 0, 10) for n in (1, 5, 2, 3, 9)]
    found = tables.by_speaker(["a", "b", "c", "a", ""], edits)
    assert found == [("worst of 3: b", [1]), ("median of 3: c", [2]), ("best of 3: a", [0, 3])] or found == [
        ("worst of 3: b", [1]),
        ("median of 3: a", [0, 3]),
        ("best of 3: c", [2]),
    ]
    assert tables.by_speaker(["a", "", "a", "", ""], edits) == []
    assert tables.by_length([1.0, 3.0, 50.0]) == [("0 to 3 s", [0]), ("3 to 6 s", [1]), ("12 s and more", [2])]
    assert tables.units(["a", "a"]) == ["", ""] and tables.units(["a", ""]) == ["a", ""]
    assert tables.drawn(["a", "b", "a"]) == "2 speakers"
    assert tables.drawn(["a", "", ""]) == "1 speaker and 2 utterances"


def test_phones_per_second(bench: Callable[[str], ModuleType], tiny: Recognizer) -> None:
    lexicon = tiny.folder.load_lexicon()
    pause = np.zeros(RATE, np.float32)
    samples = np.concatenate([pause, tone(300, 2.0), pause])
    rate = bench("robustness_tables").phones_per_second
    assert rate("meet me", samples, lexicon) == pytest.approx(2.5, rel=0.02)  # M IY T M IY in two seconds
    assert rate("meet zebras", samples, lexicon) is None
    assert rate("meet", pause, lexicon) is None and rate("", samples, lexicon) is None


def test_random_changes_depend_on_the_utterance_alone(bench: Callable[[str], ModuleType], noise_table: Path) -> None:
    conditions = bench("conditions")
    one, two = (Utterance(name, noise_table, 0.0, None, "a") for name in ("one", "two"))
    x = tone(300, 1.0, 0.1)
    around = conditions.Surroundings({}, noise_table)

    def change(name: str, utterances: list[Utterance], seed: int = 1) -> list[Audio]:
        audio = [x] * len(utterances)
        found: list[Audio] = conditions.changed(conditions.CONDITIONS[name], utterances, audio, around, seed)
        return found

    alone, beside = change("noise-10", [two])[0], change("noise-10", [one, two])[1]
    assert np.array_equal(alone, beside)
    assert not np.array_equal(alone, change("noise-10", [two], seed=2)[0])
    rooms = change("room", [one, two])
    assert not np.array_equal(rooms[0], rooms[1])
    softer, louder = alone - x, change("noise-5", [two])[0] - x
    assert np.allclose(louder, softer * 10 ** (5 / 20), atol=1e-5)  # the same sound at every ratio


def test_babble_is_of_others(bench: Callable[[str], ModuleType], clips: dict[Path, str]) -> None:
    conditions = bench("conditions")
    path = next(iter(clips))
    people = [Utterance(f"{i}", path, 0.0, 1.0, "a", speaker, "c") for i, speaker in enumerate("aabcdef")]
    people.append(Utterance("x", path, 0.0, 1.0, "a", "unknown", "c"))
    around = conditions.Surroundings({"c": people}, None)
    assert set(around.voices) == {*"abcdef", "of c: x"} and len(around.voices["a"]) == 2
    rng = np.random.default_rng(1)
    assert sorted(len(v) for v in around.others(people[0], rng)) == [1] * 6  # all but a, who has two
    few = conditions.Surroundings({"c": people[:4]}, None)
    with pytest.raises(UsageError, match="babble needs 6 other speakers, the tables have 2"):
        few.others(people[0], rng)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Seven people who say what the tiny model takes for speech, each twice."""
    rows = []
    for i in range(14):
        path = write(tmp_path / f"said-{i}.wav", tiny_speech(1.5 + 0.2 * i, seed=i))
        rows.append(f"u{i}\t{path.name}\tsee me at sea\tp{i % 7}")
    path = tmp_path / "people.tsv"
    path.write_text("\n".join(["id\taudio\ttext\tspeaker", *rows]) + "\n")
    return path


def arguments(manifest: Path, noise_table: Path, tiny_path: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(manifest), "--noise", str(noise_table), "--model", str(tiny_path), "--out", str(out), *more]


def test_the_command_on_all_conditions(
    robustness: ModuleType, manifest: Path, noise_table: Path, tiny_path: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = arguments(manifest, noise_table, tiny_path, out, "--limit", "4", "--minutes", "0.8", "--bin", "0.3")
    assert robustness.main(command) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert [r["condition"] for r in results["conditions"]] == list(robustness.CONDITIONS)
    assert all(r["utterances"] == 4 and r["total"] == 16 for r in results["conditions"])
    clean = results["conditions"][0]
    assert clean["minus_clean"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "improvement": 0.5}
    heard = json.loads((out / "heard" / "people-clean.json").read_text())["heard"]
    chosen = {u.id: u for u in read_corpora([str(manifest)])["people"]}
    texts = Recognizer.load(tiny_path).transcribe_many([chosen[i].audio for i in heard["ids"]])
    assert heard["texts"] == [t.text for t in texts if isinstance(t, Transcript)] and any(heard["texts"])
    assert clean["errors"] == sum(metrics.edits("see me at sea", t).errors for t in heard["texts"])
    assert {row["table"] for row in results["groups"]["rate"]} == {"people"}
    assert len(results["groups"]["speaker"]) == 3 and results["groups"]["length"]
    assert all(r["drawn"].endswith(("utterance", "utterances")) for r in results["groups"]["speaker"])
    minutes = [r["minute"] for r in results["stream"]]
    assert minutes[0] == 0 and minutes[-1] is None and minutes[-2] > 0.5
    for line in ("| noise-5 |", "### Speaking rate", "### Place in a long stream", "| streams of their own |"):
        assert line in printed

    def never(*_: Any) -> None:
        raise AssertionError("it was heard already")

    monkeypatch.setattr(robustness, "decode", never)
    assert robustness.main(command) == 0
    assert capsys.readouterr().out == printed  # all of it kept
    with pytest.raises(AssertionError, match="heard already"):
        robustness.main([*command, "--seed", "2"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--conditions", "rain"], "there is no condition 'rain': choose among clean, noise-20"),
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must not be negative, got -1"),
        (["--bin", "0"], "--minutes must not be negative, --bin must be positive, --pause-s 0 to 60"),
        ([], "conditions with noise need --noise, a table of sounds: give it, or name --conditions"),
    ],
)
def test_bad_arguments_are_one_line(
    robustness: ModuleType, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert robustness.main(["--data", "dev.tsv", *more]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"robustness: {message}") and err.count("\n") == 1


def test_what_was_kept_otherwise_is_made_again(robustness: ModuleType, tmp_path: Path) -> None:
    kept = robustness.Kept(tmp_path, {"model": "a"})
    assert kept.get("x", {"n": (1, 2)}, lambda: {"texts": ["one"]}) == {"texts": ["one"]}
    assert kept.get("x", {"n": (1, 2)}, lambda: {"texts": ["two"]}) == {"texts": ["one"]}
    assert kept.get("x", {"n": (1, 3)}, lambda: {"texts": ["two"]}) == {"texts": ["two"]}
    assert robustness.Kept(tmp_path, {"model": "b"}).get("x", {"n": (1, 3)}, lambda: {"texts": []}) == {"texts": []}
    (tmp_path / "x.json").write_text("{")
    assert kept.get("x", {}, lambda: {"texts": ["new"]}) == {"texts": ["new"]}
    assert robustness.Kept(None, {}).get("x", {}, lambda: {"texts": []}) == {"texts": []}


# --- the place in a long stream -------------------------------------------------------------------------------------


def test_a_round_is_filled_from_all_tables(bench: Callable[[str], ModuleType]) -> None:
    fill = bench("long_stream").fill
    durations = [[10.0] * 20, [5.0] * 40, [20.0]]
    chosen = fill(durations, 120, seed=1)
    seconds = [sum(durations[t][i] for t, i in chosen if t == table) for table in range(3)]
    assert sum(seconds) <= 120 and seconds[2] == 20 and abs(seconds[0] - seconds[1]) <= 10 and min(seconds) > 0
    assert len(set(chosen)) == len(chosen) and chosen == sorted(chosen)
    assert len(fill(durations, 1e9, seed=1)) == 61
    assert len(fill(durations, 0.1, seed=1)) == 1


def test_words_go_to_the_utterance_in_which_they_lie(bench: Callable[[str], ModuleType], tiny: Recognizer) -> None:
    """Against the texts of a stream in which every utterance ends before the next one comes."""
    long_stream = bench("long_stream")
    audio = [tiny_speech(2.0 + i, seed=30 + i, pauses=False) for i in range(3)]
    orders = long_stream.orders(3, 3, seed=1)
    assert orders[0] == [0, 1, 2] and all(sorted(o) == [0, 1, 2] for o in orders)
    rounds = long_stream.play(tiny, audio, orders, pause_s=1.5, chunk_ms=100)
    seconds = sum(len(a) / RATE + 1.5 for a in audio)
    assert [r.start_s for r in rounds] == pytest.approx([0, seconds, 2 * seconds])
    assert all(r.audio_s == pytest.approx(seconds) and r.cpu_s > 0 for r in rounds)
    stream, heard = tiny.stream(partials=False), [[""] * 3 for _ in orders]
    for number, i in ((n, i) for n, order in enumerate(orders) for i in order):
        found = stream.feed(np.concatenate([audio[i], np.zeros(round(1.5 * RATE), np.float32)]))
        if (number, i) == (2, orders[-1][-1]):
            found += stream.finish()
        heard[number][i] = " ".join(s.text for s in found)
    assert all(all(said) for said in heard)
    assert [r.texts for r in rounds] == [tuple(said) for said in heard]


@pytest.mark.slow
def test_the_place_in_a_stream_does_not_matter(bench: Callable[[str], ModuleType], clips: dict[Path, str]) -> None:
    """Three minutes of clips, again and again, with the shipped model: never worse than each by itself by more than a
    word in ten, and the later rounds are neither worse nor better than the earlier ones by so much. (Not to the letter:
    the network's state goes through the pauses, and the recurrent language model remembers what was said, so that words
    that come again may be heard better than the first time.)"""
    if not (models_folder() / "en" / "config.json").is_file():
        pytest.skip("models/en is not there: train it, or get it with the repository")
    english = Recognizer.load("en", threads=1)
    audio = [load_audio(path) for path in clips]
    pause = np.zeros(round(1.5 * RATE), np.float32)
    count = round(180 * RATE / sum(len(a) + len(pause) for a in audio))
    rounds = bench("long_stream").play(english, audio, [[0, 1, 2]] * count, pause_s=1.5, chunk_ms=100)
    alone = [english.transcribe(np.concatenate([a, pause]), RATE).text for a in audio]
    assert rounds[-1].start_s > 160

    def errors(texts: Sequence[str]) -> int:
        return sum(metrics.edits(said, text).errors for said, text in zip(clips.values(), texts, strict=True))

    few = 0.1 * sum(len(said.split()) for said in clips.values())
    of_rounds = [errors(r.texts) for r in rounds]
    assert all(of <= errors(alone) + few for of in of_rounds)
    half = len(rounds) // 2
    assert abs(np.mean(of_rounds[1:half]) - np.mean(of_rounds[half:])) <= few


# --- how soon words appear (benchmarks/partials.py) ---------------------------------------------------------------


@pytest.fixture(scope="module")
def partials(bench: Callable[[str], ModuleType]) -> ModuleType:
    return bench("partials")


def followed(partials: ModuleType) -> Any:
    """One segment "see me no" (ends 0.3, 0.6, 0.9 s), in which "so" stood for "see" at first."""
    results = [("so", 0, 0.4), ("see me", 0, 0.7), ("see me no", 1, 1.0), ("see me", 1, 1.1), ("see me no", 3, 2.4)]
    shown = [partials.Shown(at, at + 0.01, text.split(), fixed) for text, fixed, at in results]
    words = tuple(Word(t, 0.3 * i, 0.3 * (i + 1)) for i, t in enumerate(("see", "me", "no")))
    return partials.Followed(shown, words)


def test_when_words_appear_and_become_stable(partials: ModuleType) -> None:
    segment = followed(partials)
    assert [partials.appears(segment, n).audio_s for n in range(3)] == [0.7, 0.7, 2.4]
    assert [partials.stable(segment, n).audio_s for n in range(3)] == [1.0, 2.4, 2.4]
    assert partials.withdrawn(segment.shown) == 2  # "so", and "no" for a while
    broken = [*segment.shown[:3], partials.Shown(1.1, 1.1, ["so"], 1)]
    with pytest.raises(AssertionError, match="stable text was withdrawn"):
        partials.withdrawn(broken)


def test_lags_are_of_words_that_are_right(partials: ModuleType) -> None:
    count = partials.Count()
    count.add(["see", "us", "no"], ([followed(partials)], [0.01, 0.03]))
    assert (count.words, count.reference, count.withdrawn) == (3, 3, 2)
    assert np.allclose(count.audio, [(0.4, 0.7), (1.5, 1.5)])
    assert np.allclose(count.wall, [(0.41, 0.71), (1.51, 1.51)])
    others = partials.right(["see", "us", "no"], [Word("us", 0.0, 0.5), Word("no", 0.5, 1.0)])
    assert sorted(others) == [1, 2]
    by_others = partials.Count()
    by_others.add(["see", "us", "no"], ([followed(partials)], []), others)
    assert np.allclose(by_others.audio, [(1.4, 1.4)])
    both = partials.Count()
    both.join(count)
    both.join(by_others)
    assert both.row("all").startswith("| all | 3 of 6 | 0.667 | 1400, 1500 | 1400, 1500 | 1410, 1510 |")


def test_the_wall_clock_waits_for_audio_and_for_work(partials: ModuleType, tiny: Recognizer) -> None:
    """Chunks of 100 ms that take 70 ms each are done when they come; at 150 ms each they are later and later."""
    samples = tiny_speech(4.0, seed=5, pauses=False)

    def lateness(work: float) -> list[float]:
        calls = itertools.count()

        def clock() -> float:  # the second call of every two is after the work
            return (next(calls) + 1) // 2 * work

        segments, _ = partials.follow(tiny, samples, 100, clock)
        return [s.wall_s - s.audio_s for segment in segments for s in segment.shown[:-1]]

    assert lateness(0.07) == pytest.approx([0.07] * len(lateness(0.07)))
    slow = lateness(0.15)
    assert len(slow) > 3 and np.all(np.diff(slow) > 0) and slow[-1] < 0.15 + 39 * 0.05 + 1e-9
