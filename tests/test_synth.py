"""`asr synth`: sentences, engines, sound, and whole runs with an engine that only hums."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from asr.audio import load_audio
from asr.cli import main as cli
from asr.errors import AsrError, ConfigError, UsageError
from asr.lexicon import Lexicon
from asr.training import synth
from asr.training.manifest import read_manifest
from asr.training.synth import SynthConfig, main, make_plan, split
from asr.training.synth_audio import LEVEL, OpusWriter, agreement, shape, trimmed
from asr.training.synth_engines import ENGINES, Engine, Request, Speech, Voice, choose, find_voice
from asr.training.synth_texts import Coverage, Limits, Sentence, draw_lines, sentences
from asr.training.synth_texts import choose as choose_sentences

WORDS = {
    "the": [("DH", "AH"), ("DH", "IY")],
    "cat": [("K", "AE", "T")],
    "sat": [("S", "AE", "T")],
    "on": [("AA", "N"), ("AO", "N")],
    "a": [("AH",), ("EY",)],
    "red": [("R", "EH", "D")],
    "read": [("R", "IY", "D"), ("R", "EH", "D")],
    "mat": [("M", "AE", "T")],
    "two": [("T", "UW")],
    "s": [("EH", "S")],
}
LEXICON = Lexicon(WORDS)  # type: ignore[arg-type]
LIMITS = Limits(fewest_words=2)


# --- sentences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text", "spoken"),
    [
        ('"The cat," sat -- on a mat!', "the cat sat on a mat", "the cat, sat, on a mat!"),
        ("The cat sat", "the cat sat", "the cat sat."),
        ("the Cat sat on...", "the cat sat on", "the cat sat on."),
        ("2 cat, red; mat:", "two cat red mat", "two cat, red; mat."),
    ],
)
def test_a_sentence_keeps_its_words_and_its_punctuation(line: str, text: str, spoken: str) -> None:
    (sentence,) = sentences([line], LEXICON, LIMITS)
    assert (sentence.text, sentence.spoken) == (text, spoken)
    assert sentence.phones == sum(len(WORDS[word][0]) for word in text.split())


def test_what_cannot_be_spoken_is_left_out() -> None:
    lines = ["the dog sat", "the cat 's mat", "cat", "", "the cat sat", "The cat sat!", "the cat " * 5]
    assert [s.text for s in sentences(lines, LEXICON, Limits(2, 9))] == ["the cat sat"]
    assert not sentences(["the cat sat on the mat"], LEXICON, Limits(2, 9, longest_s=1.0))


def test_every_source_gives_as_many_lines(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("".join(f"small {i}\n" for i in range(50)))
    (tmp_path / "large.tsv").write_text("id\ttext\n" + "".join(f"{i}\tlarge {i}\n" for i in range(500)))
    sources = [[str(tmp_path / "small.txt")], [str(tmp_path / "large.tsv")]]
    lines = draw_lines(sources, 60, np.random.default_rng(1))
    assert len(lines) == len(set(lines)) == 60
    assert sum(line.startswith("small") for line in lines) == 30
    assert lines == draw_lines(sources, 60, np.random.default_rng(1))
    draws = [int(x.split()[1]) for seed in range(40) for x in draw_lines(sources[1:], 20, np.random.default_rng(seed))]
    assert 200 < np.mean(draws) < 300 and max(draws) > 450  # from all over the file


def greedy_reference(pool: Sequence[Sentence], coverage: Coverage) -> list[str]:
    """The order of gain, every gain computed anew at every step."""
    items = {s.text: coverage.items(s.text.split()) for s in pool}
    frequency = {i: sum(x.count(i) for x in items.values()) for x in items.values() for i in x}
    heard = {item: coverage.heard[item] for item in frequency}
    left, order = list(pool), []
    while left:
        gains = [sum(frequency[i] ** 0.5 / (1 + heard[i]) for i in set(items[s.text])) / (10 + s.phones) for s in left]
        best = left.pop(int(np.argmax(gains)))
        for item in set(items[best.text]):
            heard[item] += 1
        order.append(best.text)
    return order


def test_greedy_choice_is_that_of_the_reference() -> None:
    rng = np.random.default_rng(3)
    lines = {" ".join(rng.choice(sorted(set(WORDS) - {"s"}), int(rng.integers(2, 7)))) for _ in range(40)}
    pool = sentences(sorted(lines), LEXICON, LIMITS)
    known, again = Coverage(LEXICON), Coverage(LEXICON)
    for coverage in (known, again):
        for text in ("the cat sat on the mat", "the dog"):
            coverage.add(text)
    order = greedy_reference(pool, again)
    for count in (1, 5, 15):
        coverage = Coverage(LEXICON, known.heard.copy())
        chosen = choose_sentences(pool, np.inf, count, 1.0, coverage, seed=2)
        assert sorted(s.text for s in chosen) == sorted(order[:count])
        assert coverage.heard != known.heard


def test_coverage_chooses_what_was_not_heard() -> None:
    pool = sentences(
        ["the cat sat on the mat"] + [f"the cat sat {'the cat ' * n}" for n in range(1, 6)], LEXICON, LIMITS
    )
    pool += sentences(["two red cat"], LEXICON, LIMITS)
    coverage = Coverage(LEXICON)
    for _ in range(50):
        coverage.add("the cat sat on the mat")
    before = coverage.sizes()
    assert [s.text for s in choose_sentences(pool, np.inf, 1, 1.0, coverage, 1)] == ["two red cat"]
    assert coverage.sizes()[0] == before[0] + 2 and coverage.sizes()[1] > before[1]


# --- sound ----------------------------------------------------------------------------------------------------------


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein distance by recursion on the definition."""
    if not a or not b:
        return len(a) + len(b)
    alike = {frozenset(pair) for pair in (("AH", "IH"), ("ER", "AH"), ("AO", "AA"))}
    same = a[-1] == b[-1] or frozenset((a[-1], b[-1])) in alike
    return min(distance(a[:-1], b) + 1, distance(a, b[:-1]) + 1, distance(a[:-1], b[:-1]) + (not same))


