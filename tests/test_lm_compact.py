"""The package's own language model file: round trips, what quantisation costs, broken files, sizes, conversion."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lm import random_text
from test_lm_files import SMALL_ARPA, big_model, same

from asr.cli import main
from asr.errors import LanguageModelError
from asr.lm import (
    NgramModel,
    build,
    estimate,
    file_size,
    load,
    load_compact,
    prune,
    save,
    save_binary,
    save_compact,
    write_arpa,
)
from asr.lm.compact import CompactSize
from asr.lm.kenlm import is_binary
from asr.lm.packing import differences, most_bytes, pack, sums, unpack
from asr.lm.quantise import quantise


def errors(model: NgramModel, again: NgramModel) -> tuple[float, float]:
    """The largest differences of listed log probabilities and of back-off weights (log10)."""
    pairs = [zip(a, b, strict=True) for a, b in ((model.log_probs, again.log_probs), (model.backoffs, again.backoffs))]
    probs, backoffs = (max((float(np.abs(x - y).max(initial=0.0)) for x, y in pair), default=0.0) for pair in pairs)
    return probs, backoffs


# round trips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("bits", [5, 8, 12])
def test_round_trip_keeps_ngrams_and_bounds_the_quantisation_error(tmp_path, order, bits):
    model = big_model(order)
    path = tmp_path / "m.compact"
    size = save_compact(model, path, bits)
    assert path.stat().st_size == size
    again = load_compact(path)
    same(model, again, tolerance=np.inf)  # words and n-grams are equal
    assert (model.log_probs[0] == again.log_probs[0]).all()
    for n in range(2, order + 1):
        pairs = [(model.log_probs[n - 1], again.log_probs[n - 1])]
        if n < order:
            pairs.append((model.backoffs[n - 1], again.backoffs[n - 1]))
        for exact, rounded in pairs:  # as if the centres stood at equal distances, or closer
            assert np.abs(exact - rounded).max() <= 2 * np.ptp(exact) / 2**bits
            assert rounded.dtype == np.float32
    held_out = ["w1 w2 w3 w1", "w0 w7", "zz w1"]
    assert again.perplexity(held_out) == pytest.approx(model.perplexity(held_out), rel=0.05 if bits < 8 else 0.01)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_pruned_and_quantised_probabilities_are_close_and_sum_to_one(tmp_path, order):
    """Of the model before it was written, every p(w | h) differs by at most the error of one listed probability and
    of the order - 2 back-off weights above order one that may be added to it: a factor of 1.12 here, 1.01 usually."""
    model = prune(big_model(order), max_ngrams=3000)
    save_compact(model, tmp_path / "m.compact")
    again = load_compact(tmp_path / "m.compact")
    prob_error, backoff_error = errors(model, again)
    bound = prob_error + (order - 2) * backoff_error + 1e-5
    assert bound < 0.05  # log10
    rng = np.random.default_rng(order)
    ids = np.arange(len(model.words))
    for _ in range(50):
        history = np.minimum(rng.zipf(1.3, size=order - 1), len(ids) - 1)
        grams = np.concatenate([np.broadcast_to(history, (len(ids), order - 1)), ids[:, None]], axis=1)
        before, after = model.log_probs_of(grams), again.log_probs_of(grams)
        assert np.abs(after - before).max() <= bound
        assert (10.0 ** before[ids != 1]).sum() == pytest.approx(1.0, abs=1e-4)
        assert abs((10.0 ** after[ids != 1]).sum() - 1.0) <= 10.0**bound - 1.0 + 1e-4
    differences = np.concatenate([a - b for a, b in zip(model.log_probs, again.log_probs, strict=True)])
    assert np.sqrt(np.mean(differences**2, dtype=np.float64)) < 0.005


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "straße", "it's"]), max_size=5), min_size=1), st.integers(1, 4))
def test_small_models_lose_nothing(tmp_path_factory, sentences, order):
    if not any(sentences):
        return
    path = tmp_path_factory.mktemp("lm") / "m.compact"
    model = estimate(sentences, order)
    save_compact(model, path)
    assert len(model.keys[-1]) < 255
    same(model, load_compact(path), tolerance=0.0)
    first = path.read_bytes()
    save_compact(load_compact(path), path)
    assert path.read_bytes() == first  # and are written the same again


def test_a_kenlm_binary_is_converted_without_loss(tmp_path):
    save_binary(big_model(3), tmp_path / "m.kenlm")
    model = load(tmp_path / "m.kenlm")
    save_compact(model, tmp_path / "m.compact")
    same(model, load(tmp_path / "m.compact"), tolerance=0.0)


def wide_model(words: int, followers: int) -> NgramModel:
    """A bigram model of many words, the first of which (``<unk>``) has many followers, the others none or one."""
    names = ("<unk>", "<s>", "</s>", *(f"w{i}" for i in range(words - 3)))
    keys = np.concatenate([np.arange(followers), np.arange(1, words) * words + words - 1])
    values = np.linspace(-5, -1, len(keys)).astype(np.float32)
    unigrams = np.full(words, -4, np.float32)
    return NgramModel(names, (np.arange(words), keys), (unigrams, values), (np.zeros(words, np.float32),))


@pytest.mark.parametrize(("words", "followers"), [(300, 254), (300, 255), (300, 256), (70_000, 65_536), (70_000, 3)])
def test_many_words_and_contexts_of_many_words(tmp_path, words, followers):
    model = wide_model(words, followers)
    save_compact(model, tmp_path / "m.compact", bits=16)
    again = load_compact(tmp_path / "m.compact")
    same(model, again, tolerance=1e-4)


def test_differences_are_small_and_add_up_again():
    words, counts = np.array([3, 9, 70_000, 2, 5, 5]), np.array([0, 3, 0, 2, 1, 0])
    steps = differences(words, counts)
    assert steps.tolist() == [3, 6, 69_991, 2, 3, 5]
    assert sums(steps, counts).tolist() == words.tolist()
    assert differences(words[:0], counts[:1]).tolist() == sums(words[:0], counts[:1]).tolist() == []


def test_packed_arrays_come_back_and_broken_ones_do_not():
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.integers(0, 9, 5000).astype(np.uint16),
        "b": rng.normal(size=100).astype(np.float32),
        "c": np.zeros(0, np.uint32),
        "d": np.frombuffer(b"word\n" * 50, np.uint8),
        "e": rng.integers(0, 2**32, 70_000).astype(np.uint32),
    }
    packed, spec = pack(arrays)
    again = {name: unpack(packed[name], *spec[name]) for name in arrays}
    assert all(again[name].dtype == array.dtype and (again[name] == array).all() for name, array in arrays.items())
    assert packed["a"].nbytes < 0.3 * arrays["a"].nbytes and packed["d"].nbytes < 30
    assert all(packed[name].nbytes <= most_bytes(array) for name, array in arrays.items())
    for kind, length in (("<u2", 4999), ("<u2", 5001), ("<u4", 5000), ("<i8", 5000), ("<u2", -1), ("<u2", 10**12)):
        with pytest.raises(ValueError):
            unpack(packed["a"], kind, length)
    for broken in (packed["a"][:-3], packed["a"][5:]):
        with pytest.raises(ValueError):
            unpack(broken, *spec["a"])


def test_files_of_the_first_version_are_read(tmp_path):
    from safetensors.numpy import save as write

    from asr.lm.compact import _arrays, _checksum

    model = big_model(3)
    save_compact(model, tmp_path / "new.lm")
    arrays = _arrays(model, 8)
    for n in (2, 3):
        arrays[f"{n}.words"] = model.last_words(n).astype(np.uint16)
    header = {"version": 1, "words": len(model.words), "counts": list(model.counts), "crc32": _checksum(arrays)}
    (tmp_path / "old.lm").write_bytes(write(arrays, {"asr.ngram": json.dumps(header)}))
    same(load(tmp_path / "old.lm"), load(tmp_path / "new.lm"), tolerance=0.0)
    assert (tmp_path / "new.lm").stat().st_size < 0.9 * (tmp_path / "old.lm").stat().st_size


def test_models_without_longer_ngrams(tmp_path):
    model = prune(big_model(3), max_ngrams=0)
    assert model.counts[1:] == (0,)
    save_compact(model, tmp_path / "m.compact")
    same(model, load(tmp_path / "m.compact"), tolerance=0.0)


def test_quantisation_is_exact_where_the_bins_suffice():
    values = np.array([-3.0, -1.0, -3.0, -2.5], np.float32)
    table, codes = quantise(values, 4)
    assert table.tolist() == [-3.0, -2.5, -1.0] and table[codes].tolist() == values.tolist()
    table, codes = quantise(values, 2)
    assert table.tolist() == pytest.approx([-8.5 / 3, -1.0]) and codes.tolist() == [0, 1, 0, 0]
    assert [len(part) for part in quantise(values[:0], 4)] == [0, 0]


# broken files --------------------------------------------------------------------------------------------------------


def assert_refused(path, reader=load_compact, what=""):
    with pytest.raises(LanguageModelError) as caught:
        reader(path)
    message = str(caught.value)
    assert message.startswith(f"the language model {path} cannot be read: ") and "\n" not in message
    assert what in message


def test_cut_files_are_errors_of_one_line(tmp_path):
    path = tmp_path / "m.compact"
    save_compact(big_model(3), path)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for length in (0, 4, 8, 9, 20, 60, header - 1, header, header + 7, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert_refused(path)
        assert_refused(path, load)
    path.write_bytes(data + b"\0")
    assert_refused(path, what="cut short or corrupt")


def test_changed_bytes_are_noticed(tmp_path):
    path = tmp_path / "m.compact"
    save_compact(big_model(3), path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in [*range(8), *rng.integers(8, len(data), 300).tolist()]:
        changed = bytearray(data)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(changed))
        try:
            load_compact(path)
        except LanguageModelError as error:
            assert "\n" not in str(error)
        else:  # only blanks between the header's parts say nothing
            assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]) is not None and data[place] == 0x20


def changed_file(path, change):
    """Rewrite a compact file with ``change(header, arrays)`` applied and the checksum right."""
    from safetensors import safe_open
    from safetensors.numpy import save as write

    from asr.lm.compact import _checksum

    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["asr.ngram"])
        packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    arrays = {name: unpack(packed[name], *of).copy() for name, of in header["arrays"].items()}
    change(header, arrays)
    packed, header["arrays"] = pack(arrays)
    header["crc32"] = _checksum(packed)
    path.write_bytes(write(packed, {"asr.ngram": json.dumps(header)}))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda h, a: h.update(version=3), "it has version 3, not 2: update the package"),
        (lambda h, a: h.pop("version"), "it is corrupt"),
        (lambda h, a: h.update(counts=[*h["counts"][:2], 5]), "the numbers of its 3-grams do not add up"),
        (lambda h, a: h.update(counts=[5, *h["counts"][1:]]), "words"),
        (lambda h, a: h.update(counts=[]), "it is corrupt"),
        (lambda h, a: h.update(counts="abc"), "it is corrupt"),
        (lambda h, a: h.update(words=3), "3 words"),
        (lambda h, a: a.pop("2.words"), "2.words"),
        (lambda h, a: a.update(words=a["words"][1:]), "first three words"),
        (lambda h, a: a.update(words=a["words"] | np.uint8(0x80)), "it is corrupt"),
        (lambda h, a: a["2.words"].fill(0), "not sorted"),
        (lambda h, a: a["3.words"].fill(60_000), "a 3-gram holds an unknown word"),
        (lambda h, a: a["1.children"].__setitem__(0, 255), "it is corrupt"),
        (lambda h, a: a["2.children"].__setitem__(0, 9), "do not add up"),
        (lambda h, a: a["2.log_probs.table"].fill(np.nan), "no log probabilities"),
        (lambda h, a: a["2.log_probs.table"].fill(1.0), "no log probabilities"),
        (lambda h, a: a.update({"2.backoffs.table": a["2.backoffs.table"][:1]}), "it is corrupt"),
        (lambda h, a: a.update({"2.log_probs": a["2.log_probs"][:-1]}), "differ in length"),
        (lambda h, a: a.update({"1.log_probs": a["1.log_probs"][:-1]}), "1.log_probs"),
        (lambda h, a: a.update({"2.log_probs": a["2.log_probs"].astype(np.float32)}), "it is corrupt"),
        (lambda h, a: a.update({"2.children": a["2.children"].astype(np.float64)}), "it is corrupt"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path, change, what):
    path = tmp_path / "m.compact"
    save_compact(big_model(3), path)
    changed_file(path, change)
    assert_refused(path, load, what)


def test_other_files_are_told_apart(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(LanguageModelError) as caught:
        load_compact(tmp_path / "gone.lm")
    assert str(caught.value) == f"there is no language model {tmp_path / 'gone.lm'}"
    assert_refused(tmp_path, what="directory")
    save_binary(big_model(2), tmp_path / "m.kenlm")
    write_arpa(big_model(2), tmp_path / "m.arpa")
    save_file({"x": np.zeros(3)}, tmp_path / "weights.safetensors")
    for name in ("m.kenlm", "m.arpa", "weights.safetensors"):
        assert_refused(tmp_path / name, what="it is no compact language model")
    assert_refused(tmp_path / "weights.safetensors", load, what="not an ARPA file")


def test_what_cannot_be_written_is_refused(tmp_path):
    model = estimate(["a"], 2)
    for bits in (1, 17):
        with pytest.raises(LanguageModelError, match="2 to 16 bits"):
            save_compact(model, tmp_path / "m", bits)
    with pytest.raises(LanguageModelError, match="cannot be written: No such file"):
        save_compact(model, tmp_path / "no" / "m")
    odd = NgramModel((*model.words[:-1], "a\nb"), model.keys, model.log_probs, model.backoffs)
    with pytest.raises(LanguageModelError, match="line break"):
        save_compact(odd, tmp_path / "m")


# sizes, formats, conversion ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "slack"), [("m.lm", 12_000), ("m.kenlm", 100), ("m.arpa", 5000)])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_pruning_to_the_bytes_of_each_format_fills_them(tmp_path, name, slack, order):
    model = big_model(order)
    count = file_size(name).counter(model)
    full, empty = (count([np.full(c, value) for c in model.counts[1:]]) for value in (True, False))
    assert save(model, tmp_path / name) <= full <= (tmp_path / name).stat().st_size + slack
    target = (full + empty) // 2
    assert target - slack <= save(prune(model, max_bytes=target, file_size=file_size(name)), tmp_path / name) <= target


def test_a_larger_table_is_counted(tmp_path):
    model, size = big_model(3), CompactSize(bits=12)
    everything = size.counter(model)([np.full(c, True) for c in model.counts[1:]])
    written = save_compact(model, tmp_path / "m", bits=12)
    assert 0.5 * everything <= written <= everything
    assert written > save_compact(model, tmp_path / "m", bits=8)


def test_the_name_says_the_format_and_reading_goes_by_content(tmp_path):
    model = big_model(2)
    written = {}
    for name in ("a.lm", "a.model", "words", "a.kenlm", "a.bin", "a.arpa", "a.arpa.gz"):
        assert save(model, tmp_path / name) == (tmp_path / name).stat().st_size
        written[name] = (tmp_path / name).read_bytes()
        (tmp_path / "renamed").write_bytes(written[name])
        if name != "a.arpa.gz":
            assert load(tmp_path / "renamed").counts == model.counts
    assert written["a.lm"] == written["a.model"] == written["words"] and b'"asr.ngram"' in written["a.lm"][:200]
    assert written["a.kenlm"] == written["a.bin"] and is_binary(tmp_path / "a.bin")
    assert written["a.arpa"].startswith(b"\\data\\") and written["a.arpa.gz"].startswith(b"\x1f\x8b")


def test_max_bytes_count_the_format_that_is_written(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(random_text(1, 800)))
    for name in ("m.lm", "m.kenlm", "m.arpa"):
        report = build([tmp_path / "t.txt"], tmp_path / name, order=4, max_bytes=8000)
        assert 3500 < report.bytes == (tmp_path / name).stat().st_size <= 8000
        assert report.counts < report.full_counts
    with pytest.raises(LanguageModelError, match="size of a compressed file"):
        build([tmp_path / "t.txt"], tmp_path / "m.arpa.gz", max_bytes=9000)
    assert not (tmp_path / "m.arpa.gz").exists()


def test_convert(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.arpa").write_text(SMALL_ARPA)
    assert main(["lm", "convert", "in.arpa", "out.lm"]) == 0
    size = (tmp_path / "out.lm").stat().st_size
    assert capfd.readouterr().out == f"out.lm: {size:,} bytes, 2 words, n-grams 5 + 3 + 1\n"
    assert main(["lm", "convert", "out.lm", "out.kenlm"]) == main(["lm", "convert", "out.kenlm", "back.arpa"]) == 0
    model = load("in.arpa")
    for name in ("out.lm", "out.kenlm", "back.arpa"):
        assert load(name).score("a b a") == pytest.approx(model.score("a b a"), abs=1e-4)
    words = np.random.default_rng(0).choice(list("abcdefgh"), (60, 6))
    save(estimate([" ".join(row) for row in words.tolist()], order=2, vocabulary=tuple("abcdefgh")), "full.lm")
    assert main(["lm", "convert", "full.lm", "few.lm", "--bits", "2"]) == 0
    values = [len(set(load(name).log_probs[1].tolist())) for name in ("full.lm", "few.lm")]
    assert values[0] > values[1] == 4
    capfd.readouterr()
    assert main(["lm", "convert", "in.arpa", "x.arpa", "--bits", "7"]) == 2
    assert "no compact file" in capfd.readouterr().err
    assert main(["lm", "convert", "gone.lm", "x.arpa"]) == 8
    assert capfd.readouterr().err == "asr: error: there is no language model gone.lm\n"
    (tmp_path / "bad").write_text("hello")
    assert main(["lm", "convert", "bad", "x.arpa"]) == 8
    assert capfd.readouterr().err.startswith("asr: error: the language model bad cannot be read: line 1: ")


@pytest.mark.slow
def test_a_large_file_is_read_at_once(tmp_path):
    rng = np.random.default_rng(0)
    ranks = np.minimum(rng.zipf(1.15, size=(60_000, 12)), 20_000)
    model = estimate([[f"word{i}" for i in row] for row in ranks.tolist()], 3)
    listed = sum(model.counts)
    assert listed > 500_000
    save_compact(model, tmp_path / "m.lm")
    save_binary(model, tmp_path / "m.kenlm")
    assert (tmp_path / "m.lm").stat().st_size <= (tmp_path / "m.kenlm").stat().st_size
    seconds = {}
    for name in ("m.lm", "m.kenlm"):
        start = time.process_time()
        load(tmp_path / name)
        seconds[name] = (time.process_time() - start) * 3.1e6 / listed
    assert seconds["m.lm"] < 0.5 and seconds["m.lm"] < seconds["m.kenlm"] / 1.5, seconds
