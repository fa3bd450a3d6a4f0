"""The recurrent language model of the second pass: scores, states, files, training on a little text."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from asr.errors import LanguageModelError, ModelError, UsageError
from asr.lm import recurrent_train
from asr.lm.recurrent import BOUNDARY, RecurrentConfig, RecurrentModel, load, save
from asr.lm.recurrent_train import (
    BLOCK,
    Mixture,
    Network,
    TrainOptions,
    cut,
    learn_pieces,
    main,
    settled,
    train,
    windows,
)
from asr.vocabulary import BpeVocabulary

LINES = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog", "it is on the mat", "don't sit on it"]


@pytest.fixture(scope="module")
def model() -> RecurrentModel:
    pieces = BpeVocabulary.train(LINES, 70)
    config = RecurrentConfig(8, 16)
    rng = np.random.default_rng(0)
    return RecurrentModel(config, pieces, {n: rng.normal(0, 0.5, s) for n, s in config.shapes(len(pieces)).items()})


def test_scores_are_those_of_torch(model):
    import torch

    network = Network(model.config, len(model.pieces), 0.0).eval()
    network.load_state_dict({name: torch.from_numpy(w) for name, w in model.weights.items()})
    for text in (*LINES, ""):
        ids = [BOUNDARY, *model.pieces.encode(text), BOUNDARY]
        logits, _ = network(torch.tensor([ids[:-1]]), None)
        wanted = logits.log_softmax(-1)[0, range(len(ids) - 1), ids[1:]]
        total = wanted.sum().item() / np.log(10)
        assert model.score([text], end=True)[0] == pytest.approx(total, abs=1e-4)
        assert model.score([text])[0] == pytest.approx(wanted[:-1].sum().item() / np.log(10), abs=1e-4)
        assert model.piece_log_probs(np.array(ids[1:])).sum() / np.log(10) == pytest.approx(total, abs=1e-4)


def test_texts_together_score_as_alone(model):
    texts = [*LINES, LINES[0], "the cat", "", "the cat sat on the log", "the"]
    state = model.advance("it is", model.begin())
    for end in (False, True):
        together = model.score(texts, state, end)
        assert together == pytest.approx([model.score([t], state, end)[0] for t in texts], abs=1e-5)
        assert together[0] == together[len(LINES)] and len(set(together.tolist())) == len(texts) - 1
    assert model.score([]).shape == (0,)


def test_a_state_stands_for_all_that_was_said(model):
    whole = model.score(["the cat sat on the mat"])[0]
    first, state = model.score(["the cat"])[0], model.advance("the cat", model.begin())
    assert first + model.score(["sat on the mat"], state)[0] == pytest.approx(whole, abs=1e-5)
    ended = model.advance("the cat", model.begin(), end=True)
    assert ended.last == BOUNDARY and state.last != BOUNDARY
    assert model.score(["sat"], ended)[0] != pytest.approx(model.score(["sat"])[0], abs=1e-6)


def test_probabilities_of_what_may_follow_sum_to_one(model):
    state = model.advance("the cat", model.begin())
    h, _ = model._lstm(np.array([state.last]), state.h[None], state.c[None])
    assert np.exp(model._log_probs(h)).sum() == pytest.approx(1.0, abs=1e-5)


def test_letters_that_no_piece_has_are_refused(model):
    with pytest.raises(UsageError, match="normalise the text first"):
        model.score(["straße"])


def test_files(tmp_path, model):
    size = save(model, tmp_path / "m.lm")
    assert size == (tmp_path / "m.lm").stat().st_size
    again = load(tmp_path / "m.lm")
    assert again.config == model.config and again.pieces.merges == model.pieces.merges
    assert again.score(LINES) == pytest.approx(model.score(LINES), rel=0.02)
    save(again, tmp_path / "again.lm")
    assert (tmp_path / "again.lm").read_bytes() == (tmp_path / "m.lm").read_bytes()
    with pytest.raises(LanguageModelError, match=r"there is no language model .*gone"):
        load(tmp_path / "gone")
    with pytest.raises(LanguageModelError, match="cannot be written"):
        save(model, tmp_path / "no" / "m.lm")


def changed(path, **header):
    from safetensors import safe_open
    from safetensors.numpy import save as pack

    with safe_open(path, framework="np") as file:
        values = json.loads(file.metadata()["asr.recurrent"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path.write_bytes(pack(arrays, {"asr.recurrent": json.dumps({**values, **header})}))


@pytest.mark.parametrize(
    "header",
    [
        {"format": 2},
        {"config": {"embedding": 8, "hidden": 17}},
        {"config": {"embedding": 8, "hidden": 0}},
        {"config": {"width": 8}},
        {"config": 3},
        {"pieces": {"kind": "characters", "units": ["<blank>", "a"]}},
        {"pieces": {"kind": "bpe", "units": ["<blank>", "a"], "merges": [["a"]]}},
        {"pieces": None},
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path, model, header):
    path = tmp_path / "m.lm"
    save(model, path)
    changed(path, **header)
    with pytest.raises(LanguageModelError) as caught:
        load(path)
    assert str(caught.value).startswith(f"the language model {path} cannot be read: ") and "\n" not in str(caught.value)


def test_other_and_cut_files_are_refused(tmp_path, model):
    save(model, tmp_path / "m.lm")
    data = (tmp_path / "m.lm").read_bytes()
    for content in (b"", b"hello", data[:40], data[:-1], data + b"\0"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(LanguageModelError, match="cannot be read"):
            load(tmp_path / "bad")


def test_weights_that_do_not_fit_are_refused(model):
    weights = dict(model.weights)
    with pytest.raises(ModelError, match="hold NaN"):
        RecurrentModel(model.config, model.pieces, {**weights, "bias": weights["bias"] * np.nan})
    weights.pop("bias")
    with pytest.raises(ModelError, match="do not fit"):
        RecurrentModel(model.config, model.pieces, weights)


def test_texts_come_by_their_shares_and_in_order():
    rng = np.random.default_rng(1)
    blocks = (tuple(np.full(10, 5) for _ in range(3)), tuple(np.full(20, 6) for _ in range(50)))
    drawn = Mixture(blocks, (0.25, 0.75)).draw(rng)
    seen = np.concatenate([next(drawn) for _ in range(400)])
    assert np.mean(seen == 5) == pytest.approx(0.25, abs=0.01)
    first, second = [w for w, _ in zip(windows(Mixture(blocks, (1, 1)), 4, 7, 0), range(2), strict=False)]
    assert first.shape == (4, 8) and (first[:, -1] == second[:, 0]).all() and (first[:, 0] == BOUNDARY).all()


def test_a_little_training_learns_the_text():
    lines = LINES * 120
    options = TrainOptions(pieces=80, words=12_000, rows=4, window=16, rate=1e-2, dropout=0.0, hold=10)
    model = train([lines[:300], lines[300:]], [0.5, 0.5], RecurrentConfig(16, 32), options)
    good, bad = model.score(["the cat sat on the mat", "the mat cat on the sat"])
    assert good > bad + 1.0
    assert good / 6 > -1.2  # log10 per word; nothing learned would be some -4


def test_going_on_from_a_model_begins_where_it_was():
    config, held = RecurrentConfig(16, 32), ["the cat sat on the mat"]
    options = TrainOptions(pieces=80, words=12_000, rows=4, window=16, rate=1e-2, dropout=0.0, hold=10)
    first = train([LINES * 120], [1.0], config, options)
    little = replace(options, words=65, rate=1e-9)
    on = train([LINES * 120], [1.0], config, replace(little, normalise=0.0), init=first)
    assert on.pieces is first.pieces
    assert on.score(held) == pytest.approx(first.score(held), abs=1e-3)
    fresh = train([LINES * 120], [1.0], config, little)
    assert fresh.score(held)[0] < first.score(held)[0] - 3
    with pytest.raises(LanguageModelError, match="vectors of 16 and 32 units"):
        train([LINES], [1.0], RecurrentConfig(16, 48), little, init=first)


def test_logarithms_that_miss_little_are_taken_as_they_are(model):
    weights = {**model.weights, "bias": model.weights["bias"] + 1}
    shifted = RecurrentModel(model.config, model.pieces, weights)
    block = np.array(model.pieces.encode("the cat sat on the mat"))
    assert shifted.piece_log_probs(block) == pytest.approx(model.piece_log_probs(block), abs=1e-5)
    spread = model.piece_logits(block)[1].std()
    for limit, near in ((spread * 1.01, True), (spread * 0.99, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recurrent_train, "CLOSE", limit)
            done = settled(shifted, [block])
        assert done.config.normalised is near
        assert done.piece_logits(block)[1].mean() == pytest.approx(0, abs=1e-5)
        assert done.piece_log_probs(block) == pytest.approx(model.piece_log_probs(block), abs=1e-5)
    assert settled(model, []) is model


def test_whether_it_is_normalised_is_written(model, tmp_path):
    config = RecurrentConfig(model.config.embedding, model.config.hidden, normalised=True)
    save(RecurrentModel(config, model.pieces, model.weights), tmp_path / "m")
    assert load(tmp_path / "m").config == config


def test_pieces_and_blocks():
    pieces = learn_pieces([LINES, LINES], 64)
    assert len(pieces) == 64
    blocks = cut([*LINES, "café au lait"] * 100, pieces, np.random.default_rng(0))
    assert len(blocks) == -(-(len(LINES) + 1) * 100 // BLOCK) and all(b.dtype == np.int16 for b in blocks)
    spoken = pieces.decode(np.concatenate(blocks).tolist())
    assert "cat sat" in spoken and "lait" not in spoken
    boundaries = sum(int((b == BOUNDARY).sum()) for b in blocks)
    assert 350 < boundaries < 450  # of 500 lines


def test_the_command_line(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("\n".join(LINES * 20))
    arguments = ["--words", "200", "--pieces", "60", "--embedding", "8", "--hidden", "8", "--rows", "2"]
    assert main([f"{tmp_path / 't.txt'}=1", "-o", str(tmp_path / "m.lm"), *arguments]) == 0
    assert f"{(tmp_path / 'm.lm').stat().st_size:,} bytes" in capsys.readouterr().out
    assert load(tmp_path / "m.lm").score(["the cat"])[0] < 0
    arguments = ["--words", "200", "--rows", "2", "--init", str(tmp_path / "m.lm")]
    assert main([f"{tmp_path / 't.txt'}=1", "-o", str(tmp_path / "on.lm"), *arguments]) == 0
    assert load(tmp_path / "on.lm").config.hidden == 8  # as what it goes on from