@pytest.mark.parametrize("said", ["DH AH R EH D", "DH IY R IY D", "DH IH R EH", "", "K AE T DH", "AH D"])
def test_agreement_is_the_best_over_all_pronunciations(said: str) -> None:
    phones = tuple(said.split())
    best = min(distance((*a, *b), phones) for a, b in itertools.product(WORDS["the"], WORDS["read"]))
    assert agreement("the read", phones, LEXICON) == pytest.approx(1 - best / 5)


def test_shape_sets_length_level_and_edges() -> None:
    tone = np.sin(2 * np.pi * 400 * np.arange(16000) / 16000).astype(np.float32) * 0.01
    quiet = np.zeros(8000, dtype=np.float32)
    shaped = shape(np.concatenate([quiet, tone, quiet]), 0.8)
    assert len(shaped) == pytest.approx(16000 / 0.8 + 2 * 2400, rel=0.02)
    spectrum = np.abs(np.fft.rfft(shaped))
    assert spectrum.argmax() * 16000 / len(shaped) == pytest.approx(320, rel=0.02)
    assert np.sqrt(np.mean(shaped**2)) == pytest.approx(LEVEL, rel=0.01)
    assert len(trimmed(quiet)) == 0


def test_opus_keeps_places_over_many_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    time = np.arange(8000) / 16000
    pieces = [
        0.3 * np.sin(2 * np.pi * (300 + 400 * time) * time * rng.uniform(1, 3)).astype(np.float32) for _ in range(30)
    ]
    with OpusWriter(tmp_path / "a.opus", 24000) as writer:
        for n, piece in enumerate(pieces):
            assert writer.seconds * 16000 == pytest.approx(n * 8000)
            assert writer.write(piece) == 0.5
    heard = load_audio(tmp_path / "a.opus")
    assert len(heard) == pytest.approx(30 * 8000, abs=1)
    for n in (0, 13, 29):
        part = heard[n * 8000 : (n + 1) * 8000]
        shifts = {s: float(np.dot(part[400:-400], pieces[n][400 + s : len(part) - 400 + s])) for s in range(-40, 41)}
        assert abs(max(shifts, key=lambda s: shifts[s])) <= 2


