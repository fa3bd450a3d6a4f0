"""Training of one network for several look-aheads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from asr.errors import ConfigError
from asr.training.train import Trainer


def test_a_share_of_the_batches_looks_less_ahead(
    new_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer(short_lookaheads=[[0, 0]], short_share=0.5, optimizer={"hold": 60})
    seen: list[Sequence[int] | None] = []
    forward = trainer.model.forward

    def watched(*args: Any) -> Any:
        seen.append(args[3])
        return forward(*args)

    monkeypatch.setattr(trainer.model, "forward", watched)
    for _ in range(40):
        trainer.train_step()
    assert set(seen) == {None, (0, 0)}
    assert 10 <= sum(s is None for s in seen) <= 30


def test_what_is_drawn_is_a_function_of_the_place(new_trainer: Callable[..., Trainer]) -> None:
    first, second = (new_trainer(short_lookaheads=[[0, 0]], short_share=0.5) for _ in range(2))
    a = [first.train_step()["loss"] for _ in range(6)]
    b = [second.train_step()["loss"] for _ in range(6)]
    assert a == b


def test_short_must_be_shorter(new_trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ConfigError, match="reaches beyond"):
        new_trainer(short_lookaheads=[[2, 2]])