# --- engines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voice", [v for e in ENGINES.values() for v in e.voices], ids=lambda v: v.id)
def test_a_voice_speaks_at_the_rate_that_is_asked_for(voice: Voice, tmp_path: Path) -> None:
    engine = ENGINES[voice.engine]
    if not engine.has(voice):
        pytest.skip(f"the voice {voice.id} is not on this machine (package {voice.package})")
    text = "the cat sat on the mat, and it's red."
    usual, slow = engine.speak(voice, [Request(text), Request(text, rate=0.7, pitch=1.2)], tmp_path)
    assert usual is not None and slow is not None
    assert 1.2 < len(trimmed(usual.samples)) / 16000 < 4 and np.abs(usual.samples).max() > 0.05
    assert len(trimmed(slow.samples)) / len(trimmed(usual.samples)) == pytest.approx(1 / 0.7, rel=0.12)
    if usual.phones is not None:
        assert usual.phones[:5] == ("DH", "AH", "K", "AE", "T") and usual.phones[-3:] == ("R", "EH", "D")


def test_commands_of_engines_hold_rate_and_pitch() -> None:
    request, file = Request("yes", 1.25, 0.9), Path("x.wav")
    rhvoice, pico, flite = (ENGINES[name] for name in ("rhvoice", "pico", "flite"))
    command = rhvoice.command(find_voice("rhvoice:alan"), request, file)  # type: ignore[attr-defined]
    assert command == ["RHVoice-test", "-p", "alan", "-r", "125", "-t", "90", "-o", "x.wav"]
    command = pico.command(find_voice("pico:en-GB"), request, file)  # type: ignore[attr-defined]
    assert command[-1] == "<speed level='125'><pitch level='90'>yes</pitch></speed>" and "en-GB" in command
    command = flite.command(find_voice("flite:awb"), request, file)  # type: ignore[attr-defined]
    assert "duration_stretch=0.8000" in command and "int_f0_target_mean=113.4" in command


def test_a_missing_engine_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for names, message in [
        ([], r"no speech engine is on this machine: install one \(apt install flite\)"),
        (["flite"], r"flite:awb is not on this machine: install it \(apt install flite\)"),
        (["festival:kal_diphone"], r"apt install festival festvox-kallpc16k"),
        (["pico"], r"apt install libttspico-utils"),
        (["mary"], r"there is no speech engine 'mary': choose from flite, festival, rhvoice, pico, espeak"),
        (["flite:bob"], r"flite has no voice 'bob': choose from flite:awb"),
    ]:
        with pytest.raises(UsageError, match=message):
            choose(names)


# --- whole runs -----------------------------------------------------------------------------------------------------


class Hummer(Engine):
    """Hums 0.1 s for every phone, says the phones of the lexicon, and fails at ``fails``."""

    name = program = "hummer"
    batch = 3
    voices = (Voice("hummer", "low", "hummer", "none", 100.0), Voice("hummer", "high", "hummer", "none"))

    def __init__(self) -> None:
        self.fails: set[str] = set()
        self.interrupt_after = 10**9
        self.spoken = 0

    @property
    def installed(self) -> bool:
        return True

    def speak(self, voice: Voice, requests: Sequence[Request], folder: Path) -> list[Speech | None]:
        assert 1 <= len(requests) <= self.batch
        self.spoken += len(requests)
        if self.spoken > self.interrupt_after:
            raise KeyboardInterrupt
        return [self._hum(voice, request) for request in requests]

    def _hum(self, voice: Voice, request: Request) -> Speech | None:
        if voice.name in self.fails:
            return None
        words = "".join(c for c in request.text if c.isalpha() or c == " ").split()
        phones = tuple(phone for word in words for phone in WORDS[word][0])
        time = np.arange(int(len(phones) * 1600 / request.rate)) / 16000
        tone = np.sin(2 * np.pi * 200 * request.pitch * time).astype(np.float32)
        return Speech(tone, ("K",) * len(phones) if words[0] == "red" else phones)

    def _speak(self, voice: Voice, requests: Sequence[Request], files: Sequence[Path]) -> list[str]:
        raise AssertionError


@pytest.fixture
def hummer(monkeypatch: pytest.MonkeyPatch) -> Hummer:
    engine = Hummer()
    monkeypatch.setitem(ENGINES, "hummer", engine)
    return engine


@pytest.fixture
def config(tmp_path: Path) -> SynthConfig:
    LEXICON.save(tmp_path / "words.lex")
    names = sorted(set(WORDS) - {"s"})
    lines = [" ".join(words) for words in itertools.product(names, repeat=4)]
    (tmp_path / "text.txt").write_text("\n".join(lines[::7]) + "\n")
    return SynthConfig(
        ((str(tmp_path / "text.txt"),),),
        sentences=24,
        voices=("hummer",),
        lexicon=str(tmp_path / "words.lex"),
        speakers=2,
        recording_minutes=0.25,
    )


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_a_table_of_synthetic_speech(hummer: Hummer, config: SynthConfig, tmp_path: Path) -> None:
    report = main(config, tmp_path / "s.tsv", jobs=2)
    rows, utterances = rows_of(tmp_path / "s.tsv"), read_manifest(tmp_path / "s.tsv")
    assert list(rows[0]) == ["id", "audio", "start_s", "duration_s", "speaker", "corpus", "text", "licence"]
    assert sum(report.unlike.values()) == 24 - len(rows) > 0 and not report.failed  # "red ..." is said in another way
    assert not any(row["text"].startswith("red") for row in rows)
    assert len({row["audio"] for row in rows}) > 1 and {row["licence"] for row in rows} == {"synthetic: none"}
    assert {r["speaker"] for r in rows} == {f"synth-hummer-{v}-{n:02d}" for v in ("low", "high") for n in (0, 1)}
    plan = {item.id: item for item in make_plan(config, choose(config.voices), LEXICON).items}
    for row, utterance in zip(rows, utterances, strict=True):
        item = plan[row["id"]]
        assert utterance.text == item.text == row["text"]
        assert float(row["duration_s"]) == pytest.approx(0.1 * item.phones / item.rate, rel=0.03)
        heard = load_audio(tmp_path / row["audio"], start_s=utterance.start_s, duration_s=utterance.duration_s)
        frequency = np.abs(np.fft.rfft(heard)).argmax() * 16000 / len(heard)
        assert frequency == pytest.approx(200 * item.pitch * item.formants, abs=8)
        gap = load_audio(tmp_path / row["audio"], start_s=utterance.start_s + float(row["duration_s"]), duration_s=0.2)
        assert np.abs(gap[800:-800]).max() < 0.01


def test_an_interrupted_run_goes_on(hummer: Hummer, config: SynthConfig, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    main(config, tmp_path / "a" / "s.tsv")
    alone, hummer.spoken, hummer.interrupt_after = hummer.spoken, 0, 14
    with pytest.raises(KeyboardInterrupt):
        main(config, tmp_path / "b" / "s.tsv")
    begun = rows_of(tmp_path / "b" / "s.tsv")
    assert not list((tmp_path / "b").glob("*.tmp*")) and len(begun) > 0
    hummer.spoken, hummer.interrupt_after = 0, 10**9
    report = main(config, tmp_path / "b" / "s.tsv")
    assert 0 < hummer.spoken < alone
    assert (tmp_path / "a" / "s.tsv").read_bytes() == (tmp_path / "b" / "s.tsv").read_bytes()
    assert rows_of(tmp_path / "b" / "s.tsv")[: len(begun)] == begun
    hummer.spoken = 0
    assert main(config, tmp_path / "b" / "s.tsv") == report and hummer.spoken == 0


def test_a_run_of_other_options_is_not_gone_on_with(hummer: Hummer, config: SynthConfig, tmp_path: Path) -> None:
    main(config, tmp_path / "s.tsv")
    other = SynthConfig(config.texts, sentences=25, voices=("hummer",), lexicon=config.lexicon)
    with pytest.raises(UsageError, match="begun with other options"):
        main(other, tmp_path / "s.tsv")
    (tmp_path / "mine.tsv").write_text("audio\ttext\n")
    with pytest.raises(UsageError, match="not from this command"):
        main(config, tmp_path / "mine.tsv")


def test_a_voice_that_fails_ends_the_run(hummer: Hummer, config: SynthConfig, tmp_path: Path) -> None:
    hummer.fails.add("high")
    with pytest.raises(UsageError, match="the voice hummer:high failed with most sentences"):
        main(config, tmp_path / "s.tsv")
    assert not list(tmp_path.glob("s*.opus")) and not list(tmp_path.glob("*.tmp*"))


def test_recordings_hold_all_items_once(hummer: Hummer, config: SynthConfig) -> None:
    items = make_plan(config, choose(config.voices), LEXICON).items
    recordings = list(split(items, 15.0))
    assert sorted(i.id for r in recordings for i in r) == sorted(i.id for i in items) and len(recordings) > 1
    assert all(sum(i.seconds for i in r) < 15 for r in recordings)
    assert all(list(r) == sorted(r, key=lambda i: i.voice) for r in recordings)
    assert len({(i.speaker, i.pitch, i.formants) for i in items}) == 4
    assert {i.pitch for i in items if i.voice == "hummer:high"} == {1.0}  # it cannot be set


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigError, "give --hours or --sentences"),
        ({"hours": 0.0}, ConfigError, "hours must be over 0"),
        ({"sentences": 3, "rate": (1.2, 0.8)}, ConfigError, "rate must be a range"),
        ({"sentences": 3, "words": (9.0, 2.0)}, ConfigError, "words must be a range"),
        ({"sentences": 3, "coverage": 2.0}, ConfigError, "coverage must be 0 to 1"),
    ],
)
def test_bad_options(options: dict[str, object], error: type[AsrError], message: str) -> None:
    with pytest.raises(error, match=message):
        synth.config_of([["text.txt"]], **options)  # type: ignore[arg-type]


def test_the_command(hummer: Hummer, config: SynthConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, lexicon, out = config.texts[0][0], config.lexicon, str(tmp_path / "s.tsv")
    command = ["synth", text, "-o", out, "--voices", "hummer:low", "--lexicon", lexicon, "--quiet"]
    assert cli([*command, "--sentences", "5", "--rate", "0.9-1.1", "--words", "2-9", "--known", "missing.tsv"]) == 6
    assert capsys.readouterr().err == "asr: error: cannot read the table missing.tsv: No such file or directory\n"
    assert cli([*command, "--sentences", "5", "--rate", "0.9-1.1", "--words", "2-9"]) == 0
    out_lines = capsys.readouterr().out.splitlines()
    assert out_lines[0].startswith(f"{out}: 0.00 h, ") and out_lines[-1].startswith("words heard 0 -> ")
    assert len(rows_of(tmp_path / "s.tsv")) >= 1
    assert cli([*command, "--sentences", "5", "--rate", "1"]) == 2
    assert "must be two numbers with a dash between them, not '1'" in capsys.readouterr().err
    assert cli([*command]) == 4
    assert cli(["synth", text, "-o", str(tmp_path / "s.txt"), "--sentences", "5", "--voices", "hummer"]) == 2
